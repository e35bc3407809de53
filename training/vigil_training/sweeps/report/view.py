"""What the page of a sweep shows, and what follows from its trials: the best ones and the importances of the parameters."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite

import optuna
from optuna.trial import FrozenTrial, TrialState

MIN_TRIALS_FOR_IMPORTANCES = 10
"""PED-ANOVA compares the best trials with all of them; with fewer complete trials its result is noise."""

_TOP_TRIALS = 5
"""The authors of the implementation advise at least this number of trials above the quantile of the best."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A metric that is optimized.

    Attributes:
        metric: its name.
        maximize: whether higher is better.
    """

    metric: str
    maximize: bool

    def better(self, left: float, right: float) -> bool:
        """Return whether the left value is better."""
        return left > right if self.maximize else left < right


@dataclass(frozen=True)
class SweepView:
    """A sweep as the page shows it.

    Attributes:
        name: name of the sweep.
        objectives: what is optimized; several make a Pareto front.
        trials: all trials in the order of their numbers, which are 0, 1, ….
        facts: lines of the header, such as the recipe and the sampler.
        planned: number of trials that the sweep ends with; ``None`` if it is not known.
    """

    name: str
    objectives: tuple[Objective, ...]
    trials: Sequence[FrozenTrial]
    facts: dict[str, str] = field(default_factory=dict)
    planned: int | None = None

    @cached_property
    def complete(self) -> list[FrozenTrial]:
        """Trials that ended with finite values."""
        return [trial for trial in self.trials if trial.state == TrialState.COMPLETE and all(map(isfinite, trial.values))]

    def count(self, state: str) -> int:
        """Return the number of trials in a state, such as ``PRUNED``."""
        return sum(trial.state == TrialState[state] for trial in self.trials)

    @cached_property
    def feasible(self) -> list[FrozenTrial]:
        """Complete trials that satisfy the constraints."""
        return [trial for trial in self.complete if is_feasible(trial)]

    @cached_property
    def best(self) -> list[FrozenTrial]:
        """The best feasible trial; for several objectives the Pareto front, in the order of the first objective."""
        if not self.feasible:
            return []
        if len(self.objectives) == 1:
            sign = -1 if self.objectives[0].maximize else 1
            return [min(self.feasible, key=lambda trial: (sign * trial.values[0], trial.number))]
        front = [trial for trial in self.feasible if not any(self._dominates(other, trial) for other in self.feasible)]
        return sorted(front, key=lambda trial: (trial.values[0], trial.number))

    def is_best(self, trial: FrozenTrial) -> bool:
        """Return whether a trial is the best, or on the Pareto front."""
        return trial.number in self._best_numbers

    @cached_property
    def parameters(self) -> list[str]:
        """Parameters of the space, in the order in which trials first have them."""
        return list(dict.fromkeys(name for trial in self.trials for name in trial.distributions))

    def importances(self, objective: int) -> dict[str, float]:
        """Return how much each parameter distinguishes the best trials from all, by PED-ANOVA (Watanabe et al., 2023).

        Args:
            objective: index of the objective.

        Returns:
            Parameters to shares that sum to 1, the highest first; empty with fewer than ten complete trials, and if all of
            them are equal.
        """
        values = {trial.values[objective] for trial in self.complete}
        if len(self.complete) < MIN_TRIALS_FOR_IMPORTANCES or len(values) < 2:
            return {}
        sign = -1 if self.objectives[objective].maximize else 1
        quantile = min(0.5, max(0.1, _TOP_TRIALS / len(self.complete)))
        verbosity = optuna.logging.get_verbosity()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # That the method is experimental, and that a parameter never varied.
            optuna.logging.set_verbosity(optuna.logging.ERROR)
            try:
                study = optuna.create_study()
                for trial in self.complete:
                    value = sign * trial.values[objective]
                    study.add_trial(
                        optuna.trial.create_trial(value=value, params=trial.params, distributions=trial.distributions)
                    )
                evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile)
                found = optuna.importance.get_param_importances(study, evaluator=evaluator)
            finally:
                optuna.logging.set_verbosity(verbosity)
        return {name: value for name, value in found.items() if isfinite(value)} if sum(found.values()) > 0 else {}

    @cached_property
    def _best_numbers(self) -> set[int]:
        return {trial.number for trial in self.best}

    def _dominates(self, left: FrozenTrial, right: FrozenTrial) -> bool:
        pairs = list(zip(self.objectives, left.values, right.values, strict=True))
        return not any(of.better(r, l) for of, l, r in pairs) and any(of.better(l, r) for of, l, r in pairs)


def is_feasible(trial: FrozenTrial) -> bool:
    """Return whether a trial satisfies all constraints: each is at most 0."""
    return all(value <= 0 for value in trial.constraints.values())

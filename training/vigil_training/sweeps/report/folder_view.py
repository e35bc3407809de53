"""The view of a sweep folder, as its workers have left it so far."""

from vigil_training.sweeps.report.view import Objective, SweepView
from vigil_training.sweeps.sweep_folder import SweepFolder


def read_view(folder: SweepFolder) -> SweepView:
    """Read the trials of a sweep folder; nothing is written, and workers may be running."""
    plan = folder.plan
    spec = plan.spec
    searched = {"Function": spec.function} if spec.function is not None else {"Recipe": plan.recipe.name if plan.recipe else ""}
    facts = {**searched, "Sampler": spec.sampler.kind, "Pruner": spec.pruner.kind}
    objectives = tuple(Objective(metric.name, metric.sense == "maximize") for metric in spec.metric)
    trials = folder.study().get_trials(deepcopy=False)
    return SweepView(spec.name, objectives, trials, {name: str(fact) for name, fact in facts.items()}, plan.trials)

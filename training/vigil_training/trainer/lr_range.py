"""Learning-rate range test: train for some steps while the rate rises exponentially (Smith 2017, section 3.3).

Lightning's ``LearningRateFinder`` sets one rate for all parameter groups, which loses ``lr_factor`` and ``layer_decay``, and
saves a checkpoint; this trains with the same module, data and trainer as a run, and writes nothing.

Example:
    >>> result = run_range_test(recipe, RangeTest())
    >>> result.suggestion, result.diverged
    (0.00021, 0.018)
"""

import math
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray
from torch.optim.lr_scheduler import LambdaLR

from vigil_data.dataset.dataset import Dataset
from vigil_data.errors import Failure, UserError
from vigil_data.progress import Progress
from vigil_modeling.losses import MaskedLoss
from vigil_modeling.safety_model import build_model
from vigil_training.checkpoint.warm_start import warm_start
from vigil_training.distributed.preemption import Preemption
from vigil_training.distributed.session import Session, open_session
from vigil_training.distributed.strategies.factory import build_strategy
from vigil_training.distributed.world import World
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.specs import Ranks, Single
from vigil_training.runs.prompt_order import decide_prompt_order
from vigil_training.trainer.callbacks import EarlyStopping
from vigil_training.trainer.data_module import DataModule
from vigil_training.trainer.lightning_internals import ends_optimizer_step
from vigil_training.trainer.lightning_module import TrainingModule, training_module
from vigil_training.trainer.lightning_trainer import build_trainer
from vigil_training.trainer.warning_filters import ignore_expected_warnings

SMOOTHING = 0.9
"""Share of the moving average of the losses that a step keeps."""
DIVERGED = 4.0
"""Training has diverged when the smoothed loss exceeds the lowest by this factor."""
MIN_STEPS = 20


@dataclass(frozen=True, slots=True)
class RangeTest:
    """The rates of a range test.

    Attributes:
        first: rate of the first step.
        last: rate of the last step.
        steps: optimizer steps.

    Raises:
        UserError: if the rates do not rise, or there are too few steps.
    """

    first: float = 1e-6
    last: float = 1.0
    steps: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.first < self.last < math.inf:
            raise UserError(f"--min {self.first:g} --max {self.last:g}: rates rise from a positive minimum to a larger maximum")
        if self.steps < MIN_STEPS:
            raise UserError(f"--steps {self.steps}: the curve needs {MIN_STEPS} steps at least")

    def rate(self, step: int) -> float:
        """Return the rate of a step, from 0."""
        return float(self.first * (self.last / self.first) ** (step / (self.steps - 1)))


@dataclass(frozen=True, slots=True)
class RangeCurve:
    """Losses of a range test, up to its end or divergence.

    Attributes:
        rates: learning rate of each of S steps, float64 ``[S]``.
        losses: loss of each step, ``[S]``; the last one may not be finite.
        smoothed: their moving average, corrected for its start, ``[S]``.
        suggestion: rate at which the smoothed loss falls most steeply; ``None`` if it never falls.
        lowest: rate at which it is lowest.
        diverged: rate at which training had diverged; ``None`` if it did not.
    """

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]
    smoothed: NDArray[np.float64]
    suggestion: float | None
    lowest: float
    diverged: float | None


def analyse(rates: NDArray[np.float64], losses: NDArray[np.float64]) -> RangeCurve:
    """Find the suggestion and the divergence of a curve, which is cut where it has diverged."""
    average, smoothed, diverged = 0.0, list[float](), None
    for number, loss in enumerate(losses, start=1):
        average = SMOOTHING * average + (1 - SMOOTHING) * float(loss)
        smoothed.append(average / (1 - SMOOTHING**number))
        if not math.isfinite(loss) or smoothed[-1] > DIVERGED * min(smoothed):
            diverged = float(rates[number - 1])
            break
    found = np.array(smoothed)
    finite = np.isfinite(found)
    lowest = int(np.argmin(np.where(finite, found, np.inf)))
    suggestion = None
    if lowest > 1:
        slopes = np.gradient(found[: lowest + 1], np.log(rates[: lowest + 1]))
        if slopes.min() < 0:
            suggestion = float(rates[int(np.argmin(slopes))])
    used = len(found)
    return RangeCurve(rates[:used], losses[:used], found, suggestion, float(rates[lowest]), diverged)


class _RangeModule(TrainingModule):
    """A module in training whose learning rates rise exponentially."""

    test: RangeTest

    def configure_optimizers(self) -> Any:
        """Build AdamW over the recipe's groups, and the ramp."""
        optimizer = self._build_optimizer()
        ramp = LambdaLR(optimizer, lambda step: self.test.rate(step) / self.test.first)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": ramp, "interval": "step"}}


class _Recorder(pl.Callback):
    """Records the loss of each optimizer step, and ends training when it has diverged."""

    def __init__(self, test: RangeTest, session: Session, progress: Progress) -> None:
        self._test, self._session, self._progress = test, session, progress
        self.losses: list[float] = []

    def curve(self) -> RangeCurve:
        """Return the curve so far."""
        rates = np.array([self._test.rate(step) for step in range(len(self.losses))])
        return analyse(rates, np.array(self.losses))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
        """Record a step."""
        del arguments
        if (name := self._session.preemption.asked) is not None:
            raise Failure(f"stopped by {name}; a range test cannot be resumed")
        if ends_optimizer_step(trainer):
            module = training_module(pl_module)
            self.losses.append(math.nan if module.skipped else float(module.step_metrics["train/loss"]))
            rate = self._test.rate(trainer.global_step - 1)
            self._progress("range test", trainer.global_step, self._test.steps, f"lr {rate:.2g}, loss {self.losses[-1]:.4g}")
            if self.curve().diverged is not None:
                trainer.should_stop = True


def run_range_test(recipe: Recipe, test: RangeTest) -> RangeCurve:
    """Train a fresh model of a recipe on one device while the rate rises; nothing is written.

    An optimizer step has as many items as one of the recipe's: the batches of its ranks are accumulated. All weights that the
    recipe trains at some time are trained from the beginning.

    Args:
        recipe: the recipe; its ``optimizer.lr``, schedule and length are replaced.
        test: rates and steps.

    Raises:
        UserError: for a mistake in the recipe or the dataset.
        Failure: if training fails, or is asked to stop.
    """
    if recipe.objective.kind == "contrastive":
        raise UserError("objective: the range test trains a classifier; contrastive pre-training has none")
    recipe = decide_prompt_order(recipe)
    ranks = recipe.strategy.world if isinstance(recipe.strategy, Ranks) else 1
    # An epoch has one step at least.
    length = {"epochs": test.steps, "max_steps": test.steps, "accumulate": recipe.training.accumulate * ranks, "patience": None}
    training = recipe.training.model_copy(update={**length, "ema": None, "compile": False})
    optimizer = recipe.optimizer.model_copy(update={"lr": test.first})
    recipe = recipe.model_copy(update={"training": training, "optimizer": optimizer, "strategy": Single()})
    with ignore_expected_warnings(), Preemption() as asked, open_session(recipe, World(), asked) as session:
        pl.seed_everything(recipe.seed, verbose=False)
        model = build_model(recipe.model, recipe.inputs, recipe.taxonomy)
        if recipe.init_from is not None:
            warm_start(model, recipe)
        model.store_frozen_weights(recipe.model)
        if training.activation_checkpointing:
            model.checkpoint_activations()
        data = DataModule(recipe, Dataset(recipe.data.dataset, recipe.data.version).version)
        loss = MaskedLoss(recipe.loss, recipe.taxonomy, data.target_counts, model.structure)
        module = _RangeModule(model, loss, recipe, test.steps, session.ranks, group_names=data.group_names)
        module.test = test
        with Progress("range test", unit="steps") as progress:
            recorder = _Recorder(test, session, progress)
            strategy = build_strategy(recipe, World(), session.device)
            trainer = build_trainer(recipe, strategy, session, [], [EarlyStopping(training), recorder])
            trainer.limit_val_batches = 0
            try:
                trainer.fit(module, datamodule=data)
            except SystemExit as exit_:  # Lightning turns an interrupt into an exit.
                raise KeyboardInterrupt from exit_
    return recorder.curve()

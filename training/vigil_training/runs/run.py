"""A run: the folder with all that a training left, and the model in it."""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath
from vigil_training.recipe.recipe import Recipe

if TYPE_CHECKING:
    from vigil_data.dataset.dataset import Dataset
    from vigil_evaluation.calibration.calibrators import FittedCalibration
    from vigil_evaluation.policy.compiled_policy import CompiledPolicy
    from vigil_modeling.safety_model import SafetyModel


class Run:
    """The layout of a run folder.

    Args:
        path: the folder; see ``docs/training.md`` for what lies in it.

    Raises:
        UserError: if it is not a run.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(f"{self.path}: no such run folder; `vigil train` makes one")
        if not self.resolved.is_file():
            raise UserError(f"{self.path}: not a run: it has no {self.resolved.name}; name a folder that `vigil train` filled")

    @property
    def resolved(self) -> Path:
        """The whole recipe, as it was run."""
        return self.path / "resolved.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint, sound or not."""
        return next(self.checkpoints.glob("step-*"), None) is not None

    @property
    def metrics(self) -> Path:
        """One JSON object a line: step, epoch and numbers."""
        return self.path / "metrics.jsonl"

    @property
    def thresholds(self) -> Path:
        """Label to threshold, JSON; written when all else is done, so it marks a finished run."""
        return self.path / "thresholds.json"

    @property
    def calibration(self) -> Path:
        """How raw probabilities become calibrated ones, JSON."""
        return self.path / "calibration.json"

    @property
    def policy(self) -> Path:
        """The compiled policy, JSON; there once `vigil policy compile` has put it there."""
        return self.path / "policy.json"

    @property
    def environment(self) -> Path:
        """Versions, machine, git state and dataset, JSON."""
        return self.path / "environment.json"

    @property
    def log(self) -> Path:
        """What was said while it trained."""
        return self.path / "train.log"

    def rank_log(self, rank: int) -> Path:
        """What another rank than the first said."""
        return self.path / "ranks" / f"rank-{rank}.log"

    @property
    def attempt(self) -> Path:
        """Token of the newest start of the run; an older one that still lives writes no checkpoint any more."""
        return self.path / "attempt"

    @property
    def failure(self) -> Path:
        """Why the last start failed, JSON; absent while it goes on, after it was preempted, and when it has finished."""
        return self.path / "failure.json"

    @property
    def stacks(self) -> Path:
        """Where every rank was when the run hung: a folder for the start, with a file for each rank."""
        return self.path / "stacks"

    @property
    def quarantine(self) -> Path:
        """Items that could not be decoded, one JSON object a line."""
        return self.path / "quarantine.jsonl"

    @property
    def finished(self) -> bool:
        """Whether training ended and thresholds were chosen."""
        return self.thresholds.is_file()

    def evaluation(self, name: str) -> Path:
        """Folder of the evaluation on the split ``name``."""
        return self.path / "evaluation" / name

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe that was run."""
        from vigil_training.recipe.resolve import read_recipe

        return read_recipe(self.resolved)

    @property
    def tracked_id(self) -> str | None:
        """The id of the tracked run in Weights & Biases; ``None`` where none was kept."""
        path = self.path / "wandb_id"
        return (path.read_text(encoding="utf-8").strip() or None) if path.is_file() else None

    def read_environment(self) -> dict[str, Any]:
        """What :attr:`environment` holds; empty if it is not there."""
        return dict(json.loads(self.environment.read_text())) if self.environment.is_file() else {}

    def read_thresholds(self) -> dict[str, float]:
        """Label to the probability at which it is taken as given.

        Raises:
            UserError: if the run has not finished.
        """
        if not self.finished:
            raise UserError(
                f"{self.path}: the run has not finished: it has no {self.thresholds.name}; resume it with `vigil train`"
            )
        return dict(json.loads(self.thresholds.read_text()))

    def read_calibrated(self) -> "FittedCalibration":
        """How raw probabilities become calibrated ones; as they are where the run has no calibration.

        Raises:
            UserError: if the file cannot be read, or is of other labels.
        """
        from vigil_evaluation.calibration.calibrators import FittedCalibration, Calibration

        labels = self.recipe.taxonomy.labels
        if not self.calibration.is_file():
            return FittedCalibration(Calibration.identity(labels), None, None)
        return FittedCalibration.read(self.calibration, labels)

    def read_policy(self) -> "CompiledPolicy | None":
        """The compiled policy, if there is one.

        Raises:
            UserError: if the file cannot be read.
        """
        if not self.policy.is_file():
            return None
        from vigil_evaluation.policy.compiled_policy import CompiledPolicy

        return CompiledPolicy.read(self.policy)

    def current_policy(self) -> "CompiledPolicy | None":
        """The compiled policy, if there is one, made for the calibration that the run has now.

        Raises:
            UserError: if the run was calibrated anew after the policy was compiled: its thresholds are of other probabilities.
        """
        policy = self.read_policy()
        made_for = None if policy is None else policy.facts.get("calibration")
        if made_for is not None and made_for != self.calibration_digest():
            raise UserError(
                f"{self.policy}: was compiled before the run was calibrated anew, and its thresholds are of other probabilities; "
                f"compile it again with `vigil policy compile`, or delete it"
            )
        return policy

    def calibration_digest(self) -> str | None:
        """SHA-256 of :attr:`calibration`; ``None`` where there is none."""
        return hashlib.sha256(self.calibration.read_bytes()).hexdigest() if self.calibration.is_file() else None

    def dataset(self) -> "Dataset":
        """The dataset in the version that the run was trained on.

        Raises:
            UserError: if it is not there any more.
        """
        from vigil_data.dataset.dataset import Dataset

        began = self.read_environment()["dataset"]
        return Dataset(Path(began["path"]), began["version"])

    def checkpoint(self, name: str = "best") -> Path:
        """The folder of a checkpoint, or a file of weights made of one.

        Args:
            name: ``best``, ``last``, the name of one of the run's checkpoints, or a path.

        Raises:
            UserError: if it is not there.
        """
        from vigil_training.checkpoint import reader

        if name == "best":
            return reader.best_checkpoint(self.checkpoints, self.recipe.training.mode)
        if name == "last":
            return reader.last_checkpoint(self.checkpoints)
        path = self.checkpoints / name if (self.checkpoints / name).exists() else Path(name)
        if not path.exists():
            raise UserError(
                f"{path}: no such checkpoint; a run's checkpoints are best, last, or one that `vigil checkpoint` shows"
            )
        return path

    def model(self, checkpoint: str = "best") -> "SafetyModel":
        """The model with the weights of a checkpoint, in evaluation mode.

        Args:
            checkpoint: as for :meth:`checkpoint`.

        Raises:
            UserError: if the checkpoint is not there, cannot be read, or is of another model.
        """
        from vigil_training.checkpoint.reader import load_weights
        from vigil_training.runs.assemble import assemble

        path = self.checkpoint(checkpoint)
        model = assemble(self.recipe, load_weights=False)
        load_weights(model, path)
        return model.eval()


def check_run(recipe: Recipe, folder: Path) -> bool:
    """Whether a folder holds a run of a recipe that goes on; until something is saved in it, the recipe may still change.

    Raises:
        UserError: if the folder holds something else, or a run of another recipe.
    """
    started = (folder / "resolved.yaml").is_file()
    if started and ((run := Run(folder)).finished or run.has_checkpoint):
        if different := differences(run.recipe.model_dump(mode="json"), recipe.model_dump(mode="json")):
            raise UserError(
                f"{folder}: holds a run of a different recipe; name another folder with --run, or undo these:",
                *(f"{key}: the run has {_short(old)}, the recipe {_short(new)}" for key, old, new in different),
            )
        return True
    if not started and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: not a run and not an empty folder; name another with --run")
    return False


def open_run(recipe: Recipe, resolved_text: str, folder: Path) -> Run:
    """Make the run folder, or check that it is one of this recipe.

    Args:
        recipe: what is to be run.
        resolved_text: the same, written out whole.
        folder: absent, empty, or a run.

    Raises:
        UserError: as for :func:`check_run`.
    """
    if not check_run(recipe, folder):
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / ".resolved.yaml.part"
        beside.write_text(resolved_text)
        beside.replace(folder / "resolved.yaml")
    return Run(folder)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, with both values."""
    found: list[tuple[str, Any, Any]] = []
    for key in [*old, *(k for k in new if k not in old)]:
        left, right, where = old.get(key), new.get(key), f"{path}{key}"
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += differences(left, right, f"{where}.")
        elif left != right:
            found.append((where, left, right))
    return found


def digest(recipe: Recipe) -> str:
    """SHA-256 of a resolved recipe, by which a checkpoint knows whose it is."""
    return hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."

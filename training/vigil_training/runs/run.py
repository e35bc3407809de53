"""The run folder: what `vigil train` writes, and the model in it.

Example:
    >>> run = Run("runs/demo")
    >>> run.finished, run.read_thresholds()["spam"]
    (True, 0.42)
    >>> model = run.model("best")
"""

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath, sha256_file, sha256_json, write_file
from vigil_modeling.specs import GuardSpec
from vigil_training.recipe.recipe import Recipe

if TYPE_CHECKING:
    from vigil_data.dataset.dataset import Dataset
    from vigil_evaluation.calibration.calibrators import FittedCalibration
    from vigil_evaluation.policy.compiled_policy import CompiledPolicy
    from vigil_modeling.multimodal_model import MultimodalModel


RUN_ID = "run_id"
"""Name of the file with the id of a run."""


class Run:
    """The layout of a run folder.

    Args:
        path: the folder; ``docs/training.md`` lists its files.

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
        """The resolved recipe, with every default."""
        return self.path / "resolved.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint, intact or damaged."""
        return next(self.checkpoints.glob("step-*"), None) is not None

    @property
    def metrics(self) -> Path:
        """Metrics, one JSON object a line: step, epoch and values."""
        return self.path / "metrics.jsonl"

    @property
    def thresholds(self) -> Path:
        """Threshold of each label, JSON; written last, so it marks a finished run."""
        return self.path / "thresholds.json"

    @property
    def retrieval(self) -> Path:
        """Recall of a run of contrastive pre-training on validation, JSON; written last, in place of thresholds."""
        return self.path / "retrieval.json"

    @property
    def calibration(self) -> Path:
        """Calibration of raw probabilities, JSON."""
        return self.path / "calibration.json"

    @property
    def policy(self) -> Path:
        """Compiled policy, JSON; written by `vigil policy compile`."""
        return self.path / "policy.json"

    @property
    def environment(self) -> Path:
        """Versions, machine, git state and dataset, JSON."""
        return self.path / "environment.json"

    @property
    def plan(self) -> Path:
        """Length of the run, number of weights and memory of a rank, as planned at the last start, JSON."""
        return self.path / "plan.json"

    @property
    def code_diff(self) -> Path:
        """How the code differed from its commit at the last start; absent if it did not, and outside a git checkout."""
        return self.path / "code.diff"

    @property
    def teacher(self) -> Path:
        """The teacher's probabilities of the training items, in distillation."""
        return self.path / "teacher.parquet"

    @property
    def log(self) -> Path:
        """Log of rank 0."""
        return self.path / "train.log"

    def rank_log(self, rank: int) -> Path:
        """Return the log of another rank."""
        return self.path / "ranks" / f"rank-{rank}.log"

    @property
    def attempt(self) -> Path:
        """Token of the newest start of the run; an older start that is still alive writes no checkpoint."""
        return self.path / "attempt"

    @property
    def starts(self) -> Path:
        """When, where and how each start began and ended, one JSON object a line."""
        return self.path / "starts.jsonl"

    @property
    def failure(self) -> Path:
        """Reason why the last start failed, JSON; absent while it runs, after a preemption, and when the run has finished."""
        return self.path / "failure.json"

    @property
    def stacks(self) -> Path:
        """Stack traces of all ranks of a run that hung: a folder for each start, with a file for each rank."""
        return self.path / "stacks"

    @property
    def profile(self) -> Path:
        """Traces and tables of ``training.profile``, two files of each rank."""
        return self.path / "profile"

    @property
    def quarantine(self) -> Path:
        """Items that could not be decoded, one JSON object a line."""
        return self.path / "quarantine.jsonl"

    @property
    def finished(self) -> bool:
        """Whether training has ended and thresholds were chosen, or recall was measured in contrastive pre-training."""
        return self.thresholds.is_file() or self.retrieval.is_file()

    def evaluation(self, name: str) -> Path:
        """Return the folder of the evaluation on the split ``name``."""
        return self.path / "evaluation" / name

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the run."""
        from vigil_training.recipe.resolve import read_recipe

        return read_recipe(self.resolved)

    @property
    def run_id(self) -> str:
        """The id of the run: eight characters, the same over all its starts, in Weights & Biases and in the ledger.

        Raises:
            UserError: if the folder has none.
        """
        path = self.path / RUN_ID
        if not path.is_file():
            raise UserError(f"{path}: no such file, so the run has no id; start the run again with `vigil train`")
        return path.read_text(encoding="utf-8").strip()

    def read_environment(self) -> dict[str, Any]:
        """Read :attr:`environment`; empty if it is absent."""
        return dict(json.loads(self.environment.read_text())) if self.environment.is_file() else {}

    def read_thresholds(self) -> dict[str, float]:
        """Read the threshold of each label, on calibrated probabilities.

        Raises:
            UserError: if the run has not finished, or is not a classifier.
        """
        if not self.finished:
            raise UserError(
                f"{self.path}: the run has not finished: it has no {self.thresholds.name}; resume it with `vigil train`"
            )
        self.check_classifier()
        return dict(json.loads(self.thresholds.read_text()))

    def check_classifier(self) -> None:
        """Check that the run's model predicts labels.

        Raises:
            UserError: if its encoders were pre-trained alone.
        """
        if self.recipe.objective.kind == "contrastive":
            raise UserError(
                f"{self.path}: its objective is contrastive: it has encoders, and no trained heads that predict labels; train a "
                f"recipe with init_from: {{path: {self.path}, parts: [encoders, projections]}}, and use that run"
            )

    def read_calibrated(self) -> "FittedCalibration":
        """Read the calibration; the identity if the run has none.

        Raises:
            UserError: if the file cannot be read, or has other labels.
        """
        from vigil_evaluation.calibration.calibrators import Calibration, FittedCalibration

        labels = self.recipe.taxonomy.labels
        if not self.calibration.is_file():
            return FittedCalibration(Calibration.identity(labels), None, None)
        return FittedCalibration.read(self.calibration, labels)

    def read_policy(self) -> "CompiledPolicy | None":
        """Read the compiled policy, if there is one.

        Raises:
            UserError: if the file cannot be read.
        """
        if not self.policy.is_file():
            return None
        from vigil_evaluation.policy.compiled_policy import CompiledPolicy

        return CompiledPolicy.read(self.policy)

    def current_policy(self) -> "CompiledPolicy | None":
        """Read the compiled policy, if there is one, and check that it was compiled for the run's present calibration.

        Raises:
            UserError: if the run was recalibrated after the policy was compiled: its thresholds are on other probabilities.
        """
        policy = self.read_policy()
        compiled_for = None if policy is None else policy.facts.get("calibration")
        if compiled_for is not None and compiled_for != self.calibration_digest():
            raise UserError(
                f"{self.policy}: was compiled before the run was recalibrated, and its thresholds are on other probabilities; "
                f"compile it again with `vigil policy compile`, or delete it"
            )
        return policy

    def calibration_digest(self) -> str | None:
        """Return the SHA-256 of :attr:`calibration`; ``None`` if it is absent."""
        return sha256_file(self.calibration) if self.calibration.is_file() else None

    def dataset(self) -> "Dataset":
        """Open the dataset in the version that the run was trained on.

        Raises:
            UserError: if it no longer exists.
        """
        from vigil_data.dataset.dataset import Dataset

        facts = self.read_environment()["dataset"]
        return Dataset(Path(facts["path"]), facts["version"])

    def checkpoint(self, name: str = "best") -> Path:
        """Return the path of a checkpoint.

        Args:
            name: ``best``, ``last``, the name of a checkpoint's folder, or a path.

        Raises:
            UserError: if it does not exist.
        """
        from vigil_training.checkpoint import reader

        if name == "best":
            return reader.best_checkpoint(self.checkpoints, self.recipe.training.mode)
        if name == "last":
            return reader.last_checkpoint(self.checkpoints)
        path = self.checkpoints / name if (self.checkpoints / name).exists() else Path(name)
        if not path.exists():
            raise UserError(f"{path}: no such checkpoint; name best, last, or one that `vigil checkpoint` lists")
        return path

    def model(self, checkpoint: str = "best") -> "MultimodalModel":
        """Build the model with the weights of a checkpoint, in evaluation mode.

        Args:
            checkpoint: as for :meth:`checkpoint`.

        Raises:
            UserError: if the checkpoint does not exist, cannot be read, or holds another model; or if the run is no classifier.
        """
        from vigil_modeling.safety_model import build_model
        from vigil_training.checkpoint.reader import load_weights

        self.check_classifier()
        path, recipe = self.checkpoint(checkpoint), self.recipe
        model = build_model(recipe.model, recipe.inputs, recipe.taxonomy, load_weights=False)
        load_weights(model, path)
        return model.eval()


def check_run(recipe: Recipe, folder: StrPath) -> bool:
    """Return whether a folder holds a run of a recipe that can be resumed; false if a new run may be started in it.

    Until the first checkpoint is saved, the recipe may still change.

    Raises:
        UserError: if the folder holds something else, or a run of another recipe.
    """
    folder = Path(folder)
    started = (folder / "resolved.yaml").is_file()
    if started and ((run := Run(folder)).finished or run.has_checkpoint):
        if changed := differences(_fixed(run.recipe), _fixed(with_prompt_order(recipe, run.recipe))):
            raise UserError(
                f"{folder}: holds a run of a different recipe; name another folder with --run, or undo these:",
                *(f"{key}: the run has {_short(old)}, the recipe {_short(new)}" for key, old, new in changed),
            )
        return True
    if not started and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: not a run and not an empty folder; name another with --run")
    return False


def with_prompt_order(recipe: Recipe, of: Recipe) -> Recipe:
    """Return a recipe in which ``model.prompt.order: auto`` is the order of another recipe of a guard; else the same recipe."""
    model = recipe.model
    if not (isinstance(model, GuardSpec) and isinstance(of.model, GuardSpec) and model.prompt.order == "auto"):
        return recipe
    prompt = model.prompt.model_copy(update={"order": of.model.prompt.order})
    return recipe.model_copy(update={"model": model.model_copy(update={"prompt": prompt})})


def open_run(recipe: Recipe, resolved_text: str, folder: StrPath) -> Run:
    """Make a run folder, or check that it is one of this recipe.

    Args:
        recipe: the recipe to run.
        resolved_text: the same as YAML, with every default.
        folder: absent, empty, or a run.

    Raises:
        UserError: as for :func:`check_run`.
    """
    folder = Path(folder)
    if not check_run(recipe, folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / "resolved.yaml", resolved_text)
    elif (run := Run(folder)).recipe != recipe and not run.finished:  # it continues with another number of ranks
        write_file(folder / "resolved.yaml", resolved_text)
    identify(folder)
    return Run(folder)


def identify(folder: Path) -> None:
    """Give a run folder its id, unless it has one: that of W&B's agent, if it started this process, or a new one."""
    if not (folder / RUN_ID).is_file():
        given = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
        write_file(folder / RUN_ID, (given or uuid.uuid4().hex[:8]) + "\n")


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[tuple[str, Any, Any]]:
    """Return the dotted keys whose values differ, with both values."""
    found: list[tuple[str, Any, Any]] = []
    for key in [*old, *(k for k in new if k not in old)]:
        left, right, where = old.get(key), new.get(key), f"{path}{key}"
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += differences(left, right, f"{where}.")
        elif left != right:
            found.append((where, left, right))
    return found


def recipe_digest(recipe: Recipe) -> str:
    """Return the SHA-256 of a resolved recipe, which checkpoints carry; without what a run may change."""
    if recipe.training.resume_world == "exact":
        return hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()
    return sha256_json(_fixed(recipe))


def _fixed(recipe: Recipe) -> dict[str, Any]:
    """Return what a run keeps of its recipe: all of it, or all but the number of ranks."""
    values = recipe.model_dump(mode="json")
    if recipe.training.resume_world == "repartition":
        values["strategy"] = {key: value for key, value in values["strategy"].items() if key not in ("nodes", "devices")}
    return values


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."

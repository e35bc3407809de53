"""A run: the folder with all that a training left, and the model in it."""

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vigil_data.errors import UserError
from vigil_training.recipe import Recipe

if TYPE_CHECKING:
    from vigil_modeling.safety_model import SafetyModel


class Run:
    """The layout of a run folder.

    Args:
        path: the folder; see ``docs/training.md`` for what lies in it.

    Raises:
        UserError: if it is not a run.
    """

    def __init__(self, path: Path | str) -> None:
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
    def last(self) -> Path:
        """The checkpoint from which the run resumes."""
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        """The weights of the best validation."""
        return self.checkpoints / "best.ckpt"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: step, epoch and numbers."""
        return self.path / "metrics.jsonl"

    @property
    def thresholds(self) -> Path:
        """Label to threshold, JSON; written when all else is done, so it marks a finished run."""
        return self.path / "thresholds.json"

    @property
    def environment(self) -> Path:
        """Versions, machine, git state and dataset, JSON."""
        return self.path / "environment.json"

    @property
    def log(self) -> Path:
        """What was said while it trained."""
        return self.path / "train.log"

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
        from vigil_training.resolve import read

        return read(self.resolved)

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

    def checkpoint(self, name: str = "best") -> Path:
        """The file of a checkpoint.

        Args:
            name: ``best``, ``last``, or the path of a file.

        Raises:
            UserError: if it is not there.
        """
        path = {"best": self.best, "last": self.last}.get(name, Path(name))
        if not path.is_file():
            raise UserError(f"{path}: no such checkpoint; a run's checkpoints are best, last, or the path of a file")
        return path

    def model(self, checkpoint: str = "best") -> "SafetyModel":
        """The model with the weights of a checkpoint, in evaluation mode.

        Args:
            checkpoint: as for :meth:`checkpoint`.

        Raises:
            UserError: if the checkpoint is not there, cannot be read, or is of another model.
        """
        from vigil_training.assemble import assemble
        from vigil_training.checkpoint import load_weights

        path = self.checkpoint(checkpoint)
        model = assemble(self.recipe, load_weights=False)
        load_weights(model, path)
        return model.eval()

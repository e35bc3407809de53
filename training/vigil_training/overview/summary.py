"""Runs below a folder, and what a run's own files say of it."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath
from vigil_data.progress import ProgressCallback
from vigil_training.overview.metrics import Evaluation, last_values, read_evaluations, read_validations
from vigil_training.overview.recipe_values import read_values
from vigil_training.overview.state import RunState, read_state

DEFAULT_FOLDERS = ("runs", "sweeps")
"""Folders in which commands look for runs."""

COLUMNS = (
    "run", "name", "group", "state", "reason", "step", "epoch", "loss", "monitor", "best", "best_step", "split", "macro_ap",
    "macro_auroc", "dataset", "version", "digest", "commit", "dirty", "host", "run_id", "started", "duration",
)  # fmt: skip
"""Columns of every run; recipe keys (with a dot) and metrics (with a slash) are further ones."""

_MARKS = {"resolved.yaml", "metrics.jsonl", "starts.jsonl", "environment.json"}
"""Files that only a run folder has; one that lost its recipe is shown as broken."""

_SPLIT = "test"
"""Split whose evaluation is shown, if there are several."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run as its folder describes it.

    Attributes:
        path: the run folder.
        name: its name below the folder that was searched.
        state: its state.
        recipe: dotted keys and values of the resolved recipe; empty if it cannot be read.
        environment: ``environment.json``; empty if it cannot be read.
        plan: ``plan.json``; empty if it cannot be read.
        last: last value of each metric, with ``step`` and ``epoch``.
        monitor: metric by which checkpoints are chosen; empty if unknown.
        best: its best value on validation and the step; ``None`` before the first validation.
        evaluations: evaluations in the folder.
    """

    path: Path
    name: str
    state: RunState
    recipe: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    monitor: str = ""
    best: tuple[float, int] | None = None
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def group(self) -> str:
        """Name of the folder that holds the run: for a trial that of its sweep; empty at the top."""
        parent = Path(self.name).parent
        return str(parent.parent if parent.name == "trials" else parent).removeprefix(".")

    @property
    def evaluation(self) -> Evaluation | None:
        """The evaluation on the test split, else the first; ``None`` without one."""
        return next((of for of in self.evaluations if of.name == _SPLIT), next(iter(self.evaluations), None))

    @property
    def dataset(self) -> dict[str, Any]:
        """Path, version and digest of the dataset, as far as they are known."""
        return _mapping(self.environment.get("dataset"))

    @property
    def epoch_ends(self) -> list[int]:
        """Optimizer steps at the end of each epoch, as they were planned when the run started; empty if they are unknown."""
        ends = self.plan.get("epoch_ends")
        return [int(end) for end in ends] if isinstance(ends, list) and all(isinstance(end, int) for end in ends) else []

    @property
    def git(self) -> dict[str, Any]:
        """Commit, and whether files differed from it; empty outside a checkout."""
        return _mapping(self.environment.get("git"))

    def names(self) -> Iterable[str]:
        """Return the names of all columns that this run has a value for."""
        for evaluation in self.evaluations:
            yield from (f"evaluation/{evaluation.name}/macro/{metric}" for metric in evaluation.macro)
            for label, metrics in evaluation.labels.items():
                yield from (f"evaluation/{evaluation.name}/{metric}/{label}" for metric in metrics)
        yield from (*COLUMNS, *self.recipe, *self.last)

    def value(self, column: str) -> Any:
        """Return the value of a column; ``None`` if the run has none."""
        if column in COLUMNS:
            return self._own(column)
        if column in self.recipe:
            return self.recipe[column]
        if column.startswith("evaluation/"):
            return self._of_evaluation(column)
        return self.last.get(column)

    def _own(self, column: str) -> Any:
        evaluation = self.evaluation
        macro = {} if evaluation is None else evaluation.macro
        seconds = self.state.seconds
        values: dict[str, Any] = {
            "run": str(self.path),
            "name": self.name,
            "group": self.group,
            "state": self.state.name,
            "reason": self.state.reason,
            "step": self.last.get("step"),
            "epoch": None if (epoch := self.last.get("epoch")) is None else int(epoch),
            "loss": self.last.get("train/loss"),
            "monitor": self.monitor or None,
            "best": None if self.best is None else self.best[0],
            "best_step": None if self.best is None else self.best[1],
            "split": None if evaluation is None else evaluation.name,
            "macro_ap": macro["average_precision"].value if "average_precision" in macro else None,
            "macro_auroc": macro["auroc"].value if "auroc" in macro else None,
            "dataset": self.dataset.get("path"),
            "version": self.dataset.get("version"),
            "digest": self.dataset.get("digest"),
            "commit": self.git.get("commit"),
            "dirty": self.git.get("dirty"),
            "host": _mapping(self.environment.get("machine")).get("host"),
            "run_id": _text(self.path / "run_id"),
            "started": None if self.state.started is None else self.state.started.isoformat(timespec="seconds"),
            "duration": None if seconds is None else round(seconds, 1),
        }
        return values[column]

    def _of_evaluation(self, column: str) -> float | None:
        for evaluation in self.evaluations:
            for metric, of in evaluation.macro.items():
                if column == f"evaluation/{evaluation.name}/macro/{metric}":
                    return of.value
            for label, metrics in evaluation.labels.items():
                for metric, of in metrics.items():
                    if column == f"evaluation/{evaluation.name}/{metric}/{label}":
                        return of.value
        return None


def find_runs(folder: StrPath) -> Iterator[Path]:
    """Yield the run folders below a folder, in the order of their names; the folder itself if it is a run.

    Folders whose names begin with a dot, links to folders, and what is inside a run are not searched.

    Raises:
        UserError: if there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one that holds runs, such as runs")
    yield from _below(folder)


def _below(folder: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError:  # Another user's, or removed meanwhile.
        return
    names = {entry.name for entry in found}
    if names & _MARKS:
        if "bundle.json" not in names:  # A bundle has the recipe, too.
            yield folder
        return
    for entry in found:
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            yield from _below(folder / entry.name)


def read_summary(folder: Path, below: Path | None = None) -> RunSummary:
    """Read what the files of a run say of it; what is missing or damaged is left out.

    Args:
        folder: the run folder.
        below: the folder that was searched, to which the name is relative (default: the folder above the run).
    """
    state = read_state(folder)
    recipe: dict[str, Any] = {}
    try:
        recipe = read_values((folder / "resolved.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        state = _broken(state, f"resolved.yaml cannot be read: {error}")
    except UserError as error:
        state = _broken(state, f"resolved.yaml: {error}")
    monitor = str(recipe.get("training.monitor", ""))
    best, validation = read_validations(folder, monitor, str(recipe.get("training.mode", "max"))) if monitor else (None, {})
    name = os.path.relpath(folder, below or folder.parent)
    return RunSummary(
        folder,
        folder.name if name == "." else name,
        state,
        recipe,
        _json(folder / "environment.json"),
        _json(folder / "plan.json"),
        validation | last_values(folder),
        monitor,
        best,
        read_evaluations(folder),
    )


def read_all(folders: Iterable[Path], progress: ProgressCallback | None = None) -> list[RunSummary]:
    """Return the runs below some folders; with several folders, the name of each run begins with its folder.

    Raises:
        UserError: if a folder does not exist.
    """
    folders = list(dict.fromkeys(folders))
    found = [(path, folder.parent if len(folders) > 1 else folder) for folder in folders for path in find_runs(folder)]
    runs = []
    for done, (path, below) in enumerate(found, start=1):
        runs.append(read_summary(path, below))
        if progress is not None:
            progress("reading runs", done, len(found))
    return runs


def _broken(state: RunState, reason: str) -> RunState:
    return RunState("broken", state.reason if state.name == "broken" else reason, state.started, state.seconds)


def _json(file: Path) -> dict[str, Any]:
    try:
        return _mapping(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}

"""Differences of runs: recipe, dataset, code, environment, and metrics on the same split."""

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vigil_data.errors import Failure, UserError
from vigil_data.progress import ProgressCallback
from vigil_training.overview.metrics import Metric
from vigil_training.overview.recipe_values import flatten
from vigil_training.overview.summary import RunSummary

_ENVIRONMENT = ("python", "libraries", "machine", "slurm")
_RECORDED = ("recipe", "data", "code", "environment")
_GIT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Row:
    """A key whose value differs: its value in each run, ``None`` where it is absent."""

    key: str
    values: list[Any]


@dataclass(frozen=True, slots=True)
class MetricRow:
    """A metric of an evaluation in each run; ``None`` where a run has none.

    Attributes:
        split: name of the evaluation.
        metric: name of the metric.
        label: the label; empty for the mean over labels.
        values: of each run.
    """

    split: str
    metric: str
    label: str
    values: list[Metric | None]


@dataclass(frozen=True, slots=True)
class RunDifferences:
    """What differs between runs; each list of values is in the order of the runs.

    Attributes:
        runs: names of the runs.
        recipe: dotted keys of the recipe that differ.
        dataset: path, version and digest, where they differ.
        dataset_changes: what changed from the first run's version to that of each other run, as sentences.
        code: git commit and whether files differed from it, where they differ.
        commits: commits between those of the first run and of each other run, as sentences, if this checkout has both.
        environment: dotted keys of libraries, machine and job that differ.
        training: state, step, best value and last training loss of each run, also where they are equal.
        metrics: metrics of evaluations that at least two runs have.
        not_recorded: which of recipe, data, code and environment no run has recorded.
        evaluated_alike: whether the evaluations of each split had the same dataset and version in all runs.
    """

    runs: list[str]
    recipe: list[Row]
    dataset: list[Row]
    dataset_changes: list[str]
    code: list[Row]
    commits: list[str]
    environment: list[Row]
    training: list[Row]
    metrics: list[MetricRow]
    not_recorded: list[str]
    evaluated_alike: bool


def compare_runs(
    runs: Sequence[RunSummary], *, labels: bool = False, checkout: Path | None = None, progress: ProgressCallback | None = None
) -> RunDifferences:
    """Compare runs.

    Args:
        runs: two or more runs.
        labels: also compare the metrics of each label.
        checkout: a folder in the checkout whose commits are listed (default: the working folder).
        progress: called while versions of a dataset are compared.
    """
    recipes, datasets, commits = [run.recipe for run in runs], [run.dataset for run in runs], [run.git for run in runs]
    environments = [
        dict(flatten({name: run.environment[name] for name in _ENVIRONMENT if name in run.environment})) for run in runs
    ]
    metrics = _metrics(runs, labels)
    splits = {row.split for row in metrics}
    tested = {split: {of.facts.get("dataset") for run in runs for of in run.evaluations if of.name == split} for split in splits}
    return RunDifferences(
        [str(run.path) for run in runs],
        _rows(recipes),
        _rows(datasets),
        _dataset_changes(runs, progress),
        _rows(commits),
        _commits(runs, checkout or Path.cwd()),
        _rows(environments),
        [Row(name, [value(run) for run in runs]) for name, value in _TRAINING.items()],
        metrics,
        [name for name, of in zip(_RECORDED, (recipes, datasets, commits, environments), strict=True) if not any(of)],
        all(len(of) == 1 for of in tested.values()),
    )


def _column(name: str) -> Callable[[RunSummary], Any]:
    return lambda run: run.value(name)


_TRAINING: dict[str, Callable[[RunSummary], Any]] = {
    name: _column(name) for name in ("state", "step", "monitor", "best", "best_step", "loss", "duration")
}


def _rows(runs: Sequence[dict[str, Any]]) -> list[Row]:
    """Return the keys that do not have the same value everywhere, in the order in which they appear first."""
    keys = dict.fromkeys(key for values in runs for key in values)
    found = [Row(key, [values.get(key) for values in runs]) for key in keys]
    return [row for row in found if any(value != row.values[0] for value in row.values[1:])]


def _metrics(runs: Sequence[RunSummary], labels: bool) -> list[MetricRow]:
    cells: dict[tuple[str, str, str], list[Metric | None]] = {}
    for place, run in enumerate(runs):
        for evaluation in run.evaluations:
            tables = {"": evaluation.macro, **(evaluation.labels if labels else {})}
            for label, metrics in tables.items():
                for metric, value in metrics.items():
                    cells.setdefault((evaluation.name, metric, label), [None] * len(runs))[place] = value
    return [MetricRow(*key, values) for key, values in cells.items() if sum(value is not None for value in values) > 1]


def _dataset_changes(runs: Sequence[RunSummary], progress: ProgressCallback | None) -> list[str]:
    """Return what changed between the versions of one dataset."""
    found: list[str] = []
    first = runs[0].dataset
    for other in (run.dataset for run in runs[1:]):
        path, old, new = first.get("path"), first.get("version"), other.get("version")
        if path is None or path != other.get("path") or old is None or new is None or old == new:
            continue
        sentence = _versions(str(path), int(min(old, new)), int(max(old, new)), progress)
        if sentence not in found:
            found.append(sentence)
    return found


def _versions(path: str, old: int, new: int, progress: ProgressCallback | None) -> str:
    from vigil_data.dataset.difference import compare

    where = f"{Path(path).name}, version {old} to {new}"
    try:
        found = compare(path, old, new, progress=progress)
    except (UserError, Failure, OSError) as error:
        return f"{where}: cannot be compared: {str(error).splitlines()[0]}"
    cells = {label: of for label, of in found.labels.items() if of}
    counts = [
        f"{len(rows):,} row{'s' * (len(rows) != 1)} {what}"
        for what, rows in (("added", found.added), ("removed", found.removed), ("changed", found.changed))
        if rows
    ]
    counts += [f"{label}: {of.set:,} set, {of.changed:,} changed, {of.unset:,} unset" for label, of in cells.items()]
    return f"{where}: {'; '.join(counts) or 'no row differs'}"


def _commits(runs: Sequence[RunSummary], checkout: Path) -> list[str]:
    """Return how many commits lie between those of the runs, and their subjects, if the checkout has them."""
    found: list[str] = []
    first = runs[0].git.get("commit")
    for other in dict.fromkeys(run.git.get("commit") for run in runs[1:]):
        if not (isinstance(first, str) and isinstance(other, str)) or first == other:
            continue
        sides = {
            "only in the other": _log(checkout, f"{first}..{other}"),
            "only in the first": _log(checkout, f"{other}..{first}"),
        }
        if any(lines is None for lines in sides.values()):
            found.append(f"{first[:7]} and {other[:7]}: this checkout does not have both")
            continue
        for side, lines in sides.items():
            if lines:
                found.append(f"{first[:7]} and {other[:7]}, {side}: {len(lines)} commit{'s' * (len(lines) > 1)}")
                found += [f"  {line}" for line in lines[:10]]
                found += [f"  … and {len(lines) - 10} more"] if len(lines) > 10 else []
    return found


def _log(checkout: Path, range_: str) -> list[str] | None:
    """Return the commits of a range, one a line; ``None`` if the checkout lacks one of its ends."""
    command = ["git", "-C", str(checkout), "log", "--oneline", "--no-decorate", "--max-count=1000", "--end-of-options", range_]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()

"""The board: a list of runs with their curves, on one self-contained page that reloads itself while it is written again."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from vigil_data.filesystem import StrPath
from vigil_data.progress import ProgressCallback
from vigil_evaluation.report.rendering import render_page
from vigil_training.overview.metrics import Points, decimate, read_curves
from vigil_training.overview.state import STATES
from vigil_training.overview.summary import RunSummary, read_all
from vigil_training.tracking.metrics import METRICS

_FOLDER = Path(__file__).parent

MAX_POINTS = 240_000
"""Points of all curves together, which bounds the page to a few megabytes."""

MAX_BUCKETS = 300
"""Spans of a curve: the width of a chart in pixels."""

MIN_BUCKETS = 12

CLOCK = "hours"
"""Metric that is an axis of the charts."""

MAX_CLOCK_BUCKETS = 100
"""Spans of the clock of a run, between which it is interpolated."""

MAX_CLOCK_POINTS = 40_000
"""Points of the clocks of all runs together, as far as :data:`MIN_BUCKETS` allows."""

_RECALL = "validation/recall@K"
"""The one metric of the table that has a placeholder and still stands for few values."""

_HUE_STEP = 137.508
"""Golden angle, in degrees: neighbouring runs have distant colours."""


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves of one metric.

    Attributes:
        name: the metric.
        meaning: what it is; empty if it is not one of :data:`METRICS`.
        runs: number of runs that have it.
        curves: run number, differences of steps, values: JSON of the page's script.
    """

    name: str
    meaning: str
    runs: int
    curves: list[tuple[int, list[float], list[float]]]


@dataclass(frozen=True, slots=True)
class BoardCurves:
    """What is drawn of some runs.

    Attributes:
        charts: curves by metric.
        clocks: step and hours of training of each run; empty if they are unknown.
    """

    charts: list[Chart]
    clocks: list[Points]


@dataclass(slots=True)
class BoardReader:
    """Reads the runs below some folders again and again; curves of a file that has not changed are kept.

    Args:
        folders: folders in which runs are searched.
        metrics: patterns of further metrics to draw, such as ``validation/ap/*``.
    """

    folders: Sequence[Path]
    metrics: Sequence[str] = ()
    _kept: dict[Path, tuple[tuple[int, int], dict[str, Points]]] = field(default_factory=dict)

    def read(self, progress: ProgressCallback | None = None) -> list[RunSummary]:
        """Return the runs."""
        return read_all(self.folders, progress)

    def curves(self, runs: Sequence[RunSummary]) -> BoardCurves:
        """Return the curves of some of the runs; what was kept of others is dropped."""
        curves = [self._curves(run.path) for run in runs]
        self._kept = {run.path: self._kept[run.path] for run in runs if run.path in self._kept}
        buckets = max(MIN_BUCKETS, min(MAX_CLOCK_BUCKETS, MAX_CLOCK_POINTS // (2 * max(len(runs), 1))))
        return BoardCurves(make_charts(curves, self.metrics), [decimate(of.get(CLOCK, []), buckets) for of in curves])

    def _curves(self, run: Path) -> dict[str, Points]:
        try:
            status = (run / "metrics.jsonl").stat()
        except OSError:
            return {}
        signature = status.st_mtime_ns, status.st_size
        if run not in self._kept or self._kept[run][0] != signature:
            wanted = {name: points for name, points in read_curves(run).items() if name == CLOCK or _is_drawn(name, self.metrics)}
            self._kept[run] = signature, {name: decimate(points, MAX_BUCKETS) for name, points in wanted.items()}
        return self._kept[run][1]


def make_charts(runs: Sequence[dict[str, Points]], further: Sequence[str] = ()) -> list[Chart]:
    """Return a chart of each metric that is drawn, in the order of :data:`METRICS`.

    Args:
        runs: curves of each run, by metric.
        further: patterns of further metrics.
    """
    names = sorted(
        {name for curves in runs for name in curves if _is_drawn(name, further)}, key=lambda name: (_place(name), name)
    )
    number = sum(name in curves for curves in runs for name in names)
    buckets = max(MIN_BUCKETS, min(MAX_BUCKETS, MAX_POINTS // (2 * max(number, 1))))
    charts = []
    for name in names:
        drawn = [(place, decimate(curves[name], buckets)) for place, curves in enumerate(runs) if name in curves]
        encoded = [
            (place, _differences([step for step, _ in points]), [_short(value) for _, value in points]) for place, points in drawn
        ]
        meaning = next((metric.meaning for metric in METRICS if metric.matches(name)), "")
        charts.append(Chart(name, meaning.replace("`", ""), len(drawn), encoded))
    return charts


def write_board(
    runs: Sequence[RunSummary], curves: BoardCurves, to: StrPath, *, title: str, refresh_seconds: float = 0.0
) -> None:
    """Write the page.

    Args:
        runs: the runs, in the order of the page.
        curves: their curves.
        to: HTML file; links to reports are relative to it.
        title: what the page shows, such as the folder.
        refresh_seconds: the page reloads itself this often, as it is written again; 0 for never.

    Raises:
        Failure: if it cannot be written.
    """
    above = Path(to).absolute().parent
    states = {run.state.name for run in runs}
    render_page(
        _FOLDER / "board.html.jinja",
        to,
        own_script=_FOLDER / "board.js",
        own_style=_FOLDER / "board.css",
        board_title=title,
        runs=[_row(run, place, above) for place, run in enumerate(runs)],
        charts=curves.charts,
        counts={state: sum(run.state.name == state for run in runs) for state in STATES if state in states},
        groups=sorted({run.group for run in runs if run.group}),
        sweeps=_sweeps(runs, above),
        monitors=sorted({run.monitor for run in runs if run.monitor}),
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        refresh=refresh_seconds,
        data=_script_json(
            {
                "names": [run.name for run in runs],
                "charts": [{"name": chart.name, "curves": chart.curves} for chart in curves.charts],
                "epochs": [run.epoch_ends for run in runs],
                "clocks": [[_differences([step for step, _ in of]), [hours for _, hours in of]] for of in curves.clocks],
                "written": time.time(),
                "refresh": refresh_seconds,
            }
        ),
    )


def duration_text(seconds: float | None) -> str:
    """Format a duration: ``45 s``, ``12 min``, ``3 h 05``, ``2 d 4 h``."""
    if seconds is None:
        return "-"
    minutes = int(seconds // 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60:02}" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def dataset_text(run: RunSummary) -> str:
    """Return name and version of the dataset: ``posts@3``."""
    path, version = run.dataset.get("path"), run.dataset.get("version")
    return "-" if path is None else f"{Path(str(path)).name}@{version}"


def commit_text(run: RunSummary) -> str:
    """Return the commit in seven digits, with ``+`` if files differed from it."""
    commit = run.git.get("commit")
    return "-" if commit is None else f"{str(commit)[:7]}{'+' * bool(run.git.get('dirty'))}"


def _row(run: RunSummary, place: int, above: Path) -> dict[str, Any]:
    reports = [
        (of.name, _link(run.path / "evaluation" / of.name / "report.html", above))
        for of in run.evaluations
        if (run.path / "evaluation" / of.name / "report.html").is_file()
    ]
    return {
        "summary": run,
        "hue": round(place * _HUE_STEP % 360, 1),
        "dataset": dataset_text(run),
        "commit": commit_text(run),
        "duration": duration_text(run.state.seconds),
        "started": "" if run.state.started is None else f"{run.state.started.astimezone():%Y-%m-%d %H:%M}",
        "reports": reports,
        "values": {name: run.value(name) for name in ("step", "best", "macro_ap", "macro_auroc", "loss", "duration", "started")},
    }


def _sweeps(runs: Sequence[RunSummary], above: Path) -> list[tuple[str, str]]:
    """Return the pages of sweeps that hold some of the runs: name and link."""
    folders = dict.fromkeys(run.path.parent.parent for run in runs if run.path.parent.name == "trials")
    return [(folder.name, _link(folder / "sweep.html", above)) for folder in folders if (folder / "sweep.html").is_file()]


def _link(file: Path, above: Path) -> str:
    return quote(os.path.relpath(file, above))


def _is_drawn(name: str, further: Sequence[str]) -> bool:
    """Return whether a metric has a chart: those of the table that stand for one value, and those that are asked for."""
    if name in ("epoch", CLOCK):
        return False
    if any(fnmatchcase(name, pattern) for pattern in further):
        return True
    return any(
        metric.name == name or (metric.name == _RECALL and name.count("/") == 1 and metric.matches(name)) for metric in METRICS
    )


def _place(name: str) -> int:
    """Return the place of a metric on the page: validation first, then the order of the table."""
    table = [metric for metric in METRICS if metric.name.startswith("validation/")]
    table += [metric for metric in METRICS if not metric.name.startswith("validation/")]
    return next((place for place, metric in enumerate(table) if metric.matches(name)), len(table))


def _differences(steps: Sequence[float]) -> list[float]:
    return [int(after - before) for before, after in zip([0, *steps], steps, strict=False)]


def _short(value: float) -> float:
    short = float(f"{value:.4g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def _script_json(value: Any) -> Markup:
    """Return JSON for a script element: no character of it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 (escaped above)

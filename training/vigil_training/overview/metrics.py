"""Metrics of a run from its folder: last values, the best of the monitor, curves, and macro metrics of its evaluations."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeGuard

from vigil_slurm.run_state import read_last_metrics

Points = list[tuple[float, float]]
"""Steps and values of a curve."""

_CHUNK_BYTES = 1 << 22

_LAST_LINES = 30
"""Lines in which the last values of training are looked for; each has nearly all of its metrics."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of an evaluation.

    Attributes:
        value: ``None`` if it is not defined.
        interval: its ends; ``None`` without one.
    """

    value: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation in a run folder.

    Attributes:
        name: name of its folder, which is the split unless it was named otherwise.
        facts: what was evaluated: dataset with its version, split, checkpoint, …
        macro: metric to its mean over labels.
        labels: label to metric to its value.
    """

    name: str
    facts: dict[str, str]
    macro: dict[str, Metric]
    labels: dict[str, dict[str, Metric]]


def last_values(run: Path) -> dict[str, float]:
    """Return the last value of each metric in the last lines of ``metrics.jsonl``, with ``step`` and ``epoch``."""
    found: dict[str, float] = {}
    for record in islice(read_last_metrics(run), _LAST_LINES):
        found |= {name: value for name, value in record.items() if name not in found and _is_number(value)}
    return found


def read_validations(run: Path, metric: str, mode: str) -> tuple[tuple[float, int] | None, dict[str, float]]:
    """Return the best value of a metric of validation with its step, and the last value of each metric of its lines.

    Only lines that name the metric are parsed. The best value is ``None`` if there is none.
    """
    best: tuple[float, int] | None = None
    last: dict[str, Any] = {}
    for line in _lines_with(run / "metrics.jsonl", json.dumps(metric).encode()):
        record = _parsed(line)
        value, step = record.get(metric), record.get("step")
        if not isinstance(step, int):
            continue
        last |= {name: of for name, of in record.items() if of is not None}
        if _is_number(value) and (best is None or (value > best[0] if mode == "max" else value < best[0])):
            best = value, step
    return best, {name: value for name, value in last.items() if _is_number(value)}


def read_curves(run: Path) -> dict[str, Points]:
    """Return the curve of each metric in ``metrics.jsonl``; values that are null, and incomplete lines, are skipped."""
    curves: dict[str, Points] = {}
    for line in _lines_with(run / "metrics.jsonl", b'"step"'):
        record = _parsed(line)
        step = record.get("step")
        if not _is_number(step):
            continue
        for name, value in record.items():
            if name not in {"step", "epoch"} and _is_number(value):
                curves.setdefault(name, []).append((step, value))
    return curves


def decimate(points: Points, buckets: int) -> Points:
    """Return the first and the last point, and the lowest and the highest of each of some equal spans of steps, in their order.

    Drawn with a pixel for each span, no peak of the complete curve is lost. The result has at most ``2 * buckets + 2`` points.
    """
    if len(points) <= 2 * buckets:
        return points
    first, last = points[0][0], points[-1][0]
    width = (last - first) / buckets or 1.0
    kept = {0, len(points) - 1}
    start = 0
    while start < len(points):
        bucket = min(int((points[start][0] - first) / width), buckets - 1)
        end = start + 1
        while end < len(points) and min(int((points[end][0] - first) / width), buckets - 1) == bucket:
            end += 1
        span = range(start, end)
        kept |= {min(span, key=lambda at: points[at][1]), max(span, key=lambda at: points[at][1])}
        start = end
    return [points[at] for at in sorted(kept)]


def read_evaluations(run: Path) -> list[Evaluation]:
    """Return the evaluations of a run, by name; a ``metrics.json`` that cannot be read is skipped."""
    found = []
    for file in sorted((run / "evaluation").glob("*/metrics.json")):
        try:
            text = file.read_text(encoding="utf-8")
            facts, overall = _member(text, "facts"), _member(text, "overall")
            macro = {name: _metric(of["value"], of["interval"]) for name, of in overall["macro"].items()}
            labels = {
                label: {name: _metric(value, of["intervals"].get(name)) for name, value in of.items() if name in macro}
                for label, of in overall["labels"].items()
            }
        except (OSError, ValueError, TypeError, LookupError, AttributeError):
            continue
        found.append(Evaluation(file.parent.name, {key: str(fact) for key, fact in facts.items()}, macro, labels))
    return found


def _member(text: str, key: str) -> dict[str, Any]:
    """Return one member of an indented JSON object, without parsing those before and after it, which are large."""
    mark = f'\n  "{key}": '
    value, _ = json.JSONDecoder().raw_decode(text, text.index(mark) + len(mark))
    return dict(value)


def _metric(value: Any, interval: Any) -> Metric:
    ends = None if interval is None else (float(interval[0]), float(interval[1]))
    return Metric(float(value) if _is_number(value) else None, ends)


def _lines_with(file: Path, text: bytes) -> Iterator[bytes]:
    """Yield the complete lines of a file that contain some bytes; a file without any of them is read at the speed of the disk."""
    rest = b""
    try:
        with file.open("rb") as opened:
            while chunk := opened.read(_CHUNK_BYTES):
                body, newline, tail = chunk.rpartition(b"\n")
                if not newline:
                    rest += chunk
                    continue
                block, rest = rest + body, tail
                if text in block:
                    yield from (line for line in block.split(b"\n") if text in line)
    except OSError:
        return
    if text in rest:  # Complete if it parses.
        yield rest


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

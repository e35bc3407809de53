"""Run folders as `vigil train` and `vigil evaluate` leave them, written in a millisecond."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

BEGIN = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)

RECIPE = """name: {name}
seed: {seed}
optimizer:
  lr: {lr}
  betas: [0.9, 0.999]
training:
  monitor: validation/macro_ap
  mode: max
"""


def curve(steps: int, best: float = 0.8, every: int = 10, hours: float | None = None) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl: a loss that falls, and validations that rise to ``best``; with a clock up to ``hours``."""
    lines: list[dict[str, Any]] = []
    for step in range(every, steps + 1, every):
        share = step / steps
        lines.append({"step": step, "epoch": step // 100, "train/loss": 1.0 - 0.9 * share, "train/lr": 1e-3 * (1 - share)})
        if step % (every * 5) == 0:
            lines.append({"step": step, "epoch": step // 100, "validation/macro_ap": best * share, "validation/ap/spam": 0.5})
    return lines if hours is None else [{**line, "hours": hours * line["step"] / steps} for line in lines]


def make_run(
    folder: Path,
    *,
    lines: Iterable[Mapping[str, Any]] = (),
    state: str = "finished",
    evaluation: Mapping[str, float] | None = None,
    lr: float = 0.001,
    seed: int = 0,
    number: int = 0,
    dataset: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    epoch_ends: Sequence[int] = (),
) -> Path:
    """Write a run.

    Args:
        folder: the run folder.
        lines: lines of metrics.jsonl.
        state: finished, failed, preempted, interrupted, or open for a start without an end.
        evaluation: macro metrics of an evaluation on test.
        lr: learning rate of the recipe.
        seed: seed of the recipe.
        number: hours after :data:`BEGIN` of the start.
        dataset: path and version.
        environment: further members of environment.json.
        epoch_ends: steps at the end of each epoch, for plan.json.
    """
    folder.mkdir(parents=True)
    (folder / "resolved.yaml").write_text(RECIPE.format(name=json.dumps(folder.name), seed=seed, lr=lr))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = {"dataset": dataset or {"path": "/data/posts", "version": 3}, "git": {"commit": "c0ffee" * 6 + "abcd", "dirty": True}}
    (folder / "environment.json").write_text(json.dumps({**facts, **(environment or {})}))
    if epoch_ends:
        (folder / "plan.json").write_text(json.dumps({"epoch_ends": list(epoch_ends)}))
    begin = BEGIN + timedelta(hours=number)
    start = {"event": "start", "token": "t", "host": "h", "pid": 1, "machine": "elsewhere", "time": begin.isoformat()}
    end = {"event": "end", "token": "t", "outcome": state, "reason": "", "time": (begin + timedelta(minutes=90)).isoformat()}
    events = [start] if state == "open" else [start, end]
    (folder / "starts.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    if state == "finished":
        (folder / "thresholds.json").write_text("{}")
    if state == "failed":
        (folder / "failure.json").write_text(json.dumps({"lines": ["the disk is full", "more"], "status": 1}))
    if evaluation is not None:
        write_evaluation(folder / "evaluation" / "test", evaluation)
    return folder


def write_evaluation(folder: Path, macro: Mapping[str, float], dataset: str = "posts version 3") -> None:
    """Write a metrics.json with macro metrics, the same for its one label, and intervals of ±0.02; and a report."""
    folder.mkdir(parents=True)
    interval = {name: [value - 0.02, value + 0.02] for name, value in macro.items()}
    overall = {
        "value": None,
        "macro": {name: {"value": value, "labels": 1, "interval": interval[name]} for name, value in macro.items()},
        "labels": {"spam": {"known": 9, **macro, "intervals": interval}},
    }
    values = {"schema_version": 2, "facts": {"split": folder.name, "dataset": dataset}, "overall": overall, "by": []}
    (folder / "metrics.json").write_text(json.dumps(values, indent=2) + "\n")
    (folder / "report.html").write_text("<p>report</p>")

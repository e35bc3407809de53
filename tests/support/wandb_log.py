"""Tracked runs as W&B's library wrote them to disk, parsed from the `.wandb` files."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

from vigil_training.tracking.parts import STEP_METRIC, list_parts, settled_records


@dataclass
class Part:
    """What one start, or one evaluation, has tracked.

    Attributes:
        id: id of the tracked run.
        name: its name.
        group: its group; empty without one.
        tags: its tags.
        path: the `.wandb` file.
        records: all records.
        history: rows of metrics, each a name to its value.
        config: the configuration, as nested keys.
        summary: name to last value; parts of a nested key are joined by a slash.
        files: name to content of the files that are sent with it, if they are there.
        alerts: title and text of alerts.
        exit_code: status with which it ended; ``None`` if it was killed.
    """

    path: Path
    id: str = ""
    name: str = ""
    group: str = ""
    tags: tuple[str, ...] = ()
    records: list[Any] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    alerts: list[tuple[str, str]] = field(default_factory=list)
    exit_code: int | None = None


def read_parts(run_folder: Path) -> list[Part]:
    """Return the parts of a run folder's tracked run, the oldest first; a record that a kill cut off is left out."""
    return [read_part(path) for path in list_parts(run_folder / "wandb")]


def read_part(path: Path) -> Part:
    """Return what a `.wandb` file holds, when W&B's service, which finishes it in the background, has written it to its end."""
    part = Part(path, records=[Record.FromString(content) for content in settled_records(path)])
    for record in part.records:
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                part.id, part.name, part.group, part.tags = run.run_id, run.display_name, run.run_group, tuple(run.tags)
                _update(part.config, run.config.update)
            case "config":
                _update(part.config, record.config.update)
            case "history":
                part.history.append({_name(item): json.loads(item.value_json) for item in record.history.item})
            case "summary":
                part.summary.update({_name(item): json.loads(item.value_json) for item in record.summary.update})
            case "alert":
                part.alerts.append((record.alert.title, record.alert.text))
            case "exit":
                part.exit_code = record.exit.exit_code
    top = path.parent / "files"
    part.files = {str(file.relative_to(top)): file.read_bytes() for file in top.rglob("*") if file.is_file()}
    return part


def logged_metrics(parts: list[Part]) -> list[tuple[int, str]]:
    """Return optimizer step and name of each logged value of a training, in the order in which they were logged."""
    rows = [row for part in parts for row in part.history if STEP_METRIC in row]
    return [(row[STEP_METRIC], name) for row in rows for name in row if name != STEP_METRIC and not name.startswith("_")]


def _name(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


def _update(config: dict[str, Any], items: Any) -> None:
    for item in items:
        place, (*parents, key) = config, [*item.nested_key] or [item.key]
        for parent in parents:
            place = place.setdefault(parent, {})
        place[key] = json.loads(item.value_json)

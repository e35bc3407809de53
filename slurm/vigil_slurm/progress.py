"""How far a run is, read from the end of its metrics.jsonl."""

import json
from dataclasses import dataclass
from pathlib import Path

_TAIL = 1 << 16
"""Bytes read from the end: a line of validation with a hundred labels is a tenth of that."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What the last lines say; ``None`` for what none of them says.

    Attributes:
        step: optimizer steps made.
        epoch: from 0.
        loss: of training, as last recorded.
    """

    step: int | None = None
    epoch: int | None = None
    loss: float | None = None


def read(run: Path) -> Progress:
    """The progress of a run; of one that has recorded nothing, nothing."""
    file = run / "metrics.jsonl"
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - _TAIL))
            lines = stream.read().splitlines()
    except OSError:
        return Progress()
    step = epoch = loss = None
    for line in reversed(lines):
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if not isinstance(said, dict):
            continue
        step = said.get("step") if step is None else step
        epoch = said.get("epoch") if epoch is None else epoch
        loss = said.get("train/loss") if loss is None else loss
        if None not in (step, epoch, loss):
            break
    return Progress(step, None if epoch is None else int(epoch), loss)

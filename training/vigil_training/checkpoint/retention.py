"""Retention: which checkpoints are kept, and the removal of the others."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from vigil_data.errors import UserError
from vigil_data.filesystem import remove
from vigil_training.checkpoint.manifest import read_manifest, step_of
from vigil_training.checkpoint.reader import list_checkpoints
from vigil_training.recipe.specs import CheckpointSpec

log = logging.getLogger("vigil.checkpoint")


def steps_to_keep(values: Mapping[int, float | None], spec: CheckpointSpec, mode: Literal["max", "min"]) -> set[int]:
    """Return the steps whose checkpoints are kept: the newest, the best (the earliest of equals) and the regular ones.

    Args:
        values: step to the value of the monitor, or ``None``.
        spec: the recipe's ``checkpoint``.
        mode: whether a higher or a lower value is better.
    """
    newest = sorted(values)[-spec.keep_last :]
    sign = -1 if mode == "max" else 1
    ranked = sorted((sign * value, step) for step, value in values.items() if value is not None)
    regular = [step for step in values if spec.keep_every is not None and step % spec.keep_every == 0]
    return {*newest, *(step for _, step in ranked[: spec.keep_best]), *regular}


def prune(folder: Path, spec: CheckpointSpec, mode: Literal["max", "min"], committed: int) -> None:
    """Remove checkpoints that need not be kept; called by rank 0 when the checkpoint of the step ``committed`` is complete.

    Checkpoints of later steps are removed too: they were damaged, so the run was resumed from an earlier one, and as the newest
    they would be mistaken for its present state. A checkpoint with an unreadable manifest is left in place.
    """
    values: dict[int, float | None] = {}
    folders: dict[int, Path] = {}
    for path in list_checkpoints(folder):
        step = step_of(path)
        assert step is not None
        try:
            value = read_manifest(path).value if step <= committed else None
        except UserError as error:
            log.warning("%s; it is left in place", error)
            continue
        folders[step] = path
        if step <= committed:
            values[step] = value
    for step in sorted(folders.keys() - steps_to_keep(values, spec, mode)):
        try:
            remove_checkpoint(folders[step])
        except OSError as error:
            log.warning("%s: an old checkpoint that cannot be removed: %s", folders[step], error.strerror)


def remove_checkpoint(path: Path) -> None:
    """Remove the folder of a checkpoint; it is renamed first, so that a half-removed one is never taken for a checkpoint.

    Raises:
        OSError: if it cannot be removed.
    """
    if not path.name.startswith("."):
        hidden = path.with_name(f".{path.name}.gone")
        remove(hidden)
        path = path.rename(hidden)
    if path.exists():
        shutil.rmtree(path)

"""Which checkpoints are kept, and removing the others."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from vigil_data.errors import UserError
from vigil_training.checkpoint.manifest import read_manifest, step_of
from vigil_training.checkpoint.reader import list_checkpoints
from vigil_training.recipe.specs import CheckpointSpec

log = logging.getLogger("vigil.checkpoint")


def choose_kept(values: Mapping[int, float | None], spec: CheckpointSpec, mode: Literal["max", "min"]) -> set[int]:
    """The steps of the checkpoints that are kept.

    Args:
        values: step to the value of the monitor, or none.
        spec: how many.
        mode: whether more is better.
    """
    newest = sorted(values)[-spec.keep_last :]
    sign = -1 if mode == "max" else 1
    ranked = sorted((sign * value, step) for step, value in values.items() if value is not None)
    regular = [step for step in values if spec.keep_every is not None and step % spec.keep_every == 0]
    return {*newest, *(step for _, step in ranked[: spec.keep_best]), *regular}


def prune(folder: Path, spec: CheckpointSpec, mode: Literal["max", "min"], committed: int) -> None:
    """Remove what need not be kept; for rank 0, when the checkpoint of the step ``committed`` is complete.

    Checkpoints of later steps are removed too: the run was resumed from before them as they were damaged, and as the newest
        they would be taken for where the run stands. One whose manifest cannot be read is left where it is.
    """
    values: dict[int, float | None] = {}
    folders: dict[int, Path] = {}
    for path in list_checkpoints(folder):
        step = step_of(path)
        assert step is not None
        try:
            value = read_manifest(path).value if step <= committed else None
        except UserError as error:
            log.warning("%s; it is left where it is", error)
            continue
        folders[step] = path
        if step <= committed:
            values[step] = value
    for step in sorted(folders.keys() - choose_kept(values, spec, mode)):
        try:
            remove(folders[step])
        except OSError as error:
            log.warning("%s: an old checkpoint that cannot be removed (%s)", folders[step], error.strerror)


def remove(path: Path) -> None:
    """Remove a checkpoint, which is gone before the first of its files is."""
    if not path.name.startswith("."):
        hidden = path.with_name(f".{path.name}.gone")
        shutil.rmtree(hidden, ignore_errors=True)
        path = path.rename(hidden)
    if path.exists():
        shutil.rmtree(path)

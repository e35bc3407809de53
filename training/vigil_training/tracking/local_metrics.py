"""``metrics.jsonl``: the metrics of a run, kept in its folder whether or not it is tracked elsewhere."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from vigil_data.filesystem import write_file
from vigil_slurm.run_state import read_last_metrics


class JsonLinesLogger(Logger):
    """A Lightning logger that appends one JSON object for each call.

    Args:
        path: the file.
        resume_step: optimizer steps already made; later lines are removed. 0 starts an empty file.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        super().__init__()
        self._path = path
        truncate_metrics(path, resume_step)

    @property
    def name(self) -> str:
        """Name of the logger, which Lightning requires."""
        return "metrics"

    @property
    def version(self) -> str:
        """Version of the logger, which Lightning requires."""
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a line; a value that is not finite becomes null, as JSON has no NaN."""
        line = {"step": step, **{name: value if math.isfinite(value) else None for name, value in metrics.items()}}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def finish(self, exit_code: int) -> None:
        """Do nothing: every line is in the file."""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the recipe is in the run folder."""


def last_hours(run: Path) -> float:
    """Return the hours of training of the last line of a run's ``metrics.jsonl``; 0 without one."""
    return next((float(line["hours"]) for line in read_last_metrics(run) if "hours" in line), 0.0)


def truncate_metrics(path: Path, step: int) -> None:
    """Remove lines of steps after ``step``, and a line that a kill cut off."""
    kept = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            continue
    write_file(path, "".join(kept))

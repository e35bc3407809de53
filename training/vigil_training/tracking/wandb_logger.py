"""Weights & Biases: one tracked run for each run folder, continued when the run is resumed or evaluated.

The tracked run is written to the run folder, and with ``tracking.mode: online`` sent by another process. A run folder has all the
numbers without it, so a failure to track never ends a run.
"""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vigil_training.runs.run import Run
from vigil_training.tracking.fault_tolerant import FaultTolerantLogger
from vigil_training.tracking.upload import Upload, repair_parts

if TYPE_CHECKING:
    import wandb

log = logging.getLogger("vigil.track")

STEP_METRIC = "trainer/global_step"
"""Optimizer step, the horizontal axis of all metrics."""

_FLUSH_SECONDS = 5.0
"""A process that is killed loses what it tracked since the last flush; an upload is late by as much."""


class FaultTolerantWandbLogger(FaultTolerantLogger):
    """A Lightning logger that stops tracking at the first error and lets the run continue.

    A cluster that stops a job signals all of its processes, including W&B's own service, which then ends at once.

    Args:
        tracked: the tracked run, which is written to disk.
    """

    def __init__(self, tracked: "wandb.Run") -> None:
        super().__init__()
        self.tracked = tracked
        self._upload: Upload | None = None

    @property
    def name(self) -> str:
        """Name of the logger, which Lightning requires."""
        return "wandb"

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics at an optimizer step, which is W&B's own step too, so that the parts of a resumed run line up."""
        self._try(lambda: self.tracked.log({**metrics, STEP_METRIC: step}, step=step))

    def start_upload(self) -> None:
        """Start sending the tracked run, while it is written, in another process."""
        self._upload = _start_upload(self.tracked)

    def finish(self, exit_code: int) -> None:
        """End this part of the tracked run; the next start of the run continues it under the same id."""
        self._try(lambda: self.tracked.finish(exit_code=exit_code))
        if self._upload is not None:
            self._upload.end(complete=exit_code == 0)

    def join_upload(self) -> None:
        """Wait, for a bounded time, until the tracked run is sent."""
        if self._upload is not None:
            self._upload.join()


def open_wandb_logger(run: Run, resolved_text: str, environment: Mapping[str, Any]) -> FaultTolerantWandbLogger | None:
    """Open the tracked run of a run folder.

    Args:
        run: the run; its recipe has the tracking settings, and ``wandb/`` in its folder holds the tracked run.
        resolved_text: the resolved recipe as YAML, added to the tracked run's files.
        environment: added to the tracked run's configuration, as is the recipe.

    Returns:
        The logger; ``None`` if ``tracking.mode`` is ``disabled``, or W&B's library fails, which is logged.
    """
    spec = run.recipe.tracking
    if spec.mode == "disabled":
        return None
    import wandb

    try:
        repair_parts(run.path / "wandb")
        config = {"recipe": run.recipe.model_dump(mode="json"), "environment": dict(environment)}
        tracked = wandb.init(dir=run.path, group=spec.group, tags=spec.tags, config=config, **_identity(run))
        tracked.define_metric(STEP_METRIC)
        tracked.define_metric("*", step_metric=STEP_METRIC, step_sync=True)
        (Path(tracked.dir) / "resolved.yaml").write_text(resolved_text)
        logger = FaultTolerantWandbLogger(tracked)
        if spec.mode == "online":
            logger.start_upload()
    except Exception as error:  # W&B documents no base class of its errors.
        log.warning("%s: cannot be tracked (%s: %s); metrics.jsonl is still written", run.path, type(error).__name__, error)
        return None
    return logger


def add_to_tracked_run(run: Run, add: "Callable[[wandb.Run, Callable[[dict[str, Any]], None]], None]", otherwise: str) -> None:
    """Add to the tracked run of a run that has ended. Does nothing if it is not tracked; a failure is logged and not raised.

    Args:
        run: the run.
        add: called with the tracked run, and with a function that logs values at one step after the run's last.
        otherwise: what is lost if that fails, for the warning.
    """
    spec = run.recipe.tracking
    if spec.mode == "disabled" or not (run.path / "wandb").is_dir():
        return
    import wandb

    upload: Upload | None = None
    try:
        repair_parts(run.path / "wandb")
        with wandb.init(dir=run.path, **_identity(run)) as tracked:
            upload = _start_upload(tracked) if spec.mode == "online" else None
            step = _next_step(run)
            add(tracked, lambda values: tracked.log(values, step=step))
    except Exception as error:  # W&B documents no base class of its errors.
        log.warning("%s (%s: %s)", otherwise, type(error).__name__, error)
    finally:
        if upload is not None:
            upload.end(complete=True)
            upload.join()


def _next_step(run: Run) -> int:
    """Return a step after those of the training and of what was added since, which each have a part of their own."""
    lines = run.metrics.read_text(encoding="utf-8").splitlines() if run.metrics.is_file() else []
    last = max((int(json.loads(line)["step"]) for line in lines), default=0)
    return last + len(list((run.path / "wandb").glob("offline-run-*")))


def _identity(run: Run) -> dict[str, Any]:
    """Return the arguments with which W&B writes another part of the run's tracked run, without its server."""
    import wandb

    spec = run.recipe.tracking
    # What is printed, and changes of the code, may quote items: `tracking.content` does not see them.
    settings = wandb.Settings(
        silent=True, console="off", save_code=False, disable_git=True, x_transaction_log_flush_interval=_FLUSH_SECONDS
    )
    identity = {"id": run.run_id, "name": run.path.name, "project": spec.project, "entity": spec.entity}
    # The server is asked for the run's last step when this part is sent, so that one run continues.
    return {**identity, "mode": "offline", "resume": "allow", "settings": settings}


def _start_upload(tracked: "wandb.Run") -> Upload:
    part = Path(tracked.settings.sync_dir)
    return Upload(part.parent, part.name, tracked.settings.base_url)

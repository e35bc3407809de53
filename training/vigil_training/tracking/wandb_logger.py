"""Weights & Biases: one tracked run for each run folder, continued when the run is resumed or evaluated.

The tracked run is written to the run folder, and with ``tracking.mode: online`` sent by another process. A run folder has all the
numbers without it, so a failure to track never ends a run.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vigil_training.runs.run import Run
from vigil_training.tracking.fault_tolerant import FaultTolerantLogger
from vigil_training.tracking.upload import Upload, repair_parts

if TYPE_CHECKING:
    import wandb

    from vigil_evaluation.results import EvaluationResults

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


def track_evaluation(run: Run, folder: Path, results: "EvaluationResults") -> None:
    """Add an evaluation to the tracked run: macro metrics to its summary, a table of labels, and the files.

    Does nothing if the run was trained without tracking. A failure to track is logged and not raised.

    Args:
        run: the run.
        folder: folder of the evaluation.
        results: what the evaluation found.
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
            prefix = f"evaluation/{folder.name}"
            columns: list[str | int] = [
                "label",
                "known",
                "positive",
                "average_precision",
                "low",
                "high",
                "auroc",
                "f1",
                "recall_at_fpr",
            ]
            table = wandb.Table(columns=columns)
            for label, found in results.overall.labels.items():
                low, high = found.intervals.get("average_precision") or (None, None)
                numbers = (found.average_precision, low, high, found.auroc, found.f1, found.recall_at_fpr)
                table.add_data(label, found.known, found.positive, *numbers)
            tracked.log(
                {
                    f"{prefix}/labels": table,
                    f"{prefix}/report": wandb.Html((folder / "report.html").read_text(encoding="utf-8"), inject=False),
                }
            )
            for metric, macro in results.overall.macro.items():
                tracked.summary[f"{prefix}/macro/{metric}"] = macro.value
            files = wandb.Artifact(f"{run.path.name}-{folder.name}", type="evaluation")
            for name in ("metrics.json", "report.html"):
                files.add_file(str(folder / name))
            tracked.log_artifact(files)
    except Exception as error:  # W&B documents no base class of its errors.
        log.warning("the evaluation is not tracked (%s: %s); %s has all of it", type(error).__name__, error, folder)
    finally:
        if upload is not None:
            upload.end(complete=True)
            upload.join()


def _identity(run: Run) -> dict[str, Any]:
    """Return the arguments with which W&B writes another part of the run's tracked run, without its server."""
    import wandb

    spec = run.recipe.tracking
    settings = wandb.Settings(silent=True, x_transaction_log_flush_interval=_FLUSH_SECONDS)
    identity = {"id": run.run_id, "name": run.path.name, "project": spec.project, "entity": spec.entity}
    # The server is asked for the run's last step when this part is sent, so that one run continues.
    return {**identity, "mode": "offline", "resume": "allow", "settings": settings}


def _start_upload(tracked: "wandb.Run") -> Upload:
    part = Path(tracked.settings.sync_dir)
    return Upload(part.parent, part.name, tracked.settings.base_url)

"""Weights & Biases: one tracked run for each run folder, continued when the run is resumed or evaluated.

A run folder has all the numbers without it, so a failure to track never ends a run.
"""

import logging
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch.loggers import WandbLogger

from vigil_data.filesystem import write_file
from vigil_training.recipe.specs import TrackingSpec
from vigil_training.runs.run import Run

if TYPE_CHECKING:
    from vigil_evaluation.results import EvaluationResults

log = logging.getLogger("vigil.track")


class FaultTolerantWandbLogger(WandbLogger):
    """A ``WandbLogger`` that stops tracking at the first error and lets the run continue.

    A cluster that stops a job signals all of its processes, including W&B's own service, which then ends at once.
    """

    _failed = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """See :class:`WandbLogger`."""
        self._try(lambda: WandbLogger.log_metrics(self, metrics, step))

    def finalize(self, status: str) -> None:
        """See :class:`WandbLogger`."""
        self._try(lambda: WandbLogger.finalize(self, status))

    def finish(self, exit_code: int) -> None:
        """End this part of the tracked run; the next start of the run continues it under the same id."""
        self._try(lambda: self.experiment.finish(exit_code=exit_code))

    def _try(self, call: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            call()
        except Exception as error:  # W&B documents no base class of its errors.
            self._failed = True
            log.warning("tracking stopped (%s: %s); metrics.jsonl is still written", type(error).__name__, error)


def open_wandb_logger(run: Run, resolved_text: str, environment: Mapping[str, Any]) -> FaultTolerantWandbLogger | None:
    """Open the tracked run of a run folder; ``None`` if ``tracking.mode`` is ``disabled``.

    Args:
        run: the run; its recipe has the tracking settings, and ``wandb/`` in its folder holds offline runs.
        resolved_text: the resolved recipe as YAML, added to the tracked run's files.
        environment: added to the tracked run's configuration, as is the recipe.
    """
    spec = run.recipe.tracking
    if spec.mode == "disabled":
        return None
    import wandb

    if run.tracked_id is None:
        write_file(run.wandb_id, uuid.uuid4().hex[:8] + "\n")
    logger = FaultTolerantWandbLogger(
        name=run.path.name,
        save_dir=run.path,
        id=run.tracked_id,
        project=spec.project,
        entity=spec.entity,
        group=spec.group,
        tags=list(spec.tags),
        mode=spec.mode,
        resume=_resume(spec),
        settings=wandb.Settings(silent=True),
    )
    tracked = logger.experiment
    config = {"recipe": run.recipe.model_dump(mode="json"), "environment": dict(environment)}
    tracked.config.update(config, allow_val_change=True)
    (Path(tracked.dir) / "resolved.yaml").write_text(resolved_text)
    return logger


def track_evaluation(run: Run, folder: Path, results: "EvaluationResults") -> None:
    """Add an evaluation to the tracked run: macro metrics to its summary, a table of labels, and the files.

    Does nothing if the run was trained without tracking. A failure to track is logged and not raised.

    Args:
        run: the run.
        folder: folder of the evaluation.
        results: what the evaluation found.
    """
    spec, tracked_id = run.recipe.tracking, run.tracked_id
    if spec.mode == "disabled" or tracked_id is None:
        return
    import wandb

    try:
        with wandb.init(
            dir=run.path,
            id=tracked_id,
            name=run.path.name,
            project=spec.project,
            entity=spec.entity,
            mode=spec.mode,
            resume=_resume(spec),
            settings=wandb.Settings(silent=True),
        ) as tracked:
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


def _resume(spec: TrackingSpec) -> Literal["allow"] | None:
    # Offline there is no server to ask; `wandb sync` joins the parts of a run by the id.
    return "allow" if spec.mode == "online" else None

"""Weights & Biases: one tracked run for each run folder, continued when the run is resumed or evaluated.

The tracked run is written to the run folder, and with ``tracking.mode: online`` sent by another process. A run folder has all the
numbers without it, so a failure to track never ends a run.
"""

import json
import logging
import math
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vigil_training.distributed.preemption import Preempted
from vigil_training.distributed.rank_group import is_peer_lost
from vigil_training.runs.run import Run
from vigil_training.runs.starts import read_starts
from vigil_training.tracking.content import ContentRule
from vigil_training.tracking.fault_tolerant import FaultTolerantLogger
from vigil_training.tracking.mode import decide_mode
from vigil_training.tracking.parts import STEP_METRIC, part_arguments, repair_parts, rewind_parts, wandb_writes_to
from vigil_training.tracking.run_contents import add_files, default_group, describe_run
from vigil_training.tracking.upload import Upload, start_upload

if TYPE_CHECKING:
    import wandb

log = logging.getLogger("vigil.track")

FINISH_SECONDS = 30.0
"""Time for W&B's service to write the rest to disk."""


class FaultTolerantWandbLogger(FaultTolerantLogger):
    """A Lightning logger that stops tracking at the first error and lets the run continue.

    A cluster that stops a job signals all of its processes, including W&B's own service, which then ends at once.

    Args:
        tracked: the tracked run, which is written to disk.
    """

    def __init__(self, tracked: "wandb.Run") -> None:
        super().__init__()
        self.tracked = tracked
        self._step = 0
        self._upload: Upload | None = None

    @property
    def name(self) -> str:
        """Name of the logger, which Lightning requires."""
        return "wandb"

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics at an optimizer step, which is W&B's own step too, so that the parts of a resumed run line up."""
        self._step = step or 0
        self._later(lambda: self.tracked.log({**metrics, STEP_METRIC: step}, step=step))

    def log_lines(self, path: Path, after: int, until: int) -> None:
        """Log lines of ``metrics.jsonl`` that no part has: a start that was killed loses what it logged in its last seconds."""
        for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            with suppress(ValueError):  # A kill cut the last line off.
                line = json.loads(text)
                if after < (step := line.pop("step")) <= until:
                    self.log_metrics({name: math.nan if value is None else value for name, value in line.items()}, step)

    def describe_plan(self, plan: Mapping[str, Any]) -> None:
        """Add the numbers of the training that is planned to the configuration."""
        config: Any = self.tracked.config
        self._later(lambda: config.update({"plan": dict(plan)}, allow_val_change=True))

    def alert(self, title: str, text: str) -> None:
        """Send an alert, which W&B passes on by e-mail or to Slack."""
        self._later(lambda: self.tracked.alert(title, text, level="WARN"))

    def start_upload(self) -> None:
        """Start sending the tracked run, while it is written, in another process."""
        self._upload = start_upload(self.tracked)

    def alert_end(self, error: BaseException, rule: ContentRule) -> None:
        """Send an alert about what ended the training; the message of a failure may quote an item."""
        known = {Preempted: "preempted", KeyboardInterrupt: "interrupted"}
        kind = known.get(type(error), "lost another rank" if is_peer_lost(error) else "failed")
        reason, name = (str(error).splitlines() or [""])[0], type(error).__name__
        reason = (reason or name) if kind == "preempted" else rule.message(reason, name)
        self.alert(f"{self.tracked.name}: {kind}", f"{kind} after the metrics of step {self._step}: {reason}")

    def finish(self, exit_code: int) -> None:
        """End this part of the tracked run; the next start of the run continues it under the same id."""
        self._later(lambda: self.tracked.finish(exit_code=exit_code))
        if not self._wait(FINISH_SECONDS):
            log.warning("wandb: its service does not answer; metrics.jsonl has all the numbers")
            self._failed = True
            _end_service()
        if self._upload is not None:
            self._upload.end(complete=exit_code == 0)

    def join_upload(self) -> None:
        """Wait, for a bounded time, until the tracked run is sent."""
        if self._upload is not None:
            self._upload.join()


@contextmanager
def tracked_run(run: Run, environment: Mapping[str, Any], resume_step: int) -> Iterator[FaultTolerantWandbLogger | None]:
    """Track what the block trains, and how it ended: a context for :func:`open_wandb_logger`, which has the arguments."""
    logger = open_wandb_logger(run, environment, resume_step)
    if logger is None:
        yield None
        return
    before = read_starts(run.path)[-2:-1]
    if before and before[0].outcome is None:
        text = f"the start before, on {before[0].host}, was killed or lost its machine; this one continues at step {resume_step}"
        logger.alert(f"{logger.tracked.name}: killed", text)
    exit_code = 1
    try:
        yield logger
        exit_code = 0
    except BaseException as error:
        logger.alert_end(error, ContentRule(run.recipe.tracking.content))
        raise
    finally:
        logger.finish(exit_code)
        logger.join_upload()


def open_wandb_logger(run: Run, environment: Mapping[str, Any], resume_step: int = 0) -> FaultTolerantWandbLogger | None:
    """Open the tracked run of a run folder, whose curves continue at a step.

    Args:
        run: the run; its recipe has the tracking settings, and ``wandb/`` in its folder holds the tracked run.
        environment: content of ``environment.json``, added to the tracked run's configuration and files, as is the recipe.
        resume_step: optimizer steps that were made before; later ones, of a start that ended after its checkpoint, are removed
            from the parts that were not sent.

    Returns:
        The logger; ``None`` if tracking is disabled, or W&B's library fails, which is logged.
    """
    spec = run.recipe.tracking
    mode, reason = decide_mode(spec)
    if mode == "disabled":
        return None
    if spec.mode == "auto":
        log.info("tracking %s: %s", mode, reason)
    import wandb

    folder = run.path / "wandb"
    try:
        repair_parts(folder)
        last = rewind_parts(folder, resume_step)
        with wandb_writes_to(folder):
            group, config = spec.group or default_group(), describe_run(run, environment)
            tracked = wandb.init(dir=run.path, group=group, tags=spec.tags, config=config, **_identity(run))
            tracked.define_metric(STEP_METRIC)
            tracked.define_metric("*", step_metric=STEP_METRIC, step_sync=True)
            add_files(tracked, run, environment)
        logger = FaultTolerantWandbLogger(tracked)
        logger.log_lines(run.metrics, last, resume_step)
        if mode == "online":
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
    mode, _ = decide_mode(run.recipe.tracking)
    if mode == "disabled" or not (run.path / "wandb").is_dir():
        return
    import wandb

    upload: Upload | None = None
    try:
        repair_parts(run.path / "wandb")
        with wandb_writes_to(run.path / "wandb"), wandb.init(dir=run.path, **_identity(run)) as tracked:
            upload = start_upload(tracked) if mode == "online" else None
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


def child_processes() -> list[int]:
    """Return the processes that this one has started and that have not ended; empty outside Linux."""
    lists = Path("/proc/self/task").glob("*/children")
    return [int(child) for children in lists for child in children.read_text(encoding="ascii").split()]


def _end_service() -> None:
    """Kill W&B's service, which this process would otherwise wait for when it exits."""
    import wandb

    for child in child_processes():
        with suppress(OSError):
            if Path(f"/proc/{child}/comm").read_text(encoding="ascii").strip() == "wandb-core":
                os.kill(child, signal.SIGKILL)
    with suppress(Exception):  # It finds its connection closed; W&B documents no base class of its errors.
        wandb.teardown()


def _identity(run: Run) -> dict[str, Any]:
    """Return the arguments with which W&B writes another part of the run's tracked run."""
    spec = run.recipe.tracking
    return part_arguments(run.run_id, run.path.resolve().name, spec.project, spec.entity)

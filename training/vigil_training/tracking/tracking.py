"""What a run writes down of itself: numbers step by step, the environment it ran in, and the Weights & Biases run.

A run folder has everything without Weights & Biases. A resumed run continues both: lines of steps that will be made again are
removed from metrics.jsonl, and the id of the tracked run is kept in the folder.
"""

import importlib.metadata
import json
import logging
import math
import os
import platform
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger, WandbLogger

from vigil_slurm.job_environment import facts
from vigil_training.distributed.rank_group import RankGroup
from vigil_training.recipe.recipe import Recipe
from vigil_training.runs.run import Run
from vigil_training.trainer.callbacks import RankSync, training_module

if TYPE_CHECKING:
    from vigil_evaluation.results import Findings

log = logging.getLogger("vigil.track")

EVERY = 10
"""Optimizer steps from one line of training numbers to the next."""

_LIBRARIES = (
    "vigil",
    "torch",
    "lightning",
    "transformers",
    "timm",
    "torchaudio",
    "numpy",
    "pylance",
    "soundfile",
    "soxr",
    "pillow",
    "tokenizers",
)


class JsonLines(Logger):
    """metrics.jsonl: one object for each time that numbers were made, written through at once.

    Args:
        path: the file.
        resume_step: optimizer steps already made; later lines are removed. 0 begins anew.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        super().__init__()
        self._path = path
        trim(path, resume_step)

    @property
    def name(self) -> str:
        """Lightning asks for it."""
        return "metrics"

    @property
    def version(self) -> str:
        """Lightning asks for it."""
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a line; a number that is not finite becomes null, which JSON can hold."""
        line = {"step": step, **{name: value if math.isfinite(value) else None for name, value in metrics.items()}}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the recipe lies beside the file."""


def trim(path: Path, step: int) -> None:
    """Remove the lines of metrics.jsonl that were made after ``step``, and one that was not written to its end."""
    kept = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            continue
    beside = path.with_name(f".{path.name}.part")
    beside.write_text("".join(kept))
    beside.replace(path)


class Recorder(pl.Callback):
    """Sends numbers to every logger: those of training every few steps, those of validation when it ends.

    Args:
        ranks: by which the ranks put together their parts of the loss.
        pulse: has numbers about the ranks.
    """

    def __init__(self, ranks: RankGroup, pulse: RankSync) -> None:
        self._ranks = ranks
        self._pulse = pulse

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record loss, learning rate and gradient norm of an optimizer step."""
        del outputs, batch, batch_idx
        step = trainer.global_step
        if trainer.fit_loop._should_accumulate() or not (step == 1 or step % EVERY == 0):
            return
        numbers = {name: float(value) for name, value in training_module(pl_module).step_metrics.items()}
        # Each rank's part is scaled so that the mean over ranks is the loss over the known targets of all of them.
        numbers["train/loss"] = float(self._ranks.gather([numbers["train/loss"]]).mean())
        _send(trainer, {"epoch": trainer.current_epoch, **numbers, **self._pulse.metrics})

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record what validation measured."""
        _send(trainer, {"epoch": trainer.current_epoch, **training_module(pl_module).validation_metrics})


def _send(trainer: pl.Trainer, numbers: Mapping[str, float]) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(dict(numbers), step=trainer.global_step)


def environment(recipe: Recipe, dataset_version: int) -> dict[str, Any]:
    """The facts that a run depends on beside its recipe."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "machine": {
            "host": platform.node(),
            "system": platform.platform(),
            "cpus": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "dataset": {"path": str(Path(recipe.data.dataset).resolve()), "version": dataset_version},
        "git": git_state(Path.cwd()),
        "slurm": facts(),
    }


def git_state(folder: Path) -> dict[str, Any]:
    """Commit of the checkout that ``folder`` lies in, and whether files differ from it; empty where there is none."""

    def git(*arguments: str) -> str | None:
        try:
            command = ["git", "-C", str(folder), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit, status = git("rev-parse", "HEAD"), git("status", "--porcelain")
    return {} if commit is None else {"commit": commit, "dirty": bool(status)}


class Tracked(WandbLogger):
    """The tracked run, whose loss ends nothing: the run folder has all the numbers.

    A cluster that asks a job to stop signals all of its processes, W&B's own service among them, which ends at once.
    """

    _lost = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """See :class:`WandbLogger`."""
        self._unless_lost(lambda: WandbLogger.log_metrics(self, metrics, step))

    def finalize(self, status: str) -> None:
        """See :class:`WandbLogger`."""
        self._unless_lost(lambda: WandbLogger.finalize(self, status))

    def finish(self, exit_code: int) -> None:
        """End the run; its id is kept, so another start continues it."""
        self._unless_lost(lambda: self.experiment.finish(exit_code=exit_code))

    def _unless_lost(self, act: Callable[[], object]) -> None:
        if self._lost:
            return
        try:
            act()
        except Exception as error:  # Whatever of W&B's own it is.
            self._lost = True
            log.warning("tracking has ended (%s: %s); metrics.jsonl goes on", type(error).__name__, error)


def wandb_logger(recipe: Recipe, folder: Path, resolved_text: str, facts_: Mapping[str, Any]) -> Tracked | None:
    """The tracked run of a folder: the same one each time, with recipe and environment in its configuration.

    Args:
        recipe: says how to track.
        folder: the run folder; ``wandb/`` within it holds offline runs, and ``wandb_id`` the run's id.
        resolved_text: goes to the run's files.
        facts_: the environment.
    """
    if recipe.tracking.mode == "disabled":
        return None
    import wandb

    id_file = folder / "wandb_id"
    if not id_file.is_file():
        id_file.write_text(uuid.uuid4().hex[:8] + "\n")
    spec = recipe.tracking
    logger = Tracked(
        name=folder.name,
        save_dir=folder,
        id=id_file.read_text().strip(),
        project=spec.project,
        entity=spec.entity,
        group=spec.group,
        tags=list(spec.tags),
        mode=spec.mode,
        # An offline run has no server to ask; `wandb sync` joins the parts by the id.
        resume="allow" if spec.mode == "online" else None,
        settings=wandb.Settings(silent=True),
    )
    run = logger.experiment
    run.config.update({"recipe": recipe.model_dump(mode="json"), "environment": dict(facts_)}, allow_val_change=True)
    (Path(run.dir) / "resolved.yaml").write_text(resolved_text)
    return logger


def track_evaluation(run: Run, folder: Path, findings: "Findings") -> None:
    """Add an evaluation to the tracked run: its numbers in the summary, a table of labels, and its files.

    Nothing is tracked of a run that was trained without tracking. A failure to track is said and ends nothing.

    Args:
        run: whose recipe says how to track.
        folder: of the evaluation.
        findings: what was found.
    """
    spec, id_file = run.recipe.tracking, run.path / "wandb_id"
    if spec.mode == "disabled" or not id_file.is_file():
        return
    import wandb

    try:
        with wandb.init(
            dir=run.path,
            id=id_file.read_text().strip(),
            name=run.path.name,
            project=spec.project,
            entity=spec.entity,
            mode=spec.mode,
            resume="allow" if spec.mode == "online" else None,
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
            for label, found in findings.overall.labels.items():
                low, high = found.intervals.get("average_precision") or (None, None)
                numbers = (found.average_precision, low, high, found.auroc, found.f1, found.recall_at_fpr)
                table.add_data(label, found.known, found.positive, *numbers)
            tracked.log(
                {
                    f"{prefix}/labels": table,
                    f"{prefix}/report": wandb.Html((folder / "report.html").read_text(encoding="utf-8"), inject=False),
                }
            )
            for metric, macro in findings.overall.macro.items():
                tracked.summary[f"{prefix}/macro/{metric}"] = macro.value
            files = wandb.Artifact(f"{run.path.name}-{folder.name}", type="evaluation")
            for name in ("metrics.json", "report.html"):
                files.add_file(str(folder / name))
            tracked.log_artifact(files)
    except Exception as error:  # Whatever of W&B's own it is.
        log.warning("the evaluation is not tracked (%s: %s); it is whole in %s", type(error).__name__, error, folder)


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None

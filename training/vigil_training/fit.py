"""Train a recipe into a run folder, or go on where the folder's last checkpoint stopped.

The same call begins, resumes and finishes a run: what is in the folder decides. A finished run is left alone, and a folder that
holds a run of another recipe, or something else, is refused.
"""

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import WandbLogger

from vigil_data.dataset import Dataset
from vigil_data.errors import UserError
from vigil_training import checkpoint
from vigil_training.assemble import assemble, loss
from vigil_training.datamodule import DataModule
from vigil_training.module import Quarantine, TrainingModule, metric_names
from vigil_training.predict import predict
from vigil_training.recipe import Recipe
from vigil_training.run import Run
from vigil_training.tracking import JsonLines, Recorder, environment, wandb_logger

log = logging.getLogger("vigil.train")

_NOISE = (
    # What Lightning advises against is decided on purpose: the recipe names the workers, Recorder writes the numbers, and frozen
    # encoders are in evaluation mode.
    r"The '.*_dataloader' does not have many workers",
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    r"Found \d+ module\(s\) in eval mode at the start of training",
    r"Checkpoint directory .* exists and is not empty",
    r"GPU available but not used",
    # Lightning 2.6 asks torch in a way that torch 2.14 deprecates.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)


def fit(recipe: Recipe, resolved_text: str, run_dir: Path) -> Run:
    """Train, or resume, or say that there is nothing left to do.

    Args:
        recipe: what to train.
        resolved_text: the recipe written out whole, for the run folder.
        run_dir: the run folder; it may be absent or empty, or hold an interrupted run of the same recipe.

    Returns:
        The finished run.

    Raises:
        UserError: for a mistake in the recipe or the folder.
        TrainingFailure: if training cannot go on.
        KeyboardInterrupt: if it was interrupted; the same call resumes.
    """
    run = open_run(recipe, resolved_text, run_dir)
    with _logging_to(run.log), without_noise():
        if run.finished:
            log.info("%s has finished; nothing to do", run.path)
            return run
        state = checkpoint.read(run.last) if run.last.is_file() else None
        if recipe.training.monitor not in (names := metric_names(recipe.taxonomy.labels)):
            raise UserError(f"training.monitor: {recipe.training.monitor} is not measured; it can be one of {', '.join(names)}")
        if recipe.training.threads is not None:
            torch.set_num_threads(recipe.training.threads)
        facts = _record_environment(run, recipe, resumes=state is not None)
        data = DataModule(recipe, facts["dataset"]["version"])
        if state is None or not _callback_state(state)["finished"]:
            _train(run, data, state, wandb_logger(recipe, run.path, resolved_text, facts))
        _choose_thresholds(run, recipe, data)
        log.info("finished; the run is in %s", run.path)
    return run


def open_run(recipe: Recipe, resolved_text: str, folder: Path) -> Run:
    """Make the run folder, or check that it is one of this recipe. Until something is saved in it, the recipe may still change.

    Raises:
        UserError: if the folder holds something else, or a run of another recipe.
    """
    started = (folder / "resolved.yaml").is_file()
    if started and ((run := Run(folder)).finished or run.last.is_file()):
        if different := differences(run.recipe.model_dump(mode="json"), recipe.model_dump(mode="json")):
            raise UserError(
                f"{folder}: holds a run of a different recipe; name another folder with --run, or undo these:",
                *(f"{key}: the run has {_short(old)}, the recipe {_short(new)}" for key, old, new in different),
            )
        return run
    if not started and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: not a run and not an empty folder; name another with --run")
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / ".resolved.yaml.part"
    beside.write_text(resolved_text)
    beside.replace(folder / "resolved.yaml")
    return Run(folder)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, with both values."""
    found: list[tuple[str, Any, Any]] = []
    for key in [*old, *(k for k in new if k not in old)]:
        left, right, where = old.get(key), new.get(key), f"{path}{key}"
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += differences(left, right, f"{where}.")
        elif left != right:
            found.append((where, left, right))
    return found


def _train(run: Run, data: DataModule, state: Mapping[str, Any] | None, tracked: WandbLogger | None) -> None:
    recipe, step = run.recipe, 0 if state is None else int(state["global_step"])
    if state is None:
        log.info("training %s into %s, from the beginning", recipe.name, run.path)
        run.quarantine.unlink(missing_ok=True)
    else:
        log.info("resuming %s at step %d", run.path, step)
    # A checkpoint fills all weights; the generators' states come from it too.
    pl.seed_everything(recipe.seed, verbose=False)
    steps = data.steps()
    log.info("%d optimizer steps in %d epochs", steps, recipe.training.epochs)
    module = TrainingModule(
        assemble(recipe, load_weights=state is None),
        loss(recipe),
        recipe,
        steps,
        Quarantine(run.quarantine, len(data.train_rows) + len(data.validation_rows), recipe.data.quarantine_limit),
    )
    loggers = [JsonLines(run.metrics, step), *([tracked] if tracked is not None else [])]
    trainer = make_trainer(
        recipe, loggers, [Recorder(), checkpoint.Checkpoints(run.last, run.best, recipe.checkpoint, recipe.training)]
    )
    try:
        trainer.fit(module, datamodule=data, ckpt_path=None if state is None else run.last, weights_only=True)
    except SystemExit as exit_:  # Lightning turns the interrupt into an exit.
        raise KeyboardInterrupt from exit_
    finally:
        if tracked is not None:
            tracked.experiment.finish(exit_code=0 if trainer.state.finished else 1)


def make_trainer(recipe: Recipe, loggers: list[Any], callbacks: list[pl.Callback]) -> pl.Trainer:
    """Lightning's trainer for a recipe. Steps are limited, gradients clipped and numbers recorded by our own hooks."""
    bar = sys.stderr.isatty()
    return pl.Trainer(
        accelerator=recipe.training.accelerator,
        devices=1,
        precision="bf16-mixed" if recipe.training.precision == "bf16" else "32-true",
        max_epochs=recipe.training.epochs,
        accumulate_grad_batches=recipe.training.accumulate,
        # Epochs differ in their number of batches, so the loader is asked for its length before each.
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        logger=loggers or False,
        callbacks=[*callbacks, *([TQDMProgressBar(refresh_rate=5)] if bar else [])],
        plugins=[checkpoint.AtomicCheckpointIO()],
        enable_progress_bar=bar,
        enable_model_summary=False,
        use_distributed_sampler=False,
        # W&B and the run folder have paths of their own.
        default_root_dir=None,
        barebones=False,
    )


def _callback_state(state: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(value for key, value in state["callbacks"].items() if key.startswith(checkpoint.Checkpoints.__qualname__))


def _record_environment(run: Run, recipe: Recipe, resumes: bool) -> dict[str, Any]:
    """Write environment.json; a resumed run keeps the version of the dataset with which it began."""
    version = run.read_environment()["dataset"]["version"] if resumes else recipe.data.version
    version = Dataset(Path(recipe.data.dataset), version).version
    facts = environment(recipe, version)
    run.environment.write_text(json.dumps(facts, indent=2) + "\n")
    return facts


def _choose_thresholds(run: Run, recipe: Recipe, data: DataModule) -> None:
    """Choose each label's threshold on validation, with the best weights; that finishes the run."""
    from vigil_evaluation.thresholds import choose

    labels = recipe.taxonomy.labels
    thresholds = [0.5] * len(labels)
    log.info("choosing thresholds on %d items of split %s", len(data.validation_rows), recipe.data.validation)
    predicted = predict(run.model("best"), data.val_dataloader())
    if predicted.ids:
        thresholds = choose(predicted.targets_NL, 1 / (1 + torch.exp(-torch.from_numpy(predicted.logits_NL).double())).numpy())
    beside = run.thresholds.with_name(f".{run.thresholds.name}.part")
    beside.write_text(json.dumps(dict(zip(labels, map(float, thresholds), strict=True)), indent=2) + "\n")
    beside.replace(run.thresholds)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Say what happens on stderr and in the run's log."""
    logger = logging.getLogger("vigil")
    handlers: list[logging.Handler] = [logging.FileHandler(path), logging.StreamHandler()]
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    handlers[1].setFormatter(logging.Formatter("%(message)s"))
    handlers[1].addFilter(lambda record: record.levelno < logging.ERROR)  # The command itself says why it failed.
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    except Exception as error:
        log.error("stopped: %s", error)
        raise
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(level)
        logger.propagate = propagate


@contextmanager
def without_noise() -> Iterator[None]:
    """Silence what Lightning says of choices that were made on purpose."""
    lightning = logging.getLogger("lightning.pytorch")
    level = lightning.level
    lightning.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in _NOISE:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        lightning.setLevel(level)

"""Train a recipe into a run folder, or go on where the folder's last checkpoint stopped.

The same call begins, resumes and finishes a run: what is in the folder decides. A finished run is left alone, and a folder that
holds a run of another recipe, or something else, is refused.
"""

import json
import logging
import platform
import shutil
import sys
import uuid
import warnings
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.strategies import Strategy

from vigil_data.dataset.dataset import Dataset
from vigil_data.errors import UserError
from vigil_data.loading.batch import Batch
from vigil_modeling.safety_model import SafetyModel
from vigil_training.checkpoint.reader import CheckpointReader, find_resumable
from vigil_training.checkpoint.writer import CheckpointWriter, recover_checkpoints
from vigil_training.distributed.preemption import Preempted, Preemption
from vigil_training.distributed.preflight import preflight
from vigil_training.distributed.rank_group import is_peer_lost
from vigil_training.distributed.session import Session, open_session
from vigil_training.distributed.strategies.factory import build_plugins, build_strategy
from vigil_training.distributed.world import World
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.specs import DeepSpeed
from vigil_training.runs.assemble import assemble, loss
from vigil_training.runs.calibrate import fit_calibration_and_thresholds
from vigil_training.runs.predict import join, predict
from vigil_training.runs.run import Run, digest, open_run
from vigil_training.tracking.tracking import JsonLines, Recorder, Tracked, environment, wandb_logger
from vigil_training.trainer.callbacks import Checkpoints, RankSync
from vigil_training.trainer.data_module import DataModule
from vigil_training.trainer.lightning_module import Quarantine, TrainingModule, metric_names

log = logging.getLogger("vigil.train")

MOMENTS = 2
"""Tensors of the size of the weights that AdamW keeps; a checkpoint holds them too."""

_NOISE = (
    # What Lightning advises against is decided on purpose: the recipe names the workers, Recorder writes the numbers, and frozen
    # encoders are in evaluation mode.
    r"The '.*_dataloader' does not have many workers",
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    r"Found \d+ module\(s\) in eval mode at the start of training",
    r"Checkpoint directory .* exists and is not empty",
    r"GPU available but not used",
    # `vigil submit` uses it; a login node has it too.
    r"The `srun` command is available on your system but is not used",
    # Of convolutions of one pixel; it costs a copy at most.
    r"Grad strides do not match bucket view strides",
    # Every rank measures the same, over the rows of all of them.
    r"It is recommended to use `self.log\(.*sync_dist=True",
    # Lightning 2.6 asks torch in a way that torch 2.14 deprecates.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)


def fit(
    recipe: Recipe,
    resolved_text: str,
    run_dir: Path,
    world: World = World(),  # noqa: B008 (immutable)
    preemption: Preemption | None = None,
) -> Run:
    """Train, or resume, or say that there is nothing left to do. Every rank calls it.

    Args:
        recipe: what to train.
        resolved_text: the recipe written out whole, for the run folder.
        run_dir: the run folder; it may be absent or empty, or hold an interrupted run of the same recipe.
        world: the place of this process among those that train together.
        preemption: entered already, where signals may come before all is imported.

    Returns:
        The finished run.

    Raises:
        UserError: for a mistake in the recipe or the folder.
        Failure: if training cannot go on.
        Preempted: if it was asked to stop, or another rank was lost; the same call resumes.
        KeyboardInterrupt: if it was interrupted; the same call resumes.
    """
    with (
        without_noise(),
        nullcontext(preemption) if preemption else Preemption() as asked,
        open_session(recipe, world, asked) as session,
    ):
        token = session.ranks.run_on_rank_0(lambda: _open(recipe, resolved_text, run_dir))
        run = Run(run_dir)
        session.watchdog.start(run.stacks / token)
        with _noting_failure(run, world, token), _logging_to(run, world):
            if session.ranks.run_on_rank_0(lambda: run.finished):
                log.info("%s has finished; nothing to do", run.path)
                return run
            if recipe.training.monitor not in (names := metric_names(recipe.taxonomy.labels)):
                raise UserError(
                    f"training.monitor: {recipe.training.monitor} is not measured; it can be one of {', '.join(names)}"
                )
            _fit(run, resolved_text, session, token)
    return run


def _open(recipe: Recipe, resolved_text: str, run_dir: Path) -> str:
    """Open the run folder for a new start of the run; gives the start's token."""
    run = open_run(recipe, resolved_text, run_dir)
    run.failure.unlink(missing_ok=True)
    shutil.rmtree(run.stacks, ignore_errors=True)
    token = uuid.uuid4().hex[:8]
    if not run.finished:
        run.attempt.write_text(token)
    return token


def _fit(run: Run, resolved_text: str, session: Session, token: str) -> None:
    recipe, ranks = run.recipe, session.ranks

    def start() -> tuple[Path | None, dict[str, Any]]:
        recover_checkpoints(run.checkpoints)
        path = find_resumable(run.checkpoints, digest(recipe))
        return path, _environment(run, recipe, resumes=path is not None)

    path, facts = ranks.run_on_rank_0(start)
    version = facts["dataset"]["version"]
    reader = None if path is None else CheckpointReader(path)
    trains = reader is None or not reader.manifest.finished
    if trains:
        # A checkpoint fills all weights; the generators' states come from it too.
        pl.seed_everything(recipe.seed, verbose=False)
        model = assemble(recipe, load_weights=reader is None)
        state_bytes = (1 + MOMENTS) * sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        facts["preflight"] = preflight(session, Path(recipe.data.dataset), version, run.path, state_bytes)
        if session.world.is_main:
            run.environment.write_text(json.dumps(facts, indent=2) + "\n")
    session.watchdog.beat("preflight")
    data = DataModule(recipe, version, session.world)
    if trains:
        spec, mode = recipe.checkpoint, recipe.training.mode
        with closing(CheckpointWriter(run.checkpoints, session.world, spec, mode, token=token, fence=run.attempt)) as writer:
            tracked = wandb_logger(recipe, run.path, resolved_text, facts) if session.world.is_main else None
            _train(run, data, model, reader, session, writer=writer, tracked=tracked)
    _settle(run, data, session)
    log.info("finished; the run is in %s", run.path)


def _train(
    run: Run,
    data: DataModule,
    model: SafetyModel,
    reader: CheckpointReader | None,
    session: Session,
    *,
    writer: CheckpointWriter,
    tracked: Tracked | None,
) -> None:
    recipe, world, step = run.recipe, session.world, 0 if reader is None else reader.manifest.step
    if reader is None:
        log.info("training %s into %s, from the beginning", recipe.name, run.path)
        if world.is_main:
            run.quarantine.unlink(missing_ok=True)
        session.ranks.barrier()
    else:
        log.info("resuming %s at step %d from %s", run.path, step, reader.path.name)
    steps = data.steps()
    log.info("%d optimizer steps in %d epochs, %d rank%s", steps, recipe.training.epochs, world.size, "s" * (world.size > 1))
    if isinstance(recipe.strategy, DeepSpeed) and recipe.strategy.raw:
        log.info("passed to DeepSpeed unchecked: strategy.raw %s", json.dumps(dict(recipe.strategy.raw)))
    if recipe.training.activation_checkpointing:
        model.checkpoint_activations()
    module = TrainingModule(model, loss(recipe), recipe, steps, session.ranks)
    items = len(data.train_rows) + len(data.validation_rows)
    quarantine = Quarantine(run.quarantine, items, recipe.data.quarantine_limit, writes=world.is_main)
    loggers = [JsonLines(run.metrics, step), *([tracked] if tracked is not None else [])] if world.is_main else []
    pulse = RankSync(session, writer, quarantine, recipe.training.max_skipped)
    generators = None if reader is None else reader.rng_state(world.rank)
    checkpoints = Checkpoints(recipe, digest(recipe), writer, session, pulse, generators=generators)
    strategy: Any = build_strategy(recipe, world, session.device)
    strategy.writer = writer
    trainer = make_trainer(recipe, strategy, session, loggers, [Recorder(session.ranks, pulse), pulse, checkpoints])
    try:
        trainer.fit(module, datamodule=data, ckpt_path=None if reader is None else reader.path, weights_only=True)
    except SystemExit as exit_:  # Lightning turns the interrupt into an exit.
        raise KeyboardInterrupt from exit_
    finally:
        if tracked is not None:
            tracked.finish(0 if trainer.state.finished else 1)


def make_trainer(
    recipe: Recipe, strategy: Strategy, session: Session, loggers: list[Any], callbacks: list[pl.Callback]
) -> pl.Trainer:
    """Lightning's trainer for a recipe. Steps are limited, gradients clipped and numbers recorded by our own hooks."""
    world, bar = session.world, sys.stderr.isatty() and session.world.is_main
    trainer = pl.Trainer(
        accelerator=session.device.type,
        strategy=strategy,
        devices=world.local_size,
        num_nodes=world.nodes,
        max_epochs=recipe.training.epochs,
        accumulate_grad_batches=recipe.training.accumulate,
        # Epochs differ in their number of batches, so the loader is asked for its length before each.
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        logger=loggers or False,
        callbacks=[*callbacks, *([TQDMProgressBar(refresh_rate=5)] if bar else [])],
        plugins=build_plugins(recipe, world, session.device),
        enable_progress_bar=bar,
        enable_model_summary=False,
        use_distributed_sampler=False,
        # ZeRO-3 gathers weights by hooks that inference mode does not allow.
        inference_mode=recipe.strategy.kind != "deepspeed",
        # W&B and the run folder have paths of their own.
        default_root_dir=None,
        barebones=False,
    )
    # Preemption and RankSync do this: Lightning would save within the handler, and ask all ranks at every batch.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer


def _environment(run: Run, recipe: Recipe, resumes: bool) -> dict[str, Any]:
    """The facts for environment.json; a resumed run keeps the version of the dataset with which it began."""
    version = run.read_environment()["dataset"]["version"] if resumes else recipe.data.version
    version = Dataset(Path(recipe.data.dataset), version).version
    return environment(recipe, version)


def _settle(run: Run, data: DataModule, session: Session) -> None:
    """Calibrate and choose each label's threshold on validation, with the best weights; that finishes the run."""
    recipe = run.recipe
    log.info("calibrating on %d items of split %s", len(data.validation_rows), recipe.data.validation)
    model = run.model("best").to(session.device)
    own = predict(model, _until_asked(data.val_dataloader(), session))
    gathered = [predicted for predicted in session.ranks.gather_objects(own) if predicted.ids]
    if session.world.is_main:
        fit_calibration_and_thresholds(run, join(gathered) if gathered else None, run.dataset())
    session.ranks.barrier()


def _until_asked(batches: Iterable[Batch], session: Session) -> Iterator[Batch]:
    """The batches, until the run is asked to stop; every rank has equally many."""
    for number, batch in enumerate(batches):
        session.watchdog.beat(f"calibration, batch {number}")
        if session.ranks.gather([float(session.preemption.asked is not None)]).any():
            raise Preempted("stopped while it was calibrated; training is done, and the same command goes on")
        yield batch


@contextmanager
def _noting_failure(run: Run, world: World, token: str) -> Iterator[None]:
    """Leave ``failure.json`` where the run failed by itself, so that a batch script tells it from a lost machine.

    A start that another has taken over from leaves nothing: the folder is the other's.
    """
    try:
        yield
    except (Preempted, KeyboardInterrupt):
        raise
    except Exception as error:
        if world.size > 1 and is_peer_lost(error):
            raise Preempted(f"rank {world.rank} lost another rank: {str(error).splitlines()[0].split('. ')[0]}") from error
        log.error("stopped: %s", error)
        if run.attempt.read_text() != token:
            raise
        status = 2 if isinstance(error, UserError) else 1
        facts = {"rank": world.rank, "host": platform.node(), "status": status, "lines": str(error).splitlines()}
        # All ranks raise what they agreed on; the first to write it is enough.
        with suppress(FileExistsError), run.failure.open("x") as file:
            json.dump(facts, file, indent=2)
        raise


@contextmanager
def _logging_to(run: Run, world: World) -> Iterator[None]:
    """Say what happens on stderr and in the run's log; of the other ranks warnings alone are shown, and each has a log."""
    logger = logging.getLogger("vigil")
    path = run.log if world.is_main else run.rank_log(world.rank)
    path.parent.mkdir(exist_ok=True)
    handlers: list[logging.Handler] = [logging.FileHandler(path), logging.StreamHandler()]
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    handlers[1].setFormatter(logging.Formatter("%(message)s" if world.is_main else f"rank {world.rank}: %(message)s"))
    handlers[1].setLevel(logging.INFO if world.is_main else logging.WARNING)
    handlers[1].addFilter(lambda record: record.levelno < logging.ERROR)  # The command itself says why it failed.
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
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

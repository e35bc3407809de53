"""Train a recipe into a run folder, or resume the run that is in it.

The same call starts, resumes and finishes a run, depending on what is in the folder. A finished run is left alone, and a folder
that holds a run of another recipe, or something else, is refused.
"""

import json
import logging
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from vigil_data.dataset.dataset import Dataset
from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath, write_file, write_json
from vigil_data.loading.batch import Batch
from vigil_data.loading.loader import resumed_resizes
from vigil_data.loading.text_tokens import keep_text_tokens
from vigil_data.progress import Progress
from vigil_modeling.contrastive_model import ContrastiveModel
from vigil_modeling.losses import MaskedLoss
from vigil_modeling.multimodal_model import MultimodalModel
from vigil_modeling.specs import Contrastive, GuardSpec
from vigil_training.checkpoint.reader import CheckpointReader, find_resumable, load_weights
from vigil_training.checkpoint.warm_start import warm_start
from vigil_training.checkpoint.writer import CheckpointWriter, recover_checkpoints
from vigil_training.distributed.preemption import Preempted, Preemption
from vigil_training.distributed.preflight import preflight
from vigil_training.distributed.rank_group import raised_on_all_ranks
from vigil_training.distributed.session import Session, open_session
from vigil_training.distributed.strategies.factory import build_strategy
from vigil_training.distributed.world import World
from vigil_training.planning.flops import estimate_flops, peak_flops
from vigil_training.planning.start import plan_start
from vigil_training.pretraining.contrastive_module import ContrastiveModule
from vigil_training.pretraining.model import build_recipe_model, load_best_model
from vigil_training.pretraining.retrieval import measure_retrieval
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.resolve import dump_recipe, resolve_recipe
from vigil_training.recipe.specs import DeepSpeed
from vigil_training.runs.calibrate import fit_calibration_and_thresholds, unknown_share
from vigil_training.runs.failure_record import record_failure
from vigil_training.runs.lineage import record_checkpoint, record_run
from vigil_training.runs.predict import concatenate_outputs, predict_batches
from vigil_training.runs.prompt_order import decide_prompt_order
from vigil_training.runs.run import Run, check_run, open_run, recipe_digest, with_prompt_order
from vigil_training.runs.run_log import log_to_run
from vigil_training.runs.starts import record_end, record_start
from vigil_training.runs.teacher_scoring import read_teacher, score_teacher
from vigil_training.token_cache import CachePlan, fill_token_cache, plan_token_cache
from vigil_training.tracking.environment import describe_environment, git_diff
from vigil_training.tracking.fault_tolerant import FaultTolerantLogger
from vigil_training.tracking.further_loggers import open_further_loggers
from vigil_training.tracking.local_metrics import JsonLinesLogger, last_hours
from vigil_training.tracking.wandb_logger import FaultTolerantWandbLogger, tracked_run
from vigil_training.trainer.callbacks import (
    CheckpointCallback,
    EarlyStopping,
    GradualUnfreezing,
    MetricsCallback,
    ProfilerWindow,
    RankSync,
    Report,
    TrainingProgress,
    ValidationReport,
    WeightAveraging,
)
from vigil_training.trainer.callbacks.gradual_unfreezing import release_steps
from vigil_training.trainer.callbacks.progress import INTERVAL_SECONDS
from vigil_training.trainer.compilation import check_compiler
from vigil_training.trainer.data_module import DataModule
from vigil_training.trainer.lightning_module import ShardedTrainingModule, TrainingModule
from vigil_training.trainer.lightning_trainer import build_trainer
from vigil_training.trainer.quarantine import Quarantine
from vigil_training.trainer.warning_filters import ignore_expected_warnings

log = logging.getLogger("vigil.train")

KEPT_FACTS = ("init_from", "distillation")
"""What environment.json says of the first start, and a resumed run keeps."""

ADAMW_MOMENTS = 2
"""Tensors of the size of the weights that AdamW keeps, and checkpoints hold."""


def fit_recipe(  # noqa: PLR0917 (the recipe, its place, and who is told)
    recipe: Recipe,
    resolved_text: str,
    run_dir: StrPath,
    world: World = World(),  # noqa: B008 (immutable)
    preemption: Preemption | None = None,
    report: Report | None = None,
) -> Run:
    """Train a recipe, or resume its run; every rank calls it.

    Args:
        recipe: the recipe to train.
        resolved_text: the same as YAML, with every default, for the run folder.
        run_dir: the run folder: absent, empty, or an interrupted run of the same recipe.
        world: the place of this process among the ranks.
        preemption: already entered, if signals may arrive before all is imported.
        report: receives the metrics of each validation, on rank 0, and may end training with it.

    Returns:
        The finished run.

    Raises:
        UserError: for a mistake in the recipe or the folder.
        Failure: if training cannot continue.
        Preempted: if it was asked to stop, or another rank was lost; the same call resumes.
        KeyboardInterrupt: if it was interrupted; the same call resumes.
    """
    run_dir = Path(run_dir)
    with (
        ignore_expected_warnings(),
        nullcontext(preemption) if preemption else Preemption() as asked,
        open_session(recipe, world, asked) as session,
    ):
        token = session.ranks.run_on_rank_0(lambda: _open_attempt(recipe, resolved_text, run_dir))
        run = Run(run_dir)
        session.watchdog.start(run.stacks / token)
        with record_end(run.path, world, token), record_failure(run, world, token), log_to_run(run, world):
            if session.ranks.run_on_rank_0(lambda: run.finished):
                log.info("%s has finished; nothing to do", run.path)
            else:
                _fit(run, session, token, report)
    return run


def _open_attempt(recipe: Recipe, resolved_text: str, run_dir: Path) -> str:
    """Open the run folder for a new start of the run, and return the start's token."""
    resumes = check_run(recipe, run_dir)
    settled = with_prompt_order(recipe, Run(run_dir).recipe) if resumes else decide_prompt_order(recipe)
    if settled is not recipe:
        resolved_text = dump_recipe(resolve_recipe(settled))
    run = open_run(settled, resolved_text, run_dir)
    run.failure.unlink(missing_ok=True)
    shutil.rmtree(run.stacks, ignore_errors=True)
    token = uuid.uuid4().hex[:8]
    if not run.finished:
        write_file(run.attempt, token)
        record_start(run.path, token)
    return token


def _fit(run: Run, session: Session, token: str, report: Report | None) -> None:
    recipe, ranks = run.recipe, session.ranks

    def start() -> tuple[Path | None, dict[str, Any]]:
        recover_checkpoints(run.checkpoints)
        path = find_resumable(run.checkpoints, recipe_digest(recipe))
        return path, _describe_environment(run, resumes=path is not None)

    path, environment = ranks.run_on_rank_0(start)
    version = environment["dataset"]["version"]
    reader = None if path is None else CheckpointReader(path)
    trains = reader is None or not reader.manifest.finished
    if trains:
        if reader is None and recipe.distillation is not None:  # Before seeding: the teacher's model draws initial weights.
            environment["distillation"] = score_teacher(run, Dataset(Path(recipe.data.dataset), version), session)
        model = _build_model(recipe, reader, environment)
    elif recipe.training.token_cache:
        model = load_best_model(run)
        model.store_frozen_weights(recipe.model)
    plans: list[CachePlan] = []
    if recipe.training.token_cache:
        plans = ranks.run_on_rank_0(lambda: plan_token_cache(recipe, model, version, session.device))
    if trains:
        weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        checkpoint_bytes = (1 + ADAMW_MOMENTS + (recipe.training.ema is not None)) * weight_bytes
        cache_bytes = sum(plan.missing_bytes for plan in plans)
        environment["preflight"] = preflight(
            session, Path(recipe.data.dataset), version, run.path, checkpoint_bytes, cache_bytes=cache_bytes
        )
        if session.world.is_main:
            _write_environment(run, environment)
    session.watchdog.beat("preflight")
    if plans:
        fill_token_cache(plans, recipe, model, version, session)
        model.cached = frozenset(plan.modality for plan in plans)
    tokens = {plan.modality: plan.entry.path for plan in plans}
    resizes = [] if reader is None else resumed_resizes(reader.data_position, session.world.size)
    dataset = Dataset(Path(recipe.data.dataset), version)
    ranks.run_on_rank_0(lambda: keep_text_tokens(dataset, recipe.data.batch.cost, recipe.inputs))
    session.watchdog.beat("token counts")
    data = DataModule(recipe, version, session.world, tokens, read_teacher(run, environment.get("distillation")), resizes=resizes)
    with ExitStack() as tracking:
        if trains:
            spec, mode = recipe.checkpoint, recipe.training.mode
            with closing(CheckpointWriter(run.checkpoints, session.world, spec, mode, token=token, fence=run.attempt)) as writer:
                step = 0 if reader is None else reader.manifest.step
                tracked = tracking.enter_context(tracked_run(run, environment, step)) if session.world.is_main else None
                _train(run, data, model, reader, session, writer=writer, tracked=tracked, report=report)
        _finish(run, data, session)
        log.info("finished; the run is in %s", run.path)


def _build_model(recipe: Recipe, reader: CheckpointReader | None, environment: dict[str, Any]) -> MultimodalModel:
    """Build the model to train; a checkpoint fills all weights later, and restores the random generators."""
    pl.seed_everything(recipe.seed, verbose=False)
    model = build_recipe_model(recipe, pretrained=reader is None)
    if reader is None and recipe.init_from is not None:
        try:
            environment["init_from"] = warm_start(model, recipe)
        except UserError as error:
            raise raised_on_all_ranks(error) from None
    if reader is not None and recipe.training.token_cache:  # Frozen encoders run before training starts.
        load_weights(model, reader.path, check=False)
    model.store_frozen_weights(recipe.model)
    return model


def _describe_environment(run: Run, resumes: bool) -> dict[str, Any]:
    """Return the content of environment.json; a resumed run keeps the dataset version and the weights with which it began."""
    recipe = run.recipe
    before = run.read_environment() if resumes else {}
    version = before["dataset"]["version"] if resumes else recipe.data.version
    kept = {name: before[name] for name in KEPT_FACTS if name in before}
    return describe_environment(recipe, Dataset(Path(recipe.data.dataset), version)) | kept


def _write_environment(run: Run, environment: dict[str, Any]) -> None:
    write_json(run.environment, environment)
    if diff := git_diff(Path.cwd()):
        write_file(run.code_diff, diff)
    else:
        run.code_diff.unlink(missing_ok=True)
    record_run(run)


def _train(
    run: Run,
    data: DataModule,
    model: MultimodalModel,
    reader: CheckpointReader | None,
    session: Session,
    *,
    writer: CheckpointWriter,
    tracked: FaultTolerantWandbLogger | None,
    report: Report | None,
) -> None:
    recipe, world, step = run.recipe, session.world, 0 if reader is None else reader.manifest.step
    if reader is None:
        log.info("training %s into %s, from the beginning", recipe.name, run.path)
        if world.is_main:
            run.quarantine.unlink(missing_ok=True)
        session.ranks.barrier()
    else:
        log.info("resuming %s at step %d from %s", run.path, step, reader.path.name)
        if reader.manifest.world != world.size:
            log.info(
                "%d ranks made the checkpoint: what is left of its epoch is dealt out to %d", reader.manifest.world, world.size
            )
    total_steps = (epoch_ends := data.epoch_ends())[-1]
    log.info(
        "%d optimizer steps in %d epochs, %d rank%s", total_steps, recipe.training.epochs, world.size, "s" * (world.size > 1)
    )
    if world.is_main:
        _write_plan(run, tracked, plan_start(recipe, model, data, epoch_ends, world.size))
    if isinstance(recipe.strategy, DeepSpeed) and recipe.strategy.raw:
        log.info("passed to DeepSpeed unchecked: strategy.raw %s", json.dumps(dict(recipe.strategy.raw)))
    if isinstance(recipe.model, GuardSpec):
        log.info("prompts: %s, up to %d tokens", recipe.model.prompt.order.replace("_", " "), recipe.model.prompt.max_tokens)
    if recipe.training.activation_checkpointing:
        model.checkpoint_activations()
    if recipe.training.compile:
        check_compiler()
        model.compile_encoders(recipe.inputs.text.max_tokens if recipe.inputs.text is not None else 0)
    releases = release_steps(model, recipe.model, epoch_ends)
    module, peak = _build_module(recipe, model, data, session, total_steps=total_steps, releases=releases)
    module.lr_position = data.lr_position()

    items = len(data.train_rows) + len(data.validation_rows)
    quarantine = Quarantine(run.quarantine, items, recipe.data.quarantine_limit, writes=world.is_main)
    rank_sync = RankSync(session, writer, quarantine, recipe.training.max_skipped)
    rng_state = None if reader is None else reader.rng_state(world.rank)
    loggers = _open_loggers(run, step, tracked) if world.is_main else []
    strategy: Any = build_strategy(recipe, world, session.device)
    strategy.writer = writer
    ema = recipe.training.ema
    averaging = [] if ema is None else [WeightAveraging(ema, strategy, model)]
    strategy.further = averaging
    unfreezing = [GradualUnfreezing(releases, strategy, model)] if releases else []
    finished = False
    try:
        with Progress("training", unit="steps", interval=INTERVAL_SECONDS, enabled=world.is_main) as progress:
            metrics = MetricsCallback(session.ranks, rank_sync, peak, recipe.inputs.audio, last_hours(run.path))
            callbacks = [
                metrics,
                rank_sync,
                TrainingProgress(progress, total_steps, rank_sync, metrics),
                EarlyStopping(recipe.training),
                *([ValidationReport(report, session.ranks)] if report is not None else []),
                *unfreezing,
                *averaging,
                *([ProfilerWindow(spec, run.profile, world.rank)] if (spec := recipe.training.profile) is not None else []),
                CheckpointCallback(recipe, recipe_digest(recipe), writer, session, rank_sync, rng_state=rng_state),
            ]
            trainer = build_trainer(recipe, strategy, session, loggers, callbacks)
            trainer.fit(module, datamodule=data, ckpt_path=None if reader is None else reader.path, weights_only=True)
        finished = True
    except SystemExit as exit_:  # Lightning turns an interrupt into an exit.
        raise KeyboardInterrupt from exit_
    finally:
        for logger in (logger for logger in loggers if logger is not tracked):  # W&B's is finished with the run.
            logger.finish(0 if finished else 1)


def _write_plan(run: Run, tracked: FaultTolerantWandbLogger | None, plan: dict[str, Any]) -> None:
    write_json(run.plan, plan)
    if tracked is not None:
        tracked.describe_plan(plan)


def _open_loggers(run: Run, step: int, tracked: FaultTolerantWandbLogger | None) -> list[JsonLinesLogger | FaultTolerantLogger]:
    """Open the loggers of a run that starts at an optimizer step; the others read what ``metrics.jsonl`` keeps."""
    return [JsonLinesLogger(run.metrics, step), *([tracked] if tracked is not None else []), *open_further_loggers(run, step)]


def _finish(run: Run, data: DataModule, session: Session) -> None:
    """Measure on the validation split what the best weights are worth."""
    if isinstance(run.recipe.objective, Contrastive):
        measure_retrieval(run, _until_asked(data.calibration_dataloader(), session), session)
    else:
        _calibrate(run, data, session)
    if session.world.is_main:
        record_checkpoint(run, run.checkpoint())


def _build_module(
    recipe: Recipe, model: MultimodalModel, data: DataModule, session: Session, *, total_steps: int, releases: Mapping[str, int]
) -> tuple[TrainingModule, float | None]:
    """Build the Lightning module, and return the most FLOP/s of the device if its operations are counted and that is known."""
    if isinstance(model, ContrastiveModel):
        return ContrastiveModule(model, recipe, total_steps, session.ranks, releases), None
    loss = MaskedLoss(recipe.loss, recipe.taxonomy, data.target_counts, model.structure)
    module_class = ShardedTrainingModule if recipe.strategy.kind == "fsdp2" else TrainingModule
    module = module_class(model, loss, recipe, total_steps, session.ranks, group_names=data.group_names, releases=releases)
    if session.device.type != "cuda":
        return module, None
    module.flop_estimate = estimate_flops(recipe)
    return module, peak_flops(torch.cuda.get_device_name(session.device), recipe.training.precision)


def _calibrate(run: Run, data: DataModule, session: Session) -> None:
    """Calibrate and choose thresholds on the validation split with the best weights, which finishes the run."""
    recipe, world = run.recipe, session.world
    log.info("calibrating on %d items of split %s", len(data.validation_rows), recipe.data.validation)
    model = run.model("best").to(session.device)
    with Progress("predicting", enabled=world.is_main) as progress:
        items = len(data.validation_rows)
        own_items = None if world.size > 1 else items
        batches = _until_asked(data.calibration_dataloader(), session)
        own = predict_batches(model, batches, progress, own_items, unknown_share=unknown_share(items))
    gathered = [outputs for outputs in session.ranks.gather_objects(own) if outputs.ids]
    if world.is_main:
        fit_calibration_and_thresholds(run, concatenate_outputs(gathered) if gathered else None, run.dataset())
    session.ranks.barrier()


def _until_asked(batches: Iterable[Batch], session: Session) -> Iterator[Batch]:
    """Yield the batches until the run is asked to stop; every rank has the same number."""
    for number, batch in enumerate(batches):
        session.watchdog.beat(f"calibration, batch {number}")
        if session.ranks.gather([float(session.preemption.asked is not None)]).any():
            raise Preempted("stopped during calibration; training is complete, and the same command resumes")
        yield batch

"""Plan of a run: memory of each strategy, and optimizer steps."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vigil_data.dataset.dataset import Dataset, exists
from vigil_data.items import MODALITIES, Modality
from vigil_data.loading.batch import Batch
from vigil_data.loading.loader import Request
from vigil_data.loading.sampler import EpochPlan, costs
from vigil_data.loading.sampling import SamplingShare, describe_shares
from vigil_modeling.encoders import Encoder
from vigil_modeling.encoders.frozen_storage import BYTES_OF_NF4, is_quantized_by_nf4
from vigil_modeling.multimodal_model import MultimodalModel
from vigil_modeling.specs import GuardSpec
from vigil_training.distributed.strategies.deepspeed import zero_config
from vigil_training.distributed.strategies.fsdp2 import shard_units
from vigil_training.distributed.world import World
from vigil_training.planning.memory import (
    FLOAT32,
    Sharding,
    StateBytes,
    blank_batch,
    buffer_bytes,
    build_abstract,
    gathered_bytes,
    measure_activations,
    sharded,
    state_bytes,
)
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.specs import DeepSpeed, FullySharded, Ranks, Single
from vigil_training.runs.prompt_order import decide_prompt_order, with_order
from vigil_training.trainer.data_module import DataModule
from vigil_training.trainer.optimizer import parameter_groups

GIB = 2**30
CHARACTERS_PER_TOKEN = 4
BFLOAT16 = 2
NOT_COUNTED = (
    "not counted: the GPU's context and libraries (not yet measured), and memory that backward needs on top of what forward saved"
)
_STAGES: tuple[Literal[1, 2, 3], ...] = (1, 2, 3)


def gib(count: int) -> str:
    """Return bytes in GiB: two decimals, or two digits below a hundredth."""
    return f"{count / GIB:.2f}" if count >= GIB / 100 or not count else f"{count / GIB:.2g}"


@dataclass(frozen=True, slots=True)
class StrategyEstimate:
    """Memory that a strategy needs on each GPU, in bytes.

    Attributes:
        name: name of the strategy.
        state: weights, gradients and optimizer state on the GPU.
        activations: activations of the most expensive batch.
        buffers: further allowances, by name.
        host: offloaded state of each rank.
        chosen: whether it is the recipe's strategy.
        fits: whether it fits in the given memory; ``None`` if none was given.
    """

    name: str
    state: StateBytes
    activations: int
    buffers: dict[str, int]
    host: int
    chosen: bool
    fits: bool | None

    @property
    def total(self) -> int:
        """Bytes on the GPU."""
        return self.state.total + self.activations + sum(self.buffers.values())


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Sizes of a model.

    Attributes:
        parameters: number of elements of each weight and whether it is trained, in the model's order.
        groups: the same by group of the optimizer, and one group of frozen weights.
        buffers: bytes of its buffers.
        saved: bytes that frozen weights take less than in fp32, by ``frozen_dtype``, under each strategy that keeps them so.
        shards: the largest shard of each weight under FSDP2, and whether it is trained.
        units: elements of each unit of FSDP2, and how many of them are trained; the rest of the model last.
    """

    parameters: list[tuple[int, bool]]
    groups: list[list[tuple[int, bool]]]
    buffers: int
    saved: dict[Sharding, int]
    shards: list[tuple[int, bool]]
    units: list[tuple[int, int]]

    @property
    def total(self) -> int:
        """Number of weights."""
        return sum(count for count, _ in self.parameters)

    @property
    def trained(self) -> int:
        """Number of weights that are trained."""
        return sum(count for count, is_trained in self.parameters if is_trained)


@dataclass(frozen=True, slots=True)
class RunLength:
    """Length of a run, from the dataset.

    Attributes:
        samples: items of an epoch.
        batches: batches of each rank in the first epoch.
        steps: optimizer steps of the first epoch.
        run_samples: items of the run, counted each time they are trained on.
        run_batches: batches of each rank in the run.
        run_steps: optimizer steps of the run, without early stopping.
        largest_items: items of the most expensive batch.
        largest_cost: cost of that batch.
        text_only: share of items with text and no other modality.
        tokens: tokens of the texts of the first epoch; ``None`` for a guard, and if batches are not planned by tokens.
        sampling: what ``data.sampling`` does to the shares of sources and labels; empty without it.
    """

    samples: int
    batches: int
    steps: int
    run_samples: int
    run_batches: int
    run_steps: int
    largest_items: int
    largest_cost: float
    text_only: float
    tokens: int | None = None
    sampling: tuple[SamplingShare, ...] = ()


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The result of `vigil plan`; see :meth:`as_json`."""

    nodes: int
    gpus: int
    memory: int | None
    parameters: int
    trained: int
    rows: tuple[StrategyEstimate, ...]
    epochs: RunLength | None
    notes: tuple[str, ...]

    @property
    def smallest(self) -> StrategyEstimate | None:
        """The first strategy that fits, which is the one with the least sharding."""
        return next((row for row in self.rows if row.fits), None)

    @property
    def verdict(self) -> str:
        """One line on the recipe's strategy, and on the least sharded one that fits."""
        row = next(row for row in self.rows if row.chosen)
        of = "" if self.memory is None else f" of {self.memory / GIB:g} GiB"
        where = f"on {self.nodes} \N{MULTIPLICATION SIGN} {self.gpus} GPUs" if row.name != "single" else "on 1 GPU"
        needs = f"{row.name} {where}{of} needs {gib(row.total)} GiB a GPU"
        if row.fits is None:
            return f"{needs}; give --memory to see whether it fits"
        if row.fits:
            least = self.smallest
            return f"{needs}: fits" + (f"; {least.name} fits too" if least and least is not row else "")
        return f"{needs}: does not fit; " + (f"{self.smallest.name} does" if self.smallest else "nor does any other strategy")

    def facts(self) -> list[str]:
        """Return lines on the model and the epochs."""
        lines = [f"{self.parameters:,} weights, {self.trained:,} of them trained"]
        if (e := self.epochs) is not None:
            tokens = "" if e.tokens is None else f", {e.tokens:,} tokens of text,"
            lines.append(
                f"an epoch: {e.samples:,} items{tokens} in {e.batches:,} batches a rank, {e.steps:,} optimizer steps; "
                f"the run: {e.run_samples:,} items in {e.run_batches:,} batches a rank, {e.run_steps:,} optimizer steps"
            )
            lines.append(
                f"the most expensive batch: {e.largest_items:,} items, cost {e.largest_cost:,.0f}; text only: {e.text_only:.0%}"
            )
            lines += describe_shares(e.sampling)
        return lines

    def as_json(self) -> dict[str, Any]:
        """Return the numbers, in bytes, as plain data."""
        values = dataclasses.asdict(self)
        for row, value in zip(self.rows, values["rows"], strict=True):
            value["total"] = row.total
        return {**values, "smallest": self.smallest.name if self.smallest else None, "verdict": self.verdict}


def plan_run(recipe: Recipe, nodes: int | None = None, gpus: int | None = None, memory: float | None = None) -> RunPlan:
    """Plan a run.

    Args:
        recipe: recipe of the run.
        nodes: machines (default: the recipe's).
        gpus: GPUs on each machine (default: the recipe's).
        memory: memory of each GPU in GiB.

    Raises:
        UserError: if the model cannot be built, or the dataset has nothing to train on.
    """
    spec = recipe.strategy
    nodes = nodes or (spec.nodes if isinstance(spec, Ranks) else 1)
    gpus = gpus or (spec.devices if isinstance(spec, Ranks) else 1)
    if exists(recipe.data.dataset):
        recipe = decide_prompt_order(recipe)
    elif isinstance(recipe.model, GuardSpec) and recipe.model.prompt.order == "auto":
        recipe = with_order(recipe, "policy_first")
    model, note = build_abstract(recipe)
    if recipe.training.activation_checkpointing:
        model.checkpoint_activations()
    sizes = measure_sizes(recipe, model, nodes * gpus)
    # A single process has its own epochs, whatever the number of GPUs of the other strategies.
    world = 1 if isinstance(spec, Single) else nodes * gpus
    if exists(recipe.data.dataset):
        epochs, batch = _plan_epochs(recipe, world)
        how_batch = "the most expensive batch of the first epoch"
    else:
        epochs = None
        batch, described = _assumed_batch(recipe, model)
        how_batch = f"{recipe.data.dataset} has no dataset: epochs are not planned, and a batch is assumed of {described}"
    activations = measure_activations(model, batch, recipe.training.precision, touch_all=nodes * gpus > 1)
    kept = "; encoder layers keep only their inputs" if recipe.training.activation_checkpointing else ""
    notes = [note, f"activations: {how_batch}, {recipe.training.precision}, {activations.how}{kept}", NOT_COUNTED]
    if isinstance(spec, DeepSpeed) and spec.raw:
        notes.append("strategy.raw is considered for the sizes of buffers only")
    for dtype, where in (("bf16", "ZeRO-3 and FSDP2"), ("nf4", "ZeRO and FSDP2")):
        if stored := [m for m, of in frozen_dtypes(recipe, model).items() if of == dtype]:
            notes.append(f"frozen weights in {dtype}: {', '.join(stored)}; not with {where}")
    limit = None if memory is None else round(memory * GIB)
    rows = estimate_strategies(recipe, sizes, nodes * gpus, activations.bytes, limit)
    return RunPlan(nodes, gpus, limit, sizes.total, sizes.trained, tuple(rows), epochs, tuple(n for n in notes if n))


def measure_sizes(recipe: Recipe, model: MultimodalModel, world: int) -> ModelSizes:
    """Return the sizes of a recipe's model, which may be one without memory for its weights.

    Args:
        recipe: the recipe.
        model: its model.
        world: number of ranks.
    """
    parameters = [(p.numel(), p.requires_grad) for p in model.parameters()]
    groups = [[(p.numel(), True) for p in g["params"]] for g in parameter_groups(model, recipe.model, recipe.optimizer)]
    groups.append([(p.numel(), False) for p in model.parameters() if not p.requires_grad])
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    dtypes = frozen_dtypes(recipe, model)
    in_bf16, in_nf4 = (
        sum(_saved_bytes(model.encoder(m), of) for m, dtype in dtypes.items() if dtype == of) for of in ("bf16", "nf4")
    )
    saved: dict[Sharding, int] = {"ddp": in_bf16 + in_nf4, 1: in_bf16, 2: in_bf16}
    shards = sharded([(tuple(p.shape), p.requires_grad) for p in model.parameters()], world)
    return ModelSizes(parameters, groups, buffers, saved, shards, _unit_sizes(model))


def frozen_dtypes(recipe: Recipe, model: MultimodalModel) -> dict[Modality, str]:
    """Return how the frozen weights of each encoder are kept."""
    return {m: getattr(recipe.model.encoders, m).frozen_dtype for m in model.modalities}


def estimate_strategies(
    recipe: Recipe, weights: ModelSizes, world: int, activations: int, limit: int | None
) -> list[StrategyEstimate]:
    """Estimate each strategy, and the recipe's own once more if it offloads.

    Args:
        recipe: the recipe.
        weights: sizes of its model.
        world: number of ranks.
        activations: bytes of activations of the most expensive batch.
        limit: bytes of memory of a GPU; ``None`` for no verdict.
    """
    spec = recipe.strategy
    chosen_stage = spec.stage if isinstance(spec, DeepSpeed) else None
    offloads = isinstance(spec, DeepSpeed) and (spec.offload_optimizer, spec.offload_parameters) != ("none", "none")
    numel = sum(n for n, _ in weights.parameters)

    averaged = recipe.training.ema is not None

    def row(name: str, sharding: Sharding, ranks: int, chosen: bool, offload: DeepSpeed | None = None) -> StrategyEstimate:
        state = sum((state_bytes(group, sharding, ranks, averaged) for group in weights.groups), StateBytes(0, 0, 0))
        state = dataclasses.replace(state, weights=state.weights - weights.saved.get(sharding, 0))
        zero: dict[str, Any] = {}
        if sharding != "ddp":
            raw = spec.raw if isinstance(spec, DeepSpeed) else {}
            zero = zero_config(DeepSpeed(stage=sharding, raw=raw), recipe, numel)["zero_optimization"]
        extra = buffer_bytes(weights.parameters, state, sharding, zero, recipe.training.accumulate)
        extra["the model's buffers"] = weights.buffers
        on_gpu = _offloaded(state, offload) if offload else state
        host = state.total - on_gpu.total
        made = StrategyEstimate(name, on_gpu, activations, extra, host, chosen, None)
        return made if limit is None else dataclasses.replace(made, fits=made.total <= limit)

    rows = [row("single", "ddp", 1, isinstance(spec, Single))]
    rows.append(row("DDP", "ddp", world, spec.kind == "ddp"))
    for stage in _STAGES:
        rows.append(row(f"ZeRO-{stage}", stage, world, stage == chosen_stage and not offloads))
        if isinstance(spec, DeepSpeed) and offloads and stage == chosen_stage:
            rows.append(row(f"ZeRO-{stage} with offload", stage, world, True, spec))
    extra = {**gathered_bytes(weights.units), "the model's buffers": weights.buffers}
    state = state_bytes(weights.shards, "ddp", 1, averaged)
    made = StrategyEstimate("FSDP2", state, activations, extra, 0, isinstance(spec, FullySharded), None)
    return [*rows, made if limit is None else dataclasses.replace(made, fits=made.total <= limit)]


def _saved_bytes(encoder: Encoder, dtype: str) -> int:
    """Return the bytes that an encoder's frozen weights take less than in fp32."""
    frozen = sum(p.numel() for p in encoder.parameters() if not p.requires_grad)
    quantized = 0
    if dtype == "nf4":
        quantized = sum(layer.weight.numel() for layer in encoder.modules() if is_quantized_by_nf4(layer))
    return round((frozen - quantized) * (FLOAT32 - BFLOAT16) + quantized * (FLOAT32 - BYTES_OF_NF4))


def _unit_sizes(model: MultimodalModel) -> list[tuple[int, int]]:
    """Return elements of each unit of FSDP2 without those of inner units, and how many of them are trained."""
    seen: set[int] = set()
    sizes = []
    for unit in [*shard_units(model), model]:
        own = [p for p in unit.parameters() if id(p) not in seen]
        seen |= {id(p) for p in own}
        sizes.append((sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad)))
    return sizes


def _offloaded(state: StateBytes, spec: DeepSpeed) -> StateBytes:
    """Return the state that stays on the GPU."""
    if spec.offload_optimizer != "none":
        state = dataclasses.replace(state, optimizer=0, masters=0, average=0)
    return dataclasses.replace(state, weights=0) if spec.offload_parameters != "none" else state


def _plan_epochs(recipe: Recipe, world: int) -> tuple[RunLength, Batch]:
    """Return the length of the run, and the most expensive batch of the first epoch."""
    dataset = Dataset(Path(recipe.data.dataset), recipe.data.version)
    data = DataModule(recipe, dataset.version, World(0, world, 0, world))
    first = data.plan(0)
    facts = dataset.facts(data.train_rows)
    step, rank = np.unravel_index(first.totals(data.train_costs).argmax(), first.table.shape)
    largest = first.rows(int(step), int(rank))
    text_only = (facts[:, 0] > 0) & (facts[:, 1:] == 0).all(axis=1)
    run_samples, run_batches, run_steps = _run_length(recipe, data)
    epochs = RunLength(
        samples=int(first.lengths().sum()),
        batches=first.steps,
        steps=math.ceil(first.steps / recipe.training.accumulate),
        run_samples=run_samples,
        run_batches=run_batches,
        run_steps=run_steps,
        largest_items=len(largest),
        largest_cost=float(data.train_costs[largest].sum()),
        text_only=float(np.mean(text_only)),
        tokens=count_tokens(recipe, data, first),
        sampling=data.sampling_shares,
    )
    return epochs, data.reader[Request(data.train_rows[largest])]


def count_tokens(recipe: Recipe, data: DataModule, planned: EpochPlan) -> int | None:
    """Return the tokens of the texts of an epoch; ``None`` for a guard, and if batches are not planned by tokens."""
    cost = recipe.data.batch.cost
    if recipe.inputs.text is None or not cost.token or isinstance(recipe.model, GuardSpec):
        return None
    facts = Dataset(data.reader.path, data.reader.version).facts(data.train_rows)
    tokens_N = (data.train_costs - costs(facts, cost, recipe.inputs)) / cost.token
    return round(float(planned.totals(tokens_N).sum()))


def _run_length(recipe: Recipe, data: DataModule) -> tuple[int, int, int]:
    """Return items, batches of a rank, and optimizer steps of the run, which ``max_steps`` may end within an epoch."""
    training, samples, batches, steps = recipe.training, 0, 0, 0
    for epoch in range(training.epochs):
        planned = data.plan(epoch)
        epoch_steps = math.ceil(planned.steps / training.accumulate)
        if training.max_steps is not None:
            epoch_steps = min(epoch_steps, training.max_steps - steps)
        run = min(planned.steps, epoch_steps * training.accumulate)
        samples += int(planned.lengths()[:run].sum())
        batches, steps = batches + run, steps + epoch_steps
        if steps == training.max_steps:
            break
    return samples, batches, steps


def _assumed_batch(recipe: Recipe, model: MultimodalModel) -> tuple[Batch, str]:
    """Return a batch that spends equal shares of the budget on the modalities, and its description."""
    spec, inputs = recipe.data.batch, recipe.inputs
    share = spec.budget / len(model.modalities)
    costs_per_segment: dict[Modality, float] = {"image": spec.cost.image}
    if inputs.text is not None:
        costs_per_segment["text"] = (spec.cost.character * CHARACTERS_PER_TOKEN + spec.cost.token) * inputs.text.max_tokens
    if inputs.audio is not None:
        costs_per_segment["audio"] = spec.cost.second * inputs.audio.window
    counts: dict[Modality, int] = {}
    for modality in (m for m in MODALITIES if m in model.modalities):
        cost = costs_per_segment[modality] + spec.cost.item
        counts[modality] = max(1, min(spec.max_items, int(share / cost) if cost else spec.max_items))
    tokens = inputs.text.max_tokens if inputs.text is not None else 0
    nouns = {"text": f"texts of {tokens} tokens", "image": "images", "audio": "windows of audio"}
    described = ", ".join(f"{count} {nouns[modality]}" for modality, count in counts.items())
    return blank_batch(model, counts, tokens, len(recipe.taxonomy.labels)), described

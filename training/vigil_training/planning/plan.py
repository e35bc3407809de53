"""The plan of a run: memory of each strategy beside the steps of its epochs."""

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
from vigil_data.loading.sampler import costs
from vigil_modeling.safety_model import SafetyModel
from vigil_training.distributed.strategies.deepspeed import zero_config
from vigil_training.distributed.world import World
from vigil_training.planning.memory import (
    Sharding,
    StateBytes,
    blank_batch,
    buffer_bytes,
    build_abstract,
    measure_activations,
    state_bytes,
)
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.specs import DeepSpeed, Ranks, Single
from vigil_training.trainer.data_module import DataModule
from vigil_training.trainer.optimizer import parameter_groups

GIB = 2**30
CHARACTERS_OF_TOKEN = 4
NOT_COUNTED = "not counted: the GPU's context and libraries (not yet measured), and what backward needs above what forward saved"
_STAGES: tuple[Literal[1, 2, 3], ...] = (1, 2, 3)


def gib(count: int) -> str:
    """Bytes in GiB: two decimals, or two digits of what is less than a hundredth."""
    return f"{count / GIB:.2f}" if count >= GIB / 100 or not count else f"{count / GIB:.2g}"


@dataclass(frozen=True, slots=True)
class Row:
    """What a strategy needs on each GPU, in bytes.

    Attributes:
        name: of the strategy.
        state: weights, gradients and optimizer state on the GPU.
        activations: of the dearest batch.
        buffers: further allowances, by name.
        host: bytes of state that are offloaded, for each rank.
        chosen: whether the recipe asks for it.
        fits: in the memory given; ``None`` if none was.
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
        """On the GPU."""
        return self.state.total + self.activations + sum(self.buffers.values())


@dataclass(frozen=True, slots=True)
class Weights:
    """The sizes of a model.

    Attributes:
        parameters: elements of each weight and whether it is trained, in the model's order.
        groups: the same by the optimizer's groups, and one of what is frozen.
        buffers: bytes of its buffers.
    """

    parameters: list[tuple[int, bool]]
    groups: list[list[tuple[int, bool]]]
    buffers: int


@dataclass(frozen=True, slots=True)
class Epochs:
    """The length of a run, from the dataset.

    Attributes:
        samples: items of an epoch.
        batches: that each rank runs in the first epoch.
        steps: optimizer steps of the first epoch.
        run_samples: items of the whole run, each as often as it is trained on.
        run_batches: that each rank runs in the whole run.
        run_steps: optimizer steps of the whole run, if it is not stopped early.
        largest_items: items of the dearest batch.
        largest_cost: its cost.
        text_only: share of items that have text and nothing else.
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


@dataclass(frozen=True, slots=True)
class Report:
    """All that `vigil plan` says; see :meth:`as_json`."""

    nodes: int
    gpus: int
    memory: int | None
    parameters: int
    trained: int
    rows: tuple[Row, ...]
    epochs: Epochs | None
    notes: tuple[str, ...]

    @property
    def smallest(self) -> Row | None:
        """The first row that fits: the least sharing out."""
        return next((row for row in self.rows if row.fits), None)

    @property
    def verdict(self) -> str:
        """One line on the recipe's own strategy, and on the least that fits."""
        row = next(row for row in self.rows if row.chosen)
        of = "" if self.memory is None else f" of {self.memory / GIB:g} GiB"
        where = f"on {self.nodes} \N{MULTIPLICATION SIGN} {self.gpus} GPUs" if row.name != "single" else "on 1 GPU"
        needs = f"{row.name} {where}{of} needs {gib(row.total)} GiB a GPU"
        if row.fits is None:
            return f"{needs}; give --memory to know whether it fits"
        if row.fits:
            least = self.smallest
            return f"{needs}: fits" + (f"; {least.name} fits too" if least and least is not row else "")
        return f"{needs}: does not fit; " + (f"{self.smallest.name} does" if self.smallest else "nor does any other strategy")

    def facts(self) -> list[str]:
        """Lines on the model and the epochs."""
        lines = [f"{self.parameters:,} weights, {self.trained:,} of them trained"]
        if (e := self.epochs) is not None:
            lines.append(
                f"an epoch: {e.samples:,} items in {e.batches:,} batches a rank, {e.steps:,} optimizer steps; "
                f"the run: {e.run_samples:,} items in {e.run_batches:,} batches a rank, {e.run_steps:,} optimizer steps"
            )
            lines.append(
                f"the dearest batch: {e.largest_items:,} items, cost {e.largest_cost:,.0f}; text alone: {e.text_only:.0%}"
            )
        return lines

    def as_json(self) -> dict[str, Any]:
        """The numbers, in bytes, as plain data."""
        values = dataclasses.asdict(self)
        for row, value in zip(self.rows, values["rows"], strict=True):
            value["total"] = row.total
        return {**values, "smallest": self.smallest.name if self.smallest else None, "verdict": self.verdict}


def make_report(recipe: Recipe, nodes: int | None = None, gpus: int | None = None, memory: float | None = None) -> Report:
    """Plan a run.

    Args:
        recipe: of the run.
        nodes: machines; the recipe's if not given.
        gpus: on each machine; the recipe's if not given.
        memory: of each GPU in GiB.

    Raises:
        UserError: if the model cannot be built, or the dataset has nothing to train on.
    """
    spec = recipe.strategy
    nodes = nodes or (spec.nodes if isinstance(spec, Ranks) else 1)
    gpus = gpus or (spec.devices if isinstance(spec, Ranks) else 1)
    model, note = build_abstract(recipe, assemble)
    if recipe.training.activation_checkpointing:
        model.checkpoint_activations()
    parameters = [(p.numel(), p.requires_grad) for p in model.parameters()]
    groups = [[(p.numel(), True) for p in g["params"]] for g in parameter_groups(model, recipe.model, recipe.optimizer)]
    groups.append([(p.numel(), False) for p in model.parameters() if not p.requires_grad])
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    # A single process plans its epochs alone, whatever the GPUs that the other rows share.
    world = 1 if isinstance(spec, Single) else nodes * gpus
    if exists(recipe.data.dataset):
        epochs, batch = _read_epochs(recipe, world)
        how_batch = "the dearest batch of the first epoch"
    else:
        epochs = None
        batch, described = _assumed_batch(recipe, model)
        how_batch = f"{recipe.data.dataset} has no dataset: epochs are not planned, and a batch is assumed of {described}"
    activations = measure_activations(model, batch, recipe.training.precision, touch_all=nodes * gpus > 1)
    kept = "; encoder layers keep their inputs alone" if recipe.training.activation_checkpointing else ""
    notes = [note, f"activations: {how_batch}, {recipe.training.precision}, {activations.how}{kept}", NOT_COUNTED]
    if isinstance(spec, DeepSpeed) and spec.raw:
        notes.append("strategy.raw is taken into account for the sizes of buffers alone")
    limit = None if memory is None else round(memory * GIB)
    rows = _rows(recipe, Weights(parameters, groups, buffers), nodes * gpus, activations.bytes, limit)
    total, trained = sum(n for n, _ in parameters), sum(n for n, is_trained in parameters if is_trained)
    return Report(nodes, gpus, limit, total, trained, tuple(rows), epochs, tuple(n for n in notes if n))


def _rows(recipe: Recipe, weights: Weights, world: int, activations: int, limit: int | None) -> list[Row]:
    """A row for each strategy, and one for the recipe's if it offloads."""
    spec = recipe.strategy
    chosen_stage = spec.stage if isinstance(spec, DeepSpeed) else None
    offloads = isinstance(spec, DeepSpeed) and (spec.offload_optimizer, spec.offload_parameters) != ("none", "none")
    numel = sum(n for n, _ in weights.parameters)

    def row(name: str, sharding: Sharding, ranks: int, chosen: bool, offload: DeepSpeed | None = None) -> Row:
        state = sum((state_bytes(group, sharding, ranks) for group in weights.groups), StateBytes(0, 0, 0))
        zero: dict[str, Any] = {}
        if sharding != "ddp":
            raw = spec.raw if isinstance(spec, DeepSpeed) else {}
            zero = zero_config(DeepSpeed(stage=sharding, raw=raw), recipe, numel)["zero_optimization"]
        extra = buffer_bytes(weights.parameters, state, sharding, zero, recipe.training.accumulate)
        extra["the model's buffers"] = weights.buffers
        on_gpu = _offloaded(state, offload) if offload else state
        host = state.total - on_gpu.total
        made = Row(name, on_gpu, activations, extra, host, chosen, None)
        return made if limit is None else dataclasses.replace(made, fits=made.total <= limit)

    rows = [row("single", "ddp", 1, isinstance(spec, Single))]
    rows.append(row("DDP", "ddp", world, spec.kind == "ddp"))
    for stage in _STAGES:
        rows.append(row(f"ZeRO-{stage}", stage, world, stage == chosen_stage and not offloads))
        if isinstance(spec, DeepSpeed) and offloads and stage == chosen_stage:
            rows.append(row(f"ZeRO-{stage} with offload", stage, world, True, spec))
    return rows


def _offloaded(state: StateBytes, spec: DeepSpeed) -> StateBytes:
    """What stays on the GPU."""
    if spec.offload_optimizer != "none":
        state = dataclasses.replace(state, optimizer=0, masters=0)
    return dataclasses.replace(state, weights=0) if spec.offload_parameters != "none" else state


def _read_epochs(recipe: Recipe, world: int) -> tuple[Epochs, Batch]:
    """The length of the run, and the dearest batch of the first epoch."""
    dataset = Dataset(Path(recipe.data.dataset), recipe.data.version)
    data = DataModule(recipe, dataset.version, World(0, world, 0, world))
    first = data.plan(0)
    facts = dataset.facts(data.train_rows)
    priced = costs(facts, recipe.data.batch.cost)
    dearest = max(first.batches, key=lambda rows: float(priced[rows].sum()))
    text_only = (facts[:, 0] > 0) & (facts[:, 1:] == 0).all(axis=1)
    run_samples, run_batches, run_steps = _whole_run(recipe, data)
    epochs = Epochs(
        samples=len(data.train_rows),
        batches=first.steps,
        steps=math.ceil(first.steps / recipe.training.accumulate),
        run_samples=run_samples,
        run_batches=run_batches,
        run_steps=run_steps,
        largest_items=len(dearest),
        largest_cost=float(priced[dearest].sum()),
        text_only=float(np.mean(text_only)),
    )
    return epochs, data.reader[Request(data.train_rows[dearest])]


def _whole_run(recipe: Recipe, data: DataModule) -> tuple[int, int, int]:
    """Items, batches of a rank, and optimizer steps of the run, which ``max_steps`` may end within an epoch."""
    training, samples, batches, steps = recipe.training, 0, 0, 0
    for epoch in range(training.epochs):
        planned = data.plan(epoch)
        of_epoch = math.ceil(planned.steps / training.accumulate)
        if training.max_steps is not None:
            of_epoch = min(of_epoch, training.max_steps - steps)
        run = min(planned.steps, of_epoch * training.accumulate)
        samples += sum(len(rows) for rows in planned.batches[: run * planned.world])
        batches, steps = batches + run, steps + of_epoch
        if steps == training.max_steps:
            break
    return samples, batches, steps


def _assumed_batch(recipe: Recipe, model: SafetyModel) -> tuple[Batch, str]:
    """A batch that spends equal shares of the budget on the modalities, and what it is in words."""
    spec, inputs = recipe.data.batch, recipe.inputs
    share = spec.budget / len(model.modalities)
    prices: dict[Modality, float] = {"image": spec.cost.image}
    if inputs.text is not None:
        prices["text"] = spec.cost.character * CHARACTERS_OF_TOKEN * inputs.text.max_tokens
    if inputs.audio is not None:
        prices["audio"] = spec.cost.second * inputs.audio.window
    counts: dict[Modality, int] = {}
    for modality in (m for m in MODALITIES if m in model.modalities):
        price = prices[modality] + spec.cost.item
        counts[modality] = max(1, min(spec.max_items, int(share / price) if price else spec.max_items))
    tokens = inputs.text.max_tokens if inputs.text is not None else 0
    nouns = {"text": f"texts of {tokens} tokens", "image": "images", "audio": "windows of audio"}
    described = ", ".join(f"{count} {nouns[modality]}" for modality, count in counts.items())
    return blank_batch(model, counts, tokens, len(recipe.taxonomy.labels)), described

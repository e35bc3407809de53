"""Specs of training: optimizer, length, strategy, checkpoints, tracking."""

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, StringConstraints, model_validator

from vigil_data.items import Modality
from vigil_data.specs import Spec

Rate = Annotated[float, Field(ge=0, lt=1)]


PartName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*(\.[A-Za-z0-9_]+)*$")]


class InitFrom(Spec):
    """Trained model from which weights are taken before training; a resumed run takes its own."""

    path: str = Field(description="run folder, folder of a checkpoint in a run, or bundle with TorchScript")
    parts: tuple[PartName, ...] = Field(
        (),
        description="parts to take, such as encoders, encoders.text, projections, position, fusion, heads or heads.NAME "
        "(default: all that both models have)",
    )
    checkpoint: Literal["best", "last"] = Field("best", description="which checkpoint of a run")
    prune_feed_forward: bool = Field(
        False, description="take the largest hidden neurons of an encoder's feed-forward layers that are wider in the source"
    )


def _from_path(value: object) -> object:
    """Read a path as a block; pydantic takes what this returns as Python, where a list is not a tuple."""
    if isinstance(value, str):
        return {"path": value}
    if isinstance(value, Mapping) and isinstance(parts := value.get("parts"), list):
        return {**value, "parts": tuple(parts)}
    return value


def _from_one(value: object) -> object:
    return tuple(map(_from_path, value if isinstance(value, list | tuple) else [value]))


def _to_one(sources: tuple[InitFrom, ...]) -> Any:
    """Write a single source as a block, as most recipes do, so that a resolved recipe takes the same overrides."""
    written = [source.model_dump(mode="json") for source in sources]
    return written[0] if len(written) == 1 else written


InitFromSpec = Annotated[
    tuple[InitFrom, ...],
    Field(min_length=1),
    BeforeValidator(_from_one, json_schema_input_type=str | InitFrom | list[str | InitFrom]),
    PlainSerializer(_to_one, when_used="json"),
]


Confidence = Annotated[float, Field(ge=0.5, lt=1)]


class FillUnknown(Spec):
    """Unknown targets that take the teacher's probability, because it is near enough to 0 or 1."""

    confidence: Confidence = Field(
        0.95,
        description="an unknown target is filled where p is at least this or at most 1 minus this; 0.5: everywhere",
    )
    labels: Mapping[str, Confidence] = Field(default_factory=dict, description="label to a confidence of its own")


class Distillation(Spec):
    """Training on the scores of a teacher (Hinton, Vinyals and Dean 2015, section 2, for independent sigmoids)."""

    teacher: str = Field(
        description="run, bundle, or table (Parquet or CSV) with id and probability.LABEL, such as `vigil score` writes"
    )
    weight: float = Field(0.5, ge=0, le=1, description="share of the teacher in the loss of a target; the target has the rest")
    temperature: float = Field(2.0, gt=0, description="divisor of the logits of teacher and student in the teacher's share")
    fill_unknown: FillUnknown | None = Field(
        None, description="fill unknown targets where the teacher is confident; null: they stay without effect"
    )
    calibrate: bool = Field(
        False,
        description="true: calibrate a table on the validation split, which it scores too; runs and bundles are calibrated",
    )
    max_missing: float = Field(0.01, ge=0, le=1, description="largest share of training items without a score of the teacher")

    @model_validator(mode="after")
    def _teacher_has_effect(self) -> "Distillation":
        if not self.weight and self.fill_unknown is None:
            raise ValueError("weight: 0 leaves the teacher without effect; raise it, or add fill_unknown")
        return self


class OptimizerSpec(Spec):
    """AdamW (Loshchilov and Hutter 2019) with linear warm-up and a cosine to ``lr_end``."""

    lr: float = Field(
        3e-4, gt=0, description="peak learning rate of projections, fusion and heads; encoders multiply it by their lr_factor"
    )
    lr_end: float = Field(0.0, ge=0, description="learning rate at the last step, relative to the peak")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of all steps in which the rate rises to its peak")
    weight_decay: float = Field(0.01, ge=0, description="not applied to biases, norms and other vectors")
    betas: tuple[Rate, Rate] = Field((0.9, 0.999), description="decay rates of the two moment estimates of AdamW")
    eps: float = Field(1e-8, gt=0, description="added to the denominator of the update")


class MovingAverage(Spec):
    """Exponential moving average of the trained weights (Tarvainen and Valpola 2017, section 2)."""

    decay: float = Field(0.999, ge=0, lt=1, description="share of the average that an update keeps")
    every_steps: int = Field(1, ge=1, description="optimizer steps between two updates")
    start_step: int = Field(0, ge=0, description="optimizer steps before averaging begins, with the weights of that step")
    warmup: bool = Field(True, description="true: the n-th update keeps at most (1 + n) / (10 + n), so that early weights fade")


class ProfileSpec(Spec):
    """Optimizer steps whose operators are recorded by torch.profiler; numbers do not change."""

    start: int = Field(10, ge=0, description="optimizer steps before the first recorded one")
    steps: int = Field(5, ge=1, le=100, description="optimizer steps that are recorded, each some megabytes of trace")


class TrainingSpec(Spec):
    """Length and precision of a run."""

    epochs: int = Field(1, ge=1, description="passes over the training split")
    max_steps: int | None = Field(None, ge=1, description="optimizer steps after which training ends, whatever the epochs")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: weights stay in fp32 and layers compute in bf16 (autocast)"
    )
    accelerator: Literal["auto", "cpu", "cuda"] = Field("auto", description="device; auto: CUDA where there is one, else the CPU")
    resume_world: Literal["exact", "repartition"] = Field(
        "exact",
        description="exact: a run resumes with its number of ranks alone; repartition: with any, among which the rest of the "
        "epoch is dealt out",
    )
    accumulate: int = Field(1, ge=1, description="batches of each optimizer step, whose gradients are accumulated")
    clip: float | None = Field(1.0, gt=0, description="maximum norm of the gradient; null: no clipping")
    threads: int | None = Field(None, ge=1, description="CPU threads of the training process; null: torch's default")
    patience: int | None = Field(
        None, ge=1, description="validations without a better monitor after which training stops; null: never"
    )
    monitor: str = Field(
        "validation/macro_ap", description="validation metric that chooses the best checkpoint and decides early stopping"
    )
    mode: Literal["max", "min"] = Field("max", description="whether a higher or a lower monitor is better")
    validation_items: int | None = Field(
        None, ge=1, description="items of the validation split, at random, that the validations of a training score; null: all"
    )
    modality_dropout: Mapping[Modality, Rate] = Field(
        default_factory=dict, description="modality to the probability of hiding it from an item that has another one"
    )
    ema: MovingAverage | None = Field(
        None, description="moving average of the weights, which validation, calibration and export use; null: none"
    )
    token_cache: bool = Field(
        False, description="true: run encoders with frozen: true once, and read their tokens from files next to the dataset"
    )
    activation_checkpointing: bool = Field(
        False, description="keep only the inputs of each encoder layer, and recompute the rest in the backward pass"
    )
    compile: bool = Field(
        False, description="compile the encoders for training (torch.compile), which needs a C++ compiler; worth it on a GPU"
    )
    profile: ProfileSpec | None = Field(
        None, description="record some steps into the run folder: a Chrome trace, and a table of operators; null: none"
    )
    max_skipped: int = Field(
        10, ge=0, description="optimizer steps that may be skipped in a run because the gradient is not finite"
    )


class Single(Spec):
    """One process."""

    kind: Literal["single"] = "single"


class Ranks(Spec):
    """Settings of every strategy with several processes, called ranks."""

    nodes: int = Field(1, ge=1, description="machines")
    devices: int = Field(1, ge=1, description="ranks on each machine: one for each GPU, or processes on the CPU")
    timeout: float = Field(
        1800.0, gt=0, description="seconds without an optimizer step or a validation batch after which a run counts as hung"
    )

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.nodes * self.devices


class DistributedDataParallel(Ranks):
    """Every rank holds all weights, gradients and optimizer state; gradients are averaged (Li et al. 2020)."""

    kind: Literal["ddp"] = "ddp"


class DeepSpeed(Ranks):
    """ZeRO (Rajbhandari et al. 2020): ranks share optimizer state (stage 1), gradients too (2), and weights too (3)."""

    kind: Literal["deepspeed"] = "deepspeed"
    stage: Literal[1, 2, 3] = Field(2, description="what is sharded: 1 optimizer state, 2 and gradients, 3 and weights")
    offload_optimizer: Literal["none", "cpu", "nvme"] = Field("none", description="where optimizer state is kept and stepped")
    offload_parameters: Literal["none", "cpu", "nvme"] = Field(
        "none", description="where weights are kept between uses; stage 3 only"
    )
    nvme_path: str | None = Field(None, description="folder on a fast local disk, for offloading to nvme")
    raw: Mapping[str, Any] = Field(
        default_factory=dict, description="DeepSpeed's own configuration, merged over the recipe's; it is not checked"
    )

    @model_validator(mode="after")
    def _offload_is_possible(self) -> "DeepSpeed":
        if self.offload_parameters != "none" and self.stage != 3:
            raise ValueError("offload_parameters needs stage 3")
        if "nvme" in (self.offload_optimizer, self.offload_parameters):
            if self.stage != 3:
                raise ValueError("offloading to nvme needs stage 3")
            if self.nvme_path is None:
                raise ValueError("offloading to nvme needs nvme_path")
        return self


class FullySharded(Ranks):
    """PyTorch's FSDP2 (Zhao et al. 2023): ranks share weights, gradients and optimizer state, as in ZeRO-3, without DeepSpeed."""

    kind: Literal["fsdp2"] = "fsdp2"


StrategySpec = Annotated[Single | DistributedDataParallel | DeepSpeed | FullySharded, Field(discriminator="kind")]


class CheckpointSpec(Spec):
    """When checkpoints are saved, and which are kept."""

    every_steps: int | None = Field(
        200, ge=1, description="optimizer steps between two checkpoints; null: at the end of each epoch"
    )
    keep_last: int = Field(2, ge=1, description="newest checkpoints to keep; if one is damaged, the one before it is used")
    keep_best: int = Field(1, ge=1, description="checkpoints of the best validations to keep")
    keep_every: int | None = Field(
        None, ge=1, description="checkpoints at multiples of so many optimizer steps are never removed"
    )
    background: bool = Field(True, description="write while training continues; the weights are copied first")


class TrackingSpec(Spec):
    """Weights & Biases; a run folder has all the numbers without it."""

    mode: Literal["auto", "offline", "online", "disabled"] = Field(
        "auto",
        description="`online` sends the run while it is trained; one that is tracked offline is sent by `vigil track sync`; "
        "`auto` is online with an API key and offline without, unless `WANDB_MODE` is set",
    )
    project: str = Field("vigil", description="W&B project")
    entity: str | None = Field(None, description="W&B user or team (default: that of the login)")
    group: str | None = Field(None, description="group of the run in W&B (default: the Slurm array job that trains it, if any)")
    tags: tuple[str, ...] = Field((), description="tags of the run in W&B")
    content: Literal["none", "ids", "redacted", "full"] = Field(
        "ids",
        description="what is sent of items: nothing, ids and numbers, masked texts and blurred images too, or everything",
    )
    also: tuple[Literal["tensorboard", "mlflow", "csv"], ...] = Field(
        (), description="where metrics go too: tensorboard/ or csv/ in the run folder; MLFLOW_TRACKING_URI or mlruns/ in it"
    )

    @model_validator(mode="after")
    def _also_names_each_once(self) -> "TrackingSpec":
        if len(set(self.also)) < len(self.also):
            raise ValueError(f"also: {', '.join(self.also)} names one of them twice")
        return self


RECALLS = (1, 10)
"""Numbers of nearest items for which recall is measured."""


def retrieval_metric_names(modalities: Sequence[Modality]) -> list[str]:
    """Return the names of the validation metrics of contrastive pre-training."""
    pairs = [f"/{query}-{target}" for query, target in permutations(modalities, 2)]
    return [f"validation/recall@{k}{pair}" for pair in ("", *pairs) for k in RECALLS]


def validation_metric_names(labels: tuple[str, ...]) -> list[str]:
    """Return the names of all validation metrics, which are the valid values of ``training.monitor``."""
    per_label = [f"validation/{metric}/{label}" for metric in ("ap", "auroc") for label in labels]
    return ["validation/macro_ap", "validation/macro_auroc", "validation/loss", *per_label]

"""What a recipe can say about a training: optimizer, length, checkpoints, tracking."""

from typing import Literal

from pydantic import Field

from vigil_data.specs import Spec


class OptimizerSpec(Spec):
    """AdamW (Loshchilov and Hutter 2019) with linear warm-up and a cosine to ``lr_end``."""

    lr: float = Field(
        3e-4, gt=0, description="peak learning rate of projections, fusion and heads; encoders multiply it by their lr_factor"
    )
    lr_end: float = Field(0.0, ge=0, description="learning rate at the last step, relative to the peak")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of all steps in which the rate rises to its peak")
    weight_decay: float = Field(0.01, ge=0, description="not applied to biases, norms and other vectors")
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)


class TrainingSpec(Spec):
    """How long and how precisely a run trains."""

    epochs: int = Field(1, ge=1)
    max_steps: int | None = Field(None, ge=1, description="optimizer steps after which training ends, whatever the epochs")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: weights stay in fp32 and layers compute in bf16 (autocast)"
    )
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    accumulate: int = Field(1, ge=1, description="batches whose gradients make one optimizer step")
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null for no clipping")
    threads: int | None = Field(None, ge=1, description="CPU threads of the training process; torch's default if not given")
    patience: int | None = Field(
        None, ge=1, description="validations without a better monitor after which training stops; null: never"
    )
    monitor: str = Field(
        "validation/macro_ap", description="the metric by which the best checkpoint is chosen and training stopped"
    )
    mode: Literal["max", "min"] = Field("max", description="whether more of the monitor is better")


class CheckpointSpec(Spec):
    """What is saved while a run trains; the last and the best are kept."""

    every_steps: int | None = Field(
        200, ge=1, description="optimizer steps from one save of the last checkpoint to the next; null: at the end of each epoch"
    )


class TrackingSpec(Spec):
    """Weights & Biases; a run folder has all the numbers without it."""

    mode: Literal["offline", "online", "disabled"] = Field("offline", description="offline runs are sent later by `wandb sync`")
    project: str = "vigil"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()

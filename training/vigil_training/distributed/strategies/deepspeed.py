"""DeepSpeed's ZeRO (Rajbhandari et al. 2020) as a Lightning strategy: ranks share optimizer state, gradients and weights.

Lightning's strategy is for CUDA alone, lets DeepSpeed count batches (which is wrong where an epoch ends with fewer of them) and
writes pickles. What differs here is in the methods below; weights stay in float32 and steps are those of DDP.
"""

import copy
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.distributed as dist
from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch.plugins import Precision
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn

from vigil_data.errors import UserError
from vigil_modeling.safety_model import SafetyModel
from vigil_training.checkpoint.shards import Fragment, InventoryEntry
from vigil_training.distributed.strategies import deepspeed_shards
from vigil_training.distributed.strategies.checkpointed import CheckpointedStrategy, broadcast_batch_norm_statistics
from vigil_training.distributed.strategies.factory import PROCESS_GROUP_MARGIN
from vigil_training.distributed.world import World
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.specs import DeepSpeed

if TYPE_CHECKING:
    from vigil_training.checkpoint.reader import CheckpointReader

_LARGEST_BUCKET = 50_000_000
"""Elements of the buffer in which gradients are reduced, at most: 200 MB."""


class Float32Precision(DeepSpeedPrecision):
    """Weights, inputs and targets as they are; autocast, if any, is DeepSpeed's (see :func:`zero_config`)."""

    def __init__(self) -> None:
        super().__init__("32-true")

    def convert_module(self, module: nn.Module) -> nn.Module:
        """The module, unchanged."""
        return module

    def convert_input(self, data: Any) -> Any:
        """The batch, unchanged."""
        return data


def zero_precision(recipe: Recipe) -> Precision:
    """The precision plugin for :class:`ZeroStrategy`.

    It is the same for bf16: DeepSpeed's engine turns off an autocast that was entered outside of it, so it enters its own.
    """
    del recipe
    return Float32Precision()


def zero_config(spec: DeepSpeed, recipe: Recipe, numel: int) -> dict[str, Any]:
    """DeepSpeed's configuration for a recipe, ``spec.raw`` laid over it.

    Args:
        spec: the recipe's ``strategy``.
        recipe: clipping and precision.
        numel: elements of all weights. Buffers are sized by it: the defaults would dwarf the state of small models, and keep all
            weights of a model under 10^9 gathered in stage 3.
    """
    bucket = max(2 * (min(numel // 10, _LARGEST_BUCKET) // 2), 1024)
    zero: dict[str, Any] = {
        "stage": spec.stage,
        "contiguous_gradients": True,
        "overlap_comm": True,
        "reduce_scatter": True,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if spec.stage == 3:
        # Vectors (biases, norms) stay gathered, up to a hundredth of the model.
        zero |= {
            "stage3_prefetch_bucket_size": bucket,
            "stage3_max_live_parameters": 2 * bucket,
            "stage3_max_reuse_distance": 2 * bucket,
            "stage3_param_persistence_threshold": 10_000,
            "stage3_model_persistence_threshold": numel // 100,
        }
    pin = recipe.training.accelerator != "cpu" and torch.cuda.is_available()
    for key, where in (("offload_optimizer", spec.offload_optimizer), ("offload_param", spec.offload_parameters)):
        if where != "none":
            zero[key] = {"device": where, "pin_memory": pin} | ({"nvme_path": spec.nvme_path} if where == "nvme" else {})
    if spec.offload_parameters == "nvme":
        zero["offload_param"] |= {"buffer_size": numel, "buffer_count": 5}
    config: dict[str, Any] = {
        # Batches are counted by Lightning and shares of the loss made by the loader.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": recipe.training.clip or 0.0,
        "zero_allow_untested_optimizer": True,
        # torch's own AdamW steps on the CPU too: DeepSpeed's would have to be compiled first.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "zero_optimization": zero,
    }
    if recipe.training.precision == "bf16":
        # With no "safe modules" gradients are reduced in the dtype of the weights, as DDP does.
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return merge(config, spec.raw)


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``under`` with the values of ``over``, mappings merged key by key."""
    merged = dict(copy.deepcopy(dict(under)))
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else copy.deepcopy(value)
    return merged


class ZeroStrategy(DeepSpeedStrategy):
    """ZeRO-1, 2 and 3 on GPUs (NCCL) or on the CPU (gloo); see :meth:`of`.

    A step whose gradient is not finite on any rank is left out on all of them; see :attr:`skipped_last_step`.
    """

    _spec: DeepSpeed
    _recipe: Recipe
    _device: torch.device
    _group_begins = True

    @classmethod
    def of(cls, spec: DeepSpeed, recipe: Recipe, world: World, device: torch.device, environment: ClusterEnvironment) -> Self:
        """Make the strategy; torch's default process group must have been made.

        Args:
            spec: the recipe's ``strategy``.
            recipe: clipping and precision.
            world: the place of this process.
            device: of this rank.
            environment: the same place, for Lightning.

        Raises:
            UserError: something that the strategy needs is not to be had.
        """
        _prepare(spec, device)
        # DeepSpeed takes a device by its number, also the CPU.
        device = torch.device(device.type, device.index or 0)
        strategy = cls(
            config=zero_config(spec, recipe, 0),
            stage=spec.stage,
            parallel_devices=[device] * world.local_size,
            cluster_environment=environment,
            process_group_backend="nccl" if device.type == "cuda" else "gloo",
            logging_level=logging.ERROR,
        )
        strategy._spec, strategy._recipe, strategy._device = spec, recipe, device
        return strategy

    @property
    def root_device(self) -> torch.device:
        """Of this rank."""
        return self._device

    @property
    def engine(self) -> Any:
        """DeepSpeed's engine, once it is set up."""
        return self.model

    @property
    def handles_gradient_accumulation(self) -> bool:
        """No: Lightning says where a group of batches ends, as it does for DDP."""
        return False

    def setup_environment(self) -> None:
        """Without the check that the accelerator is CUDA."""
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        """Let DeepSpeed take over the default process group; several ranks may have the same CPU."""
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def init_deepspeed(self) -> None:
        """Make the engine, and have its process group wait as long as the default one: DeepSpeed's has torch's 10 minutes."""
        super().init_deepspeed()
        patience = timedelta(seconds=self._spec.timeout * PROCESS_GROUP_MARGIN)
        dist.set_timeout(patience, self.engine.seq_data_parallel_group)

    def _format_config(self) -> None:
        """Make the configuration when the model's size is known; batches and precision are not Lightning's to add."""
        assert self.lightning_module is not None
        numel = sum(parameter.numel() for parameter in self.lightning_module.parameters())
        self.config = zero_config(self._spec, self._recipe, numel)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Tell the engine first whether an optimizer step follows this batch, and align what only rank 0 decides."""
        assert self.lightning_module is not None
        if self._group_begins:
            broadcast_batch_norm_statistics(self.lightning_module)
            if self.zero_stage_3:
                # A weight without a gradient would be stepped with that of the step before.
                self.engine.optimizer.grad_partitions_flat_buffer.zero_()
        boundary = not self.lightning_module.trainer.fit_loop._should_accumulate()
        self.engine.set_gradient_accumulation_boundary(boundary)
        self._group_begins = boundary
        return super().training_step(*args, **kwargs)

    def block_backward_sync(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Nothing: :meth:`training_step` has told the engine, whose own way is closed to stages 2 and 3."""
        return nullcontext()

    def gradient_norm(self) -> Tensor:
        """The norm of the last step's gradient over all weights and ranks before clipping; infinite if that step was left out."""
        return torch.as_tensor(self.engine.optimizer._global_grad_norm, dtype=torch.float32)

    @property
    def skipped_last_step(self) -> bool:
        """Whether the last optimizer step was left out because its gradient was not finite, the same on all ranks."""
        return bool(self.engine.optimizer.overflow)

    def fragments(self, model: SafetyModel) -> Iterator[Fragment]:
        """What this rank holds of weights, buffers and optimizer state; over all ranks each element once."""
        return deepspeed_shards.fragments(self.engine.optimizer, model)

    def load_fragments(self, model: SafetyModel, reader: "CheckpointReader") -> None:
        """Fill weights, buffers and optimizer state; to be called on all ranks together."""
        deepspeed_shards.load_fragments(self.engine.optimizer, model, reader)

    def inventory(self, model: SafetyModel) -> dict[str, InventoryEntry]:
        """What a checkpoint must hold, with the shapes of whole tensors."""
        return deepspeed_shards.inventory(model)

    def held(self) -> dict[str, int]:
        """Bytes that this rank holds now; see :func:`vigil_training.distributed.strategies.deepspeed_shards.held`."""
        assert self.lightning_module is not None
        return deepspeed_shards.held(self.engine.optimizer, self.lightning_module)


class CheckpointedDeepSpeed(CheckpointedStrategy, ZeroStrategy):
    """:class:`ZeroStrategy` with checkpoints of Vigil's own form."""

    fragments = ZeroStrategy.fragments
    load_fragments = ZeroStrategy.load_fragments
    inventory = ZeroStrategy.inventory


def _prepare(spec: DeepSpeed, device: torch.device) -> None:
    """Import DeepSpeed for a device without having it compile anything.

    Raises:
        UserError: DeepSpeed is not installed, or what NVMe offloading needs is not.
    """
    os.environ["DS_ACCELERATOR"] = device.type
    try:
        import deepspeed
        from deepspeed.accelerator import get_accelerator
    except ImportError as error:
        raise UserError(
            f"strategy.kind: deepspeed cannot be imported ({error}); install vigil with its deepspeed extra"
        ) from error
    if get_accelerator().device_name() != device.type:
        raise UserError(f"DeepSpeed was imported for {get_accelerator().device_name()}, not {device.type}; unset DS_ACCELERATOR")
    # What DeepSpeed 0.19 calls and torch 2.14 deprecates.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated")
    # The rate goes on where the first step is left out.
    warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`")
    if device.type == "cpu":
        # An all-reduce over shared memory that takes a minute to compile on first use; gloo does its work. Asking which other
        # operators would compile runs the compiler too, so that is answered for all of them.
        deepspeed.ops.__compatible_ops__ = {}
    if "nvme" in (spec.offload_optimizer, spec.offload_parameters):
        check_nvme(spec)


def check_nvme(spec: DeepSpeed) -> None:
    """Build what offloading to NVMe needs, once for a machine; it takes some minutes.

    Raises:
        UserError: it cannot be built, or the folder cannot be written to.
    """
    if not os.access(str(spec.nvme_path), os.W_OK):
        raise UserError(f"strategy.nvme_path: {spec.nvme_path} is not a folder that can be written to")
    absent = UserError("strategy: offloading to nvme needs DeepSpeed's async_io: install libaio-dev, g++ and ninja")
    if shutil.which("g++") is None:
        raise absent
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise absent
    try:
        AsyncIOBuilder().load(verbose=False)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"strategy: offloading to nvme needs DeepSpeed's async_io, which cannot be built: {reason}") from error

"""DeepSpeed's ZeRO (Rajbhandari et al. 2020) as a Lightning strategy: ranks share optimizer state, gradients and weights.

Lightning's strategy supports CUDA only, lets DeepSpeed count batches (which is wrong for the shorter last step of an epoch) and
writes pickles. The methods below change that; weights stay in float32 and the steps equal those of DDP.
"""

import copy
import logging
import os
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
import torch.distributed as dist
from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from torch import Tensor, nn

from vigil_data.errors import UserError
from vigil_modeling.multimodal_model import MultimodalModel
from vigil_training.checkpoint.reader import CheckpointReader
from vigil_training.checkpoint.shards import Fragment, FragmentKind
from vigil_training.distributed.device import process_group_backend, process_group_timeout
from vigil_training.distributed.strategies import deepspeed_shards
from vigil_training.distributed.strategies.checkpointed import CheckpointedStrategy, broadcast_batch_norm_statistics
from vigil_training.distributed.strategies.deepspeed_internals import (
    disable_op_builders,
    gradient_norm,
    shard_gradients,
    update_compute_weights,
)
from vigil_training.distributed.strategies.lightning_internals import AnyDeviceDeepSpeedStrategy
from vigil_training.distributed.world import World
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.specs import DeepSpeed
from vigil_training.trainer.lightning_internals import ends_optimizer_step

_MAX_BUCKET_ELEMENTS = 50_000_000
"""Largest buffer in which gradients are reduced: 200 MB in float32."""


class Float32Precision(DeepSpeedPrecision):
    """Precision plugin that converts nothing.

    It is used for bf16 too: DeepSpeed's engine turns off an autocast entered outside it, and enters its own
    (:func:`zero_config`).
    """

    def __init__(self) -> None:
        super().__init__("32-true")

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Return the module unchanged."""
        return module

    def convert_input(self, data: Any) -> Any:
        """Return the batch unchanged."""
        return data


def zero_config(spec: DeepSpeed, recipe: Recipe, numel: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a recipe, updated with ``spec.raw``.

    Args:
        spec: the recipe's ``strategy``.
        recipe: its clipping, precision and accelerator are used.
        numel: elements of all weights, by which buffers are sized: the defaults would dwarf the state of small models, and keep
            all weights of a model under 10^9 gathered in stage 3.
    """
    bucket = max(2 * (min(numel // 10, _MAX_BUCKET_ELEMENTS) // 2), 1024)
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
        # Lightning counts batches, and the loader computes each batch's share of the loss.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": recipe.training.clip or 0.0,
        "zero_allow_untested_optimizer": True,
        # torch's AdamW runs on the CPU too; DeepSpeed's would have to be compiled first.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "zero_optimization": zero,
    }
    if recipe.training.precision == "bf16":
        # Without "safe modules" gradients are reduced in the dtype of the weights, as DDP does.
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return merge_configs(config, spec.raw)


def merge_configs(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of ``base`` with the values of ``update``; nested mappings are merged key by key."""
    merged = copy.deepcopy(dict(base))
    for key, value in update.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge_configs(merged[key], value) if both else copy.deepcopy(value)
    return merged


class ZeroStrategy(AnyDeviceDeepSpeedStrategy):
    """ZeRO-1, 2 and 3 on GPUs (NCCL) or on the CPU (gloo); see :meth:`from_recipe`.

    A step whose gradient is not finite on any rank is skipped on all of them; see :attr:`skipped_last_step`.
    """

    _spec: DeepSpeed
    _recipe: Recipe
    _device: torch.device
    _step_begins = True

    @classmethod
    def from_recipe(
        cls, spec: DeepSpeed, recipe: Recipe, world: World, device: torch.device, environment: ClusterEnvironment
    ) -> Self:
        """Build the strategy, after torch's default process group.

        Args:
            spec: the recipe's ``strategy``.
            recipe: its clipping, precision and accelerator are used.
            world: position of this process.
            device: device of this rank.
            environment: ``world`` for Lightning.

        Raises:
            UserError: if DeepSpeed, or what NVMe offloading needs, is not installed.
        """
        _import_deepspeed(spec, device)
        # DeepSpeed compares device indices, also of the CPU.
        device = torch.device(device.type, device.index or 0)
        strategy = cls(
            config=zero_config(spec, recipe, 0),
            stage=spec.stage,
            parallel_devices=[device] * world.local_size,
            cluster_environment=environment,
            process_group_backend=process_group_backend(device),
            logging_level=logging.ERROR,
        )
        strategy._spec, strategy._recipe, strategy._device = spec, recipe, device
        return strategy

    @property
    def root_device(self) -> torch.device:
        """Device of this rank."""
        return self._device

    @property
    def engine(self) -> Any:
        """DeepSpeed's engine; available after setup."""
        return self.model

    @property
    def handles_gradient_accumulation(self) -> bool:
        """False: Lightning decides where an optimizer step ends, as for DDP."""
        return False

    def init_deepspeed(self) -> None:
        """Build the engine, and give its process group the recipe's timeout in place of torch's 10 minutes."""
        super().init_deepspeed()
        dist.set_timeout(process_group_timeout(self._spec.timeout), self.engine.seq_data_parallel_group)

    def make_config(self) -> dict[str, Any]:
        """Return DeepSpeed's configuration, which depends on the model's size."""
        assert self.lightning_module is not None
        numel = sum(parameter.numel() for parameter in self.lightning_module.parameters())
        return zero_config(self._spec, self._recipe, numel)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Set the engine's accumulation boundary; share rank 0's batch norm statistics at the start of an optimizer step."""
        assert self.lightning_module is not None
        if self._step_begins:
            broadcast_batch_norm_statistics(self.lightning_module)
            if self.zero_stage_3:
                # A weight without a gradient would be updated with the previous step's.
                self.engine.optimizer.grad_partitions_flat_buffer.zero_()
        boundary = ends_optimizer_step(self.lightning_module.trainer)
        self.engine.set_gradient_accumulation_boundary(boundary)
        self._step_begins = boundary
        return super().training_step(*args, **kwargs)

    def block_backward_sync(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Do nothing: :meth:`training_step` sets the boundary, and the engine's ``no_sync`` does not support stages 2 and 3."""
        return nullcontext()

    def gradient_norm(self) -> Tensor:
        """Return the norm of the last gradient before clipping, over weights and ranks; infinite if the step was skipped."""
        return gradient_norm(self.engine.optimizer)

    @torch.no_grad()
    def part_norms(self, parts: Mapping[int, str]) -> dict[str, Tensor]:
        """Return the norm of each part's gradient over the ranks, between backward and step; empty if the optimizer is offloaded.

        Args:
            parts: id of a parameter to the name of its part, in the same order on every rank.
        """
        if self._spec.offload_optimizer != "none":
            return {}
        names = list(dict.fromkeys(parts.values()))
        squares = torch.zeros(len(names), device=self.root_device)
        for parameter, gradient in shard_gradients(self.engine.optimizer):
            squares[names.index(parts[id(parameter)])] += torch.linalg.vector_norm(gradient.float()).square()
        dist.all_reduce(squares, group=self.engine.seq_data_parallel_group)
        return dict(zip(names, squares.sqrt(), strict=True))

    @property
    def skipped_last_step(self) -> bool:
        """Whether the last optimizer step was skipped because its gradient was not finite; equal on all ranks."""
        return bool(self.engine.optimizer.overflow)

    def fragments(self, model: MultimodalModel) -> Iterator[Fragment]:
        """Yield this rank's fragments of weights, buffers and optimizer state; over all ranks each element once."""
        return deepspeed_shards.fragments(self.engine.optimizer, model)

    def load_fragments(self, model: MultimodalModel, reader: CheckpointReader) -> None:
        """Load weights, buffers and optimizer state, on all ranks together."""
        deepspeed_shards.load_fragments(self.engine.optimizer, model, reader)

    def allocated_bytes(self) -> dict[str, int]:
        """Return :func:`vigil_training.distributed.strategies.deepspeed_shards.allocated_bytes` of this rank."""
        assert self.lightning_module is not None
        return deepspeed_shards.allocated_bytes(self.engine.optimizer, self.lightning_module)


class CheckpointedDeepSpeed(CheckpointedStrategy, ZeroStrategy):
    """:class:`ZeroStrategy` with checkpoints of :mod:`vigil_training.checkpoint`."""

    fragments = ZeroStrategy.fragments
    load_fragments = ZeroStrategy.load_fragments

    def trained_tensors(self, model: MultimodalModel) -> list[Tensor]:
        """Return the flat tensors of float32 weights that this rank updates."""
        return deepspeed_shards.flat_weights(self.engine.optimizer, model)

    def trained_tensors_changed(self) -> None:
        """Copy them into the weights that layers compute with."""
        update_compute_weights(self.engine.optimizer)

    def trained_fragments(self, model: MultimodalModel, kind: FragmentKind, tensors: Sequence[Tensor]) -> Iterator[Fragment]:
        """Yield this rank's pieces of the parameters."""
        return deepspeed_shards.flat_fragments(self.engine.optimizer, model, kind, tensors)

    def read_trained_tensors(self, model: MultimodalModel, kind: FragmentKind, reader: CheckpointReader) -> list[Tensor]:
        """Read this rank's pieces of the parameters."""
        return deepspeed_shards.read_flat(self.engine.optimizer, model, kind, reader)

    def restart_step_count(self, model: MultimodalModel, names: Collection[str]) -> None:
        """Set the step count of parameters to 0."""
        deepspeed_shards.restart_step_count(self.engine.optimizer, model, names)


def _import_deepspeed(spec: DeepSpeed, device: torch.device) -> None:
    """Import DeepSpeed for a device, without compiling operators.

    Raises:
        UserError: if DeepSpeed, or what NVMe offloading needs, is not installed.
    """
    os.environ["DS_ACCELERATOR"] = device.type
    try:
        from deepspeed.accelerator import get_accelerator
    except ImportError as error:
        raise UserError(
            f"strategy.kind: deepspeed cannot be imported ({error}); install vigil with its deepspeed extra"
        ) from error
    if get_accelerator().device_name() != device.type:
        raise UserError(f"DeepSpeed was imported for {get_accelerator().device_name()}, not {device.type}; unset DS_ACCELERATOR")
    # Called by DeepSpeed 0.19 and deprecated by torch 2.14.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated")
    # The learning rate advances even if the first step is skipped.
    warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`")
    if device.type == "cpu":
        disable_op_builders()
    if "nvme" in (spec.offload_optimizer, spec.offload_parameters):
        check_nvme(spec)


def check_nvme(spec: DeepSpeed) -> None:
    """Build the operator that NVMe offloading needs, once for each machine; it takes some minutes.

    Raises:
        UserError: if it cannot be built, or the folder is not writable.
    """
    if not os.access(str(spec.nvme_path), os.W_OK):
        raise UserError(f"strategy.nvme_path: {spec.nvme_path}: not a writable folder")
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

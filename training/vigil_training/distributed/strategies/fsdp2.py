"""PyTorch's FSDP2 (``torch.distributed.fsdp.fully_shard``) as a Lightning strategy: ranks share weights, gradients and moments.

Each weight is cut by its first dimension. Weights of a unit (:func:`shard_units`) are gathered for its forward and its backward
pass and freed after it (Zhao et al. 2023, "PyTorch FSDP", section 3), so a rank holds a few units in addition to its shards.
Weights stay in float32, with bf16 under autocast, and the steps equal those of DDP.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
import torch.distributed as dist
from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from vigil_data.errors import UserError
from vigil_modeling.guards.guard_model import GuardModel
from vigil_modeling.multimodal_model import MultimodalModel
from vigil_training.checkpoint.reader import CheckpointReader
from vigil_training.checkpoint.shards import Fragment, FragmentKind, inventory
from vigil_training.distributed.device import process_group_backend, process_group_timeout
from vigil_training.distributed.strategies.checkpointed import CheckpointedStrategy, broadcast_batch_norm_statistics
from vigil_training.distributed.strategies.ddp import ADAMW_STATE
from vigil_training.distributed.world import World
from vigil_training.recipe.specs import FullySharded
from vigil_training.trainer.lightning_internals import ends_optimizer_step


def shard_units(model: MultimodalModel) -> list[nn.Module]:
    """Return the modules whose weights are gathered together, inner ones first; the rest of the model is one more unit.

    They are the blocks of each encoder, which are the children of its list of modules with the most weights, and the encoder
    with what its blocks do not hold.
    """
    units: list[nn.Module] = []
    for modality in model.modalities:
        encoder = model.encoder(modality)
        stacks = [m for m in encoder.modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
        if stacks:
            units += [block for block in max(stacks, key=_numel).children() if _numel(block)]
        units.append(encoder)
    return units


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def shard_rows(rows: int, world: int, rank: int) -> tuple[int, int]:
    """Return the first row of a rank's shard and the one after its last, as ``torch.chunk`` cuts; the last may be empty."""
    size = -(-rows // world)
    return min(size * rank, rows), min(size * (rank + 1), rows)


class CheckpointedFullyShardedStrategy(CheckpointedStrategy, ModelParallelStrategy):
    """FSDP2 on GPUs (NCCL) or on the CPU (gloo), with checkpoints of :mod:`vigil_training.checkpoint`."""

    _spec: FullySharded
    _step_begins = True

    @classmethod
    def from_recipe(cls, spec: FullySharded, world: World, device: torch.device, environment: ClusterEnvironment) -> Self:
        """Build the strategy, after torch's default process group.

        Args:
            spec: the recipe's ``strategy``.
            world: position of this process.
            device: device of this rank.
            environment: ``world`` for Lightning.
        """
        timeout = process_group_timeout(spec.timeout)
        strategy = cls(world.size, 1, process_group_backend=process_group_backend(device), timeout=timeout)
        strategy.parallel_devices = [device] * world.local_size
        strategy.cluster_environment = environment
        strategy._spec = spec
        return strategy

    def shard(self, model: MultimodalModel) -> None:
        """Replace a model's weights, equal on all ranks, by this rank's shards on its device.

        Raises:
            UserError: if a weight is a single number, which cannot be cut.
        """
        scalars = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
        if scalars:
            raise UserError(
                f"strategy.kind: fsdp2 cuts weights by their first dimension, and {', '.join(scalars[:3])} has none; "
                "take ddp or deepspeed for this model"
            )
        mesh = self.device_mesh["data_parallel"]
        dist.set_timeout(process_group_timeout(self._spec.timeout), mesh.get_group())
        for unit in [*shard_units(model), model]:
            fully_shard(unit, mesh=mesh)
        if isinstance(model, GuardModel):
            for method in ("embed", "hidden"):
                register_fsdp_forward_method(model.language_model, method)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Share rank 0's batch norm statistics at the start of an optimizer step, as DDP does."""
        assert self.lightning_module is not None
        if self._step_begins:
            broadcast_batch_norm_statistics(self.lightning_module)
        self._step_begins = ends_optimizer_step(self.lightning_module.trainer)
        return super().training_step(*args, **kwargs)

    def fragments(self, model: MultimodalModel) -> Iterator[Fragment]:
        """Yield this rank's shards of weights and optimizer state, and the buffers on rank 0."""
        states = {id(parameter): state for optimizer in self.optimizers for parameter, state in optimizer.state.items()}
        tensors = model.state_dict(keep_vars=True)
        for name, entry in inventory(model).items():
            if entry.tied_to is not None:
                continue
            tensor: Any = tensors[name]
            if not isinstance(tensor, DTensor):
                if dist.get_rank() == 0:
                    yield Fragment("weight", name, entry.shape, 0, tensor.detach().reshape(-1))
                continue
            start, count = _range(tensor)
            held: dict[Any, Any] = {"weight": tensor, **states.get(id(tensor), {})}
            for kind, value in held.items():
                if isinstance(value, DTensor) and count:
                    yield Fragment(kind, name, entry.shape, start, value.to_local().detach().reshape(-1))
                elif not isinstance(value, DTensor) and start == 0 and count:
                    yield Fragment(kind, name, (), 0, value.reshape(1))

    def load_fragments(self, model: MultimodalModel, reader: CheckpointReader) -> None:
        """Load this rank's shards of weights and optimizer state, and all buffers."""
        tensors = model.state_dict(keep_vars=True)
        stored = [name for name, entry in inventory(model).items() if entry.tied_to is None]
        trained = {id(p): optimizer for optimizer in self.optimizers for g in optimizer.param_groups for p in g["params"]}
        for name in stored:
            tensor = tensors[name]
            if not isinstance(tensor, DTensor):
                tensor.data.copy_(reader.read_range("weight", name, 0, tensor.numel()).reshape(tensor.shape))
                continue
            _fill(tensor, reader, "weight", name)
            optimizer = trained.get(id(tensor))
            if optimizer is None or not reader.has("exp_avg", name):
                continue
            state: dict[str, Tensor] = {}
            for kind in ADAMW_STATE:
                if kind == "step":
                    state[kind] = reader.read_range(kind, name, 0, 1).reshape(()).to(tensor.device, torch.float32, copy=True)
                else:
                    state[kind] = torch.zeros_like(tensor, requires_grad=False)
                    _fill(state[kind], reader, kind, name)
            optimizer.state[tensor] = state

    def trained_tensors(self, model: MultimodalModel) -> list[Tensor]:
        """Return this rank's shards of the trained parameters."""
        return [p.detach().to_local() for _, p in _trained(model)]

    def trained_fragments(self, model: MultimodalModel, kind: FragmentKind, tensors: Sequence[Tensor]) -> Iterator[Fragment]:
        """Yield this rank's shards."""
        for (name, parameter), tensor in zip(_trained(model), tensors, strict=True):
            start, count = _range(parameter)
            if count:
                yield Fragment(kind, name, tuple(parameter.shape), start, tensor.reshape(-1))

    def read_trained_tensors(self, model: MultimodalModel, kind: FragmentKind, reader: CheckpointReader) -> list[Tensor]:
        """Read this rank's shards."""
        read: list[Any] = [torch.zeros_like(parameter, requires_grad=False) for _, parameter in _trained(model)]
        for (name, _), tensor in zip(_trained(model), read, strict=True):
            _fill(tensor, reader, kind, name)
        return [tensor.to_local() for tensor in read]


def _trained(model: Any) -> list[tuple[str, Any]]:
    """Return the trained parameters with their names, as shards: a validation leaves those of the last unit gathered."""
    model.reshard()
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _range(tensor: DTensor) -> tuple[int, int]:
    """Return the first element and the number of elements of this rank's shard in the flattened tensor."""
    mesh = tensor.device_mesh
    start, stop = shard_rows(tensor.shape[0], mesh.size(), mesh.get_local_rank())
    row = tensor.numel() // tensor.shape[0] if tensor.shape[0] else 0
    return start * row, (stop - start) * row


@torch.no_grad()
def _fill(tensor: Any, reader: CheckpointReader, kind: Any, name: str) -> None:
    """Load this rank's shard of a tensor."""
    start, count = _range(tensor)
    local = tensor.detach().to_local()
    if count:
        local.copy_(reader.read_range(kind, name, start, count).reshape(local.shape))

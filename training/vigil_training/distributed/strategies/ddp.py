"""Strategies whose ranks hold full tensors: a single device, and PyTorch's DistributedDataParallel. Rank 0 saves."""

from collections.abc import Collection, Iterator, Sequence

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from vigil_modeling.multimodal_model import MultimodalModel
from vigil_training.checkpoint.reader import CheckpointReader, load_weights
from vigil_training.checkpoint.shards import Fragment, FragmentKind, inventory
from vigil_training.distributed.strategies.checkpointed import CheckpointedStrategy

ADAMW_STATE: tuple[FragmentKind, ...] = ("exp_avg", "exp_avg_sq", "step")
"""AdamW's state of a parameter."""


class ReplicatedStrategy(CheckpointedStrategy):
    """Mix-in whose fragments are full tensors."""

    is_global_zero: bool

    def fragments(self, model: MultimodalModel) -> Iterator[Fragment]:
        """Yield every parameter, buffer and optimizer state once on rank 0; nothing on the other ranks, which hold the same."""
        if not self.is_global_zero:
            return
        states = {id(parameter): state for optimizer in self.optimizers for parameter, state in optimizer.state.items()}
        tensors = model.state_dict(keep_vars=True)
        for name, entry in inventory(model).items():
            if entry.tied_to is not None:
                continue
            tensor = tensors[name]
            yield Fragment("weight", name, entry.shape, 0, tensor.detach().reshape(-1))
            for kind in ADAMW_STATE:
                value = states.get(id(tensor), {}).get(kind)
                if value is not None:
                    yield Fragment(kind, name, tuple(value.shape), 0, value.reshape(-1))

    def load_fragments(self, model: MultimodalModel, reader: CheckpointReader) -> None:
        """Load weights, buffers and the state of the optimizers."""
        load_weights(model, reader.path, check=False, averaged=False)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for optimizer in self.optimizers:
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                name = names[id(parameter)]
                # Fused AdamW keeps its step count on the parameter's device.
                state: dict[str, Tensor] = {
                    kind: reader.read_full(kind, name).to(parameter.device) for kind in ADAMW_STATE if reader.has(kind, name)
                }
                if state:
                    optimizer.state[parameter] = state

    def trained_tensors(self, model: MultimodalModel) -> list[Tensor]:
        """Return the trained parameters."""
        return [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]

    def trained_fragments(self, model: MultimodalModel, kind: FragmentKind, tensors: Sequence[Tensor]) -> Iterator[Fragment]:
        """Yield full tensors on rank 0; nothing on the other ranks."""
        if self.is_global_zero:
            for name, tensor in zip(_trained_names(model), tensors, strict=True):
                yield Fragment(kind, name, tuple(tensor.shape), 0, tensor.reshape(-1))

    def read_trained_tensors(self, model: MultimodalModel, kind: FragmentKind, reader: CheckpointReader) -> list[Tensor]:
        """Read full tensors."""
        tensors = self.trained_tensors(model)
        return [reader.read_full(kind, name).to(t.device) for name, t in zip(_trained_names(model), tensors, strict=True)]

    def restart_step_count(self, model: MultimodalModel, names: Collection[str]) -> None:
        """Set the step count of parameters to 0."""
        for name in names:
            state = self.optimizers[0].state.get(model.get_parameter(name), {})
            if "step" in state:
                state["step"].zero_()


def _trained_names(model: MultimodalModel) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


class CheckpointedSingleDevice(ReplicatedStrategy, SingleDeviceStrategy):
    """One process on one device."""


class CheckpointedDDP(ReplicatedStrategy, DDPStrategy):
    """PyTorch's DistributedDataParallel."""

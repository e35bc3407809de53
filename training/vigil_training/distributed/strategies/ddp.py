"""One process, and DDP: every rank holds whole tensors, and rank 0 saves them."""

from collections.abc import Iterator

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor
from torch.optim import Optimizer

from vigil_modeling.safety_model import SafetyModel
from vigil_training.checkpoint.reader import CheckpointReader, load_weights
from vigil_training.checkpoint.shards import Fragment, FragmentKind, InventoryEntry
from vigil_training.distributed.strategies.checkpointed import CheckpointedStrategy

MOMENTS: tuple[FragmentKind, ...] = ("exp_avg", "exp_avg_sq", "step")
"""Of AdamW's state of a parameter."""


class Whole(CheckpointedStrategy):
    """Fragments that are whole tensors."""

    is_global_zero: bool

    def fragments(self, model: SafetyModel) -> Iterator[Fragment]:
        """On rank 0 every parameter, buffer and moment once; on the others nothing, as they hold the same."""
        if not self.is_global_zero:
            return
        states = _states(self.optimizers)
        parameters = dict(model.named_parameters())
        for name, entry in inventory(model).items():
            if entry.tied_to is not None:
                continue
            tensor = parameters[name] if name in parameters else model.get_buffer(name)
            yield Fragment("weight", name, entry.shape, 0, tensor.detach().reshape(-1))
            for kind in MOMENTS:
                value = states.get(id(tensor), {}).get(kind)
                if value is not None:
                    yield Fragment(kind, name, tuple(value.shape), 0, value.reshape(-1))

    def load_fragments(self, model: SafetyModel, reader: CheckpointReader) -> None:
        """Fill weights and buffers, and the state of each optimizer that there is."""
        load_weights(model, reader.path, check=False)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for optimizer in self.optimizers:
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                name = names[id(parameter)]
                state: dict[str, Tensor] = {}
                for kind in MOMENTS:
                    if reader.has(kind, name):
                        # Adam counts its steps in a tensor beside the weights where it is fused.
                        state[kind] = reader.read_full(kind, name).to(parameter.device)
                if state:
                    optimizer.state[parameter] = state

    def inventory(self, model: SafetyModel) -> dict[str, InventoryEntry]:
        """See :func:`inventory`."""
        return inventory(model)


def inventory(model: SafetyModel) -> dict[str, InventoryEntry]:
    """Every parameter and buffer of a model whose tensors are whole, by its name in ``state_dict()``."""
    first: dict[int, str] = {}
    entries: dict[str, InventoryEntry] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in model.state_dict(keep_vars=True).items():
        tied_to = first.setdefault(id(tensor), name)
        entries[name] = InventoryEntry(
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            trained=bool(tensor.requires_grad),
            buffer=name not in parameters,
            tied_to=tied_to if tied_to != name else None,
        )
    return entries


class CheckpointedSingleDevice(Whole, SingleDeviceStrategy):
    """One process on one device."""


class CheckpointedDDP(Whole, DDPStrategy):
    """PyTorch's distributed data parallelism."""


def _states(optimizers: list[Optimizer]) -> dict[int, dict[str, Tensor]]:
    return {id(parameter): state for optimizer in optimizers for parameter, state in optimizer.state.items()}

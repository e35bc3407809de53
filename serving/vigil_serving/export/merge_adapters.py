"""Adapters merged into the weights that they adapt: an exported graph computes one product where training computed three."""

import copy
from typing import TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def merged(model: Model) -> Model:
    """The model with every PEFT adapter (LoRA and its kin) merged, on a copy; the model itself where it has none.

    A module with ``merge_and_unload`` is what the peft library wraps a network in; it gives the network back, merged.

    Args:
        model: left as it is.
    """
    if not any(_adapted(module) for module in model.modules()):
        return model
    merged_copy = copy.deepcopy(model)
    _merge(merged_copy)
    return merged_copy


def _adapted(module: nn.Module) -> bool:
    return callable(getattr(module, "merge_and_unload", None))


def _merge(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if _adapted(child):
            setattr(module, name, child.merge_and_unload())  # type: ignore[operator]  # _adapted says that it can be called
        else:
            _merge(child)

"""Frozen weights kept in bfloat16 (``frozen_dtype: bf16``), which halves their memory.

Only storage changes. Each module computes with a copy of its own weights in float32, which exists during its forward pass, so
its results are those of a float32 model with the rounded values. A linear layer or convolution under autocast uses the stored
values themselves: autocast would round the copy to the same. Embeddings look up stored rows and convert these alone. Weights
that are read by another module than their own, such as those of WavLM's attention, stay in float32.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vigil_modeling.encoders.base import Encoder, set_mode

_AUTOCAST = (nn.Linear, nn.Conv1d, nn.Conv2d)


def store_frozen_in_bf16(encoder: Encoder) -> int:
    """Round the frozen weights of an encoder to bfloat16, and return the number of their elements."""
    stored: dict[int, nn.Parameter] = {}
    for module in _called_modules(encoder):
        frozen = {n: p for n, p in module.named_parameters(recurse=False) if not p.requires_grad and p.is_floating_point()}
        if not frozen:
            continue
        stored |= {id(parameter): parameter for parameter in frozen.values()}
        if type(module) is nn.Embedding:  # Gemma's scales its rows, which must be in float32
            module.register_forward_hook(_convert_output)
        else:
            kept: dict[str, nn.Parameter] = {}
            module.register_forward_pre_hook(partial(_convert_weights, tuple(frozen), kept))
            module.register_forward_hook(partial(_restore_weights, kept), always_call=True)
    for parameter in stored.values():
        parameter.data = parameter.data.to(torch.bfloat16)
    return sum(parameter.numel() for parameter in stored.values())


@torch.no_grad()
def _called_modules(encoder: Encoder) -> list[nn.Module]:
    """Return the modules whose forward is called for a blank segment, in evaluation mode."""
    called: dict[int, nn.Module] = {}
    handles = [
        module.register_forward_pre_hook(lambda module, _: called.update({id(module): module})) for module in encoder.modules()
    ]
    training = encoder.training
    encoder.eval()
    encoder(**encoder.blank())
    set_mode(encoder, training)
    for handle in handles:
        handle.remove()
    return list(called.values())


def _convert_output(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
    del module, arguments
    return output.float()


def _convert_weights(names: tuple[str, ...], kept: dict[str, nn.Parameter], module: nn.Module, arguments: Any) -> None:
    """Replace a module's weights by copies in float32."""
    del arguments
    for name in names:
        weight: nn.Parameter = getattr(module, name)
        if isinstance(module, _AUTOCAST) and torch.is_autocast_enabled(weight.device.type):
            return
        kept[name] = weight
        setattr(module, name, nn.Parameter(weight.detach().float(), requires_grad=False))


def _restore_weights(kept: dict[str, nn.Parameter], module: nn.Module, arguments: Any, output: Any) -> None:
    """Put the stored weights back."""
    del arguments, output
    while kept:
        name, weight = kept.popitem()
        setattr(module, name, weight)

"""Frozen weights kept in bfloat16 (``frozen_dtype: bf16``), which halves their memory, or in 4 bits (``nf4``).

Only storage changes. Each module computes with a copy of its own weights in float32, which exists during its forward pass, so
its results are those of a float32 model with the rounded values. A linear layer or convolution under autocast uses the stored
values themselves: autocast would round the copy to the same. Embeddings look up stored rows and convert these alone. Weights
that are read by another module than their own, such as those of WavLM's attention, stay in float32.

With ``nf4``, weights of linear layers are 4-bit NormalFloats with a scale for each 64 of them (QLoRA, Dettmers et al. 2023,
section 3), of bitsandbytes. They are rounded to bfloat16 first, so that each scale is a number of bfloat16, and what a checkpoint
holds, the rounded values in bfloat16, is quantized to the same 4 bits again.
"""

from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from vigil_modeling.encoders.base import Encoder, set_mode

_AUTOCAST = (nn.Linear, nn.Conv1d, nn.Conv2d)

BLOCK = 64
"""Number of weights with a common scale, as in QLoRA."""

BYTES_OF_NF4 = 0.5 + 4 / BLOCK
"""Bytes of each weight, with its part of the scale."""


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


def store_frozen_in_nf4(encoder: Encoder) -> None:
    """Quantize the frozen linear layers of an encoder to 4 bits, and round its other frozen weights to bfloat16."""
    store_frozen_in_bf16(encoder)
    for parent in list(encoder.modules()):
        for name, layer in list(parent.named_children()):
            if is_quantized_by_nf4(layer) and layer.weight.dtype == torch.bfloat16:
                setattr(parent, name, NF4Linear(layer))


def is_quantized_by_nf4(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether a module is a linear layer whose weights are all frozen, and whose rows are whole blocks.

    Kernels of bitsandbytes decode other rows wrongly on the CPU; language models have none.
    """
    if type(module) is not nn.Linear or module.in_features % BLOCK:
        return False
    return not any(parameter.requires_grad for parameter in module.parameters())


class NF4Linear(nn.Module):
    """Linear layer with a frozen weight in 4 bits; its ``state_dict()`` is that of the layer, with the rounded values on the CPU.

    The backward pass keeps the 4 bits and decodes them once more.

    Args:
        layer: has its frozen weight in bfloat16.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias: Tensor | None = layer.bias
        packed, scales = _quantize(layer.weight)
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the layer's output ``[..., out_features]``."""
        device = inputs.device.type
        if not torch.is_autocast_enabled(device):
            bias = None if self.bias is None else self.bias.to(inputs.dtype)
            return nn.functional.linear(inputs, self.decoded().to(inputs.dtype), bias)
        import bitsandbytes

        dtype = torch.get_autocast_dtype(device)
        bias = None if self.bias is None else self.bias.to(dtype)
        output: Tensor = bitsandbytes.matmul_4bit(inputs.to(dtype), self.packed.t(), quant_state=self._state(dtype), bias=bias)
        return output

    def decoded(self) -> Tensor:
        """Return the rounded weight, bfloat16 ``[out_features, in_features]``."""
        from bitsandbytes import functional

        weight_OI: Tensor = functional.dequantize_4bit(self.packed, self._state(torch.bfloat16))
        return weight_OI

    def _state(self, dtype: torch.dtype) -> Any:
        from bitsandbytes import functional

        shape = torch.Size((self.out_features, self.in_features))
        code = functional.get_4bit_type("nf4", device=self.packed.device)
        return functional.QuantState(self.scales, shape, code, BLOCK, "nf4", dtype)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        del keep_vars
        destination[f"{prefix}weight"] = nn.Parameter(self.decoded().cpu(), requires_grad=False)
        if self.bias is not None:
            destination[f"{prefix}bias"] = self.bias

    def _load_from_state_dict(  # noqa: PLR0917 (torch's signature)
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        del local_metadata, strict, unexpected_keys, error_msgs
        for name in ("weight", "bias")[: 1 if self.bias is None else 2]:
            if (value := state_dict.get(f"{prefix}{name}")) is None:
                missing_keys.append(f"{prefix}{name}")
            elif name == "bias" and self.bias is not None:
                self.bias.data.copy_(value)
            else:
                for own, stored in zip((self.packed, self.scales), _quantize(value), strict=True):
                    own.data.copy_(stored)


def _quantize(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Return the packed 4 bits of a weight, two to a byte, and its scales; on the GPU if there is one, as it takes a while."""
    from bitsandbytes import functional

    device = torch.device("cuda") if torch.cuda.is_available() else weight_OI.device
    values_OI = weight_OI.detach().to(device, torch.bfloat16).contiguous()
    packed, state = functional.quantize_4bit(values_OI, blocksize=BLOCK, quant_type="nf4")
    return packed.to(weight_OI.device), state.absmax.to(weight_OI.device)


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

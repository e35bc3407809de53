"""Backbone from the timm library, for the image encoder and the log-mel encoder."""

import difflib
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vigil_data.errors import UserError
from vigil_data.sources import resolve
from vigil_data.specs import Hub, Local, Package
from vigil_modeling.specs import MelTimmAudio, Random, TimmImage
from vigil_modeling.weights import describe, find_weights, first_line, mismatch, read_tensors, rename_by_order


class TimmBackbone(nn.Module):
    """Backbone from images ``[S, C, H, W]`` to tokens ``[S, P, D]``.

    Args:
        model: a timm model built with ``num_classes=0``.
        pool: ``average``: one token from the architecture's own pooling; ``none``: one token per cell of the last feature map
            and per prefix token, such as the class token of a ViT.
        shape: ``(C, H, W)`` of one input, from which the width of the tokens is computed.
    """

    def __init__(self, model: nn.Module, pool: str, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.model = model
        self.pool = pool
        training = model.training
        parameters = list(model.parameters())
        with torch.enable_grad():
            tokens_SPD = self.eval()(torch.zeros(1, *shape))
            gradients = torch.autograd.grad(tokens_SPD.sum(), parameters, allow_unused=True)
        self.train(training)
        self.tokens, self.width = int(tokens_SPD.shape[1]), int(tokens_SPD.shape[2])
        # Without pooling, some architectures do not use the layers after the last feature map; a weight without a gradient would
        # stall distributed training.
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)

    def forward(self, maps_SCHW: Tensor) -> Tensor:
        """``[S, C, H, W]`` to ``[S, P, D]``."""
        if self.training:  # Convolutions keep the format of their input, and are faster in this one.
            maps_SCHW = torch.empty_like(maps_SCHW, memory_format=torch.channels_last).copy_(maps_SCHW)
        if self.pool == "average":
            pooled_SD: Tensor = self.model(maps_SCHW)
            return pooled_SD.unsqueeze(1)
        features: Tensor = self.model.forward_features(maps_SCHW)  # type: ignore[operator]  # every timm model has it
        if features.ndim == 3:
            return features
        channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        return features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)

    def layers(self) -> list[list[nn.Parameter]]:
        """Return the parameters in timm's groups for layer-wise decay, lowest first; one group if timm defines none."""
        from timm.models import group_parameters

        matcher = getattr(self.model, "group_matcher", None)
        if matcher is None:
            return [list(self.model.parameters())]
        groups: dict[int, list[nn.Parameter]] = group_parameters(self.model, matcher(coarse=False), return_values=True)
        return [groups[index] for index in sorted(groups)]

    def checkpoint_activations(self, where: str) -> None:
        """Store only the inputs of each block; recomputation updates batch norm statistics twice per batch.

        Args:
            where: key of the recipe, for the error message.

        Raises:
            UserError: if the architecture does not support it.
        """
        try:
            self.model.set_grad_checkpointing(True)  # type: ignore[operator]  # every timm model has it
        except (AssertionError, AttributeError) as error:
            name = type(self.model).__name__
            raise UserError(f"training.activation_checkpointing: {where}: {name} does not support it; set it to false") from error


def build_backbone(spec: TimmImage | MelTimmAudio, shape: tuple[int, int, int], load_weights: bool, where: str) -> TimmBackbone:
    """Build a timm model for inputs of one shape and load its weights.

    timm adapts weights of another number of input channels or another image size.

    Args:
        spec: architecture name and options, and a weight file, a folder with one, or random weights.
        shape: ``(C, H, W)`` of one input.
        load_weights: false keeps random weights, for a checkpoint to be loaded.
        where: key path of the encoder in the recipe, for errors.

    Raises:
        UserError: if timm lacks the architecture, rejects an option or the shape, or if the weights do not fit.
    """
    import timm

    if not timm.is_model(spec.name):
        near = difflib.get_close_matches(spec.name.partition(".")[0], timm.list_models(), n=3)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise UserError(f"{where}.name: timm has no model {spec.name}{hint}")
    settings: dict[str, Any] = {"num_classes": 0, "in_chans": shape[0]}
    if timm.models.get_pretrained_cfg_value(spec.name, "fixed_input_size"):
        settings["img_size"] = shape[1:]
    settings |= spec.options
    try:
        model = timm.create_model(spec.name, pretrained=False, **settings)
        if load_weights and not isinstance(spec.weights, Random):
            model = _load(spec.name, settings, model, spec.weights, spec.match)
        return TimmBackbone(model, spec.pool, shape)
    except UserError:
        raise
    except Exception as error:  # each architecture raises its own errors
        size = " x ".join(map(str, shape))
        raise UserError(f"{where}: timm cannot build {spec.name} for inputs of {size}: {first_line(error)}") from error


def _load(name: str, settings: Mapping[str, Any], model: nn.Module, weights: Hub | Local | Package, match: str) -> nn.Module:
    """Create the model again with the weights: timm adapts channels, sizes and other layouts only during creation."""
    import timm

    tensors, origin = read_tensors(find_weights(resolve(weights))), describe(weights)
    facts: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]  # set by timm
    if match == "order":
        tensors = rename_by_order(tensors, model, origin, [f"{conv}.weight" for conv in _names(facts.get("first_conv"))])
    else:
        layers = tuple(f"{layer}." for layer in _names(facts.get("classifier")))
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(layers)}
    # Without a classifier to replace, timm loads strictly.
    overlay = {"state_dict": tensors, "custom_load": False, "num_classes": 0, "classifier": None}
    try:
        loaded: nn.Module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **settings)
    except Exception as error:
        raise _explain(origin, error) from error
    loaded.pretrained_cfg = model.pretrained_cfg
    return loaded


def _names(value: object) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, tuple | list) else ()


def _explain(origin: str, error: Exception) -> UserError:
    """Condense the error of ``load_state_dict`` into one line."""
    text = str(error)
    missing, unexpected = (
        re.findall(r'"([^"]+)"', "".join(re.findall(rf"{kind} key\(s\) in state_dict: (.*)", text)))
        for kind in ("Missing", "Unexpected")
    )
    shapes = [f"{name} [{theirs}] -> [{ours}]" for name, theirs, ours in re.findall(SHAPES, text)]
    if not missing and not unexpected and not shapes:
        return UserError(f"{origin}: the weights do not fit the architecture: {first_line(error)}")
    return mismatch(origin, missing, unexpected, shapes)


SHAPES = r"size mismatch for (\S+): .*?torch\.Size\(\[([^\]]*)\]\) from checkpoint, .*?torch\.Size\(\[([^\]]*)\]\)"

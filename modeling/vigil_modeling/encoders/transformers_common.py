"""Models of the transformers library from a typed source, for the text and audio encoders."""

import contextlib
import difflib
import json
import logging as levels
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vigil_data.errors import UserError
from vigil_data.sources import resolve
from vigil_data.specs import Hub, Local, Package
from vigil_modeling.specs import Random
from vigil_modeling.weights import describe, first_line, mismatch, within

DEFAULTS: Mapping[str, Any] = {"apply_spec_augment": False, "layerdrop": 0.0, "encoder_layerdrop": 0.0}
"""Defaults that differ from the library's: SpecAugment draws from numpy's global generator, and layer drop leaves weights without
a gradient."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the library's progress bar and its report of unused tensors; weights that do not fit raise our own error."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(levels.ERROR)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def read_json(weights: Hub | Local | Package, name: str) -> dict[str, Any]:
    """Read the JSON file ``name`` next to the weights, without downloading the weights.

    Raises:
        UserError: if the file is missing or not a JSON object.
    """
    path = resolve(within(weights, name))
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {first_line(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a JSON object")
    return values


def build_config(
    weights: Hub | Local | Package | Random, overrides: Mapping[str, Any], where: str, stored: Mapping[str, Any] | None = None
) -> Any:
    """Return an architecture's configuration: the stored one with the recipe's overrides, or only these for random weights.

    Args:
        weights: source of the stored configuration.
        overrides: the recipe's ``config``.
        where: key path of the encoder in the recipe, for errors.
        stored: the stored configuration (default: that of config.json, or none for random weights).

    Raises:
        UserError: if ``model_type`` is missing, unknown or not that of the weights, or if a setting is invalid.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    if stored is None:
        stored = {} if isinstance(weights, Random) else read_json(weights, "config.json")
    values = {**stored, **overrides}
    model_type = values.pop("model_type", None)
    if model_type is None:
        raise UserError(
            f"{where}.config.model_type is missing: random weights need the model's configuration, such as model_type: bert"
        )
    if model_type not in CONFIG_MAPPING:
        raise UserError(f"{where}.config.model_type: {model_type} is not an architecture of the transformers library")
    if stored and model_type != stored.get("model_type"):
        raise UserError(
            f"{where}.config.model_type is {model_type}, but the stored configuration is a {stored.get('model_type')}"
        )
    known = CONFIG_MAPPING[model_type]()
    slips = [(key, match) for key in overrides if not hasattr(known, key) for match in _near(key, vars(known))]
    if slips:
        raise UserError(
            *(f"{where}.config.{key}: {model_type} has no such setting (did you mean {match}?)" for key, match in slips)
        )
    defaults = {key: value for key, value in DEFAULTS.items() if hasattr(known, key) and key not in overrides}
    try:
        with quiet():
            return AutoConfig.for_model(model_type, **(values | defaults))
    except Exception as error:  # the library validates with many kinds of error
        raise UserError(f"{where}.config: {first_line(error)}") from error


def _near(key: str, names: Iterable[str]) -> list[str]:
    """Return the name that ``key`` probably misspells; other unknown keys pass, since architectures read unlisted settings."""
    return [] if key == "model_type" else difflib.get_close_matches(key, names, n=1, cutoff=0.85)


def build_model(
    weights: Hub | Local | Package | Random, config: Any, load_weights: bool, where: str, attention: str | None = None
) -> nn.Module:
    """Build a model of the transformers library in float32, without its pooler, which no encoder uses.

    Args:
        weights: source of the weights.
        config: configuration from :func:`build_config`.
        load_weights: false builds only the architecture, for a checkpoint to be loaded.
        where: key path of the encoder in the recipe, for errors.
        attention: name of the attention function (default: the library's choice).

    Raises:
        UserError: if the configuration cannot be built or the weights do not fit it.
    """
    from transformers import AutoModel

    with quiet():
        if isinstance(weights, Random) or not load_weights:
            try:
                model: nn.Module = AutoModel.from_config(  # type: ignore[no-untyped-call]
                    config, dtype=torch.float32, attn_implementation=attention
                )
            except Exception as error:  # each architecture has its own errors for impossible sizes
                raise UserError(f"{where}.config: {first_line(error)}") from error
        else:
            model = _load(weights, config, attention)
    if getattr(model, "pooler", None) is not None:
        model.register_module("pooler", None)
    return model


def _load(weights: Hub | Local | Package, config: Any, attention: str | None) -> nn.Module:
    from transformers import AutoModel

    folder = resolve(weights)
    if not Path(folder).is_dir():
        raise UserError(f"{describe(weights)} is a file: a transformers model is a folder with config.json and its weights")
    try:
        model, info = AutoModel.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            weights_only=True,
            attn_implementation=attention,
        )
    except Exception as error:
        raise UserError(f"{describe(weights)}: the weights cannot be loaded: {first_line(error)}") from error
    # A pretrained file may hold more tensors (its heads, layers beyond num_hidden_layers), but never fewer.
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    shapes = [f"{name} {list(theirs)} -> {list(ours)}" for name, theirs, ours in sorted(info["mismatched_keys"])]
    if missing or shapes:
        raise mismatch(describe(weights), missing=missing, shapes=shapes)
    result: nn.Module = model
    return result


def stack_layers(model: nn.Module, depth: int) -> list[list[nn.Parameter]]:
    """Return the parameters by layer: those before the stack of blocks, then each block; later ones join the last block.

    Args:
        model: a transformer.
        depth: number of its blocks, which identifies the stack among other module lists.
    """
    stacks = [
        (name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if not stacks:
        return [list(model.parameters())]
    prefix = max(stacks, key=lambda stack: sum(p.numel() for p in stack[1].parameters()))[0] + "."
    layers: list[list[nn.Parameter]] = [[] for _ in range(depth + 1)]
    current = 0
    for name, parameter in model.named_parameters():
        if name.startswith(prefix):
            current = 1 + int(name.removeprefix(prefix).split(".")[0])
        layers[current].append(parameter)
    return layers


def checkpoint_activations(model: nn.Module, where: str) -> None:
    """Store only the inputs of each layer and recompute the rest in the backward pass.

    Args:
        model: a model of the transformers library.
        where: key of the recipe, for the error message.

    Raises:
        UserError: if the architecture does not support it.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise UserError(
            f"training.activation_checkpointing: {where}: {type(model).__name__} does not support it; set it to false"
        )
    # transformers before 5 has only the second name.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()  # type: ignore[operator]
    # Enabling it makes the embeddings' output require gradients, so the backward pass would run through frozen layers.
    model.disable_input_require_grads()  # type: ignore[operator]

"""Configuration, body and output layer of a causal language model, from a folder, a GGUF file, or at random."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vigil_data.errors import UserError
from vigil_data.sources import resolve
from vigil_modeling.encoders import block_attention
from vigil_modeling.encoders.gguf_weights import gguf_config, is_gguf, load_gguf_body, read_gguf_rows
from vigil_modeling.encoders.transformers_common import build_config, build_model, read_json
from vigil_modeling.specs import DecoderText, Random
from vigil_modeling.weights import describe, find_weights, first_line, read_tensors

ReadOutput = Callable[[Sequence[int]], tuple[Tensor, Tensor | None]]
"""From token ids to their rows ``[K, D]`` of the output layer and their bias ``[K]``, if it has one, as the file has them."""

OUTPUT_LAYERS = ("lm_head", "embed_out")
"""Names of the output layer in files; the second one is GPT-NeoX's."""

PER_LAYER = ("layer_types", "no_rope_layers", "mlp_layer_types")
"""Settings with an entry for each layer, which ``num_hidden_layers`` shortens."""

NEEDED = ("hidden_size", "max_position_embeddings", "num_hidden_layers", "vocab_size")
ROPES_OF_A_BATCH = frozenset({"dynamic", "longrope"})
"""Rotary positions whose frequencies depend on the longest prompt of a batch."""


def build_decoder_config(spec: DecoderText, where: str) -> Any:
    """Return the configuration of a decoder.

    Args:
        spec: the encoder's keys in the recipe.
        where: their key path, for errors.

    Raises:
        UserError: see :func:`.build_config`, and if the architecture is no decoder or cannot run under a mask of blocks.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    stored: dict[str, Any] = {}
    if is_gguf(spec.weights):
        stored = gguf_config(spec.weights)
    elif not isinstance(spec.weights, Random):
        stored = read_json(spec.weights, "config.json")
    layers = spec.config.get("num_hidden_layers")
    if isinstance(layers, int):
        stored |= {key: stored[key][:layers] for key in PER_LAYER if isinstance(stored.get(key), list)}
    config = build_config(spec.weights, spec.config, where, stored)
    kind = config.model_type
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{where}.kind: {kind} is not a causal language model; take kind: transformers, or a model such as llama")
    if absent := [name for name in NEEDED if not isinstance(getattr(config, name, None), int)]:
        raise UserError(f"{where}: {kind} has no {absent[0]} in its configuration: take a model of text alone, such as llama")
    if ropes := sorted(_rope_types(getattr(config, "rope_parameters", None)) & ROPES_OF_A_BATCH):
        raise UserError(
            f"{where}: rotary positions of type {ropes[0]} depend on the longest prompt of a batch, so that an item's result "
            "would depend on others; take a model without them"
        )
    return config


def _rope_types(parameters: Any) -> set[str]:
    if not isinstance(parameters, Mapping):
        return set()
    return {str(parameters.get("rope_type"))}.union(*(_rope_types(value) for value in parameters.values()))


def build_body(spec: DecoderText, config: Any, load_weights: bool, where: str) -> nn.Module:
    """Build the model of a configuration without its output layer, in float32, with :func:`.block_attention.attend`.

    Raises:
        UserError: if it cannot be built, or the weights do not fit.
    """
    from_gguf = is_gguf(spec.weights) and load_weights
    model = build_model(spec.weights, config, load_weights and not from_gguf, where, block_attention.register())
    if from_gguf:
        load_gguf_body(spec.weights, model, config)
    return model


def output_reader(spec: DecoderText, config: Any, load_weights: bool) -> ReadOutput | None:
    """Return the function that reads rows of the output layer, which is not kept in memory; ``None`` if it is the embeddings."""
    source = spec.weights
    if getattr(config, "tie_word_embeddings", False):
        return None

    def read(token_ids: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        if isinstance(source, Random) or not load_weights:
            std = getattr(config, "initializer_range", 0.02)
            return torch.empty(len(token_ids), config.hidden_size).normal_(std=std), None
        if is_gguf(source):
            return read_gguf_rows(source, "output.weight", token_ids), None
        folder = resolve(source)
        for name in OUTPUT_LAYERS:
            rows = _read_rows(folder, f"{name}.weight", token_ids)
            if rows is not None:
                return rows, _read_rows(folder, f"{name}.bias", token_ids)
        raise UserError(f"{describe(source)}: has no output layer {OUTPUT_LAYERS[0]}; take a causal language model's weights")

    return read


def _read_rows(folder: Path, name: str, rows: Sequence[int]) -> Tensor | None:
    """Read some rows of a tensor, in float32; ``None`` if the folder has no such tensor."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shard = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).get(name)
        if shard is None:
            return None
        file = folder / shard
    else:
        file = find_weights(folder)
    if file.suffix != ".safetensors":
        tensor = read_tensors(file).get(name)
        return None if tensor is None else tensor[list(rows)].float()
    from safetensors import safe_open

    try:
        with safe_open(file, "pt") as opened:
            if name not in opened.keys():  # noqa: SIM118  # it is no mapping
                return None
            part = opened.get_slice(name)
            return torch.stack([part[row] for row in rows]).float()
    except Exception as error:  # the library has errors of its own
        raise UserError(f"{file}: {name} cannot be read: {first_line(error)}") from error

"""Decoders in GGUF files (llama.cpp's format), also quantized: their configuration, and their weights in float32.

Only what the file needs is read: `num_hidden_layers: 6` reads six layers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vigil_data.decode.gguf_file import GgufFile, GgufTensor, read_gguf
from vigil_data.errors import UserError
from vigil_data.sources import resolve
from vigil_modeling.weights import mismatch


class Architecture(NamedTuple):
    """How llama.cpp writes an architecture.

    Attributes:
        model_type: its name in transformers.
        permuted: whether rows of queries and keys are interleaved for rotary positions.
        norm_offset: number that is added to the weights of norms.
    """

    model_type: str
    permuted: bool = False
    norm_offset: int = 0


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", permuted=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma": Architecture("gemma", norm_offset=1),
    "gemma2": Architecture("gemma2", norm_offset=1),
    "gemma3": Architecture("gemma3_text", norm_offset=1),
}
"""``general.architecture`` of the files that are read; Mistral's and SmolLM's is llama."""

SETTINGS: Mapping[str, str] = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
"""Key of the file's metadata, after the architecture, to the setting of transformers."""

LAYERS_OF_27B = {46, 62}
"""Gemma 2 and 3 of 27 B, which scale attention by the width of a head that their file does not state."""


def is_gguf(source: Any) -> bool:
    """Whether a source of weights is a GGUF file."""
    return str(getattr(source, "path", "")).endswith(".gguf")


def gguf_config(source: Any) -> dict[str, Any]:
    """Return the configuration of a GGUF file, as config.json would have it.

    Raises:
        UserError: if the file cannot be read, or its architecture is not one of :data:`ARCHITECTURES`.
    """
    path = resolve(source)
    file = read_gguf(path)
    name, architecture = _architecture(path, file)
    given = {theirs: file.metadata.get(f"{name}.{ours}") for ours, theirs in SETTINGS.items()}
    values: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    embeddings = file.tensors.get("token_embd.weight")
    absent = [k for k in ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size") if k not in values]
    if absent or embeddings is None:
        raise UserError(f"{path}: this GGUF file is incomplete: it has no {absent[0] if absent else 'token_embd.weight'}")
    if file.metadata.get(f"{name}.rope.scaling.type", "none") != "none" or "rope_freqs.weight" in file.tensors:
        raise UserError(
            f"{path}: rotary positions are scaled, which is not read from GGUF files; take the model's folder with config.json"
        )
    values["model_type"] = architecture.model_type
    values["vocab_size"] = embeddings.shape[0]
    values["tie_word_embeddings"] = "output.weight" not in file.tensors
    values.setdefault("head_dim", values["hidden_size"] // values["num_attention_heads"])
    for token in ("bos", "eos", "padding"):
        values[f"{token[:3]}_token_id"] = file.metadata.get(f"tokenizer.ggml.{token}_token_id")
    rope = {"rope_type": "default", "rope_theta": file.metadata.get(f"{name}.rope.freq_base", 10_000.0)}
    values["rope_parameters"] = rope
    if name in ("gemma2", "gemma3"):
        of_27b = values["num_hidden_layers"] in LAYERS_OF_27B
        width = values["hidden_size"] // values["num_attention_heads"] if of_27b else values["head_dim"]
        values["query_pre_attn_scalar"] = width
    if name == "gemma3":
        values["rope_parameters"] = {
            "full_attention": rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        }
    return values


def load_gguf_body(source: Any, model: nn.Module, config: Any) -> None:
    """Fill a model with the weights of a GGUF file.

    Raises:
        UserError: if tensors are missing, of another shape, or of a quantization that the package gguf does not read.
    """
    gguf = _library()
    path = resolve(source)
    file = read_gguf(path)
    name, architecture = _architecture(path, file)
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    missing, shapes = [], []
    for ours, tensor in model.state_dict().items():
        theirs = names.get_name(f"model.{ours}", try_suffixes=(".weight", ".bias"))
        found = file.tensors.get(theirs)
        if found is None:
            missing.append(ours)
        elif found.shape != tuple(tensor.shape):
            shapes.append(f"{theirs} {list(found.shape)} -> {ours} {list(tensor.shape)}")
        else:
            values = _read(path, theirs, found)
            if architecture.permuted and ".attn_q." in theirs:
                values = _unpermute(values, config.num_attention_heads)
            elif architecture.permuted and ".attn_k." in theirs:
                values = _unpermute(values, config.num_key_value_heads)
            elif theirs.endswith("norm.weight"):
                values = values - architecture.norm_offset
            tensor.copy_(torch.from_numpy(np.array(values)))
    if missing or shapes:
        raise mismatch(str(path), missing=missing, shapes=shapes)


def read_gguf_rows(source: Any, name: str, rows: Sequence[int]) -> Tensor:
    """Return some rows of a tensor, in float32.

    Raises:
        UserError: see :func:`load_gguf_body`.
    """
    path = resolve(source)
    tensor = read_gguf(path).tensors[name]
    return torch.from_numpy(np.array(_read(path, name, tensor)[list(rows)]))


def _library() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise UserError(
            "gguf is not installed, which reads the weights of .gguf files; install vigil with its gguf extra"
        ) from error
    return gguf


def _architecture(path: Path, file: GgufFile) -> tuple[str, Architecture]:
    name = str(file.metadata.get("general.architecture"))
    if name not in ARCHITECTURES:
        raise UserError(
            f"{path}: a GGUF file of architecture {name} is not read, but one of {', '.join(ARCHITECTURES)}; "
            "take the model's folder with config.json"
        )
    return name, ARCHITECTURES[name]


def _read(path: Path, name: str, tensor: GgufTensor) -> npt.NDArray[np.float32]:
    """Read a tensor, dequantized."""
    gguf = _library()
    try:
        kind = gguf.GGMLQuantizationType(tensor.kind)
        shape = gguf.quants.quant_shape_to_byte_shape(tensor.shape, kind)
        content = np.asarray(np.memmap(path, np.uint8, "r", tensor.offset, shape))
        view = content.view({0: np.float32, 1: np.float16}[tensor.kind]) if tensor.kind in (0, 1) else content
        values: npt.NDArray[np.float32] = gguf.quants.dequantize(view, kind)
    except (NotImplementedError, KeyError, ValueError) as error:
        raise UserError(f"{path}: {name} cannot be read: {str(error) or 'its quantization is unknown'}") from error
    return values.reshape(tensor.shape)


def _unpermute(values: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Undo the interleaving of llama.cpp's conversion (``LlamaModel.permute`` in convert_hf_to_gguf.py)."""
    return values.reshape(heads, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)

"""Loading of weight files: tensors only, from any common format, with one clear error if they do not fit the architecture."""

import pickle
import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vigil_data.errors import UserError
from vigil_data.specs import Hub, Local, Package

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts store a model's tensors in a larger dictionary."""

PREFERRED = ("model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
GRAPH_LAYERS = ("BatchNormalization", "Conv", "Gemm", "LayerNormalization", "MatMul")
"""Operators of an ONNX graph whose constants are weights."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def within(source: Hub | Local | Package, name: str) -> Hub | Local | Package:
    """Return the source of the file ``name`` in the folder ``source``."""
    return source.model_copy(update={"path": posixpath.join(source.path, name)})


def describe(source: Hub | Local | Package) -> str:
    """Name a source in an error message."""
    match source:
        case Hub():
            return f"hub {source.id}" + (f" {source.path}" if source.path else "")
        case Package():
            return f"package {source.package}" + (f" {source.path}" if source.path else "")
        case Local():
            return source.path


def find_weights(path: Path) -> Path:
    """Return the weight file at ``path``: the file itself, or the one in a folder.

    Raises:
        UserError: if the folder holds no weight file, or several without a conventional name.
    """
    if path.is_file():
        return path
    for name in PREFERRED:
        if (path / name).is_file():
            return path / name
    found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if len(found) != 1:
        raise UserError(
            f"{path}: {len(found)} files look like weights ({', '.join(SUFFIXES)}); name the one to load in weights.path"
        )
    return found[0]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of named tensors on the CPU; nothing in it is executed.

    Args:
        path: a ``.safetensors`` file, a ``torch.save`` file with a state dict, itself or under a conventional key, or an
            ``.onnx`` graph, whose weights come in the order in which it uses them.

    Raises:
        UserError: if the file cannot be read, holds more than tensors and plain containers, or holds no tensors.
    """
    try:
        stored: Any
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            stored = load_file(path)
        elif path.suffix == ".onnx":
            stored = _graph_weights(path)
        else:
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors, and loading it would run code from it; save only its state dict"
        ) from error
    except Exception as error:
        raise UserError(f"{path} is not a readable weight file: {first_line(error)}") from error
    for key in WRAPPERS:
        if isinstance(stored, Mapping) and isinstance(stored.get(key), Mapping):
            stored = stored[key]
    tensors = {str(k): v for k, v in stored.items() if isinstance(v, Tensor)} if isinstance(stored, Mapping) else {}
    if not tensors:
        raise UserError(f"{path} holds no named tensors")
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", name): tensor for name, tensor in tensors.items()}


def _graph_weights(path: Path) -> dict[str, Tensor]:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    used = [name for node in graph.node if node.op_type in GRAPH_LAYERS for name in node.input if name in constants]
    return {name: torch.from_numpy(numpy_helper.to_array(constants[name]).copy()) for name in used}


def rename_by_order(tensors: Mapping[str, Tensor], model: nn.Module, origin: str, first: Sequence[str] = ()) -> dict[str, Tensor]:
    """Rename a file's tensors to the model's names in order, for files of the same architecture with other names.

    Up to two tensors at the end of the file are ignored: the classification layer. The counters of batch norms are skipped, since
    old files lack them.

    Args:
        tensors: the file's tensors, in its order.
        model: the model that will load them.
        origin: name of the file in errors.
        first: weights of input convolutions, whose number of channels may differ.

    Raises:
        UserError: if the number or the shapes of the tensors differ.
    """
    ours = [(name, tensor) for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")]
    theirs = [(name, tensor) for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")]
    if not 0 <= len(theirs) - len(ours) <= 2:
        raise UserError(
            f"{origin}: {len(theirs)} tensors cannot match the architecture's {len(ours)} by order"
            " (up to two more are allowed, for a classification layer)"
        )
    wrong = [
        f"{theirs_name} {list(tensor.shape)} -> {name} {list(model_tensor.shape)}"
        for (name, model_tensor), (theirs_name, tensor) in zip(ours, theirs, strict=False)
        if not _fits(tensor, model_tensor, name in first)
    ]
    if wrong:
        raise mismatch(origin, shapes=wrong)
    return {name: tensor for (name, _), (_, tensor) in zip(ours, theirs, strict=False)}


def _fits(tensor: Tensor, wanted: Tensor, any_channels: bool) -> bool:
    if any_channels:
        return tensor.ndim == wanted.ndim and tensor.shape[:1] == wanted.shape[:1] and tensor.shape[2:] == wanted.shape[2:]
    return tensor.shape == wanted.shape


def mismatch(
    origin: str, missing: Sequence[str] = (), unexpected: Sequence[str] = (), shapes: Sequence[str] = (), named: int = 3
) -> UserError:
    """Return the error for weights that do not fit: how many tensors are missing, unexpected or of another shape, with examples.

    Args:
        origin: the file.
        missing: tensors of the architecture that the file lacks.
        unexpected: tensors of the file that the architecture lacks.
        shapes: descriptions of tensors whose shapes differ.
        named: maximum number of examples of each kind.
    """
    parts = []
    for count_of, names in (("missing", missing), ("not of this architecture", unexpected), ("of another shape", shapes)):
        if names:
            more = ", …" if len(names) > named else ""
            parts.append(f"{len(names)} {count_of} ({', '.join(names[:named])}{more})")
    return UserError(f"{origin}: the weights do not fit the architecture; tensors: {'; '.join(parts)}")


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error with its heading, or the error's class if it has no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]

"""Weight files in: tensors only, from any common format, and one clear line when they do not fit the architecture."""

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
"""Keys under which training scripts store a model's tensors beside other things."""

PREFERRED = ("model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def within(source: Hub | Local | Package, name: str) -> Hub | Local | Package:
    """The file ``name`` of the folder that ``source`` names."""
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
    """The weight file at ``path``: the file itself, or the one that a folder holds.

    Raises:
        UserError: the folder holds no weight file, or several and none by a usual name.
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
        path: a ``.safetensors`` file, or one that ``torch.save`` wrote: a state dict, or a mapping with one under a usual key.

    Raises:
        UserError: the file cannot be read, holds more than tensors and plain containers, or holds no tensors.
    """
    try:
        stored: Any
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            stored = load_file(path)
        else:
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors and is not loaded, because that would run code from it; store its state dict alone"
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


def rename_by_order(tensors: Mapping[str, Tensor], model: nn.Module, origin: str, first: Sequence[str] = ()) -> dict[str, Tensor]:
    """Give the file's tensors the model's names, first to first, where a file of the same architecture uses foreign names.

    Up to two tensors at the file's end may be left over: the classification layer that an encoder has no use for. Counters of
    batch norm are not counted, since old files lack them.

    Args:
        tensors: the file's tensors, in its order.
        model: the model that will load them.
        origin: names the file in errors.
        first: weights of input convolutions, whose number of channels may differ.

    Raises:
        UserError: the numbers or shapes of the tensors do not agree.
    """
    ours = [(name, tensor) for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")]
    theirs = [(name, tensor) for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")]
    if not 0 <= len(theirs) - len(ours) <= 2:
        raise UserError(
            f"{origin}: {len(theirs)} tensors cannot match the architecture's {len(ours)} by order"
            " (up to two more are allowed, of a classification layer)"
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
    """One line for weights that do not fit: how many tensors are missing, unknown or of another shape, and a few of them.

    Args:
        origin: the file.
        missing: tensors of the architecture that the file lacks.
        unexpected: tensors of the file that the architecture lacks.
        shapes: tensors whose shapes differ, described.
        named: how many of each are named.
    """
    parts = []
    for count_of, names in (("missing", missing), ("not of this architecture", unexpected), ("of another shape", shapes)):
        if names:
            more = ", …" if len(names) > named else ""
            parts.append(f"{len(names)} {count_of} ({', '.join(names[:named])}{more})")
    return UserError(f"{origin}: the weights do not fit the architecture; tensors: {'; '.join(parts)}")


def first_line(error: BaseException) -> str:
    """The first line of a foreign error with its heading, or its class where it has no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]

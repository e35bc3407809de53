"""Writing files whose SHA-256 is that of what was meant to be written, in the safetensors format and otherwise."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from vigil_training.checkpoint.manifest import FileDigest

CHUNK = 1 << 22
"""Bytes written and hashed at a time."""

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class TensorLayout(NamedTuple):
    """How a tensor lies in a safetensors file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Of all its elements."""
        return self.dtype.itemsize * int(torch.Size(self.shape).numel())


class HashedFile:
    """A file that hashes what it is given on the way to the disk.

    Reading the file back and hashing that would vouch for whatever had reached the disk, errors included.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._bytes = 0

    def write(self, data: "bytes | memoryview[int]") -> None:
        """Hash and write ``data``."""
        self._sha256.update(data)
        self._file.write(data)
        self._bytes += len(data)

    def facts(self) -> FileDigest:
        """Of all that was written."""
        return FileDigest(bytes=self._bytes, sha256=self._sha256.hexdigest())


def write_bytes(path: Path, content: bytes) -> FileDigest:
    """Write a small file to the disk."""
    with path.open("wb") as opened:
        file = HashedFile(opened)
        file.write(content)
        _sync(opened)
    return file.facts()


def order_layouts(layouts: Iterable[TensorLayout]) -> list[TensorLayout]:
    """The order in which tensors are written: wide elements first, so that each begins at a multiple of its width.

    Raises:
        ValueError: safetensors or Vigil has no name for a type of elements.
    """
    ordered = sorted(layouts, key=lambda layout: -layout.dtype.itemsize)
    for layout in ordered:
        if layout.dtype not in _NAMES:
            raise ValueError(f"{layout.name}: tensors of {layout.dtype} cannot be saved")
    return ordered


def write_tensors(
    path: Path, layouts: Sequence[TensorLayout], tensors: Iterable[Tensor], metadata: Mapping[str, str]
) -> FileDigest:
    """Write a safetensors file to the disk, tensor by tensor, without a second copy of them in memory.

    The format (https://github.com/huggingface/safetensors, "Format"): eight bytes with the header's length, the header in JSON,
    padded with spaces, and the tensors without gaps. The library's own writers serialise into memory, or write a file without
    saying what its SHA-256 ought to be.

    Args:
        path: of the file.
        layouts: from :func:`order_layouts`.
        tensors: of the layouts, in their order, on the CPU.
        metadata: of the header.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for layout in layouts:
        header[layout.name] = {
            "dtype": _NAMES[layout.dtype],
            "shape": list(layout.shape),
            "data_offsets": [offset, offset + layout.bytes],
        }
        offset += layout.bytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as opened:
        file = HashedFile(opened)
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for layout, tensor in zip(layouts, tensors, strict=True):
            if (tensor.dtype, tensor.numel() * tensor.element_size()) != (layout.dtype, layout.bytes):
                raise ValueError(f"{layout.name}: not as it was laid out")
            flat: Any = tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy()
            content = memoryview(flat)
            for start in range(0, layout.bytes, CHUNK):
                file.write(content[start : start + CHUNK])
        _sync(opened)
    return file.facts()


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())

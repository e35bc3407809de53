"""Writes files and returns the SHA-256 of what was meant to be written, in the safetensors format and as plain bytes."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from vigil_training.checkpoint.manifest import FileDigest

CHUNK_BYTES = 1 << 22
"""Bytes written and hashed at a time."""

_DTYPE_NAMES = {
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
    """Name, dtype and shape of a tensor in a safetensors file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of all elements."""
        return self.dtype.itemsize * int(torch.Size(self.shape).numel())


class HashingFile:
    """File that hashes bytes on their way to the disk.

    Hashing what is read back instead would certify whatever had reached the disk, errors included.
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

    @property
    def digest(self) -> FileDigest:
        """Size and SHA-256 of everything written so far."""
        return FileDigest(bytes=self._bytes, sha256=self._sha256.hexdigest())


@contextmanager
def _open_hashing(path: Path) -> Iterator[HashingFile]:
    """Open a file for writing, and flush it to disk at the end."""
    with path.open("wb") as opened:
        yield HashingFile(opened)
        opened.flush()
        os.fsync(opened.fileno())


def write_bytes(path: Path, content: bytes) -> FileDigest:
    """Write a small file durably."""
    with _open_hashing(path) as file:
        file.write(content)
    return file.digest


def order_layouts(layouts: Iterable[TensorLayout]) -> list[TensorLayout]:
    """Return layouts in the order of writing: wide elements first, so that each tensor begins at a multiple of its width.

    Raises:
        ValueError: if safetensors or Vigil has no name for a dtype.
    """
    ordered = sorted(layouts, key=lambda layout: -layout.dtype.itemsize)
    for layout in ordered:
        if layout.dtype not in _DTYPE_NAMES:
            raise ValueError(f"{layout.name}: tensors of {layout.dtype} cannot be saved")
    return ordered


def write_tensors(
    path: Path, layouts: Sequence[TensorLayout], tensors: Iterable[Tensor], metadata: Mapping[str, str]
) -> FileDigest:
    """Write a safetensors file durably, tensor by tensor, without a second copy in memory.

    The format (https://github.com/huggingface/safetensors, "Format"): eight bytes with the header's length, the header in JSON,
    padded with spaces, and the tensors without gaps. The library's own writers serialise into memory, or write a file without
    returning the SHA-256 that it should have.

    Args:
        path: the file.
        layouts: result of :func:`order_layouts`.
        tensors: tensors of the layouts, in the same order, on the CPU.
        metadata: metadata of the header.

    Raises:
        ValueError: if a tensor differs from its layout.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for layout in layouts:
        header[layout.name] = {
            "dtype": _DTYPE_NAMES[layout.dtype],
            "shape": list(layout.shape),
            "data_offsets": [offset, offset + layout.bytes],
        }
        offset += layout.bytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with _open_hashing(path) as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for layout, tensor in zip(layouts, tensors, strict=True):
            if (tensor.dtype, tensor.numel() * tensor.element_size()) != (layout.dtype, layout.bytes):
                raise ValueError(f"{layout.name}: differs from its layout")
            flat: Any = tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy()
            content = memoryview(flat)
            for start in range(0, layout.bytes, CHUNK_BYTES):
                file.write(content[start : start + CHUNK_BYTES])
    return file.digest

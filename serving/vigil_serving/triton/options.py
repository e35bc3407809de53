"""How a repository is laid out and served: what its user may choose, and the names that its writer and the glue share."""

from dataclasses import dataclass

ONNX_FILE = "model.onnx"
FACTS = "bundle"
"""Folder beside model.py: what of the bundle decides, without its graphs."""
FUSION = "fusion"
VERSION = "1"


@dataclass(frozen=True, slots=True)
class Plan:
    """What the user of a repository may choose.

    Attributes:
        variant: which form of the encoders, such as ``int8``.
        instances: processes that decode and decide; each holds one request at a time.
        encoder_instances: instances of each graph, on each device.
        max_batch: segments that one run of an encoder holds at most.
        queue_delay: microseconds that an encoder's segments wait at most for those of other requests.
        pad_tokens: passages are padded to a multiple of so many tokens, for Triton joins only what has one shape.
        threads: threads within an operator of a graph; ONNX Runtime's default (all cores) if ``None``.
        cache_bytes: the most bytes of encoded media that each process remembers.
    """

    variant: str = "fp32"
    instances: int = 2
    encoder_instances: int = 1
    max_batch: int = 16
    queue_delay: int = 1000
    pad_tokens: int = 8
    threads: int | None = None
    cache_bytes: int = 64 << 20

    @property
    def preferred(self) -> list[int]:
        """Batches that run at once, without waiting for more: powers of two from 4 on."""
        return [2**power for power in range(2, self.max_batch.bit_length()) if 2**power <= self.max_batch]


def model_name(name: str, part: str) -> str:
    """What an encoder (``part`` is its modality) or the fusion is called beside the model ``name``."""
    return f"{name}_{part}"


def hash_of(part: str) -> str:
    """The parameter of the model ``name`` that holds the SHA-256 of a part's graph."""
    return f"sha256.{part}"

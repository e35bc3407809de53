"""Options of a Triton model repository, and the names that its writer and its Python model share."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from vigil_serving.traffic.options import TrafficLogOptions

ONNX_FILE = "model.onnx"
BUNDLE_FOLDER = "bundle"
"""Folder next to model.py with the bundle's files that decide, without its graphs."""
FUSION = "fusion"
VERSION = "1"


@dataclass(frozen=True, slots=True)
class ModelRepositoryOptions:
    """Options of a model repository.

    Attributes:
        variant: variant of the encoders, such as ``int8``.
        instances: processes that decode and decide; each handles one request at a time.
        encoder_instances: instances of each graph, on each device.
        max_batch: largest number of segments in one run of an encoder.
        queue_delay: longest time, in microseconds, that an encoder's segments wait for those of other requests.
        pad_tokens: passages are padded to a multiple of this many tokens, since Triton joins only inputs of one shape.
        threads: threads within an operator of a graph; ``None`` for ONNX Runtime's default (all cores).
        cache_bytes: largest number of bytes of encoded media that each process caches.
        log: the traffic log, a folder on the server that its processes can write (default: decisions are not logged).
    """

    variant: str = "fp32"
    instances: int = 2
    encoder_instances: int = 1
    max_batch: int = 16
    queue_delay: int = 1000
    pad_tokens: int = 8
    threads: int | None = None
    cache_bytes: int = 64 << 20
    log: TrafficLogOptions | None = None

    @property
    def log_parameters(self) -> dict[str, str]:
        """Parameters of the Python model that :func:`read_log_options` reads."""
        if self.log is None:
            return {}
        values = {"log": str(self.log.folder), "log_columns": json.dumps(self.log.columns)}
        return values | {"log_days": str(self.log.days), "log_max_bytes": str(self.log.max_bytes)}

    @property
    def preferred_batches(self) -> list[int]:
        """Batch sizes that run at once, without waiting for more: powers of two from 4."""
        return [2**power for power in range(2, self.max_batch.bit_length()) if 2**power <= self.max_batch]


DEFAULTS = ModelRepositoryOptions()


def read_log_options(parameters: Mapping[str, str]) -> TrafficLogOptions | None:
    """Return the traffic log that parameters of the Python model describe; ``None`` without one."""
    if "log" not in parameters:
        return None
    columns = tuple(json.loads(parameters["log_columns"]))
    return TrafficLogOptions(parameters["log"], columns, int(parameters["log_days"]), int(parameters["log_max_bytes"]))


def model_name(name: str, part: str) -> str:
    """Return the name of the model of an encoder (``part`` is its modality) or of the fusion."""
    return f"{name}_{part}"


def hash_parameter(part: str) -> str:
    """Return the parameter of the model ``name`` that holds the SHA-256 of a part's graph."""
    return f"sha256.{part}"

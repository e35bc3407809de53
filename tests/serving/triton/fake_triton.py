"""A stand-in for Triton's ``triton_python_backend_utils``: requests go to the repository's own ONNX files, by its own configs.

It refuses what Triton refuses: other names, element types or shapes than config.pbtxt tells, batches over ``max_batch_size``,
outputs that do not exist. Like Triton's dynamic batcher it joins requests of one shape: each runs together with the one before.
"""

import collections
import threading
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnxruntime
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as schema
from tritonclient.utils import triton_to_np_dtype

TRITONSERVER_MEMORY_CPU = 1
server = None
"""The :class:`Server` that answers."""


class Tensor:
    def __init__(self, name, array):
        assert isinstance(name, str)
        assert isinstance(array, np.ndarray)
        assert array.flags.c_contiguous
        self._name, self._array = name, array

    def name(self):
        return self._name

    def as_numpy(self):
        return self._array


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message, code=INTERNAL):
        self._message, self._code = message, code

    def message(self):
        return self._message

    def code(self):
        return self._code


class Logger:
    warnings: ClassVar[list[str]] = []

    @staticmethod
    def log_warn(message):
        Logger.warnings.append(message)


class PreferredMemory:
    def __init__(self, preferred_memory_type, preferred_device_id=0):
        assert preferred_memory_type == TRITONSERVER_MEMORY_CPU


class InferenceResponse:
    def __init__(self, output_tensors=None, error=None):
        assert (error is None) != (output_tensors is None)
        self._tensors, self._error = output_tensors, error

    def output_tensors(self):
        return self._tensors

    def has_error(self):
        return self._error is not None

    def error(self):
        return self._error


class InferenceRequest:
    def __init__(self, *, inputs, model_name=None, requested_output_names=None, preferred_memory=None):
        self._inputs, self.model_name, self.wanted, self.memory = inputs, model_name, requested_output_names, preferred_memory

    def inputs(self):
        return self._inputs

    def exec(self):
        assert self.memory is not None, "an output might lie on a GPU"
        try:
            return InferenceResponse(server.infer(self.model_name, self._inputs, self.wanted))
        except InferenceError as error:
            return InferenceResponse(error=TritonError(str(error)))


def get_input_tensor_by_name(request, name):
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


def get_output_tensor_by_name(response, name):
    return next((tensor for tensor in response.output_tensors() if tensor.name() == name), None)


class InferenceError(Exception):
    """A request that Triton answers with an error."""


class Server:
    """The part of Triton's core that the Python model sees.

    Attributes:
        calls: model to the shapes of its requests' first inputs.
        broken: models that answer with an error.
        joined: requests that ran together with another one.
    """

    def __init__(self, repository: Path):
        self.calls, self.broken, self.joined = collections.defaultdict(list), set(), 0
        self._lock, self._before = threading.Lock(), {}
        self.configs = {
            path.parent.name: text_format.Parse(path.read_text(), schema.ModelConfig())
            for path in repository.glob("*/config.pbtxt")
        }
        self._sessions = {
            name: onnxruntime.InferenceSession(str(repository / name / "1" / config.default_model_filename))
            for name, config in self.configs.items()
            if config.backend == "onnxruntime"
        }

    def infer(self, name, tensors, wanted):
        with self._lock:
            if name not in self._sessions:
                raise InferenceError(f"unknown model {name}")
            if name in self.broken:
                raise InferenceError("out of memory")
            feeds, config = {tensor.name(): tensor.as_numpy() for tensor in tensors}, self.configs[name]
            self._check(config, feeds, wanted)
            self.calls[name].append(next(iter(feeds.values())).shape)
            return [Tensor(n, a) for n, a in zip(wanted, self._run(name, config, feeds, wanted), strict=True)]

    def _check(self, config, feeds, wanted):
        configured = {tensor.name: tensor for tensor in config.input}
        if set(feeds) != set(configured):
            raise InferenceError(f"inputs {sorted(feeds)}, expected {sorted(configured)}")
        for input_name, array in feeds.items():
            shape = array.shape[1:] if config.max_batch_size else array.shape
            dims = list(configured[input_name].dims)
            if len(shape) != len(dims) or any(d not in (-1, s) for s, d in zip(shape, dims, strict=True)):
                raise InferenceError(f"{input_name}: shape {array.shape}, expected {dims}")
            kind = schema.DataType.Name(configured[input_name].data_type).removeprefix("TYPE_")
            if array.dtype != triton_to_np_dtype(kind):
                raise InferenceError(f"{input_name}: {array.dtype}, expected {kind}")
        if config.max_batch_size and {len(array) for array in feeds.values()} - set(range(1, config.max_batch_size + 1)):
            raise InferenceError("batch size out of range")
        if config.max_batch_size and len({len(array) for array in feeds.values()}) != 1:
            raise InferenceError("batch sizes differ")
        if not set(wanted) <= {tensor.name for tensor in config.output}:
            raise InferenceError(f"outputs {wanted} do not exist")

    def _run(self, name, config, feeds, wanted):
        session, before = self._sessions[name], self._before.get(name)
        if not config.HasField("dynamic_batching"):
            return session.run(wanted, feeds)
        self._before[name] = feeds
        size = len(next(iter(feeds.values())))
        same_shape = before is not None and all(before[n].shape[1:] == array.shape[1:] for n, array in feeds.items())
        if not same_shape or size + len(next(iter(before.values()))) > config.max_batch_size:
            return session.run(wanted, feeds)
        self.joined += 1
        found = session.run(wanted, {n: np.concatenate([before[n], array]) for n, array in feeds.items()})
        return [np.ascontiguousarray(array[-size:]) for array in found]

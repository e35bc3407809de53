"""Graphs that run in other models of the same Triton server, in place of ONNX Runtime sessions."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from typing import Any, NamedTuple

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from vigil_serving.bundle.metadata import Graph


class RemoteModelError(Exception):
    """Another model of the server returned an error; the message has its name and its error."""


class TensorInfo(NamedTuple):
    """Input or output, as ONNX Runtime's sessions describe it."""

    name: str
    shape: tuple[int | str, ...]


class SegmentBatch(NamedTuple):
    """Segments of one request: their rows in the run, and their inputs."""

    rows: NDArray[np.int64]
    inputs: Mapping[str, NDArray[np.generic]]


class EncoderRequestLimits(NamedTuple):
    """Limits of one request to an encoder.

    Attributes:
        max_segments: largest number of segments.
        pad_multiple: passages are padded with zeros, where the attention mask is 0, to a multiple of this many tokens.
        max_tokens: largest number of tokens that the encoder takes.
    """

    max_segments: int
    pad_multiple: int
    max_tokens: int


class RemoteSession:
    """The part of :class:`onnxruntime.InferenceSession` that the runtime uses, answered by a model of the server.

    Args:
        model: name of the model.
        graph: its inputs and outputs.
    """

    def __init__(self, model: str, graph: Graph) -> None:
        self.model = model
        self._inputs = [TensorInfo(name, spec.shape) for name, spec in graph.inputs.items()]
        self._outputs = [TensorInfo(name, spec.shape) for name, spec in graph.outputs.items()]

    def get_inputs(self) -> list[TensorInfo]:
        """Return the inputs in the order of the graph."""
        return self._inputs

    def get_outputs(self) -> list[TensorInfo]:
        """Return the outputs in the order of the graph."""
        return self._outputs

    def run(self, _outputs: None, feeds: Mapping[str, NDArray[np.generic]]) -> list[NDArray[Any]]:
        """Run the model and return all outputs.

        Args:
            _outputs: ignored; ONNX Runtime's sessions have it.
            feeds: input to array.

        Raises:
            RemoteModelError: if the server returns an error.
        """
        names = [node.name for node in self._outputs]
        response = pb_utils.InferenceRequest(
            model_name=self.model,
            requested_output_names=names,
            inputs=[pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in feeds.items()],
            # A graph on a GPU would otherwise leave its outputs there.
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        ).exec()
        if response.has_error():
            raise RemoteModelError(f"{self.model}: {response.error().message()}")
        return [pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in names]


class RemoteEncoder(RemoteSession):
    """Encoder that sends requests of one shape, so that Triton can join them with those of other requests.

    Args:
        model: name of the model.
        graph: its inputs and outputs.
        limits: limits of one request.
        pool: runs the requests.
    """

    def __init__(self, model: str, graph: Graph, limits: EncoderRequestLimits, pool: Executor) -> None:
        super().__init__(model, graph)
        self._limits, self._pool = limits, pool

    def run(self, _outputs: None, feeds: Mapping[str, NDArray[np.generic]]) -> list[NDArray[Any]]:
        """Encode segments ``[S, ...]`` in concurrent requests; see :meth:`RemoteSession.run`."""
        batches = list(split_segments(feeds, self._limits))
        answers = list(self._pool.map(lambda batch: super(RemoteEncoder, self).run(None, batch.inputs), batches))
        joined = []
        for outputs in zip(*answers, strict=True):
            # Spans have an entry for each token, and requests are padded to lengths of their own.
            longest = max(output.shape[1] for output in outputs)
            whole = np.zeros((sum(map(len, outputs)), longest, *outputs[0].shape[2:]), outputs[0].dtype)
            for batch, output in zip(batches, outputs, strict=True):
                whole[batch.rows, : output.shape[1]] = output
            joined.append(whole)
        return joined


def split_segments(feeds: Mapping[str, NDArray[np.generic]], limits: EncoderRequestLimits) -> Iterator[SegmentBatch]:
    """Split the inputs ``[S, ...]`` of an encoder into requests of equal padded length that are within the limits."""
    mask = feeds.get("attention_mask")
    segments = len(next(iter(feeds.values())))
    tokens_S = np.zeros(segments, np.int64) if mask is None else _padded_lengths(mask, limits)
    for tokens in np.unique(tokens_S):
        same_length = np.flatnonzero(tokens_S == tokens)
        for rows in np.split(same_length, range(limits.max_segments, len(same_length), limits.max_segments)):
            inputs = {name: array[rows] for name, array in feeds.items()}
            if mask is not None:
                inputs = {name: _pad_or_cut(array, int(tokens)) for name, array in inputs.items()}
            yield SegmentBatch(rows, inputs)


def _padded_lengths(mask_ST: NDArray[np.generic], limits: EncoderRequestLimits) -> NDArray[np.int64]:
    """Return the number of tokens to which each passage is padded."""
    used_S = np.maximum(((mask_ST != 0) * np.arange(1, mask_ST.shape[1] + 1)).max(axis=1), 1)
    padded_S: NDArray[np.int64] = np.minimum(
        -(-used_S // limits.pad_multiple) * limits.pad_multiple, max(limits.max_tokens, int(used_S.max()))
    )
    return padded_S


def _pad_or_cut(array_ST: NDArray[np.generic], tokens: int) -> NDArray[np.generic]:
    """Cut, or pad with zeros, to ``tokens`` columns."""
    return np.pad(array_ST[:, :tokens], ((0, 0), (0, max(tokens - array_ST.shape[1], 0))))

"""A graph that runs in another model of the same Triton server, in the place of a session of ONNX Runtime."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from typing import Any, NamedTuple

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from vigil_serving.bundle.metadata import Graph


class RemoteModelError(Exception):
    """Another model of the server answered with an error; the message is its name and its error."""


class Node(NamedTuple):
    """An input or output, as ONNX Runtime's sessions describe them."""

    name: str
    shape: tuple[int | str, ...]


class Share(NamedTuple):
    """What one request takes of a run: which segments, and their inputs."""

    rows: NDArray[np.int64]
    inputs: Mapping[str, NDArray[np.generic]]


class EncoderBatching(NamedTuple):
    """How segments are asked for.

    Attributes:
        most: segments in one request.
        multiple: passages are padded to a multiple of so many tokens, with zeros, where the attention mask is 0.
        longest: the most tokens that the encoder takes.
    """

    most: int
    multiple: int
    longest: int


class RemoteSession:
    """What the runtime asks of :class:`onnxruntime.InferenceSession`, answered by a model of the server.

    Args:
        model: the model's name.
        graph: what it takes and gives.
    """

    def __init__(self, model: str, graph: Graph) -> None:
        self.model = model
        self._inputs = [Node(name, facts.shape) for name, facts in graph.inputs.items()]
        self._outputs = [Node(name, facts.shape) for name, facts in graph.outputs.items()]

    def get_inputs(self) -> list[Node]:
        """In the order of the graph."""
        return self._inputs

    def get_outputs(self) -> list[Node]:
        """In the order of the graph."""
        return self._outputs

    def run(self, _outputs: None, feeds: Mapping[str, NDArray[np.generic]]) -> list[NDArray[Any]]:
        """Have the model run, and wait for it.

        Args:
            _outputs: as ONNX Runtime's sessions have it; all outputs are wanted.
            feeds: input to array.

        Raises:
            RemoteModelError: if the server does not carry it out.
        """
        wanted = [node.name for node in self._outputs]
        response = pb_utils.InferenceRequest(
            model_name=self.model,
            requested_output_names=wanted,
            inputs=[pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in feeds.items()],
            # A graph on a GPU would otherwise leave its outputs there.
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        ).exec()
        if response.has_error():
            raise RemoteModelError(f"{self.model}: {response.error().message()}")
        return [pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in wanted]


class RemoteEncoder(RemoteSession):
    """An encoder, asked for segments of one shape at a time, so that Triton can join them with those of other requests.

    Args:
        model: the model's name.
        graph: what it takes and gives.
        split: how segments are asked for.
        pool: where requests wait for their answers.
    """

    def __init__(self, model: str, graph: Graph, split: EncoderBatching, pool: Executor) -> None:
        super().__init__(model, graph)
        self._split, self._pool = split, pool

    def run(self, _outputs: None, feeds: Mapping[str, NDArray[np.generic]]) -> list[NDArray[Any]]:
        """Encode segments ``[S, ...]``, in requests that are under way at once; see :meth:`RemoteSession.run`."""
        asked = list(shares(feeds, self._split))
        answers = list(self._pool.map(lambda share: super(RemoteEncoder, self).run(None, share.inputs)[0], asked))
        rows = np.concatenate([share.rows for share in asked])
        tokens_SPD = np.empty((len(rows), *answers[0].shape[1:]), answers[0].dtype)
        tokens_SPD[rows] = np.concatenate(answers)
        return [tokens_SPD]


def shares(feeds: Mapping[str, NDArray[np.generic]], split: EncoderBatching) -> Iterator[Share]:
    """Split the inputs ``[S, ...]`` of an encoder into requests: alike in padded length, and no more than one may hold."""
    mask = feeds.get("attention_mask")
    segments = len(next(iter(feeds.values())))
    tokens_S = np.zeros(segments, np.int64) if mask is None else _padded(mask, split)
    for tokens in np.unique(tokens_S):
        alike = np.flatnonzero(tokens_S == tokens)
        for rows in np.split(alike, range(split.most, len(alike), split.most)):
            taken = {name: array[rows] for name, array in feeds.items()}
            yield Share(rows, taken if mask is None else {name: _of_width(array, int(tokens)) for name, array in taken.items()})


def _padded(mask_ST: NDArray[np.generic], split: EncoderBatching) -> NDArray[np.int64]:
    """Of each passage the tokens to which it is padded."""
    used_S = np.maximum(((mask_ST != 0) * np.arange(1, mask_ST.shape[1] + 1)).max(axis=1), 1)
    padded_S: NDArray[np.int64] = np.minimum(-(-used_S // split.multiple) * split.multiple, max(split.longest, int(used_S.max())))
    return padded_S


def _of_width(array_ST: NDArray[np.generic], tokens: int) -> NDArray[np.generic]:
    """Cut, or padded with zeros, to ``tokens``."""
    return np.pad(array_ST[:, :tokens], ((0, 0), (0, max(tokens - array_ST.shape[1], 0))))

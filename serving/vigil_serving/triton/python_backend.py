"""Model that Triton clients call: items in, decisions out; each encoder runs only on the segments that exist.

It runs in Triton's Python backend. The runtime's own :class:`~vigil_serving.runtime.scorer.Scorer` decodes, streams long sounds,
caches the embeddings of repeated media, calibrates and decides; its graphs are other models of the same server.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from vigil_data.errors import UserError
from vigil_data.filesystem import sha256_file
from vigil_data.items import Item
from vigil_serving.bundle.load import Bundle, load_bundle
from vigil_serving.protocol.errors import RequestError
from vigil_serving.protocol.item_json import item_from_json
from vigil_serving.protocol.strict_json import loads
from vigil_serving.protocol.tensors import INPUT, output_tensors
from vigil_serving.runtime.onnx_sessions import Sessions
from vigil_serving.runtime.scorer import Scorer
from vigil_serving.traffic.options import Origin
from vigil_serving.triton.options import (
    BUNDLE_FOLDER,
    FUSION,
    ONNX_FILE,
    VERSION,
    ModelRepositoryOptions,
    hash_parameter,
    model_name,
    read_log_options,
)
from vigil_serving.triton.remote_sessions import EncoderRequestLimits, RemoteEncoder, RemoteModelError, RemoteSession

MAX_CONCURRENT_ENCODER_REQUESTS = 16
"""Largest number of concurrent requests of one instance to encoders."""


class TritonPythonModel:
    """Interface of the Python backend."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the bundle's files next to model.py; Triton does not load the model if they or the graphs were altered.

        Args:
            args: Triton's arguments: the model's folder, name and configuration.
        """
        given = {name: value["string_value"] for name, value in json.loads(args["model_config"])["parameters"].items()}
        folder = Path(args["model_repository"])
        bundle = replace(load_bundle(folder / args["model_version"] / BUNDLE_FOLDER), digest=given["bundle"])
        for part in (*bundle.modalities, FUSION):
            check_unaltered(
                folder.parent / model_name(args["model_name"], part) / VERSION / ONNX_FILE, given[hash_parameter(part)]
            )
        self._pool = ThreadPoolExecutor(MAX_CONCURRENT_ENCODER_REQUESTS)
        options = ModelRepositoryOptions(
            variant=given["variant"], max_batch=int(given["max_batch"]), pad_tokens=int(given["pad_tokens"])
        )
        sessions = remote_sessions(bundle, args["model_name"], options, self._pool)
        self._scorer = Scorer(bundle, variant=given["variant"], cache_bytes=int(given["cache_bytes"]), sessions=sessions)
        self._log, policy = None, bundle.policy
        if (log := read_log_options(given)) is not None:
            from vigil_serving.traffic.writer import TrafficLog  # needs pyarrow

            self._log = TrafficLog(log)
        self._origin = Origin("triton", "live", bundle.digest, policy.title if policy else None, tuple(bundle.labels))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request; an error affects only its own request."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Stop the threads, and finish the traffic log."""
        self._pool.shutdown()
        if self._log is not None:
            self._log.close()

    def _answer(self, request: Any) -> Any:
        try:
            items = read_items(pb_utils.get_input_tensor_by_name(request, INPUT).as_numpy())
            decisions = self._scorer.score(items)
        except (RequestError, UserError) as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
        except RemoteModelError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.UNAVAILABLE))
        if self._log is not None:
            self._log.offer(items, decisions, self._origin)
        arrays = output_tensors(decisions, self._scorer.bundle.labels)
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(name, array) for name, array in arrays.items()])


def remote_sessions(bundle: Bundle, name: str, options: ModelRepositoryOptions, pool: Executor) -> Sessions:
    """Return the server's models in place of a bundle's ONNX Runtime sessions.

    Args:
        bundle: inputs and outputs of each graph.
        name: name of the model that clients call, from which the other names follow.
        options: options of the repository.
        pool: runs the requests to encoders.
    """
    graphs, names = bundle.graphs, bundle.variants[options.variant]
    limits = EncoderRequestLimits(
        options.max_batch, options.pad_tokens, bundle.inputs.text.max_tokens if bundle.inputs.text else 0
    )
    encoders = {m: RemoteEncoder(model_name(name, m), graphs[names[m]], limits, pool) for m in bundle.modalities}
    fusion = RemoteSession(model_name(name, FUSION), graphs["fusion"])
    spans = tuple(bundle.labels.index(label) for label in bundle.spans)
    return Sessions(cast("Any", encoders), cast("Any", fusion), spans=spans)


def check_unaltered(graph: Path, digest: str) -> None:
    """Check that another model's graph is the bundle's; a graph that is not on this machine (cloud storage) is not checked.

    Raises:
        UserError: if it was altered.
    """
    if not graph.is_file():
        pb_utils.Logger.log_warn(f"{graph} is not on this machine, so its hash is not recomputed")
    elif sha256_file(graph) != digest:
        raise UserError(f"{graph} was changed after the export")


def read_items(texts_N: NDArray[np.object_]) -> list[Item]:
    """Read items, one JSON text each, in the form that `vigil serve` takes.

    Args:
        texts_N: UTF-8; see :func:`~vigil_serving.protocol.item_json.item_from_json`.

    Raises:
        RequestError: one line, if one of them is malformed.
    """
    places = [f"item[{index}]" for index in range(len(texts_N))]
    return [item_from_json(loads(text, where), where) for text, where in zip(texts_N, places, strict=True)]

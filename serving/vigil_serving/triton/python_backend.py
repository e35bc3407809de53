"""The model that clients of Triton ask: items in, decisions out, each encoder asked only for the segments that exist.

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
from vigil_data.items import Item
from vigil_serving.bundle.load import Bundle, load_bundle
from vigil_serving.bundle.manifest import sha256
from vigil_serving.protocol.errors import RequestError
from vigil_serving.protocol.item_json import item_from_json
from vigil_serving.protocol.strict_json import loads
from vigil_serving.protocol.tensors import INPUT, output_tensors
from vigil_serving.runtime.onnx_sessions import Sessions
from vigil_serving.runtime.scorer import Scorer
from vigil_serving.triton.options import FACTS, FUSION, ONNX_FILE, VERSION, Plan, hash_of, model_name
from vigil_serving.triton.remote_sessions import EncoderBatching, RemoteEncoder, RemoteModelError, RemoteSession

WAITING = 16
"""Requests to encoders that one instance has under way at most."""


class TritonPythonModel:
    """The Python backend's interface."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the bundle's facts beside model.py; Triton does not load the model if they or the graphs were altered.

        Args:
            args: Triton's: where the model lies, its name and its configuration.
        """
        given = {name: value["string_value"] for name, value in json.loads(args["model_config"])["parameters"].items()}
        folder = Path(args["model_repository"])
        bundle = replace(load_bundle(folder / args["model_version"] / FACTS), digest=given["bundle"])
        for part in (*bundle.metadata.modalities, FUSION):
            refuse_altered(folder.parent / model_name(args["model_name"], part) / VERSION / ONNX_FILE, given[hash_of(part)])
        self._pool = ThreadPoolExecutor(WAITING)
        plan = Plan(variant=given["variant"], max_batch=int(given["max_batch"]), pad_tokens=int(given["pad_tokens"]))
        sessions = remote_sessions(bundle, args["model_name"], plan, self._pool)
        self._scorer = Scorer(bundle, variant=given["variant"], cache_bytes=int(given["cache_bytes"]), sessions=sessions)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request; an error is that request's alone."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _answer(self, request: Any) -> Any:
        try:
            items = read_items(pb_utils.get_input_tensor_by_name(request, INPUT).as_numpy())
            decisions = self._scorer.score(items)
        except (RequestError, UserError) as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
        except RemoteModelError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.UNAVAILABLE))
        arrays = output_tensors(decisions, self._scorer.bundle.metadata.labels)
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(name, array) for name, array in arrays.items()])


def remote_sessions(bundle: Bundle, name: str, plan: Plan, pool: Executor) -> Sessions:
    """The server's models in the place of a bundle's sessions.

    Args:
        bundle: says what each graph takes and gives.
        name: of the model that clients ask; the others are called after it.
        plan: as which the repository was written.
        pool: where requests wait for their answers.
    """
    graphs, names = bundle.metadata.graphs, bundle.metadata.variants[plan.variant]
    split = EncoderBatching(plan.max_batch, plan.pad_tokens, bundle.inputs.text.max_tokens if bundle.inputs.text else 0)
    encoders = {m: RemoteEncoder(model_name(name, m), graphs[names[m]], split, pool) for m in bundle.metadata.modalities}
    return Sessions(cast("Any", encoders), cast("Any", RemoteSession(model_name(name, FUSION), graphs["fusion"])))


def refuse_altered(graph: Path, digest: str) -> None:
    """Refuse another model's graph if it is not the bundle's; one that lies elsewhere, as in cloud storage, is not looked at.

    Raises:
        UserError: if it was altered.
    """
    if not graph.is_file():
        pb_utils.Logger.log_warn(f"{graph} is not on this machine, so its hash is not recomputed")
    elif sha256(graph) != digest:
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

"""The config.pbtxt of each model of the repository: made as Triton's own message, and checked against the ONNX graphs.

Triton's schema comes with its client, so this module needs the extra ``vigil[triton]``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from vigil_data.errors import UserError
from vigil_serving.bundle.metadata import Graph, TensorFacts
from vigil_serving.runtime.onnx_sessions import open_session
from vigil_serving.triton.options import ONNX_FILE, VERSION, Plan

FILE = "config.pbtxt"
WARM_UP = "warmup"
"""Triton's folder of the files that warm-ups read."""
TYPES = {"int64": "TYPE_INT64", "int32": "TYPE_INT32", "uint8": "TYPE_UINT8", "float16": "TYPE_FP16", "float32": "TYPE_FP32"}
"""numpy's names of the element types that graphs have, to Triton's."""
ONNX_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"} | {f"tensor({n})": n for n in ("int64", "int32", "uint8")}
"""ONNX Runtime's names of them, to numpy's."""


class Model(NamedTuple):
    """A model's configuration, and the arrays that its warm-up reads, by the name of their file."""

    config: ModelConfig
    samples: Mapping[str, NDArray[np.generic]]


def encoder(name: str, graph: Graph, plan: Plan, longest: int) -> Model:
    """An encoder: its segments are Triton's batch, and those of several requests run together.

    Args:
        name: of the model.
        graph: what it takes and gives.
        plan: what was chosen.
        longest: tokens of the longest passage, for the warm-up.
    """
    config = _onnx(name, plan, plan.max_batch)
    _describe(config, graph, batched=True)
    config.dynamic_batching.preferred_batch_size.extend(plan.preferred)
    config.dynamic_batching.max_queue_delay_microseconds = plan.queue_delay
    samples: dict[str, NDArray[np.generic]] = {}
    for title, segments, tokens in (("one", 1, min(plan.pad_tokens, longest)), ("full", plan.max_batch, longest)):
        warm_up = config.model_warmup.add(name=title, batch_size=segments)
        for input_name, facts in graph.inputs.items():
            given = warm_up.inputs[input_name]
            given.data_type = _type(facts)
            given.dims.extend(tokens if axis == -1 else axis for axis in _dims(facts)[1:])
            if input_name == "attention_mask":  # a passage without any token is not what the encoder was made for
                given.input_data_file = f"{title}.{input_name}"
                samples[given.input_data_file] = np.ones(given.dims, facts.dtype)
            else:
                given.zero_data = True
    return Model(config, samples)


def fusion(name: str, graph: Graph, plan: Plan) -> Model:
    """The fusion: items, and the segments of each modality, are axes of their own, so Triton cannot join its requests."""
    config = _onnx(name, plan, 0)
    _describe(config, graph, batched=False)
    return Model(config, {})


def glue(name: str, labels: int, plan: Plan, told: Mapping[str, str]) -> Model:
    """The model that clients ask: items in, decisions out.

    Args:
        name: of the model.
        labels: how many.
        plan: what was chosen.
        told: what the glue must know beside the bundle's facts.
    """
    config = ModelConfig(name=name, backend="python", max_batch_size=0)
    config.version_policy.latest.num_versions = 1
    config.input.add(name="item", data_type=DataType.Value("TYPE_STRING"), dims=[-1])
    config.output.add(name="probabilities", data_type=DataType.Value("TYPE_FP32"), dims=[-1, labels])
    for text in ("action", "decision"):
        config.output.add(name=text, data_type=DataType.Value("TYPE_STRING"), dims=[-1])
    config.instance_group.add(kind=ModelInstanceGroup.KIND_CPU, count=plan.instances)
    chosen = ("variant", "max_batch", "pad_tokens", "cache_bytes")
    for key, value in {**told, **{key: getattr(plan, key) for key in chosen}}.items():
        config.parameters[key].string_value = str(value)
    return Model(config, {})


def write(model: Model, folder: Path) -> None:
    """Write config.pbtxt, and what the warm-up reads, into a model's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(text_format.MessageToString(model.config), encoding="utf-8")
    for name, array in model.samples.items():
        (folder / WARM_UP).mkdir(exist_ok=True)
        (folder / WARM_UP / name).write_bytes(array.tobytes())


def read(folder: Path) -> ModelConfig:
    """Parse the config.pbtxt of a model's folder by Triton's schema.

    Raises:
        UserError: if the text does not fit the schema.
    """
    path = folder / FILE
    try:
        config: ModelConfig = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except text_format.ParseError as error:
        raise UserError(f"{path}: not a model configuration of Triton: {error}") from None
    return config


def differences(folder: Path) -> list[str]:
    """Where the configuration of an ONNX model and the graph itself differ: a line for each tensor."""
    config, session = read(folder), open_session(folder / VERSION / ONNX_FILE, threads=1)
    batch = (-1,) if config.max_batch_size else ()
    problems = [] if config.name == folder.name else [f"{folder}: {FILE} calls the model {config.name}"]
    for what, told, nodes in (("input", config.input, session.get_inputs()), ("output", config.output, session.get_outputs())):
        said = {tensor.name: (DataType.Name(tensor.data_type), (*batch, *tensor.dims)) for tensor in told}
        have = {node.name: _of_node(node) for node in nodes}
        problems += [
            f"{folder}: {what} {name} is {said.get(name)} in {FILE}, and {have.get(name)} in {ONNX_FILE}"
            for name in sorted({*said, *have})
            if said.get(name) != have.get(name)
        ]
    return problems


def _onnx(name: str, plan: Plan, max_batch: int) -> ModelConfig:
    config = ModelConfig(name=name, backend="onnxruntime", max_batch_size=max_batch, default_model_filename=ONNX_FILE)
    config.version_policy.latest.num_versions = 1
    config.instance_group.add(kind=ModelInstanceGroup.KIND_AUTO, count=plan.encoder_instances)
    if plan.threads is not None:
        config.parameters["intra_op_thread_count"].string_value = str(plan.threads)
    return config


def _describe(config: ModelConfig, graph: Graph, *, batched: bool) -> None:
    """Add inputs and outputs; Triton adds the axis of a batch itself."""
    for told, tensors in ((config.input, graph.inputs), (config.output, graph.outputs)):
        for name, facts in tensors.items():
            told.add(name=name, data_type=_type(facts), dims=_dims(facts)[batched:])


def _type(facts: TensorFacts) -> Any:
    return DataType.Value(TYPES[facts.dtype])


def _dims(facts: TensorFacts) -> tuple[int, ...]:
    return _free(facts.shape)


def _free(shape: Sequence[int | str | None]) -> tuple[int, ...]:
    """A shape in which -1 stands for an axis that may have any length."""
    return tuple(axis if isinstance(axis, int) else -1 for axis in shape)


def _of_node(node: Any) -> tuple[str, tuple[int, ...]]:
    """Type and shape of an input or output of a session, as Triton writes them."""
    return TYPES.get(ONNX_TYPES.get(node.type, ""), node.type), _free(node.shape)

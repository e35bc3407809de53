"""config.pbtxt of each model of the repository, written as Triton's protobuf message and checked against the ONNX graphs.

Triton's schema comes with its client, so this module requires the extra ``vigil[triton]``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from vigil_data.errors import UserError
from vigil_serving.bundle.metadata import Graph, TensorSpec
from vigil_serving.runtime.onnx_sessions import open_session
from vigil_serving.triton.options import ONNX_FILE, VERSION, ModelRepositoryOptions

FILE = "config.pbtxt"
WARM_UP = "warmup"
"""Triton's folder for the files that warm-ups read."""
TYPES = {"int64": "TYPE_INT64", "int32": "TYPE_INT32", "uint8": "TYPE_UINT8", "float16": "TYPE_FP16", "float32": "TYPE_FP32"}
"""numpy's names of element types to Triton's."""
ONNX_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"} | {f"tensor({n})": n for n in ("int64", "int32", "uint8")}
"""ONNX Runtime's names of element types to numpy's."""


class ModelFiles(NamedTuple):
    """A model's configuration, and file name to array of its warm-up."""

    config: ModelConfig
    samples: Mapping[str, NDArray[np.generic]]


def encoder_config(name: str, graph: Graph, options: ModelRepositoryOptions, longest: int) -> ModelFiles:
    """Configure an encoder: its segments are Triton's batch, and those of several requests run together.

    Args:
        name: name of the model.
        graph: its inputs and outputs.
        options: options of the repository.
        longest: tokens of the longest passage, for the warm-up.
    """
    config = _onnx(name, options, options.max_batch)
    _describe(config, graph, batched=True)
    config.dynamic_batching.preferred_batch_size.extend(options.preferred_batches)
    config.dynamic_batching.max_queue_delay_microseconds = options.queue_delay
    samples: dict[str, NDArray[np.generic]] = {}
    for title, segments, tokens in (("one", 1, min(options.pad_tokens, longest)), ("full", options.max_batch, longest)):
        warm_up = config.model_warmup.add(name=title, batch_size=segments)
        for input_name, spec in graph.inputs.items():
            given = warm_up.inputs[input_name]
            given.data_type = _type(spec)
            given.dims.extend(tokens if axis == -1 else axis for axis in _dims(spec.shape)[1:])
            if input_name == "attention_mask":  # an encoder is undefined on a passage without tokens
                given.input_data_file = f"{title}.{input_name}"
                samples[given.input_data_file] = np.ones(given.dims, spec.dtype)
            else:
                given.zero_data = True
    return ModelFiles(config, samples)


def fusion_config(name: str, graph: Graph, options: ModelRepositoryOptions) -> ModelFiles:
    """Configure the fusion, whose requests Triton cannot join: items and the segments of each modality are separate axes."""
    config = _onnx(name, options, 0)
    _describe(config, graph, batched=False)
    return ModelFiles(config, {})


def python_config(name: str, labels: int, options: ModelRepositoryOptions, parameters: Mapping[str, str]) -> ModelFiles:
    """Configure the Python model that clients call: items in, decisions out.

    Args:
        name: name of the model.
        labels: number of labels.
        options: options of the repository.
        parameters: further parameters of the model.
    """
    config = ModelConfig(name=name, backend="python", max_batch_size=0)
    config.version_policy.latest.num_versions = 1
    config.input.add(name="item", data_type=DataType.Value("TYPE_STRING"), dims=[-1])
    config.output.add(name="probabilities", data_type=DataType.Value("TYPE_FP32"), dims=[-1, labels])
    for text in ("action", "decision"):
        config.output.add(name=text, data_type=DataType.Value("TYPE_STRING"), dims=[-1])
    config.instance_group.add(kind=ModelInstanceGroup.KIND_CPU, count=options.instances)
    chosen = ("variant", "max_batch", "pad_tokens", "cache_bytes")
    for key, value in {**parameters, **{key: getattr(options, key) for key in chosen}, **options.log_parameters}.items():
        config.parameters[key].string_value = str(value)
    return ModelFiles(config, {})


def write_config(model: ModelFiles, folder: Path) -> None:
    """Write config.pbtxt, and the files of the warm-up, into a model's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(text_format.MessageToString(model.config), encoding="utf-8")
    for name, array in model.samples.items():
        (folder / WARM_UP).mkdir(exist_ok=True)
        (folder / WARM_UP / name).write_bytes(array.tobytes())


def read_config(folder: Path) -> ModelConfig:
    """Parse the config.pbtxt of a model's folder by Triton's schema.

    Raises:
        UserError: if the text does not match the schema.
    """
    path = folder / FILE
    try:
        config: ModelConfig = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except text_format.ParseError as error:
        raise UserError(f"{path}: not a Triton model configuration: {error}") from None
    return config


def differences(folder: Path) -> list[str]:
    """Return one line for each difference between the configuration of an ONNX model and its graph."""
    config, session = read_config(folder), open_session(folder / VERSION / ONNX_FILE, threads=1)
    batch = (-1,) if config.max_batch_size else ()
    problems = [] if config.name == folder.name else [f"{folder}: {FILE} names the model {config.name}"]
    for kind, tensors, nodes in (("input", config.input, session.get_inputs()), ("output", config.output, session.get_outputs())):
        configured = {tensor.name: (DataType.Name(tensor.data_type), (*batch, *tensor.dims)) for tensor in tensors}
        actual = {node.name: _node_type(node) for node in nodes}
        problems += [
            f"{folder}: {kind} {name} is {configured.get(name)} in {FILE}, but {actual.get(name)} in {ONNX_FILE}"
            for name in sorted({*configured, *actual})
            if configured.get(name) != actual.get(name)
        ]
    return problems


def _onnx(name: str, options: ModelRepositoryOptions, max_batch: int) -> ModelConfig:
    config = ModelConfig(name=name, backend="onnxruntime", max_batch_size=max_batch, default_model_filename=ONNX_FILE)
    config.version_policy.latest.num_versions = 1
    config.instance_group.add(kind=ModelInstanceGroup.KIND_AUTO, count=options.encoder_instances)
    if options.threads is not None:
        config.parameters["intra_op_thread_count"].string_value = str(options.threads)
    return config


def _describe(config: ModelConfig, graph: Graph, *, batched: bool) -> None:
    """Add inputs and outputs; Triton adds the batch axis itself."""
    for target, tensors in ((config.input, graph.inputs), (config.output, graph.outputs)):
        for name, spec in tensors.items():
            target.add(name=name, data_type=_type(spec), dims=_dims(spec.shape)[batched:])


def _type(spec: TensorSpec) -> Any:
    return DataType.Value(TYPES[spec.dtype])


def _dims(shape: Sequence[int | str | None]) -> tuple[int, ...]:
    """Return a shape in which -1 is an axis of any length."""
    return tuple(axis if isinstance(axis, int) else -1 for axis in shape)


def _node_type(node: Any) -> tuple[str, tuple[int, ...]]:
    """Return the type and shape of a session's input or output in Triton's terms."""
    return TYPES.get(ONNX_TYPES.get(node.type, ""), node.type), _dims(node.shape)

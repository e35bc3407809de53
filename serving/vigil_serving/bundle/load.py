"""Load and check a bundle without pydantic, as the runtime does.

Example:
    >>> bundle = load_bundle("bundles/demo")
    >>> bundle.labels, bundle.thresholds["scam"], bundle.graph("fusion")
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from vigil_data import json_fields
from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath, sha256_file
from vigil_data.items import Modality
from vigil_evaluation.calibration.calibrators import FittedCalibration
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_serving.bundle import manifest
from vigil_serving.bundle.metadata import FORMAT, BundleMetadata, Graph, InputSettings, PromptSettings
from vigil_serving.bundle.signing import check_signature

WEIGHTS_SUFFIX = ".data"
"""Suffix of :func:`weights_file`."""


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """Graphs in a folder, with the calibration, thresholds and policy that turn their outputs into decisions.

    Attributes:
        path: the folder.
        modalities: modalities that the model takes, in the order of the graphs' inputs.
        labels: L labels, in the order of every ``[.., L]`` axis.
        graphs: name to file and tensors.
        variants: name (``fp32`` always) to the graph of each modality's encoder.
        inputs: how media are decoded; the tokenizer's path is absolute.
        thresholds: label to the calibrated probability from which the label is decided, in the order of ``labels``.
        calibrated: calibration of the graphs' probabilities.
        policy: the compiled policy; ``None`` if the run had none.
        prompt: how a guard asks, with the text of each label; ``None`` for a fusion model.
        not_evaluated: labels of a guard whose policy text was replaced by one with which no evaluation has seen the model.
        uncalibrated: labels of a guard whose policy text was replaced by one that has no calibration.
        spans: the labels with spans, in the order of the last axis of the output ``spans``; empty without a span head.
    """

    path: Path
    modalities: tuple[Modality, ...]
    labels: tuple[str, ...]
    graphs: Mapping[str, Graph]
    variants: Mapping[str, Mapping[str, str]]
    inputs: InputSettings
    thresholds: Mapping[str, float]
    calibrated: FittedCalibration
    policy: CompiledPolicy | None
    prompt: PromptSettings | None = field(default=None, kw_only=True)
    not_evaluated: tuple[str, ...] = field(default=(), kw_only=True)
    uncalibrated: tuple[str, ...] = field(default=(), kw_only=True)
    spans: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def placement(self) -> Collection[str]:
        """Names of the arrays that place segments, such as ``text_item`` and ``text_role``."""
        if self.prompt is None:
            return self.graphs["fusion"].inputs
        return {f"{modality}_{name}" for modality in self.modalities for name in ("item", "role")}

    def graph(self, name: str) -> Path:
        """Return the path of a graph's file."""
        return self.path / self.graphs[name].file

    def weights(self, name: str) -> Path | None:
        """Return the file of a graph's weights; ``None`` if they are in the graph's own file."""
        file = weights_file(self.graph(name))
        return file if file.is_file() else None

    def encoders(self, variant: str) -> dict[str, Path]:
        """Return the file of each modality's encoder.

        Raises:
            UserError: if there is no such variant.
        """
        if not self.variants:
            raise UserError(f"{self.path}: a guard's folder for LLM servers, without graphs; score with `vigil guard score`")
        if variant not in self.variants:
            raise UserError(f"{self.path}: has no variant {variant}; it has {', '.join(self.variants)}")
        return {modality: self.graph(name) for modality, name in self.variants[variant].items()}


@dataclass(frozen=True, slots=True)
class Bundle(ExportedModel):
    """A bundle without its weights; the graphs stay on disk.

    Attributes:
        metadata: content of bundle.json.
        digest: SHA-256 of the manifest, which identifies the complete bundle.
    """

    metadata: BundleMetadata
    digest: str


def weights_file(graph: Path) -> Path:
    """Return the file that an ONNX graph's weights are in if they exceed the 2 GiB of the graph's own file."""
    return graph.with_name(graph.name + WEIGHTS_SUFFIX)


def load_bundle(path: StrPath, *, check_hashes: bool = True, public_key: StrPath | None = None) -> Bundle:
    """Load a bundle.

    Args:
        path: the bundle's folder.
        check_hashes: recompute the hash of every file.
        public_key: PEM file; the bundle must be signed by the holder of this key.

    Raises:
        UserError: if the folder is not a bundle, has another format, was altered, is not signed by the key, or is inconsistent.
    """
    path = Path(path)
    if public_key is not None:
        check_signature(path, public_key)
    if check_hashes:
        manifest.check_files(path)
    else:
        manifest.check_is_bundle(path)
    content = manifest.read_json(path / manifest.METADATA)
    if isinstance(content, dict) and content.get("format") != FORMAT:
        raise UserError(f"{path}: a bundle of format {content.get('format')!r}, but this Vigil reads {FORMAT}; export it again")
    try:
        metadata: BundleMetadata = json_fields.structure(BundleMetadata, content, manifest.METADATA)
        inputs: InputSettings = json_fields.structure(InputSettings, manifest.read_json(path / manifest.INPUTS), manifest.INPUTS)
        given = json_fields.mapping(manifest.read_json(path / manifest.THRESHOLDS), manifest.THRESHOLDS, metadata.labels)
        prompt: PromptSettings | None = None
        if (path / manifest.PROMPT).is_file():
            prompt = json_fields.structure(PromptSettings, manifest.read_json(path / manifest.PROMPT), manifest.PROMPT)
        thresholds = {
            label: json_fields.number(given[label], f"{manifest.THRESHOLDS}: {label}", 0, 1) for label in metadata.labels
        }
    except UserError as error:
        raise UserError(f"{path}: {error}; export the bundle again") from None
    for names in (metadata.modalities, *metadata.variants.values()):
        if set(names) != {m for m in ("text", "image", "audio") if getattr(inputs, m) is not None}:
            raise UserError(
                f"{path}: {manifest.METADATA} and {manifest.INPUTS} do not name the same modalities; export the bundle again"
            )
    if inputs.text is not None:
        inputs = replace(inputs, text=replace(inputs.text, tokenizer=str((path / inputs.text.tokenizer).resolve())))
    return Bundle(
        path=path,
        modalities=metadata.modalities,
        labels=metadata.labels,
        graphs=metadata.graphs,
        variants=metadata.variants,
        inputs=inputs,
        thresholds=thresholds,
        calibrated=FittedCalibration.read(path / manifest.CALIBRATION, metadata.labels),
        policy=CompiledPolicy.read(path / manifest.POLICY) if (path / manifest.POLICY).is_file() else None,
        prompt=prompt,
        spans=metadata.spans,
        metadata=metadata,
        digest=sha256_file(path / manifest.MANIFEST),
    )

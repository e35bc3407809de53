"""A bundle's facts, read and checked, without pydantic: what the runtime stands on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vigil_data import json_fields
from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath
from vigil_evaluation.calibration.calibrators import Calibrated
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_serving.bundle import manifest
from vigil_serving.bundle.metadata import FORMAT, BundleMetadata, InputFacts


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle's facts; its graphs stay on disk.

    Attributes:
        path: the folder.
        signature: the content of bundle.json.
        thresholds: label to the probability from which the label is decided, in the signature's order.
        inputs: how media are decoded; the tokenizer's path is absolute.
        calibrated: how the graphs' probabilities become calibrated ones, which thresholds and policy speak of.
        policy: what follows from the probabilities; ``None`` if the run had no compiled policy.
        digest: SHA-256 of the manifest; empty while the bundle is being made.
    """

    path: Path
    signature: BundleMetadata
    thresholds: Mapping[str, float]
    inputs: InputFacts
    calibrated: Calibrated
    policy: CompiledPolicy | None
    digest: str = ""

    def graph(self, name: str) -> Path:
        """Where the file of the graph ``name`` lies."""
        return self.path / self.signature.graphs[name].file

    def encoders(self, variant: str) -> dict[str, Path]:
        """Modality to the file of its encoder.

        Raises:
            UserError: if the bundle has no such variant.
        """
        variants = self.signature.variants
        if variant not in variants:
            raise UserError(f"{self.path}: has no variant {variant}; it has {', '.join(variants)}")
        return {modality: self.graph(name) for modality, name in variants[variant].items()}


def read(path: StrPath) -> Bundle:
    """Read a bundle's facts, without recomputing hashes (see :func:`vigil_serving.bundle.manifest.check_files`).

    Raises:
        UserError: if the folder is not a bundle, is of another format, or its files do not go together.
    """
    path = Path(path)
    manifest.refuse_other(path)
    content = manifest.read_json(path / manifest.SIGNATURE)
    if isinstance(content, dict) and content.get("format") != FORMAT:
        raise UserError(f"{path}: a bundle of format {content.get('format')!r}, and this Vigil reads {FORMAT}; export it again")
    try:
        signature: BundleMetadata = json_fields.structure(BundleMetadata, content, manifest.SIGNATURE)
        inputs: InputFacts = json_fields.structure(InputFacts, manifest.read_json(path / manifest.INPUTS), manifest.INPUTS)
        given = json_fields.mapping(manifest.read_json(path / manifest.THRESHOLDS), manifest.THRESHOLDS, signature.labels)
        thresholds = {
            label: json_fields.number(given[label], f"{manifest.THRESHOLDS}: {label}", 0, 1) for label in signature.labels
        }
    except UserError as error:
        raise UserError(f"{path}: {error}; export the bundle again") from None
    for names in (signature.modalities, *signature.variants.values()):
        if set(names) != {m for m in ("text", "image", "audio") if getattr(inputs, m) is not None}:
            raise UserError(
                f"{path}: {manifest.SIGNATURE} and {manifest.INPUTS} do not name the same modalities; export the bundle again"
            )
    if inputs.text is not None:
        inputs = replace(inputs, text=replace(inputs.text, tokenizer=str((path / inputs.text.tokenizer).resolve())))
    return Bundle(
        path,
        signature,
        thresholds,
        inputs,
        Calibrated.read(path / manifest.CALIBRATION, signature.labels),
        CompiledPolicy.read(path / manifest.POLICY) if (path / manifest.POLICY).is_file() else None,
        manifest.sha256(path / manifest.MANIFEST),
    )


def read_checked(path: StrPath, public_key: StrPath | None = None) -> Bundle:
    """Read a bundle, once all its hashes are recomputed.

    Args:
        path: the folder.
        public_key: a PEM file; the bundle must be signed by the key's holder.

    Raises:
        UserError: if the bundle was altered, is not signed by the key, or cannot be read.
    """
    path = Path(path)
    if public_key is not None:
        from vigil_serving.bundle.signing import check_seal

        check_seal(path, Path(public_key))
    manifest.check_files(path)
    return read(path)

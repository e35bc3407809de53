"""Write the metadata files of a bundle, and read its taxonomy, which no decision needs."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from vigil_data import json_fields
from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath, write_json
from vigil_data.specs import Inputs
from vigil_data.taxonomy import Taxonomy
from vigil_serving.bundle import manifest
from vigil_serving.bundle.load import ExportedModel
from vigil_serving.bundle.metadata import BundleMetadata, InputSettings


def input_settings(inputs: Inputs, tokenizer: Path | None) -> InputSettings:
    """Convert a recipe's inputs into a bundle's settings.

    Args:
        inputs: the recipe's section.
        tokenizer: file of the text encoder's tokenizer, if the model takes text.
    """
    dumped: dict[str, Any] = inputs.model_dump(mode="json")
    if dumped["text"] is not None:
        dumped["text"]["tokenizer"] = str(tokenizer)
    if inputs.text is not None and (normalize := inputs.text.normalize) is not None:
        kept = normalize.model_dump(include={"unicode", "separated", "leetspeak"})
        dumped["text"]["normalize"] = {**kept, "replacements": dict(normalize.replacements)}
    settings: InputSettings = json_fields.structure(InputSettings, dumped, "inputs")
    return settings


def write_metadata(
    folder: Path, metadata: BundleMetadata, model: ExportedModel, taxonomy: Taxonomy, tokenizer: str = manifest.TOKENIZER
) -> None:
    """Write what :func:`vigil_serving.bundle.load.load_bundle` and :func:`read_taxonomy` read, besides the graphs.

    Args:
        folder: the bundle's folder.
        metadata: content of bundle.json.
        model: inputs, thresholds, calibration, policy and prompt.
        taxonomy: the labels.
        tokenizer: path of the tokenizer within the folder.
    """
    inputs = model.inputs
    if inputs.text is not None:
        inputs = replace(inputs, text=replace(inputs.text, tokenizer=tokenizer))
    write_json(folder / manifest.METADATA, asdict(metadata))
    write_json(folder / manifest.THRESHOLDS, dict(model.thresholds))
    write_json(folder / manifest.INPUTS, asdict(inputs))
    model.calibrated.write(folder / manifest.CALIBRATION)
    if model.policy is not None:
        model.policy.write(folder / manifest.POLICY)
    if model.prompt is not None:
        write_json(folder / manifest.PROMPT, asdict(model.prompt))
    yaml = YAML()
    yaml.default_flow_style = False
    with (folder / manifest.TAXONOMY).open("w", encoding="utf-8") as file:
        yaml.dump(taxonomy.model_dump(mode="json"), file)


def read_taxonomy(path: StrPath) -> Taxonomy:
    """Read a bundle's labels with their heads and descriptions.

    Raises:
        UserError: if the file is missing or malformed.
    """
    file = Path(path) / manifest.TAXONOMY
    try:
        content: Mapping[str, Any] = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
        return Taxonomy.model_validate(content)
    except (OSError, UnicodeDecodeError, YAMLError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: cannot be read ({reason}); export the bundle again") from None

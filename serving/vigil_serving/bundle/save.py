"""What an export writes into a bundle beside its graphs, and the taxonomy, which no decision needs."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from vigil_data import json_fields
from vigil_data.errors import UserError
from vigil_data.specs import Inputs
from vigil_data.taxonomy import Taxonomy
from vigil_serving.bundle import manifest
from vigil_serving.bundle.load import Bundle
from vigil_serving.bundle.metadata import InputFacts


def input_facts(inputs: Inputs) -> InputFacts:
    """What a bundle says of a recipe's inputs; the tokenizer's path is the one within the bundle."""
    dumped: dict[str, Any] = inputs.model_dump(mode="json")
    if dumped["text"] is not None:
        dumped["text"]["tokenizer"] = manifest.TOKENIZER
    found: InputFacts = json_fields.structure(InputFacts, dumped, "inputs")
    return found


def write_facts(folder: Path, bundle: Bundle, taxonomy: Taxonomy) -> None:
    """Write what :func:`vigil_serving.bundle.load.read` and :func:`read_taxonomy` read."""
    manifest.write_json(folder / manifest.SIGNATURE, asdict(bundle.signature))
    manifest.write_json(folder / manifest.THRESHOLDS, dict(bundle.thresholds))
    inputs = bundle.inputs
    if inputs.text is not None:
        inputs = replace(inputs, text=replace(inputs.text, tokenizer=manifest.TOKENIZER))
    manifest.write_json(folder / manifest.INPUTS, asdict(inputs))
    bundle.calibrated.write(folder / manifest.CALIBRATION)
    if bundle.policy is not None:
        bundle.policy.write(folder / manifest.POLICY)
    yaml = YAML()
    yaml.default_flow_style = False
    with (folder / manifest.TAXONOMY).open("w", encoding="utf-8") as file:
        yaml.dump(taxonomy.model_dump(mode="json"), file)


def read_taxonomy(path: Path) -> Taxonomy:
    """Read a bundle's labels with their heads and descriptions.

    Raises:
        UserError: if it is absent or malformed.
    """
    try:
        content: Mapping[str, Any] = YAML(typ="safe", pure=True).load((path / manifest.TAXONOMY).read_text(encoding="utf-8"))
        return Taxonomy.model_validate(content)
    except (OSError, UnicodeDecodeError, YAMLError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path / manifest.TAXONOMY}: cannot be read ({reason}); export the bundle again") from None

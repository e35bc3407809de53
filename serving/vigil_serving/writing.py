"""What an export writes into a bundle beside its graphs, and the taxonomy, which no decision needs."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from vigil_data.errors import UserError
from vigil_data.specs import Inputs
from vigil_data.taxonomy import Taxonomy
from vigil_evaluation import fields
from vigil_serving import layout
from vigil_serving.bundle import Bundle
from vigil_serving.facts import InputFacts


def input_facts(inputs: Inputs) -> InputFacts:
    """What a bundle says of a recipe's inputs; the tokenizer's path is the one within the bundle."""
    dumped: dict[str, Any] = inputs.model_dump(mode="json")
    if dumped["text"] is not None:
        dumped["text"]["tokenizer"] = layout.TOKENIZER
    found: InputFacts = fields.structure(InputFacts, dumped, "inputs")
    return found


def write_facts(folder: Path, bundle: Bundle, taxonomy: Taxonomy) -> None:
    """Write what :func:`vigil_serving.bundle.read` and :func:`read_taxonomy` read."""
    layout.write_json(folder / layout.SIGNATURE, asdict(bundle.signature))
    layout.write_json(folder / layout.THRESHOLDS, dict(bundle.thresholds))
    inputs = bundle.inputs
    if inputs.text is not None:
        inputs = replace(inputs, text=replace(inputs.text, tokenizer=layout.TOKENIZER))
    layout.write_json(folder / layout.INPUTS, asdict(inputs))
    bundle.calibrated.write(folder / layout.CALIBRATION)
    if bundle.policy is not None:
        bundle.policy.write(folder / layout.POLICY)
    yaml = YAML()
    yaml.default_flow_style = False
    with (folder / layout.TAXONOMY).open("w", encoding="utf-8") as file:
        yaml.dump(taxonomy.model_dump(mode="json"), file)


def read_taxonomy(path: Path) -> Taxonomy:
    """Read a bundle's labels with their heads and descriptions.

    Raises:
        UserError: if it is absent or malformed.
    """
    try:
        content: Mapping[str, Any] = YAML(typ="safe", pure=True).load((path / layout.TAXONOMY).read_text(encoding="utf-8"))
        return Taxonomy.model_validate(content)
    except (OSError, UnicodeDecodeError, YAMLError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path / layout.TAXONOMY}: cannot be read ({reason}); export the bundle again") from None

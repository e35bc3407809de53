"""JSON Schema of the bundle's files."""

import json
from pathlib import Path

import jsonschema
import pytest

from vigil_serving.bundle.json_schema import bundle_schema


def test_bundle_schema_equals_the_documented_one(repository: Path) -> None:
    assert json.loads((repository / "docs" / "bundle.schema.json").read_text(encoding="utf-8")) == bundle_schema()


def test_bundle_schema_accepts_a_bundle_and_rejects_other_fields(exported) -> None:
    schema = bundle_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    files = {name: json.loads((exported.bundle / name).read_text(encoding="utf-8")) for name in schema["required"]}
    jsonschema.validate(files, schema)
    for broken in ({**files["bundle.json"], "more": 1}, {k: v for k, v in files["bundle.json"].items() if k != "labels"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**files, "bundle.json": broken}, schema)


def test_bundle_schema_accepts_the_prompt_of_a_guard(exported_guard) -> None:
    schema = bundle_schema()
    files = {name: json.loads((exported_guard.bundle / name).read_text(encoding="utf-8")) for name in schema["properties"]}
    jsonschema.validate(files, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**files, "prompt.json": {"pieces": files["prompt.json"]["pieces"]}}, schema)

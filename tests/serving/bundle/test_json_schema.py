"""The documented schema is the code's, and a real bundle keeps it."""

import json
from pathlib import Path

import jsonschema
import pytest

from vigil_serving.bundle.json_schema import bundle_schema


def test_the_documented_schema_is_the_codes(repository: Path) -> None:
    assert json.loads((repository / "docs" / "bundle.schema.json").read_text(encoding="utf-8")) == bundle_schema()


def test_a_bundle_keeps_it(exported) -> None:
    schema = bundle_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    files = {name: json.loads((exported.bundle / name).read_text(encoding="utf-8")) for name in schema["properties"]}
    jsonschema.validate(files, schema)
    for broken in ({**files["bundle.json"], "more": 1}, {k: v for k, v in files["bundle.json"].items() if k != "labels"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**files, "bundle.json": broken}, schema)

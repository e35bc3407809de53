"""JSON Schema of a bundle's JSON files, derived from the dataclasses; docs/bundle.schema.json is a copy.

After changing :mod:`vigil_serving.bundle.metadata`, run ``python -m vigil_serving.bundle.json_schema > docs/bundle.schema.json``.
"""

import json
import sys
from typing import Any

from pydantic import TypeAdapter

from vigil_serving.bundle.metadata import BundleMetadata, InputSettings, PromptSettings

_MANIFEST_ENTRY = {"sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"}, "bytes": {"type": "integer", "minimum": 0}}
_MANIFEST = {
    "type": "object",
    "description": "Hash and size of every file except the manifest and its signature.",
    "properties": {
        "format": {"const": 1},
        "files": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "properties": _MANIFEST_ENTRY,
                "required": ["sha256", "bytes"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["format", "files"],
    "additionalProperties": False,
}
_THRESHOLDS = {
    "type": "object",
    "description": "Label to the calibrated probability from which the label is decided.",
    "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1},
}


def bundle_schema() -> dict[str, Any]:
    """Return the schemas of a bundle's JSON files, by file name under ``properties``; only a guard's bundle has prompt.json."""
    definitions: dict[str, Any] = {}
    files: dict[str, Any] = {}
    kinds = (("bundle.json", BundleMetadata), ("inputs.json", InputSettings), ("prompt.json", PromptSettings))
    for name, kind in kinds:
        schema = TypeAdapter(kind).json_schema()
        definitions |= schema.pop("$defs", {})
        files[name] = schema
    for part in (*files.values(), *definitions.values()):
        if "properties" in part:
            part["required"], part["additionalProperties"] = list(part["properties"]), False
            part["description"] = part["description"].split("\n\n")[0]
    files |= {"thresholds.json": _THRESHOLDS, "manifest.json": _MANIFEST}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Vigil bundle: each JSON file by its name",
        "type": "object",
        "properties": files,
        "required": [name for name in files if name != "prompt.json"],
        "$defs": definitions,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(bundle_schema(), indent=2) + "\n")

"""The JSON Schema of a recipe *file*, by which editors complete and explain keys.

A file may leave anything out, since ``extends`` or the command line may supply it, so nothing is required here;
``vigil recipe check`` knows the rest.
"""

import json
from typing import Any

from vigil_training.recipe.recipe import Recipe

_EXTENDS = {
    "description": "files that this one is laid over, in order, each relative to this file",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}


def recipe_schema() -> dict[str, Any]:
    """The schema as data."""
    schema: dict[str, Any] = _optional(Recipe.model_json_schema())
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Vigil recipe"
    schema["properties"] = {"extends": _EXTENDS, **schema["properties"]}
    return schema


def recipe_schema_text() -> str:
    """The schema as it is written to ``recipes/schema.json``."""
    return json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"


def _optional(node: Any) -> Any:
    """The schema with nothing required; a block without ``kind`` may then fit several members of a union, hence ``anyOf``."""
    if isinstance(node, list):
        return [_optional(child) for child in node]
    if not isinstance(node, dict):
        return node
    kept = {key: _optional(child) for key, child in node.items() if not (key == "required" and isinstance(child, list))}
    if "oneOf" in kept and "discriminator" in kept:
        kept["anyOf"] = kept.pop("oneOf")
        del kept["discriminator"]
    return kept

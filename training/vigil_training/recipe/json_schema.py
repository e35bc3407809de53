"""JSON Schema of recipe files, with which editors complete and explain keys.

Nothing is required here, since ``extends`` or the command line may supply any key; `vigil recipe check` checks the rest.
"""

import json
from typing import Any

from vigil_training.recipe.recipe import Recipe

_EXTENDS = {
    "description": "files that this one is merged over, in order, relative to this file",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}


def recipe_schema() -> dict[str, Any]:
    """Return the schema as data."""
    schema: dict[str, Any] = _optional(Recipe.model_json_schema())
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Vigil recipe"
    schema["properties"] = {"extends": _EXTENDS, **schema["properties"]}
    return schema


def recipe_schema_text() -> str:
    """Return the schema as the text of ``recipes/schema.json``."""
    return json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"


def _optional(node: Any) -> Any:
    """Remove ``required``; a block without ``kind`` may then match several members of a union, hence ``anyOf``."""
    if isinstance(node, list):
        return [_optional(child) for child in node]
    if not isinstance(node, dict):
        return node
    kept = {key: _optional(child) for key, child in node.items() if not (key == "required" and isinstance(child, list))}
    if "oneOf" in kept:
        kept["anyOf"] = kept.pop("oneOf")
        kept.pop("discriminator", None)
    return kept

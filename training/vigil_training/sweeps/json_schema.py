"""JSON Schema of sweep files, with which editors complete and explain keys; `vigil sweep check` checks the rest."""

import json

from vigil_training.sweeps.specs import SweepSpec


def sweep_schema_text() -> str:
    """Return the schema as the text of ``recipes/sweeps/schema.json``."""
    schema = SweepSpec.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Vigil sweep"
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"

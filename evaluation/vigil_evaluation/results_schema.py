"""JSON Schema of metrics.json, generated from the dataclasses into docs/metrics.schema.json.

After a change of the results: ``python -m vigil_evaluation.results_schema > docs/metrics.schema.json``.
"""

import json
import sys
from typing import Any

from pydantic import TypeAdapter

from vigil_evaluation.results import SCHEMA_VERSION, EvaluationResults


def metrics_schema() -> dict[str, Any]:
    """Return the schema of :meth:`vigil_evaluation.results.EvaluationResults.to_json`; all fields required, no others."""
    schema = TypeAdapter(EvaluationResults).json_schema()
    for definition in (schema, *schema["$defs"].values()):
        if "properties" in definition:
            definition["required"], definition["additionalProperties"] = list(definition["properties"]), False
    schema["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Vigil metrics.json", **schema}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(metrics_schema(), indent=2) + "\n")

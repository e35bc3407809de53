"""JSON Schema of a statement of reasons.

``python -m vigil_monitoring.transparency.statement_schema > docs/statement.schema.json`` writes the one in the repository.
"""

import json
from typing import Any

from vigil_monitoring.transparency.statement import Statement


def statement_schema() -> dict[str, Any]:
    """Return the JSON Schema of a statement: an optional field is absent, never null."""
    schema = Statement.model_json_schema()
    for of in schema["properties"].values():
        choices = [choice for choice in of.pop("anyOf", []) if choice != {"type": "null"}]
        if choices:
            (choice,) = choices
            of.update(choice)
        of.pop("default", None)
    return schema


if __name__ == "__main__":
    print(json.dumps(statement_schema(), indent=2))  # noqa: T201

"""The JSON Schema of metrics.json, made from the dataclasses; docs/metrics.schema.json holds it.

After a change of the findings: ``python -m vigil_evaluation.results_schema > docs/metrics.schema.json``.
"""

import json
import sys
from typing import Any

from pydantic import TypeAdapter


def findings_schema() -> dict[str, Any]:
    """The schema of :meth:`vigil_evaluation.results.Findings.to_json`: every field is there, and no others."""
    # Findings names these in quotes; pydantic looks them up here.
    from vigil_evaluation.calibration.calibrators import CalibrationNote  # noqa: F401
    from vigil_evaluation.calibration.conformal_coverage import ConformalFindings  # noqa: F401
    from vigil_evaluation.policy.impact import PolicyFindings  # noqa: F401
    from vigil_evaluation.results import SCHEMA_VERSION, Findings
    from vigil_evaluation.suites.results import SuiteFindings  # noqa: F401

    schema = TypeAdapter(Findings).json_schema()
    for held in (schema, *schema["$defs"].values()):
        if "properties" in held:
            held["required"], held["additionalProperties"] = list(held["properties"]), False
    schema["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Vigil metrics.json", **schema}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(findings_schema(), indent=2) + "\n")

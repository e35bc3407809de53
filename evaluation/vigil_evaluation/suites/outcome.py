"""What one model did on one suite, as the file suite.json holds it."""

import json
from dataclasses import asdict, dataclass

from vigil_evaluation.suites.results import SuiteFindings

SCHEMA_VERSION = 1
"""Of the JSON form, docs/suites.md; raised when a field changes its meaning or goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteOutcome:
    """A model on a suite.

    Attributes:
        schema_version: of the JSON form.
        suite: the suite's name.
        facts: what was run on what; text.
        descriptions: functionality to what it tests, where that is known.
        thresholds: label to the lowest probability that is flagged.
        skipped: labels of the suite that the model does not have.
        findings: what was found.
    """

    schema_version: int = SCHEMA_VERSION
    suite: str
    facts: dict[str, str]
    descriptions: dict[str, str]
    thresholds: dict[str, float]
    skipped: list[str]
    findings: SuiteFindings

    def to_json(self) -> str:
        """The outcome as JSON text; a number that is not defined is null."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

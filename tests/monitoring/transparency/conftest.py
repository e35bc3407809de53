"""A day of decisions, and a mapping that names all of its labels and actions."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vigil_monitoring.traffic import Traffic, open_traffic
from vigil_monitoring.transparency import TransparencyMapping, read_mapping

MAPPING = """
name: mine
territory: [DE, FR]
posted: posted
terms_url: https://example.com/rules
content_types: {comment: [CONTENT_TYPE_TEXT]}
actions:
  label: {visibility: [DECISION_VISIBILITY_CONTENT_LABELLED]}
  remove: {visibility: [DECISION_VISIBILITY_CONTENT_REMOVED], account: DECISION_ACCOUNT_SUSPENDED}
  note: {}
labels:
  hate:
    category: STATEMENT_CATEGORY_ILLEGAL_OR_HARMFUL_SPEECH
    subcategory: KEYWORD_HATE_SPEECH
    ground: law
    reference: "Penal code, section 130"
    explanation: "Incites hatred."
  spam: {category: STATEMENT_CATEGORY_OTHER_VIOLATION_TC, reference: "Rules, section 4", explanation: "Unwanted advertising."}
"""

FIRST = datetime(2026, 11, 2, 8, tzinfo=UTC)


def decision(number: int, action: str = "allow", label: str = "hate", **values: Any) -> dict[str, Any]:
    """A row of traffic; its item was posted two minutes before."""
    time = FIRST + timedelta(minutes=number)
    reason = {"label": label, "action": action, "probability": 0.9, "threshold": 0.75}
    return {
        "id": f"item-{number}",
        "time": time,
        "probability.hate": 0.9,
        "probability.spam": 0.1,
        "content_type": "comment",
        "language": "de-DE",
        "presence": "text",
        "action": action,
        "reasons": [] if action == "allow" else [reason],
        "bundle": "b" * 8,
        "policy": "house 3",
        "posted": time - timedelta(minutes=2),
        **values,
    }


def write_traffic(folder: Path, rows: list[dict[str, Any]]) -> Traffic:
    """Write rows as a table of scores, and open it as traffic."""
    pq.write_table(pa.Table.from_pylist(rows), folder / "traffic.parquet")
    return open_traffic(folder / "traffic.parquet")


@pytest.fixture
def mapping(tmp_path: Path) -> TransparencyMapping:
    file = tmp_path / "mine.yaml"
    file.write_text(MAPPING, encoding="utf-8")
    return read_mapping(file)

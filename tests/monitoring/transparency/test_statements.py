"""Statements of reasons: valid for the database's rules as two validators read them, and without content."""

import copy
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vigil_data.errors import UserError
from vigil_data.taxonomy import Label
from vigil_monitoring.transparency import TransparencyMapping, make_statement, measures, write_statements
from vigil_monitoring.transparency.measures import Measure
from vigil_monitoring.transparency.statement import Statement
from vigil_monitoring.transparency.statement_schema import statement_schema

from .conftest import FIRST, decision, write_traffic

REPOSITORY = Path(__file__).resolve().parents[3]
SCHEMA = json.loads((REPOSITORY / "docs" / "statement.schema.json").read_text(encoding="utf-8"))
VALID: dict[str, Any] = {
    "decision_visibility": ["DECISION_VISIBILITY_CONTENT_DISABLED"],
    "decision_monetary": "DECISION_MONETARY_TERMINATION",
    "decision_provision": "DECISION_PROVISION_TOTAL_SUSPENSION",
    "decision_account": "DECISION_ACCOUNT_SUSPENDED",
    "decision_ground": "DECISION_GROUND_INCOMPATIBLE_CONTENT",
    "decision_ground_reference_url": "https://www.anurl.com",
    "content_type": ["CONTENT_TYPE_VIDEO", "CONTENT_TYPE_AUDIO", "CONTENT_TYPE_SYNTHETIC_MEDIA"],
    "category": "STATEMENT_CATEGORY_CYBER_VIOLENCE_AGAINST_WOMEN",
    "category_specification": ["KEYWORD_CYBER_HARASSMENT_AGAINST_WOMEN"],
    "incompatible_content_ground": "incompatible content grounds",
    "incompatible_content_explanation": "incompatible content explanation",
    "territorial_scope": ["PT", "ES", "DE"],
    "content_language": "EN",
    "content_date": "2023-08-08",
    "application_date": "2023-08-08",
    "decision_facts": "facts about the decision",
    "source_type": "SOURCE_TRUSTED_FLAGGER",
    "automated_detection": "No",
    "automated_decision": "AUTOMATED_DECISION_PARTIALLY",
    "puid": "TK421",
}
"""The example of the database's documentation, of version 2 of its API."""


def accepted(statement: dict[str, Any]) -> bool:
    try:
        Statement.model_validate_json(json.dumps(statement))
    except ValidationError:
        return False
    return True


def test_schema_in_the_repository_is_current() -> None:
    assert statement_schema() == SCHEMA, "python -m vigil_monitoring.transparency.statement_schema > docs/statement.schema.json"
    assert "read on 2026-11-29" in SCHEMA["$comment"]


def test_schema_is_printed_without_warnings() -> None:
    command = [sys.executable, "-W", "error", "-m", "vigil_monitoring.transparency.statement_schema"]
    assert json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) == SCHEMA


def test_documented_example_is_valid() -> None:
    jsonschema.validate(VALID, SCHEMA)
    assert accepted(VALID)


VALUES: list[Any] = [
    *(None, "", "x", "Yes", "x" * 501, "2026-13-01", "2019-01-01", "DECISION_MONETARY_OTHER", "DECISION_GROUND_ILLEGAL_CONTENT"),
    *("not a puid", "de", 3, [], ["XX"], ["DE"], ["CONTENT_TYPE_OTHER"], ["KEYWORD_OTHER"], ["DECISION_VISIBILITY_OTHER"]),
]
CHANGES = st.dictionaries(st.sampled_from([*SCHEMA["properties"], "url"]), st.sampled_from(VALUES), max_size=3)


@settings(deadline=None, max_examples=120)
@given(CHANGES, st.sets(st.sampled_from(sorted(SCHEMA["properties"])), max_size=4))
def test_statement_and_schema_agree_on_what_is_valid(changes: dict[str, Any], removed: set[str]) -> None:
    statement = {name: value for name, value in copy.deepcopy(VALID | changes).items() if name not in removed}
    if None in statement.values():  # the schema knows no null: an optional field is absent
        assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(statement)
        return
    assert jsonschema.Draft202012Validator(SCHEMA).is_valid(statement) == accepted(statement), statement


def test_write_statements(tmp_path: Path, mapping: TransparencyMapping) -> None:
    secret = "SECRET CONTENT"
    rows = [decision(n, "remove", "hate", text=secret, author="author-7") for n in range(3)]
    rows += [decision(3, "label", "spam", text=secret, content_type="post", presence="image+text", language=None)]
    traffic, file = write_traffic(tmp_path, rows), tmp_path / "statements.jsonl"
    number, categories = write_statements(measures(traffic, mapping), mapping, {}, file)
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert number == len(lines) == 4
    assert categories == {"STATEMENT_CATEGORY_ILLEGAL_OR_HARMFUL_SPEECH": 3, "STATEMENT_CATEGORY_OTHER_VIOLATION_TC": 1}
    for line in lines:
        jsonschema.validate(line, SCHEMA)
    hate, spam = lines[0], lines[-1]
    assert (hate["decision_visibility"], hate["decision_account"]) == (
        ["DECISION_VISIBILITY_CONTENT_REMOVED"],
        "DECISION_ACCOUNT_SUSPENDED",
    )
    assert (hate["illegal_content_legal_ground"], hate["content_language"]) == ("Penal code, section 130", "DE")
    assert (hate["content_date"], hate["application_date"], hate["territorial_scope"]) == (
        "2026-11-02",
        "2026-11-02",
        ["DE", "FR"],
    )
    assert (hate["automated_decision"], hate["automated_detection"]) == ("AUTOMATED_DECISION_FULLY", "Yes")
    assert "probability of 0.9000, which reaches the threshold of 0.7500 for the action 'remove'" in hate["decision_facts"]
    assert (spam["content_type"], spam["incompatible_content_ground"]) == (
        ["CONTENT_TYPE_IMAGE", "CONTENT_TYPE_TEXT"],
        "Rules, section 4",
    )
    assert (spam["decision_ground_reference_url"], spam["category_specification_other"]) == ("https://example.com/rules", "spam")
    for private in (secret, "author-7", "item-"):
        assert private not in file.read_text(encoding="utf-8")
    index = list(csv.DictReader((tmp_path / "statements.index.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["puid"] for row in index] == [line["puid"] for line in lines]
    assert len({line["puid"] for line in lines}) == 4
    assert [row["id"] for row in index] == ["item-0", "item-1", "item-2", "item-3"]


def test_write_statements_again_gives_the_same_identifiers(tmp_path: Path, mapping: TransparencyMapping) -> None:
    traffic = write_traffic(tmp_path, [decision(1, "remove")])
    for name in ("one", "two"):
        write_statements(measures(traffic, mapping), mapping, {}, tmp_path / f"{name}.jsonl")
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def measure(**values: Any) -> Measure:
    of = Measure(
        "a", FIRST, "hate", "remove", "automated", "automated", "own initiative", "comment", "text", "en", FIRST, 0.9, 0.8
    )
    return of._replace(**values)


def test_make_statement_of_what_people_decided(mapping: TransparencyMapping) -> None:
    found = make_statement(measure(means="human", probability=None, origin="notice"), mapping, None)
    assert (found.automated_detection, found.automated_decision) == ("Yes", "AUTOMATED_DECISION_PARTIALLY")
    assert found.source_type == "SOURCE_ARTICLE_16"
    assert "probability" not in found.decision_facts
    found = make_statement(measure(means="human", detected_by="human"), mapping, None)
    assert (found.automated_detection, found.automated_decision) == ("No", "AUTOMATED_DECISION_NOT_AUTOMATED")


def test_make_statement_explains_by_the_taxonomy(mapping: TransparencyMapping) -> None:
    labels = {"hate": mapping.labels["hate"].model_copy(update={"explanation": None}), "spam": mapping.labels["spam"]}
    plain = mapping.model_copy(update={"labels": labels})
    found = make_statement(measure(), plain, Label(definition="Attacks on people."))
    assert found.illegal_content_explanation == "Attacks on people."


def test_write_statements_names_what_the_mapping_lacks(tmp_path: Path, mapping: TransparencyMapping) -> None:
    to = tmp_path / "statements.jsonl"
    with pytest.raises(UserError, match="does not say when content was posted, which every statement states"):
        write_statements([], mapping.model_copy(update={"posted": None}), {}, to)
    labels = {"hate": mapping.labels["hate"].model_copy(update={"explanation": None})}
    with pytest.raises(UserError, match="no explanation of label hate, nor has its taxonomy a text"):
        write_statements([], mapping.model_copy(update={"labels": labels}), {}, to)
    with pytest.raises(UserError, match="item a: the time of posting is not known"):
        write_statements([measure(posted=None)], mapping, {}, to)
    with pytest.raises(UserError, match=r"item a: content_date: .* the transparency database would refuse"):
        write_statements([measure(posted=FIRST.replace(year=1999))], mapping, {}, to)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.yaml"]

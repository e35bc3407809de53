"""Mappings: the shipped ones name every label of their taxonomy, and a mistake is one line with its place."""

from pathlib import Path

import pytest

from vigil.workflows.shipped_recipes import RECIPES, taxonomy_file
from vigil_data.errors import UserError
from vigil_data.importers.collection import load_taxonomy
from vigil_evaluation.policy.constraints import ACTIONS
from vigil_monitoring.transparency import TransparencyMapping, read_mapping

from .conftest import MAPPING

SHIPPED = sorted((RECIPES / "transparency").glob("*.yaml"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_mapping_names_all_labels_and_actions(file: Path) -> None:
    mapping = read_mapping(file)
    assert mapping.taxonomy is not None
    assert mapping.name == file.stem
    mapping.check("policy", ACTIONS, load_taxonomy(taxonomy_file(mapping.taxonomy, file.parent)).labels)


def test_mappings_are_shipped() -> None:
    assert [file.stem for file in SHIPPED] == ["comments", "safety"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "KEYWORD_HATE_SPEECH",
            "KEYWORD_NUDITY",
            "mine.yaml:12: labels.hate: STATEMENT_CATEGORY_ILLEGAL_OR_HARMFUL_SPEECH has no",
        ),
        ("STATEMENT_CATEGORY_ILLEGAL_OR_HARMFUL_SPEECH", "STATEMENT_CATEGORY_HATE", "STATEMENT_CATEGORY_HATE does not exist"),
        ("    ground: law\n", "    ground: moral\n", "mine.yaml:15: labels.hate.ground"),
        ("territory: [DE, FR]", "territory: [DE, US]", "mine.yaml:3: territory"),
        ("  note: {}", "  review: {visibility: [DECISION_VISIBILITY_CONTENT_DEMOTED]}", "review is not a restriction"),
        ("  note: {}", "  note: {visibility: [DECISION_VISIBILITY_OTHER]}", "visibility_other must be given exactly if"),
        ("  note: {}", "  note: {monetary_other: fined}", "mine.yaml:10: actions.note.monetary_other: must be given exactly if"),
        ("CATEGORY_OTHER_VIOLATION_TC", "CATEGORY_OTHER_VIOLATION_TC, ground: law", "is for terms and conditions"),
    ],
)
def test_read_mapping_names_a_mistake_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    assert old in MAPPING
    file.write_text(MAPPING.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError) as refused:
        read_mapping(file)
    assert message in refused.value.lines[-1]
    assert all(line.startswith(f"{file}:") for line in refused.value.lines)


def test_check_names_what_the_mapping_lacks(mapping: TransparencyMapping) -> None:
    mapping.check("traffic", ["allow", "review", "remove"], ["hate"])
    with pytest.raises(UserError) as refused:
        mapping.check("traffic", ["hide", "remove"], ["scam", "threat"])
    assert refused.value.lines == (
        "traffic: action hide is not in the mapping mine; add it under actions, with {} if nothing is restricted",
        "traffic: label scam, threat are not in the mapping mine; add them under labels",
    )

"""Every shipped suite is right, and the one in the documentation too."""

import re
from pathlib import Path

import pytest

from vigil.workflows.suite_datasets import read_suite
from vigil_data.suites.planned_items import plan_items
from vigil_data.taxonomy import Taxonomy
from vigil_data.yaml_files.yaml_tree import read_file

REPOSITORY = Path(__file__).resolve().parents[2]
SUITES = sorted((REPOSITORY / "recipes" / "suites").glob("*.yaml"))


def test_suites_exist():
    assert SUITES


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_suite_is_valid(path):
    assert plan_items(read_suite(path)).items


def test_suite_of_the_demonstration_has_every_modality():
    items = plan_items(read_suite(REPOSITORY / "recipes" / "suites" / "demo.yaml")).items
    assert any(item.text and item.image for item in items)
    assert any(item.audio and not item.text for item in items)
    assert any(item.image and not item.text and not item.audio for item in items)
    assert {item.pair_gold for item in items} == {None, "flips", "stays"}


def test_suite_of_the_demonstration_names_its_labels():
    taxonomy = Taxonomy.model_validate(read_file(REPOSITORY / "recipes" / "taxonomies" / "demo.yaml", []).plain()["taxonomy"])
    assert set(read_suite(REPOSITORY / "recipes" / "suites" / "demo.yaml").labels) <= set(taxonomy.labels)


def test_suite_of_the_guide_is_valid(tmp_path):
    text = (REPOSITORY / "docs" / "suites.md").read_text(encoding="utf-8")
    (written,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "suite.yaml").write_text(written, encoding="utf-8")
    items = plan_items(read_suite(tmp_path / "suite.yaml")).items
    assert {item.functionality for item in items} >= {
        "bet_stated",
        "bet_negated",
        "other_fans",
        "advertised",
        "nothing_advertised",
    }

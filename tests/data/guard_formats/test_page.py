"""Pages of formats: the shipped ones are valid and map onto a shipped taxonomy; mistakes are reported with their line."""

import re
from pathlib import Path

import pytest

from vigil.workflows.shipped_recipes import taxonomy_file
from vigil_data.errors import UserError
from vigil_data.guard_formats.page import load_format, shipped_formats
from vigil_data.importers.collection import load_taxonomy

PAGE = """\
name: own
title: a guard
asks: each
prompt:
  template: "{{ text }} {{ category.name }}"
  answers:
    - choices: {yes!: 1, no!: 0}
categories:
  spam: {name: Spam}
"""


@pytest.mark.parametrize("name", shipped_formats())
def test_shipped_format_is_named_as_its_file_and_maps_labels_of_the_taxonomy(name: str) -> None:
    page = load_format(name)
    assert page.name == name
    assert page.licence
    for taxonomy, mapping in page.taxonomies.items():
        labels = load_taxonomy(taxonomy_file(taxonomy, Path())).labels
        assert set(mapping) <= set(labels)


def test_formats_are_those_of_the_documentation() -> None:
    assert shipped_formats() == ["granite", "llama-guard", "qwen3guard", "shieldgemma", "wildguard", "yes-no"]


def test_page_of_the_user_is_read(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(PAGE)
    assert load_format(str(file)).categories["spam"].name == "Spam"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("asks: each", "asks: sometimes", r"own.yaml:3: asks: must be .*once.*, not .?sometimes"),
        ("  template:", "  templat:", r"own.yaml:5: prompt.templat: is not a key .*did you mean template"),
        ("{yes!: 1, no!: 0}", "{yes!: 1}", r"own.yaml:7: prompt.answers\[0\].choices: must have at least 2 entries"),
        ("{yes!: 1, no!: 0}", "{yes!: 2, no!: 0}", "own.yaml:7: .*must be at most 1, not 2"),
        ("  template:", "  body: x\n  template:", "must have either template, or instruction and body"),
        ("categories:", "other:", "own.yaml:8: other: is not a key of a format"),
        ("asks: each", "asks: policy", "with asks policy, the taxonomy's labels are the categories"),
        (
            "categories:",
            "taxonomies: {safety: {hate: [spma]}}\ncategories:",
            r"taxonomies.safety.hate names spma, which is not a category \(did you mean spam\?\)",
        ),
        ("categories:", "taxonomies: {safety: {hate: [any]}}\ncategories:", "taxonomies.safety.hate: any needs asks: once"),
        (
            "no!: 0}",
            "no!: 0}\n      named: {after: [yes!], before: ' '}",
            "a guard that is asked about one category names none",
        ),
    ],
)
def test_mistake_in_a_page_is_reported_with_its_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(PAGE.replace(old, new))
    with pytest.raises(UserError, match=message):
        load_format(str(file))


def test_unknown_format_is_reported_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"there is no format lama-guard \(did you mean llama-guard\?\); `vigil guard"):
        load_format("lama-guard")


def test_turn_that_a_format_lacks_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(PAGE)
    with pytest.raises(UserError, match="--turn response: format own judges prompts alone"):
        load_format(str(file)).turn("response")


def test_page_of_the_guide_is_valid(repository: Path, tmp_path: Path) -> None:
    section = (repository / "docs" / "guards.md").read_text(encoding="utf-8").split("## Other guards")[1]
    (written,) = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    (tmp_path / "page.yaml").write_text(written, encoding="utf-8")
    assert load_format(str(tmp_path / "page.yaml")).taxonomies == {"demo": {"gambling": ("betting",)}}


def test_table_of_the_guide_lists_the_formats_and_their_labels(repository: Path) -> None:
    section = (repository / "docs" / "guards.md").read_text(encoding="utf-8").split("## Other guards")[1]
    rows = dict(re.findall(r"^\| `([\w-]+)` \|.*\| ([^|]+) \|$", section, re.MULTILINE))
    assert sorted(rows) == shipped_formats()
    for name, cell in rows.items():
        if mapped := load_format(name).taxonomies.get("safety"):
            assert cell == ", ".join(mapped)

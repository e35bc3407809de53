"""The generated pages of the documentation site: complete, and adapted from GitHub's Markdown."""

import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix} {name}")
        elif not command.hidden:
            yield f"{prefix} {name}", command


def test_cli_page_has_every_command_and_option(hooks: ModuleType) -> None:
    import typer

    from vigil.cli import build

    sections = dict(re.findall(r"^## (vigil .*?)\n(.*?)(?=^## |\Z)", hooks.cli_page(), re.DOTALL | re.MULTILINE))
    expected = dict(commands(typer.main.get_command(build()), "vigil"))
    assert sections.keys() == expected.keys()
    assert len(expected) > 20
    for name, command in expected.items():
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.hidden:
                assert all(option in sections[name] for option in parameter.opts), (name, parameter.opts)


def test_cli_page_shows_no_markup_of_the_terminal(hooks: ModuleType) -> None:
    assert not re.search(r"\[/?(?:bold|cyan|dim|italic|red|green)?\](?!\()", hooks.cli_page())


def test_recipe_page_has_every_key_with_its_default(hooks: ModuleType) -> None:
    from vigil_training.recipe.recipe import Recipe

    page, schema = hooks.recipe_page(), Recipe.model_json_schema()
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.*?) \| .*\|$", page, re.MULTILINE)
    blocks = [schema, *(definition for definition in schema["$defs"].values() if "properties" in definition)]
    assert sorted(key for key, *_ in rows) == sorted(key for block in blocks for key in block["properties"])
    assert ("lr", "number > 0", "`0.0003`") in rows
    anchors = {hooks._anchor(title) for title in re.findall(r"^## (.*)$", page, re.MULTILINE)}
    assert set(re.findall(r"\]\(#(.*?)\)", page)) <= anchors


def test_api_pages_document_every_public_name_once(hooks: ModuleType) -> None:
    pages = "\n".join(hooks.api_page(package) for package in hooks.PACKAGES)
    documented = re.findall(r"^::: (\S+)$", pages, re.MULTILINE)
    assert len(documented) == len(set(documented)) > 60
    linked = set(re.findall(r"^- \[`\w+`\]\[(\S+)\]$", pages, re.MULTILINE))
    assert linked <= set(documented)
    names: Mapping[str, str] = hooks.public_names("vigil")
    assert {f"{origin}.{name}" for name, origin in names.items()} <= set(documented)


def test_blank_line_before_lists(hooks: ModuleType) -> None:
    assert hooks.blank_line_before_lists("text:\n- one\n- two") == "text:\n\n- one\n- two"
    for unchanged in ("- one\n  more\n- two", "text\n\n- one", "```\ntext\n- one\n```", "1. one\n2. two"):
        assert hooks.blank_line_before_lists(unchanged) == unchanged


def test_code_for_outside_links(hooks: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    def adapt(text: str) -> str:
        return hooks.code_for_outside_links(text, "slurm.md")

    assert adapt("see [the Makefile](../Makefile)") == "see the Makefile (`Makefile`)"
    assert adapt("[Makefile](../Makefile)") == "`Makefile`"
    assert adapt("[data](data.md#columns)") == "[data](data.md#columns)"
    assert caplog.messages == []
    adapt("[lost](../lost.py)")
    assert caplog.messages == ["slurm.md links to ../lost.py, which does not exist"]


def test_remote_assets_are_warned_of(hooks: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    class Page:
        file = type("File", (), {"src_uri": "index.md"})

    hooks.on_post_page('<script src="assets/a.js"></script><a href="https://example.org">x</a>', Page, None)
    assert caplog.messages == []
    hooks.on_post_page('<script async src="https://example.org/a.js"></script>', Page, None)
    hooks.on_post_page('<link rel="stylesheet" href="//example.org/a.css">', Page, None)
    assert len(caplog.messages) == 2


def test_example_report_is_self_contained(hooks: ModuleType) -> None:
    page = hooks.example_report().decode()
    assert page.startswith("<!doctype html>")
    assert "synthetic scores" in page
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", page)

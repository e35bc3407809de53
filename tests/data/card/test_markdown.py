"""The card in Markdown, read by an independent parser: everything is shown, and nothing in the data is active."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from vigil_data.card.collect import dataset_facts
from vigil_data.card.markdown import markdown_card, plain
from vigil_data.card.statements import Statements
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.errors import one_line
from vigil_data.items import Item

HOSTILE = (
    "a|b", "`code` *bold* _it_ **x**", "[click](javascript:alert(1))", "<script>alert(1)</script>", "![i](http://x.example/y.png)",
    "https://evil.example", "www.evil.example", "a@evil.example", "x\n# title\n\n---\n- item", "&lt;b&gt; \\| $x^2$", "~~no~~ #1",
)  # fmt: skip
ACTIVE = {"link_open", "image", "code_inline", "html_inline", "html_block", "em_open", "strong_open", "s_open", "fence"}


def parsed(text: str) -> list[Token]:
    return MarkdownIt("gfm-like", {"html": True, "linkify": False}).enable("table").parse(text)


def inline(tokens: list[Token]) -> list[Token]:
    return [child for token in tokens for child in token.children or ()]


def cells(tokens: list[Token]) -> list[str]:
    inside = [tokens[place + 1] for place, token in enumerate(tokens) if token.type in {"td_open", "th_open"}]
    return ["".join(child.content for child in token.children or ()) for token in inside]


@settings(deadline=None)
@given(st.one_of(st.sampled_from(HOSTILE), st.text("ab`*_[]()<>|~&$\\!#:/@.w- \n", max_size=30)))
def test_plain_shows_any_text_unchanged_and_inactive(text: str) -> None:
    tokens = parsed(f"| h |\n| --- |\n| x{plain(text)}x |\n")
    assert [token.type for token in tokens if token.type in ACTIVE] == []
    assert {child.type for child in inline(tokens)} <= {"text", "text_special"}
    assert cells(tokens) == ["h", f"x{one_line(text)}x"]


def test_plain_breaks_bare_links() -> None:
    for text in ("https://evil.example", "www.evil.example", "a@evil.example"):
        assert not re.search(r"://|www\.|@", plain(text))


@pytest.fixture
def hostile(tmp_path: Path) -> Dataset:
    stored = [
        Item(
            f"{n}",
            text=("x",),
            targets={"hate": n % 2},
            columns={"source": name, "split": name, "language": name, "content_type": name, "author": name},
        )
        for n, name in enumerate(HOSTILE)
    ]
    write(tmp_path / "d", stored)
    return Dataset(tmp_path / "d")


def test_hostile_values_are_shown_in_tables(hostile: Dataset) -> None:
    statements = Statements(title=HOSTILE[3], description=HOSTILE[2], limits=HOSTILE[1], license=HOSTILE[8], citation=HOSTILE[0])
    text = markdown_card(dataset_facts(hostile), statements)
    _, front, body = re.split(r"^---$", text, maxsplit=2, flags=re.MULTILINE)
    metadata = yaml.safe_load(front)
    assert (metadata["pretty_name"], metadata["license_name"]) == (HOSTILE[3], HOSTILE[8])
    tokens = parsed(body)
    active = [token for token in [*tokens, *inline(tokens)] if token.type in ACTIVE - {"strong_open", "em_open"}]
    assert [token.content for token in active] == ["vigil data card"]
    shown = cells(tokens)
    assert {one_line(name) for name in HOSTILE} <= set(shown)


def test_front_matter_is_that_of_a_hugging_face_dataset_card(tmp_path: Path) -> None:
    from huggingface_hub import DatasetCard

    columns = {"source": "forum", "split": "train", "language": "en"}
    write(tmp_path / "posts", [Item(str(n), text=("x",), targets={"a": 1, "b": 0}, columns=columns) for n in range(3)])
    statements = Statements.model_validate({"sources": {"forum": {"licence": "CC-BY-4.0"}}})
    text = markdown_card(
        dataset_facts(Dataset(tmp_path / "posts"), statements=statements), statements, {"train": "p/train.parquet"}
    )
    data: dict[str, Any] = DatasetCard(text).data.to_dict()
    assert data["license"] == ["cc-by-4.0"]
    assert data["language"] == ["en"]
    assert data["task_categories"] == ["text-classification"]
    assert data["size_categories"] == ["n<1K"]
    assert data["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": "p/train.parquet"}]}]


def test_unknown_licences_are_other_with_their_name(tmp_path: Path) -> None:
    write(tmp_path / "d", [Item("1", text=("x",), columns={"source": "s"}), Item("2", text=("y",), columns={"source": "t"})])
    statements = Statements.model_validate({"sources": {"s": {"licence": "CC-BY-SA-3.0-ES"}, "t": {"licence": "MIT"}}})
    front = markdown_card(dataset_facts(Dataset(tmp_path / "d"), statements=statements), statements).split("---")[1]
    assert yaml.safe_load(front)["license"] == ["mit", "other"]
    assert yaml.safe_load(front)["license_name"] == "CC-BY-SA-3.0-ES"


def test_card_of_an_empty_dataset_says_what_is_not_stated(tmp_path: Path) -> None:
    write(tmp_path / "d", [])
    text = markdown_card(dataset_facts(Dataset(tmp_path / "d")), Statements())
    assert "The dataset has no items." in text
    assert text.count("not stated") >= 8
    assert not re.search(r"\b(nan|none)\b", text, re.IGNORECASE)

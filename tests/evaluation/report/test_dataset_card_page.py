"""The card of a dataset in a real browser: three widths, light and dark, hostile names, and almost empty datasets."""

import io
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vigil_data.card.collect import dataset_facts
from vigil_data.card.facts import DatasetFacts
from vigil_data.card.statements import Statements
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.importers.collection import open_source
from vigil_data.items import Item
from vigil_data.loading.packing import Refusal
from vigil_evaluation.report.dataset_card_page import render_dataset_card

from .test_browser import CONTRAST, HOSTILE, LAYOUT, Browse

WIDTHS = pytest.mark.parametrize("width", [390, 820, 1440])
CLIPPED = """
  page.querySelectorAll("details").forEach((details) => { details.open = true; });
  const drawn = [...page.querySelectorAll("svg[viewBox] text")];
  const clipped = drawn.filter((text) => {
    const [inner, outer] = [text.getBoundingClientRect(), text.closest("svg").getBoundingClientRect()];
    return inner.left < outer.left - 1 || inner.right > outer.right + 1 ||
      inner.bottom > outer.bottom + 1 || inner.top < outer.top - 1;
  }).map((text) => text.textContent);
  const over = [...page.querySelectorAll("svg[viewBox]")].filter((svg) => {
    const boxes = [...svg.querySelectorAll("text")].map((one) => one.getBoundingClientRect());
    return boxes.some((a, i) => boxes.some((b, j) => i < j &&
      Math.min(a.right, b.right) - Math.max(a.left, b.left) > 0.5 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2));
  }).map((svg) => svg.getAttribute("aria-label"));
  return { drawn: drawn.length, clipped, over };
"""
LOOK = f"return {{...(() => {{{LAYOUT}}})(), ...(() => {{{CLIPPED}}})()}};"


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def rendered(facts: DatasetFacts, statements: Statements, folder: Path) -> str:
    render_dataset_card(facts, statements, folder / "card.html")
    return (folder / "card.html").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def full_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A card with every section: twelve labels, five sources, all sizes, ten years of times, leaks, quarantine, sampling."""
    folder, labels = tmp_path_factory.mktemp("full"), [f"label_{n}_of_some_length" for n in range(12)]

    def item(n: int) -> Item:
        columns: Mapping[str, Any] = {
            "split": ("train", "train", "validation", "test")[n % 4],
            "source": f"source {n % 5}",
            "language": f"l{n % 30}",
            "content_type": ("post", "reply")[n % 2],
            "author": f"author {n % 40}",
            "created_at": datetime(2015, 1, 1, tzinfo=UTC) + timedelta(days=31 * (n % 120)),
            "inclusion_probability": 0.1 + n % 9 / 10,
            "weight": 1.0 + n % 7,
            "cluster": n // 3,
            "template": f"t{n}",
        }
        targets = {label: float((n * (k + 3)) % 7 < 3) for k, label in enumerate(labels) if (n + k) % 3}
        targets |= {labels[0]: 1.0} if n % 5 == 0 else {}
        text = (f"{'word ' * (n % 50 + 1)} {n // 2}",)
        image = (png(100 + n % 900, 300),) if n % 10 == 0 else ()
        return Item(str(n), text=text, image=image, targets=targets, columns=columns, roles={"text": (("body", "title")[n % 2],)})

    write(folder / "posts", [*map(item, range(400)), Refusal("x", "image", 0, "cannot identify image file")])
    statements = Statements(title="Posts", description="Posts of a forum.", intended_use="Tests.", limits="Generated. " * 30)
    return rendered(dataset_facts(Dataset(folder / "posts"), statements=statements), statements, folder)


@pytest.fixture(scope="session")
def hostile_card(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A card on which every name and statement tries to inject markup."""
    folder = tmp_path_factory.mktemp("hostile-card")
    names = dict.fromkeys(("split", "source", "language", "content_type", "author"), HOSTILE)
    columns = {**names, HOSTILE.replace(".", "").replace('"', "").replace("`", ""): 1}
    stored = [Item(f"{n}{HOSTILE}", text=(HOSTILE,), targets={"a": n % 2, "b": n % 3 / 2}, columns=columns) for n in range(30)]
    write(folder / "posts", [*stored, Refusal("x", "image", 0, HOSTILE)])
    terms = {HOSTILE: {"licence": HOSTILE, "citation": HOSTILE}}
    texts = dict.fromkeys(("title", "description", "intended_use", "limits", "license", "citation"), HOSTILE)
    statements = Statements.model_validate({**texts, "sources": terms})
    return rendered(dataset_facts(Dataset(folder / "posts"), statements=statements), statements, folder)


@WIDTHS
@pytest.mark.parametrize("kind", ["full_page", "hostile_card"])
def test_card_fits_its_width_and_executes_no_data(kind: str, width: int, browse: Browse, request: pytest.FixtureRequest) -> None:
    found = browse(request.getfixturevalue(kind), LOOK, width)
    assert (found["outside"], found["stuck"]) == ([], [])
    assert found["overflow"] <= 0
    assert (found["hacked"], found["scripts"], found["images"], found["fetched"]) == (None, 1, 0, [])
    assert (found["clipped"], found["over"]) == ([], []), "text of pictures"
    assert found["drawn"] > (30 if kind == "full_page" else 0)


@pytest.mark.parametrize("dark", [False, True])
def test_card_text_contrast_meets_wcag_aa(dark: bool, browse: Browse, full_page: str) -> None:
    found = browse(full_page, CONTRAST.replace('page.getElementById("reveal").click();', ""), dark=dark)
    assert found["seen"] > 500
    assert found["low"] == []


def test_card_of_real_text_fits_a_phone(browse: Browse, shared_data: Path, tmp_path: Path) -> None:
    folders = {"hatemoji": "hatemoji_build", "surge": "surge_toxicity"}
    readers = [open_source(name, shared_data / "text" / folder) for name, folder in folders.items()]
    write(tmp_path / "joined", chain.from_iterable(reader.items() for reader in readers), on_leak="skip")
    facts = dataset_facts(Dataset(tmp_path / "joined"))
    assert all(of.licence and of.citation for of in facts.sources.values())
    page = rendered(facts, Statements(), tmp_path)
    found = browse(page, LOOK, 390)
    assert (found["outside"], found["stuck"], found["clipped"], found["overflow"] <= 0) == ([], [], [], True)


def test_card_of_almost_nothing_is_complete(tmp_path: Path) -> None:
    for name, stored in {"none": [], "one": [Item("1", text=("x",))], "unlabelled": [Item("1", image=(png(5, 5),))]}.items():
        write(tmp_path / name, stored)
        page = rendered(dataset_facts(Dataset(tmp_path / name)), Statements(), tmp_path)
        assert 'id="versions"' in page
        assert "not stated" in page
        assert "No item has a target." in page

"""Each kind of caution is printed for a dataset that needs it, and none for a sound one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from vigil_data.card.cautions import cautions
from vigil_data.card.collect import dataset_facts
from vigil_data.card.statements import Statements
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.items import Item
from vigil_data.loading.packing import Refusal

TERMS = Statements.model_validate({"sources": {name: {"licence": "MIT"} for name in ("a", "b")}})


def items(number: int = 400, **columns: Any) -> list[Item]:
    """Return items of two splits and two sources, with 50 positives and negatives of a label in each half of the test split."""
    return [
        Item(
            str(n),
            text=(f"text {n}",),
            targets={"hate": float(n % 2)},
            columns={"split": ("train", "test")[n // 2 % 2], "source": "ab"[n // 4 % 2]} | columns,
        )
        for n in range(number)
    ]


def topics(folder: Path, stored: Sequence[Item | Refusal]) -> dict[str, str]:
    write(folder / "d", stored)
    return {one.topic: one.text for one in cautions(dataset_facts(Dataset(folder / "d"), statements=TERMS))}


def changed(number: int, **values: Any) -> list[Item]:
    """Return the items, the first ones with other values."""
    stored = items()
    for n, one in enumerate(stored[:number]):
        text, targets = values.get("text", one.text), values.get("targets", one.targets)
        stored[n] = Item(one.id, text=text, targets=targets, columns={**one.columns, **values.get("columns", {})})
    return stored


OTHERS = [Item(f"c{n}", text=(f"c{n}",), targets={"hate": 1.0}, columns={"source": "c"}) for n in range(20)]


def test_a_sound_dataset_has_none(tmp_path: Path) -> None:
    assert topics(tmp_path, items()) == {}


@pytest.mark.parametrize(
    ("topic", "stored", "text"),
    [
        ("Empty", [], "no items"),
        ("No labels", [Item("1", text=("x",))], "No item has a target"),
        ("Opposite labels", changed(4, text=("same",)), "1 content is positive in one split and negative"),
        ("Leaks", changed(4, text=("same",)), "1 content is in more than one split, in 4 items"),
        ("Near-duplicates", changed(3, columns={"cluster": "x"}), "1 cluster of near-duplicates is"),
        ("Authors", changed(3, columns={"author": "x"}), "1 author has items in more than one split (100.0%)"),
        ("No positives", [Item("1", text=("x",), targets={"hate": 0.0})], "hate"),
        ("No negatives", [Item("1", text=("x",), targets={"hate": 1.0})], "hate"),
        ("No splits", items(split=None), "No item has a split"),
        ("No test split", items(split="train"), "No item is in the split test"),
        ("Not in the test split", changed(1, targets={"spam": 1.0}), "for spam"),
        ("Small test split", items(100), "hate (25); a share of one half of 25 has a 95% interval from 32% to 68%"),
        ("One source only", [*changed(1, targets={"spam": 1.0})], "spam is known in a only"),
        ("Source gives it away", [*items(), *OTHERS], "equal in c (positive)"),
        ("No licence", [*items(), OTHERS[0]], "for c"),
        ("Quarantine", [*items(), Refusal("x", "image", 0, "broken")], "1 item is in quarantine, 0.2%"),
    ],
)  # fmt: skip
def test_each_caution_is_found(topic: str, stored: Sequence[Item | Refusal], text: str, tmp_path: Path) -> None:
    assert text in topics(tmp_path, stored)[topic]

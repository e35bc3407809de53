"""Overlap of two datasets: the same picture with another caption counts, context does not, and equal is told from near."""

import json
from pathlib import Path

import numpy as np
import pytest
from drawn_pictures import LONG, png

from vigil_data.dataset.dataset import Dataset, write
from vigil_data.items import Item
from vigil_data.quality.overlap import Side, overlap

TRAIN = [
    Item("t1", (LONG,), targets={"spam": 1}, columns={"split": "train"}),
    Item("t2", ("a caption of the first picture",), (png(1),), targets={"spam": 0}, columns={"split": "train"}),
    Item("t3", ("a sentence that only training has, nobody else",), (png(5),), columns={"split": "train"}),
    Item("t4", (LONG, "me too"), roles={"text": ("context", "body")}, columns={"split": "train"}),
]
TEST = [
    Item("s1", (f"{LONG.lower()}!!",), targets={"spam": 0}, columns={"split": "test"}),
    Item("s2", ("quite another caption, about something else",), (png(1),), targets={"spam": 0}, columns={"split": "test"}),
    Item("s3", ("a third caption that is again different",), (png(1, 120),), targets={"spam": 1}, columns={"split": "test"}),
    Item("s4", (f"{LONG} and cheese too",), columns={"split": "test"}),
    Item("s5", (LONG, "never again"), roles={"text": ("context", "body")}, columns={"split": "test"}),
    Item("s6", ("what nobody else has ever written in this place",), (png(7),), columns={"split": "test"}),
]


@pytest.mark.parametrize("datasets", [1, 2])
def test_overlap_counts_equal_and_near_content(tmp_path: Path, datasets: int) -> None:
    if datasets == 2:
        write(tmp_path / "a", TRAIN)
        write(tmp_path / "b", TEST)
        first, second = Side(Dataset(tmp_path / "a"), "a"), Side(Dataset(tmp_path / "b"), "b")
    else:
        write(tmp_path / "a", [*TRAIN, *TEST])
        dataset = Dataset(tmp_path / "a")
        first, second = (Side(dataset, name, dataset.rows(name)) for name in ("train", "test"))
    report = overlap(first, second)
    text, image, audio = (report.modalities[m] for m in ("text", "image", "audio"))
    assert (text.with_content, text.equal, text.near, text.first_side, text.opposite) == (6, 1, 1, 1, 1)
    assert (image.with_content, image.equal, image.near, image.first_side, image.opposite) == (3, 1, 1, 1, 1)
    assert (audio.with_content, audio.equal, audio.near) == (0, 0, 0)
    assert {example[:2] for example in text.examples} == {("t1", "s1"), ("t1", "s4")}
    assert text.examples[0][3] == "spam"
    assert image.examples[0][:2] == ("t2", "s3")
    assert (report.items, report.share) == (4, pytest.approx(4 / 6))
    assert (report.whole.contents, report.whole.opposite) == (0, 0)
    assert json.loads(json.dumps(report.to_json()))["modalities"]["image"]["examples"][0]["opposite_label"] == "spam"


def test_overlap_has_the_items_with_all_content_equal(tmp_path: Path) -> None:
    write(tmp_path / "a", [Item("1", (LONG,), (png(1),), targets={"spam": 1}), Item("2", ("other",))])
    write(tmp_path / "b", [Item("x", (LONG.upper(),), (png(1),), targets={"spam": 0}), Item("y", (LONG,))])
    whole = overlap(Side(Dataset(tmp_path / "a"), "a"), Side(Dataset(tmp_path / "b"), "b")).whole
    assert (whole.contents, whole.items, whole.opposite) == (1, 1, 1)
    assert whole.examples[0].kept[0] == "1"
    assert whole.examples[0].other[0] == "x"


def test_overlap_of_a_dataset_with_itself_is_all_of_it(tmp_path: Path) -> None:
    write(tmp_path / "a", TRAIN)
    dataset = Dataset(tmp_path / "a")
    report = overlap(Side(dataset, "a"), Side(dataset, "a"), ("text", "image"))
    assert report.items == len(TRAIN)
    assert report.modalities["text"].equal == 4
    assert np.isclose(report.share, 1)

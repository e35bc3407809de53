"""Targets of tokens in training batches: of the first body text, and unknown where nothing is known."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from vigil_data.augmentation.specs import Augmentation
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.errors import UserError
from vigil_data.items import Item
from vigil_data.loading.loader import Reader, Request
from vigil_data.specs import Inputs

TEXT = "red blue green"


@pytest.fixture
def inputs(tmp_path) -> Inputs:
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "red": 1, "blue": 2, "green": 3}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    source = {"kind": "local", "path": str(tmp_path / "tokenizer.json")}
    return Inputs.model_validate({"text": {"tokenizer": source, "max_tokens": 8, "overlap": 0}})


@pytest.fixture
def read(tmp_path, inputs):
    """A function from the columns of items to a batch of them, in an epoch of training or not."""

    def read(columns, *, epoch=0, roles=("title", "body", "body"), **options):
        items = [
            Item(f"{n}", (TEXT, TEXT, TEXT), targets={"a": 1.0}, columns={"split": "train", **of}, roles={"text": roles})
            for n, of in enumerate(columns)
        ]
        dataset = Dataset(tmp_path / "data", write(tmp_path / "data", items).version)
        reader = Reader(dataset.path, dataset.version, inputs, ("a",), spans={"a": "one", "b": "two"}, **options)
        return reader[Request(np.arange(len(items)), 1.0, epoch)]

    return read


def test_span_targets_are_of_the_first_body_text(read):
    spans_STK = read([{"one": "[[4, 8]]"}, {"one": "[]", "two": "[[0, 8]]"}, {}]).spans.numpy()
    assert spans_STK.shape == (9, 3, 2)
    known = ~np.isnan(spans_STK)
    assert sorted(zip(*known.any(axis=1).nonzero(), strict=True)) == [(1, 0), (4, 0), (4, 1)]
    assert spans_STK[1, :, 0].tolist() == [0, 1, 0]
    assert spans_STK[4, :, 0].tolist() == [0, 0, 0]
    assert spans_STK[4, :, 1].tolist() == [1, 1, 0]


def test_span_targets_are_read_in_training_only(read):
    assert read([{"one": "[[4, 8]]"}], epoch=None).spans is None


def test_span_targets_of_an_augmented_text_are_unknown(read):
    changing = Augmentation.model_validate({"text": {"perturb": {"probability": 1.0, "kinds": ["leetspeak"]}}})
    assert np.isnan(read([{"one": "[[4, 8]]"}] * 3, augmentation=changing).spans.numpy()).all()


def test_span_targets_refuse_a_value_that_is_no_list_of_spans(read):
    with pytest.raises(UserError, match=r"item 0: column one: not a JSON list of \[start, stop\]"):
        read([{"one": "4-8"}])

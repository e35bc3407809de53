"""Runs with a span head: they learn, resume bitwise, leave runs without one as they were, and refuse data without spans."""

import json

import numpy as np
import pytest

from vigil.workflows.evidence import item_examples
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.errors import UserError
from vigil_data.items import Item

WORDS = ("red", "green", "blue", "dog", "sun", "rain")


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """A dataset whose spans are the word ``cat``; half of the items have none known."""
    random = np.random.default_rng(0)
    items = []
    for n in range(160):
        words = [str(word) for word in random.choice(WORDS, int(random.integers(2, 8)))]
        targets = {"cat": float(n % 3 > 0), "bright": None}
        if n % 3:
            words.insert(int(random.integers(len(words) + 1)), "cat")
        text = " ".join(words)
        spans = [[text.index("cat"), text.index("cat") + 3]] if n % 3 else []
        columns = {"split": "train" if n < 120 else "validation"} | ({"cat_spans": json.dumps(spans)} if n % 2 else {})
        items.append(Item(f"{n}", (text,), (), (), targets, columns))
    path = tmp_path_factory.mktemp("marked") / "dataset"
    write(path, items)
    return path


@pytest.fixture
def spans_recipe(make_recipe, marked):
    def make(**changes):
        return make_recipe(data__dataset=str(marked), model__spans={"columns": {"cat": "cat_spans"}}, **changes)

    return make


def test_run_with_spans_learns_them_and_shows_them(spans_recipe, train, marked, tmp_path):
    run = train(spans_recipe(training__epochs=12, optimizer__lr=0.01), tmp_path / "run")
    assert "label cat has spans in 60 of 120 training items" in run.log.read_text()
    dataset = Dataset(marked)
    texts = {item.id: item.text[0] for item in dataset.take(dataset.rows("validation"))}
    examples = item_examples(run, dataset, list(texts), checkpoint="last")
    found = {id_: [(span.start, span.stop) for span in example.spans["cat"]] for id_, example in examples.items()}
    due = {id_: [(text.index("cat"), text.index("cat") + 3)] if "cat" in text else [] for id_, text in texts.items()}
    assert sum(found[id_] == due[id_] for id_ in texts) >= 0.9 * len(texts)


def test_run_with_spans_resumes_bitwise(spans_recipe, train, train_with_a_stop, assert_same_run, tmp_path):
    changes = {"training__modality_dropout": {"text": 0.3}, "training__accumulate": 2}
    recipe = spans_recipe(training__max_steps=5, checkpoint__every_steps=1, **changes)
    train(recipe, tmp_path / "undisturbed")
    train_with_a_stop(recipe, tmp_path / "run")
    assert_same_run(tmp_path / "undisturbed", tmp_path / "run")


def test_run_with_spans_refuses_a_dataset_without_the_column(make_recipe, train, tmp_path):
    recipe = make_recipe(model__spans={"columns": {"cat": "cat_spans"}})
    with pytest.raises(UserError, match=r"model\.spans\.columns\.cat: .* has no column cat_spans \(it has .*language"):
        train(recipe, tmp_path / "run")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "column cat_spans has no spans for any of the 1 training items"),
        ("4-8", r"item 0: column cat_spans: not a JSON list"),
    ],
)
def test_run_with_spans_refuses_a_column_without_spans(value, message, make_recipe, train, tmp_path):
    items = [
        Item(split, ("red cat",), (), (), {"cat": 1.0}, {"split": split, "cat_spans": value if split == "train" else "[]"})
        for split in ("train", "validation")
    ]
    write(tmp_path / "data", items)
    recipe = make_recipe(data__dataset=str(tmp_path / "data"), model__spans={"columns": {"cat": "cat_spans"}})
    with pytest.raises(UserError, match=message.replace("item 0", "item train")):
        train(recipe, tmp_path / "run")


def test_recipe_refuses_spans_of_an_unknown_label_and_with_cached_text(make_recipe):
    with pytest.raises(ValueError, match=r"model\.spans\.columns\.dog is not a label of the taxonomy"):
        make_recipe(model__spans={"columns": {"dog": "x"}})
    with pytest.raises(ValueError, match="no encoder has frozen: true"):
        make_recipe(model__spans={"columns": {"cat": "x"}}, model__encoders__text__frozen=True, training__token_cache=True)

"""A small thread recipe reads the message that another one answers, and takes it as context (benchmarks/thread_context.py)."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vigil.workflows.new_project import write_tokenizer
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.demo import generate
from vigil_data.items import Item
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.resolve import resolve_recipe
from vigil_training.runs.predict import predict_rows

SIDES: dict[str, Callable[[Item], Item]] = {
    "with context": lambda item: item,
    "without roles": lambda item: replace(item, roles={}),
    "without context": lambda item: replace(item, text=item.text[-1:], roles={}),
}
Accuracy = dict[str, dict[str, float]]


def small(dataset: Path, tokenizer: Path, vocabulary: int) -> Recipe:
    """Return thread.yaml with a text encoder of one layer from random weights, which learns generated messages in seconds."""
    recipe = resolve_recipe(Path(__file__).resolve().parents[2] / "recipes" / "thread.yaml").recipe
    values = recipe.model_dump(mode="json")
    values["data"] |= {"dataset": str(dataset)}
    values["data"]["batch"] |= {"budget": 64, "cost": {"item": 1, "character": 0, "image": 0, "second": 0}}
    values["inputs"]["text"] |= {"tokenizer": {"kind": "local", "path": str(tokenizer)}, "max_tokens": 32}
    values["model"] |= {"width": 32, "dropout": 0.0}
    config = {"model_type": "bert", "vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config |= {
        "intermediate_size": 64,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    values["model"]["encoders"]["text"] |= {"frozen": False, "lr_factor": 1.0, "weights": {"kind": "random"}, "config": config}
    values["model"]["fusion"] |= {"layers": 1}
    values["optimizer"] |= {"lr": 5e-3}
    values["training"] |= {"epochs": 12, "accelerator": "cpu", "threads": 1}
    values["tracking"] |= {"mode": "disabled"}
    return Recipe.model_validate(values)


@pytest.fixture(scope="module")
def accuracy(train, tmp_path_factory: pytest.TempPathFactory) -> Accuracy:
    """Accuracy of each side on test messages of a functionality, for one label."""
    folder = tmp_path_factory.mktemp("threads")
    generate(folder / "threads", items=2000, content_type="thread")
    items = Dataset(folder / "threads").take(np.arange(2000))
    vocabulary = write_tokenizer([text for item in items for text in item.text], folder / "tokenizer.json")
    found: Accuracy = {}
    for number, (side, change) in enumerate(SIDES.items()):
        write(folder / f"{number}", map(change, items))
        run = train(small(folder / f"{number}", folder / "tokenizer.json", vocabulary), folder / f"run-{number}")
        dataset = Dataset(folder / f"{number}")
        rows = dataset.rows("test")
        tests = np.array(dataset.table(["functionality"])["functionality"].take(rows).to_pylist())
        outputs = predict_rows(run, dataset, rows)
        right_NL = (outputs.logits_NL >= 0) == (outputs.targets_NL >= 0.5)
        labels = list(run.recipe.taxonomy.labels)
        decided = [right_NL[tests == f"{label}_decided_by_parent", column] for column, label in enumerate(labels)]
        stated = np.isin(tests, ["stated_in_message", "subject_answered_with_something_else"])
        found[side] = {
            "decided by the parent": float(np.concatenate(decided).mean()),
            "stated by one of the two": float(right_NL[stated, labels.index("endorsement")].mean()),
        }
    return found


def test_thread_recipe_reads_the_parent_that_decides(accuracy: Accuracy) -> None:
    assert accuracy["with context"]["decided by the parent"] >= 0.9
    assert 0.4 < accuracy["without context"]["decided by the parent"] < 0.6


def test_thread_recipe_knows_which_of_the_two_states_a_subject(accuracy: Accuracy) -> None:
    assert accuracy["with context"]["stated by one of the two"] >= 0.85
    assert accuracy["without roles"]["stated by one of the two"] < 0.75

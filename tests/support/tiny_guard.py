"""A tiny guard: a random language model with a policy for each label of the tiny dataset, on which a run takes a few seconds."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_lm
from tiny_run import recipe_values

from vigil_training.recipe.recipe import Recipe
from vigil_training.runs.run import Run

POLICIES = {
    "words": {"labels": {"cat": {"definition": "The text names a cat.", "violates": ["a red cat"], "allowed": ["a blue dog"]}}},
    "looks": {"labels": {"bright": {"definition": "The picture is bright."}}},
}


@pytest.fixture(scope="session")
def make_guard_recipe(material: Path, tiny_lm_tokenizer: Callable[[str], Path]) -> Callable[..., Recipe]:
    """A function that makes the tiny guard's recipe; keyword arguments change values, with ``__`` for the dots of a key path."""
    return lambda **changes: Recipe.model_validate(guard_values(material, tiny_lm_tokenizer("qwen3"), **changes))


@pytest.fixture(scope="session")
def trained_guard(
    make_guard_recipe: Callable[..., Recipe], train: Callable[[Recipe, Path], Run], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """The tiny guard, trained once; tests do not change it."""
    return train(make_guard_recipe(), tmp_path_factory.mktemp("guards") / "tiny")


def guard_values(material: Path, tokenizer: Path, family: str = "qwen3", **changes: Any) -> dict[str, Any]:
    values = recipe_values(material)
    text = {"kind": "decoder", "weights": {"kind": "random"}, "config": {**tiny_lm.config_of(family), "vocab_size": 400}}
    model = {
        "kind": "guard",
        "encoders": {"text": text, "image": values["model"]["encoders"]["image"]},
        "prompt": {"max_tokens": 256, "row_tokens": 256},
    }
    return recipe_values(
        material,
        **{
            "name": "tiny-guard",
            "taxonomy": {"name": "tiny", "heads": copy.deepcopy(POLICIES)},
            "data__batch": {"budget": 1500, "pool": 3, "cost": {"token": 1, "character": 0, "image": 1}},
            "inputs__text": {
                "tokenizer": {"kind": "local", "path": str(tokenizer)},
                "max_tokens": 64,
                "overlap": 0,
                "special_tokens": False,
            },
            "model": model,
            "training__epochs": 1,
            **changes,
        },
    )

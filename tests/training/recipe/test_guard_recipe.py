"""Keys that a guard refuses, each with one line that names the key."""

import pytest
from pydantic import ValidationError


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"inputs__text__special_tokens": True}, "inputs.text.special_tokens: a guard reads passages within a prompt; set it to"),
        (
            {"inputs__text__overlap": 8},
            "inputs.text.overlap: a guard reads all passages of a text one after another; set it to 0",
        ),
        (
            {"loss": {"kind": "bce", "unlabeled": {"cat": 0.1}}},
            "loss.unlabeled: a guard is asked nothing about unknown targets in training",
        ),
        ({"training__compile": True}, "training.compile: the rows of a guard's prompts differ in each batch"),
        ({"objective": {"kind": "contrastive"}}, "objective.kind: contrastive pre-training has encoders that are compared"),
        ({"model__encoders__text__pool": "mean"}, "text.pool: a guard reads its answer after the last token of the prompt"),
        ({"model__prompt__max_tokens": 1024}, "model.prompt.max_tokens: is 1024, but the model takes 512 tokens at most"),
        (
            {"init_from": {"path": "runs/x", "parts": ["heads"]}},
            "init_from.parts: heads is not a part of a model: encoders, projec",
        ),
        (
            {"taxonomy__heads__looks__labels__bright": {}},
            "taxonomy.heads: no policy text for bright: a guard reads instruction, definition, violates, allowed, boundary",
        ),
    ],
)
def test_guard_recipe_refuses_what_has_no_meaning(make_guard_recipe, changes, line):
    make_guard_recipe()
    with pytest.raises(ValidationError) as caught:
        make_guard_recipe(**changes)
    assert line in str(caught.value)


def test_guard_recipe_caches_tokens_of_pictures_but_not_of_the_language_model(make_guard_recipe):
    frozen = {"model__encoders__text__frozen": True, "training__token_cache": True}
    with pytest.raises(ValidationError, match=r"training.token_cache: no encoder has frozen: true"):
        make_guard_recipe(**frozen)
    make_guard_recipe(**frozen, model__encoders__image__frozen=True)

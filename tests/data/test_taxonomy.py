"""A parent follows from its children where they are known, and means in data what it means in models."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vigil_data.taxonomy import Head, Label, Paraphrase, Taxonomy, any_of
from vigil_modeling.label_structure import LabelStructure
from vigil_modeling.specs import ModelSpec

LABELS = ("a", "b", "c", "d", "e", "f")


@st.composite
def taxonomies(draw: st.DrawFn) -> Taxonomy:
    """Any forest of six labels, written in any order."""
    parents = {name: draw(st.sampled_from([None, *LABELS[:place]])) for place, name in enumerate(LABELS)}
    order = draw(st.permutations(LABELS))
    return Taxonomy(name="t", heads={"h": Head(labels={name: Label(parent=parents[name]) for name in order})})


TARGETS = st.dictionaries(st.sampled_from(LABELS), st.sampled_from([None, 0.0, 0.25, 1.0]))


@given(taxonomies(), TARGETS)
def test_with_parents_follows_the_rule(taxonomy: Taxonomy, targets: dict[str, float | None]) -> None:
    labels = taxonomy.heads["h"].labels
    complete = taxonomy.with_parents(targets)
    for name in labels:
        children = [complete.get(child) for child, label in labels.items() if label.parent == name]
        known = [value for value in children if value is not None]
        stated, value = targets.get(name), complete.get(name)
        if 1.0 in known:
            assert value == 1
        if value == 0:
            assert not any(known)
            assert stated == 0 or (children and len(known) == len(children))
        if stated is not None:
            assert value == max([stated, *known])
        if stated is None and not children:
            assert value is None
        if value is None:
            assert stated is None
            assert not children or len(known) < len(children)
    assert taxonomy.with_parents(complete) == complete
    assert {name: value for name, value in complete.items() if name in targets and targets[name] == 1} == {
        name: 1.0 for name, value in targets.items() if value == 1
    }


@given(taxonomies(), st.lists(st.booleans(), min_size=6, max_size=6))
def test_with_parents_agrees_with_the_models_hierarchy(taxonomy: Taxonomy, positive: list[bool]) -> None:
    """Where all labels are known, a parent is positive exactly if C-HMCNN's constraint makes it so."""
    targets = dict(zip(taxonomy.labels, map(float, positive), strict=True))
    complete = taxonomy.with_parents(targets)
    logits_NL = torch.tensor([[2.0 * value - 1 for value in targets.values()]])
    constrained_NL = LabelStructure.of(ModelSpec.model_construct(hierarchy=True, ordinal_heads=()), taxonomy).constrain(logits_NL)
    np.testing.assert_array_equal(constrained_NL[0].numpy() > 0, [complete[label] == 1 for label in taxonomy.labels])


def test_any_of_is_known_if_one_is_positive_or_all_are_known() -> None:
    assert any_of([0.0, None, 1.0]) == 1
    assert any_of([0.0, 0.4]) == 0.4
    assert any_of([0.4, None]) is None
    assert any_of([0.0, None]) is None
    assert any_of([]) is None


def test_label_worded_takes_the_texts_of_a_paraphrase_and_keeps_the_others() -> None:
    label = Label(
        description="d",
        definition="about spam",
        violates=("an offer",),
        allowed=("a question",),
        severity=2,
        paraphrases=(Paraphrase(name="junk", definition="junk mail"), Paraphrase(violates=("a lottery",), instruction="Junk?")),
    )
    assert label.worded(0) is label
    assert label.worded(1) == label.model_copy(update={"definition": "junk mail"})
    assert label.worded(2) == label.model_copy(update={"violates": ("a lottery",), "instruction": "Junk?"})
    assert [label.heading("spam_offers", p) for p in range(3)] == ["spam offers", "junk", "spam offers"]


def test_label_refuses_paraphrases_that_say_nothing_new() -> None:
    with pytest.raises(ValidationError, match="paraphrase 1 equals the policy text itself"):
        Label(definition="junk", paraphrases=(Paraphrase(definition="junk"),))
    with pytest.raises(ValidationError, match="paraphrase 3 equals paraphrase 1"):
        Label(paraphrases=tuple(Paraphrase(definition=text) for text in ("a", "b", "a")))
    with pytest.raises(ValidationError, match="has no text"):
        Paraphrase(name="")

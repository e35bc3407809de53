"""The demonstration's suite: fresh items of its cases, and counterparts whose labels follow the demonstration's rules."""

from collections import Counter

import pytest

from vigil_data.demo.scenarios import CASES, LABELS, SUBJECTS, labels_of
from vigil_data.demo.sentences import split_of
from vigil_data.suites.demo import EXCHANGED, RERENDERED, demo_items, plan_tests


def test_demo_suite_items_have_one_counterpart_that_differs_in_content():
    tests = {test.id: test for test in plan_tests(400, 5)}
    assert len(tests) == 800
    cases = {case.functionality: case for case in CASES}
    seen = Counter(test.perturbation for test in tests.values())
    assert seen[None] == 400
    assert min(seen.values()) > 10
    for test in tests.values():
        if test.pair is None:
            continue
        original = tests[test.pair]
        before, after = original.plan.parts, test.plan.parts
        assert set(before) == set(after)
        differing = {modality for modality in before if list(before[modality]) != list(after[modality])}
        if test.perturbation == RERENDERED:
            assert not differing
            assert test.seed != original.seed
            assert test.pair_gold == "stays"
            continue
        modality = test.perturbation.removesuffix("_exchanged")
        assert differing == {modality}
        assert test.plan.functionality == EXCHANGED
        changed = [(a, b) for a, b in zip(before[modality], after[modality], strict=True) if a != b]
        assert len(changed) == 1
        wanted = cases[original.plan.functionality].needs[modality]
        assert changed[0][0].kind in {wanted.replace("*", subject) for subject in SUBJECTS}
        assert changed[0][1].kind in ("chatter", "plain")
        assert (test.pair_gold == "flips") == (labels_of(before) != labels_of(after))
    for test in tests.values():
        for modality in ("text", "audio"):
            assert all(split_of(part.source) == "test" for part in test.plan.parts.get(modality, ()))


def test_demo_suite_items_are_labelled_by_content_and_deterministic():
    pytest.importorskip("hibari")
    items, again = list(demo_items(20, 3)), list(demo_items(20, 3))
    assert items == again
    assert items != list(demo_items(20, 4))
    plans = {test.id: test.plan for test in plan_tests(20, 3)}
    for item in items:
        assert item.targets == {label: float(given) for label, given in labels_of(plans[item.id].parts).items()}
        assert tuple(item.targets) == LABELS
        assert item.columns["source"] == "suite:demo"
        assert (item.columns["pair"] is None) == (item.columns["perturbation"] is None)

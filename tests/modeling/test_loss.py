"""The loss against a loop over cells in float64; masking equals dropping."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.taxonomy import Taxonomy
from vigil_modeling.loss import MaskedBCE
from vigil_modeling.specs import BinaryCrossEntropy

TAXONOMY = Taxonomy.model_validate({"name": "t", "heads": {"x": {"labels": {"a": {}, "b": {}}}, "y": {"labels": {"c": {}}}}})
SPEC = BinaryCrossEntropy(label_weights={"b": 2.5}, positive_weights={"a": 4.0, "c": 0.5})
CELL = st.tuples(st.floats(-30, 30, width=32), st.one_of(st.just(math.nan), st.floats(0, 1, width=32)))


@settings(deadline=None)
@given(st.lists(st.tuples(CELL, CELL, CELL), max_size=6))
def test_masked_bce_equals_a_loop_over_known_targets(rows):
    loss = MaskedBCE(SPEC, TAXONOMY)
    cells = torch.tensor(rows, dtype=torch.float32).reshape(len(rows), 3, 2)
    expected = weight = 0.0
    for row in rows:
        for label, (logit, target) in zip("abc", row, strict=True):
            if not math.isnan(target):
                softplus = max(logit, 0) + math.log1p(math.exp(-abs(logit)))
                positive = SPEC.positive_weights.get(label, 1.0) * target * (softplus - logit)
                expected += SPEC.label_weights.get(label, 1.0) * (positive + (1 - target) * softplus)
                weight += SPEC.label_weights.get(label, 1.0)
    assert loss(cells[..., 0], cells[..., 1]).item() == pytest.approx(expected, rel=1e-5, abs=1e-4)
    assert loss.weight(cells[..., 1]).item() == pytest.approx(weight)


def test_masked_bce_masking_equals_dropping_rows():
    loss = MaskedBCE(SPEC, TAXONOMY)
    logits, targets = torch.randn(6, 3), torch.rand(6, 3)
    kept = torch.tensor([True, False, True, True, False, True])
    masked = torch.where(kept.unsqueeze(1), targets, torch.nan)
    torch.testing.assert_close(loss(logits, masked), loss(logits[kept], targets[kept]))


def test_masked_bce_gradient_is_zero_at_unknown_targets():
    loss = MaskedBCE(SPEC, TAXONOMY)
    logits = torch.randn(2, 3, requires_grad=True)
    loss(logits, torch.tensor([[1.0, torch.nan, 0.0], [torch.nan] * 3])).backward()
    assert (logits.grad != 0).tolist() == [[True, False, True], [False] * 3]
    for targets in (torch.full((2, 3), torch.nan), torch.empty(0, 3)):
        empty = torch.randn(targets.shape, requires_grad=True)
        total = loss(empty, targets)
        total.backward()
        assert total.item() == loss.weight(targets).item() == 0
        assert (empty.grad == 0).all()


def test_masked_bce_ignores_infinite_logits_of_unknown_targets():
    loss = MaskedBCE(BinaryCrossEntropy(), TAXONOMY)
    logits = torch.tensor([[0.0, torch.inf, 0.0]], requires_grad=True)
    total = loss(logits, torch.tensor([[1.0, torch.nan, 1.0]]))
    assert total.item() == pytest.approx(2 * math.log(2))


def test_masked_bce_sums_half_precision_logits_in_float32():
    loss = MaskedBCE(BinaryCrossEntropy(), TAXONOMY)
    logits, targets = torch.randn(300, 3).bfloat16(), torch.rand(300, 3)
    assert loss(logits, targets).dtype == torch.float32
    torch.testing.assert_close(loss(logits, targets), loss(logits.float(), targets))

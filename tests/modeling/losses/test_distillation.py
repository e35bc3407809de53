"""Distillation against a loop in float64, the gradient that the paper derives, and a case where the truth is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import nn

from vigil_data.taxonomy import Taxonomy
from vigil_evaluation.metrics import auroc
from vigil_modeling.losses import MaskedLoss, fill_unknown, teacher_term
from vigil_modeling.specs import LossSpec

TAXONOMY = Taxonomy.model_validate({"name": "t", "heads": {"x": {"labels": {"a": {}, "b": {}}}}})
ONE = Taxonomy.model_validate({"name": "t", "heads": {"x": {"labels": {"a": {}}}}})
UNKNOWN = st.just(math.nan)
CELL = st.tuples(
    st.floats(-20, 20, width=32), st.one_of(UNKNOWN, st.floats(0, 1, width=32)), st.one_of(UNKNOWN, st.floats(0, 1, width=32))
)


def masked_loss(taxonomy=TAXONOMY, **keys):
    return MaskedLoss(TypeAdapter(LossSpec).validate_python({"kind": "bce"} | keys), taxonomy)


def cross_entropy(logit, target):
    return target * math.log1p(math.exp(-logit)) + (1 - target) * math.log1p(math.exp(logit))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(CELL, CELL), max_size=5),
    st.floats(0, 1, width=32),
    st.sampled_from([0.5, 1.0, 2.0, 5.0]),
)
def test_masked_loss_with_a_teacher_equals_a_loop(rows, weight, temperature):
    cells = torch.tensor(rows, dtype=torch.float32).reshape(len(rows), 2, 3)
    expected = 0.0
    for row in rows:
        for label_weight, (logit, target, probability) in zip((1.0, 2.5), row, strict=True):
            if math.isnan(target):
                continue
            loss, share = cross_entropy(logit, target), 0.0
            if not math.isnan(probability):
                inside = min(max(probability, 1e-6), 1 - 1e-6)
                soft = 1 / (1 + math.exp(-math.log(inside / (1 - inside)) / temperature))
                share = weight
                loss = (1 - share) * loss + share * temperature**2 * cross_entropy(logit / temperature, soft)
            expected += label_weight * loss
    term = teacher_term(cells[..., 0], cells[..., 2], weight, temperature)
    found = masked_loss(label_weights={"b": 2.5})(cells[..., 0], cells[..., 1], term)
    assert found.item() == pytest.approx(expected, rel=2e-4, abs=2e-4)


def test_teacher_term_has_a_zero_gradient_at_the_teacher_and_the_papers_gradient_at_high_temperature():
    teacher = torch.tensor([[-2.0, 0.5, 3.0]])
    for temperature in (1.0, 3.0):
        logits = teacher.clone().requires_grad_()
        teacher_term(logits, torch.sigmoid(teacher), 1.0, temperature).cells_NL.sum().backward()
        assert logits.grad.abs().max() < 1e-4
    logits = (teacher + torch.tensor([[1.0, -2.0, 0.5]])).requires_grad_()
    teacher_term(logits, torch.sigmoid(teacher), 1.0, 200.0).cells_NL.sum().backward()
    # Equation 4 of the paper has 1 / (N T^2) for a softmax of N; the sigmoid is one of 2 logits with half the difference each.
    torch.testing.assert_close(logits.grad, (logits - teacher).detach() / 4, rtol=1e-2, atol=1e-2)


def test_masked_loss_is_that_of_the_target_where_there_is_no_teacher():
    logits, targets = torch.randn(6, 2), torch.rand(6, 2)
    loss = masked_loss()
    nothing = teacher_term(logits, torch.full((6, 2), math.nan), 0.7, 2.0)
    assert torch.equal(loss(logits, targets, nothing), loss(logits, targets))
    alone = teacher_term(logits, targets, 1.0, 1.0)
    torch.testing.assert_close(loss(logits, torch.round(targets), alone), loss(logits, targets), rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=6), st.tuples(st.floats(0.5, 0.99), st.floats(0.5, 0.99)))
def test_fill_unknown_fills_confident_unknown_targets_alone(rows, confidence):
    cells = np.array(rows, np.float32)
    targets, probabilities = cells[..., 1], cells[..., 2]
    filled = fill_unknown(targets, probabilities, np.array(confidence))
    for place in np.ndindex(*targets.shape):
        target, p, bound = targets[place], probabilities[place], np.float32(confidence[place[1]])
        if np.isnan(target) and not np.isnan(p) and (p >= bound or np.float32(1) - p >= bound):
            assert filled[place] == p
        else:
            assert filled[place] == target or np.isnan(filled[place]) == np.isnan(target)
            assert np.isnan(filled[place]) == np.isnan(target)


def train(features, targets, seed, probabilities=None):
    torch.manual_seed(seed)
    model = nn.Linear(features.shape[1], 1)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=60, line_search_fn="strong_wolfe")
    loss, known = masked_loss(ONE), float((~np.isnan(targets)).sum())

    def step():
        optimizer.zero_grad()
        logits = model(features)
        term = None if probabilities is None else teacher_term(logits, probabilities, 0.9, 2.0)
        value = loss(logits, torch.tensor(targets), term) / known + 1e-3 * model.weight.square().sum()
        value.backward()
        return value

    optimizer.step(step)
    return model


def qualities(seed):
    """AUROC of a student alone, with a teacher's confident and with all probabilities, with soft targets, and the best."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(4000, 20)).astype(np.float32)
    logits = features @ (random.normal(size=20) * 0.5).astype(np.float32)
    truth = (random.random(4000) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    inputs, known = torch.tensor(features[:800]), 24
    targets = np.full((800, 1), np.nan, np.float32)
    wrong = random.random(known) < 0.2
    targets[:known, 0] = np.where(wrong, 1 - truth[:known], truth[:known])
    teacher = (1 / (1 + np.exp(-logits[:800])))[:, None].astype(np.float32)
    # A teacher that misleads where it is unsure.
    unsure = np.abs(teacher - 0.5) < 0.4
    misleading = np.where(unsure, 1 - teacher, teacher).astype(np.float32)

    def quality(model):
        with torch.no_grad():
            return auroc(truth[800:], model(torch.tensor(features[800:])).numpy()[:, 0])

    return (
        quality(train(inputs, targets, seed)),
        quality(train(inputs, fill_unknown(targets, misleading, np.array([0.9])), seed)),
        quality(train(inputs, fill_unknown(targets, misleading, np.array([0.5])), seed)),
        quality(train(inputs, targets, seed, torch.tensor(teacher))),
        auroc(truth[800:], logits[800:]),
    )


def test_filling_and_soft_targets_help_where_labels_are_few_and_noisy():
    """The truth is linear; 24 of 800 targets are known, a fifth of them wrong."""
    rows = np.array([qualities(seed) for seed in range(6)])
    alone, confident, everything, soft, best = rows.T
    assert (confident > alone + 0.05).all()
    assert (soft > alone + 0.05).all()
    assert confident.mean() > everything.mean() + 0.03
    assert (best - np.maximum(confident, soft)).max() < 0.03

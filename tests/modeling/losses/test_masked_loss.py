"""Losses against loops in float64, other libraries, and what their papers claim on cases with a known truth."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import nn
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from vigil_data.taxonomy import Taxonomy
from vigil_modeling.losses import Composites, MaskedLoss, TargetCounts, negative_loss, positive_loss
from vigil_modeling.losses.masked_loss import class_balanced_weights
from vigil_modeling.specs import (
    AsymmetricLoss,
    BinaryCrossEntropy,
    FocalLoss,
    GeneralizedCrossEntropy,
    LossSpec,
)

TAXONOMY = Taxonomy.model_validate({"name": "t", "heads": {"x": {"labels": {"a": {}, "b": {}}}, "y": {"labels": {"c": {}}}}})
ONE = Taxonomy.model_validate({"name": "t", "heads": {"x": {"labels": {"a": {}}}}})
WEIGHTS = {"label_weights": {"b": 2.5}, "positive_weights": {"a": 4.0, "c": 0.5}}
KINDS = (
    {"kind": "bce"},
    {"kind": "focal", "gamma": 2.0},
    {"kind": "focal", "gamma": 0.5},
    {"kind": "asymmetric"},
    {"kind": "asymmetric", "gamma_positive": 1.0, "gamma_negative": 0.5, "margin": 0.2},
    {"kind": "asymmetric", "gamma_positive": 1.0, "gamma_negative": 3.0, "margin": 0.0},
    {"kind": "gce"},
    {"kind": "gce", "q": 1.0},
)
CELL = st.tuples(st.floats(-30, 30, width=32), st.one_of(st.just(math.nan), st.floats(0, 1, width=32)))


def spec(**keys):
    return TypeAdapter(LossSpec).validate_python(keys)


def both_losses(kind, logits):
    return positive_loss(kind, logits), negative_loss(kind, logits)


def by_definition(keys, logit):
    """Loss of a positive and of a negative target, in float64, as the papers write it."""
    p, q = 1 / (1 + math.exp(-logit)), 1 / (1 + math.exp(logit))
    match keys["kind"]:
        case "bce":
            return -math.log(p), -math.log(q)
        case "focal":
            gamma = keys["gamma"]
            return -(q**gamma) * math.log(p), -(p**gamma) * math.log(q)
        case "gce":
            power = keys.get("q", 0.7)
            return (1 - p**power) / power, (1 - q**power) / power
    margin = keys.get("margin", 0.05)
    shifted = max(p - margin, 0) if margin else p
    rest = 1 - shifted if margin else q
    positive, negative = keys.get("gamma_positive", 0.0), keys.get("gamma_negative", 4.0)
    return -(q**positive) * math.log(p), -(shifted**negative) * math.log(rest)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(KINDS), st.lists(st.tuples(CELL, CELL, CELL), max_size=6))
def test_masked_loss_equals_a_loop_over_known_targets(keys, rows):
    loss = MaskedLoss(spec(**keys, **WEIGHTS), TAXONOMY)
    cells = torch.tensor(rows, dtype=torch.float32).reshape(len(rows), 3, 2)
    expected = weight = 0.0
    for row in rows:
        for label, (logit, target) in zip("abc", row, strict=True):
            if not math.isnan(target):
                positive, negative = by_definition(keys, logit)
                positive *= WEIGHTS["positive_weights"].get(label, 1.0)
                expected += WEIGHTS["label_weights"].get(label, 1.0) * (target * positive + (1 - target) * negative)
                weight += WEIGHTS["label_weights"].get(label, 1.0)
    assert loss(cells[..., 0], cells[..., 1]).item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert loss.weight(cells[..., 1]).item() == pytest.approx(weight)


@pytest.mark.parametrize("keys", KINDS, ids=str)
def test_masked_loss_gradient_is_finite_and_right(keys):
    logits = torch.tensor([-60.0, -30, -3, -0.2, 0, 1, 4, 30, 60], dtype=torch.float64).requires_grad_()
    for side in range(2):
        (gradient,) = torch.autograd.grad(both_losses(spec(**keys), logits)[side].sum(), logits)
        assert gradient.isfinite().all()
        h = 1e-5
        for at, slope in zip(logits.tolist(), gradient.tolist(), strict=True):
            if abs(at) < 10:
                numeric = (by_definition(keys, at + h)[side] - by_definition(keys, at - h)[side]) / (2 * h)
                assert slope == pytest.approx(numeric, rel=1e-3, abs=1e-6)


def test_positive_and_negative_loss_equals_other_libraries():
    logits, targets = torch.randn(200) * 5, torch.randint(0, 2, (200,)).float()
    focal = torch.where(targets == 1, *both_losses(FocalLoss(gamma=2.0), logits))
    torch.testing.assert_close(focal, sigmoid_focal_loss(logits, targets, alpha=-1, gamma=2.0))
    plain = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    for same in (
        BinaryCrossEntropy(),
        FocalLoss(gamma=0.0),
        AsymmetricLoss(gamma_positive=0.0, gamma_negative=0.0, margin=0.0),
        GeneralizedCrossEntropy(q=1e-5),
    ):
        cells = torch.where(targets == 1, *both_losses(same, logits))
        torch.testing.assert_close(cells, plain, rtol=1e-3, atol=1e-3)
    error = torch.where(targets == 1, *both_losses(GeneralizedCrossEntropy(q=1.0), logits))
    torch.testing.assert_close(error, (torch.sigmoid(logits) - targets).abs())


def test_masked_loss_masking_equals_dropping_rows():
    loss = MaskedLoss(spec(**WEIGHTS, kind="bce"), TAXONOMY)
    logits, targets = torch.randn(6, 3), torch.rand(6, 3)
    kept = torch.tensor([True, False, True, True, False, True])
    masked = torch.where(kept.unsqueeze(1), targets, torch.nan)
    torch.testing.assert_close(loss(logits, masked), loss(logits[kept], targets[kept]))


def test_masked_loss_gradient_is_zero_at_unknown_targets():
    loss = MaskedLoss(spec(**WEIGHTS, kind="bce"), TAXONOMY)
    logits = torch.randn(2, 3, requires_grad=True)
    loss(logits, torch.tensor([[1.0, torch.nan, 0.0], [torch.nan] * 3])).backward()
    assert (logits.grad != 0).tolist() == [[True, False, True], [False] * 3]
    for targets in (torch.full((2, 3), torch.nan), torch.empty(0, 3)):
        empty = torch.randn(targets.shape, requires_grad=True)
        total = loss(empty, targets)
        total.backward()
        assert total.item() == loss.weight(targets).item() == 0
        assert (empty.grad == 0).all()


def test_masked_loss_ignores_infinite_logits_of_unknown_targets():
    loss = MaskedLoss(BinaryCrossEntropy(), TAXONOMY)
    logits = torch.tensor([[0.0, torch.inf, 0.0]], requires_grad=True)
    total = loss(logits, torch.tensor([[1.0, torch.nan, 1.0]]))
    total.backward()
    assert total.item() == pytest.approx(2 * math.log(2))
    assert logits.grad.isfinite().all()


def test_masked_loss_sums_half_precision_logits_in_float32():
    loss = MaskedLoss(BinaryCrossEntropy(), TAXONOMY)
    logits, targets = torch.randn(300, 3).bfloat16(), torch.rand(300, 3)
    assert loss(logits, targets).dtype == torch.float32
    torch.testing.assert_close(loss(logits, targets), loss(logits.float(), targets))


def test_masked_loss_needs_counts():
    for keys in ({"class_balance": 0.9}, {"logit_adjustment": 1.0}):
        with pytest.raises(ValueError, match="need the counts of the training targets"):
            MaskedLoss(BinaryCrossEntropy(**keys), TAXONOMY)


def test_class_balanced_weights_are_those_of_the_paper():
    counts = TargetCounts(np.array([10, 0, 1]), np.array([990, 5, 1]))
    positive_L, negative_L = class_balanced_weights(counts, 0.99)
    few, many = (1 - 0.99) / (1 - 0.99**10), (1 - 0.99) / (1 - 0.99**990)
    np.testing.assert_allclose(positive_L, [2 * few / (few + many), 1, 1])
    np.testing.assert_allclose(negative_L, [2 * many / (few + many), 1, 1])
    frequencies = class_balanced_weights(counts, 1 - 1e-9)
    np.testing.assert_allclose([part[0] for part in frequencies], [2 * 0.99, 2 * 0.01], rtol=1e-5)


def fit(loss, features_NF, targets_N, hidden=0, steps=200, lr=0.1):
    """Train a linear model or a small network, and return the function from features to logits."""
    torch.manual_seed(0)
    inputs = features_NF.shape[1]
    model = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 1)) if hidden else nn.Linear(inputs, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    targets_N1 = targets_N[:, None]
    for _ in range(steps):
        optimizer.zero_grad()
        (loss(model(features_NF), targets_N1) / loss.weight(targets_N1)).backward()
        optimizer.step()
    return lambda x_NF: model(x_NF).detach()[:, 0]


def gaussians(positives, negatives, seed, shift=1.5, width=2):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(positives + negatives, width, generator=generator)
    y = torch.cat([torch.ones(positives), torch.zeros(negatives)])
    x[:, 0] += shift * y
    return x, y


@pytest.mark.usefixtures("one_thread")
def test_logit_adjustment_decides_as_for_balanced_classes():
    """The best balanced error of two Gaussians is at the middle between them, wherever the prior lies."""
    x, y = gaussians(50, 4950, 1)
    counts = TargetCounts(np.array([50]), np.array([4950]))
    plain = fit(MaskedLoss(BinaryCrossEntropy(), ONE), x, y)
    adjusted = fit(MaskedLoss(BinaryCrossEntropy(logit_adjustment=1.0), ONE, counts), x, y)
    test, truth = gaussians(5000, 5000, 2)
    bayes = 0.5 * math.erfc(0.75 / math.sqrt(2))
    error = {name: ((model(test) >= 0) != (truth == 1)).float().mean().item() for name, model in (("p", plain), ("a", adjusted))}
    assert error["a"] == pytest.approx(bayes, abs=0.02)
    assert error["p"] > bayes + 0.15


@pytest.mark.usefixtures("one_thread")
def test_generalized_cross_entropy_resists_wrong_targets():
    """A network that can memorise 40 % flipped targets reaches a higher accuracy with it than with cross-entropy."""
    x, y = gaussians(150, 150, 3, shift=3.0, width=10)
    generator = torch.Generator().manual_seed(4)
    noisy = torch.where(torch.rand(300, generator=generator) < 0.4, 1 - y, y)
    test, truth = gaussians(2000, 2000, 5, shift=3.0, width=10)
    accuracy = {}
    for kind in (BinaryCrossEntropy(), GeneralizedCrossEntropy(q=0.9)):
        model = fit(MaskedLoss(kind, ONE), x, noisy, hidden=64, steps=300, lr=0.02)
        accuracy[kind.kind] = ((model(test) >= 0) == (truth == 1)).float().mean().item()
    assert accuracy["gce"] > accuracy["bce"] + 0.05


def test_asymmetric_and_focal_loss_move_the_gradient_to_hard_targets():
    """Ratio of the gradient of a hard negative to that of an easy one, which the papers raise; positives keep theirs in ASL."""
    logits = torch.tensor([-4.0, 1.0], requires_grad=True)
    ratio = {}
    for kind in (BinaryCrossEntropy(), FocalLoss(), AsymmetricLoss()):
        (gradient,) = torch.autograd.grad(negative_loss(kind, logits).sum(), logits)
        ratio[kind.kind] = float(gradient[0] / gradient[1])
    assert ratio["bce"] > 10 * ratio["focal"] > 0
    assert ratio["asymmetric"] == 0  # Below the margin, an easy negative has no gradient.
    positive = [positive_loss(kind, logits) for kind in (BinaryCrossEntropy(), AsymmetricLoss())]
    torch.testing.assert_close(*positive)


@pytest.mark.usefixtures("one_thread")
def test_non_negative_risk_finds_what_unlabelled_items_hide():
    """A source lists 100 positives; of its 1,000 other items, 40 % are positive (Kiryo et al. 2017, section 4, in small)."""
    listed, _ = gaussians(100, 0, 6, shift=2.5, width=5)
    hidden, _ = gaussians(400, 600, 7, shift=2.5, width=5)
    x, y = torch.cat([listed, hidden]), torch.cat([torch.ones(100), torch.full((1000,), torch.nan)])
    test, truth = gaussians(2000, 3000, 8, shift=2.5, width=5)
    as_negatives = torch.nan_to_num(y)

    def accuracy(loss, targets):
        return ((fit(loss, x, targets, hidden=16, steps=200, lr=0.01)(test) >= 0) == (truth == 1)).float().mean().item()

    naive = accuracy(MaskedLoss(BinaryCrossEntropy(), ONE), as_negatives)
    found = accuracy(MaskedLoss(BinaryCrossEntropy(unlabeled={"a": 0.4}), ONE), y)
    assert found > 0.8
    assert naive < 0.65  # It calls nearly everything negative.


def test_non_negative_risk_equals_its_definition():
    loss = MaskedLoss(BinaryCrossEntropy(unlabeled={"b": 0.3}, label_weights={"b": 2.0}), TAXONOMY)
    logits = torch.tensor([[0.0, 2.0, 1.0], [0.0, -1.0, 1.0], [0.0, 0.5, 1.0], [0.0, 1.5, 1.0]], requires_grad=True)
    targets = torch.full((4, 3), torch.nan)
    targets[0, 1], targets[3, 1] = 1.0, 0.0
    unlabelled = np.mean([math.log1p(math.exp(x)) for x in (-1.0, 0.5)])
    negative = unlabelled - 0.3 * math.log1p(math.exp(2.0))
    expected = 3 * (0.3 * math.log1p(math.exp(-2.0)) + negative) + math.log1p(math.exp(1.5))
    total = loss(logits, targets)
    assert negative > 0
    assert total.item() == pytest.approx(2 * expected, rel=1e-5)
    assert loss.weight(targets).item() == 2 * 4

    # Positives that look much more negative than the unlabelled items: the risk is cut at 0 and its gradient reversed.
    logits = torch.tensor([[0.0, 9.0, 1.0], [0.0, -3.0, 1.0]], requires_grad=True)
    targets = torch.tensor([[torch.nan, 1.0, torch.nan], [torch.nan] * 3])
    total = loss(logits, targets)
    assert total.item() == pytest.approx(2 * 2 * 0.3 * math.log1p(math.exp(-9.0)), rel=0.01)
    total.backward()
    assert logits.grad[1, 1] < 0  # Descent now raises the unlabelled item's logit.
    assert (logits.grad[:, [0, 2]] == 0).all()


def test_non_negative_risk_without_unlabelled_items_in_the_batch():
    loss = MaskedLoss(BinaryCrossEntropy(unlabeled={"a": 0.3}), ONE)
    logits = torch.tensor([[1.0]], requires_grad=True)
    total = loss(logits, torch.ones(1, 1))
    assert total.item() == pytest.approx(0.3 * math.log1p(math.exp(-1.0)), rel=1e-5)
    assert loss(torch.zeros(0, 1), torch.zeros(0, 1)).item() == 0


@pytest.mark.parametrize("keys", KINDS)
def test_masked_loss_of_composites_is_that_of_a_label_or_the_mean_of_several(keys):
    """One clause: the label's own loss, in value and gradient. Several: float64 by definition, with mean weights."""
    counts = TargetCounts(np.array([10, 40, 5]), np.array([90, 10, 60]))
    loss = MaskedLoss(spec(**keys, **WEIGHTS, class_balance=0.99, logit_adjustment=0.5), TAXONOMY, counts)
    logits_NL = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets_NL = torch.tensor([[1, 0, 0.3], [0, 1, 1], [0.5, 0, 1], [1, 1, 0]])
    single = Composites(logits_NL.flatten(), targets_NL.flatten(), torch.eye(3, dtype=torch.bool).repeat(4, 1))
    own, of_composites = loss(logits_NL, targets_NL), loss.of_composites(single)
    torch.testing.assert_close(of_composites, own)
    torch.testing.assert_close(*(torch.autograd.grad(total, logits_NL)[0] for total in (of_composites, own)))

    several = loss.of_composites(Composites(torch.tensor([0.7]), torch.tensor([0.25]), torch.tensor([[True, False, True]])))
    weight, positive, negative, adjustment = (
        float(values_L.double()[[0, 2]].mean())
        for values_L in (loss.label_weight_L, loss.positive_weight_L, loss.negative_weight_L, loss.adjustment_L)
    )
    of_positive, of_negative = by_definition(keys, 0.7 + adjustment)
    expected = weight * (0.25 * positive * of_positive + 0.75 * negative * of_negative)
    assert float(several) == pytest.approx(expected, rel=1e-5)


def test_masked_loss_of_no_composites_is_zero_with_zero_gradients():
    logits_Q = torch.zeros(0, requires_grad=True)
    loss = MaskedLoss(spec(kind="bce"), TAXONOMY)
    loss.of_composites(Composites(logits_Q, torch.zeros(0), torch.zeros(0, 3, dtype=torch.bool))).backward()
    assert logits_Q.grad is not None

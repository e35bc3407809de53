"""Contrastive losses: the formulas of their papers, in float64 loops."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from vigil_modeling.losses.contrastive import ContrastiveLoss
from vigil_modeling.specs import Contrastive


def siglip(left, right, scale, bias):
    """Zhai et al. 2023, algorithm 1, without its division by the number of items."""
    total = 0.0
    for i in range(len(left)):
        for j in range(len(right)):
            sign = 1 if i == j else -1
            total += math.log1p(math.exp(-sign * (scale * float(left[i] @ right[j]) + bias)))
    return total


def clip(left, right, scale, _):
    """Radford et al. 2021, figure 3, without its division by the number of items."""
    total = 0.0
    for queries, keys in ((left, right), (right, left)):
        for i in range(len(queries)):
            scores = [scale * float(queries[i] @ key) for key in keys]
            total += (math.log(sum(math.exp(score) for score in scores)) - scores[i]) / 2
    return total


@pytest.fixture
def embedded():
    embeddings = normalize(torch.randn(3, 7, 4, dtype=torch.float64), dim=-1)
    present = torch.tensor([[1, 1, 1, 1, 1, 0, 1], [1, 1, 1, 1, 0, 1, 0], [0, 1, 1, 0, 0, 1, 0]], dtype=torch.bool)
    return embeddings * present[:, :, None], present


@pytest.mark.parametrize(("kind", "formula"), [("siglip", siglip), ("clip", clip)])
def test_contrastive_loss_is_that_of_the_paper_over_every_pair_of_modalities(kind, formula, embedded):
    loss = ContrastiveLoss(Contrastive(loss=kind)).double()
    scale = {"siglip": 10.0, "clip": 1 / 0.07}[kind]
    embeddings, present = embedded
    total = pairs = 0
    for left, right in ((0, 1), (0, 2), (1, 2)):
        both = present[left] & present[right]
        total += formula(embeddings[left, both], embeddings[right, both], scale, -10.0)
        pairs += int(both.sum())
    assert loss(embeddings, present).item() == pytest.approx(total / pairs, rel=1e-6)  # parameters begin in float32


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_contrastive_loss_has_right_gradients(kind, embedded):
    loss = ContrastiveLoss(Contrastive(loss=kind)).double()
    embeddings, present = embedded
    assert torch.autograd.gradcheck(
        lambda e, *_: loss(e, present), (embeddings.clone().requires_grad_(), *loss.parameters()), atol=1e-6
    )


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_contrastive_loss_without_a_pair_is_zero_with_gradients(kind, embedded):
    loss = ContrastiveLoss(Contrastive(loss=kind)).double()
    embeddings = embedded[0].clone().requires_grad_()
    value = loss(embeddings, torch.eye(3, 7, dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    assert embeddings.grad is not None
    assert all(parameter.grad is not None and float(parameter.grad) == 0 for parameter in loss.parameters())


def test_contrastive_loss_of_clip_limits_its_scale(embedded):
    loss = ContrastiveLoss(Contrastive(loss="clip")).double()
    with torch.no_grad():
        loss.log_scale.fill_(9.0)
    expected = clip(embedded[0][0], embedded[0][0], 100.0, None) / 7
    found = loss(torch.stack([embedded[0][0]] * 2), torch.ones(2, 7, dtype=torch.bool))
    assert found.item() == pytest.approx(expected, rel=1e-6)

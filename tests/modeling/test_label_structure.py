"""Hierarchies and ranks against their definitions in float64, and on cases with a known truth."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vigil_data.taxonomy import Taxonomy
from vigil_modeling.label_structure import LabelStructure
from vigil_modeling.losses import MaskedLoss, counted_targets
from vigil_modeling.specs import BinaryCrossEntropy, ModelSpec

TAXONOMY = Taxonomy.model_validate(
    {
        "name": "t",
        "heads": {
            "tree": {"labels": {"child": {"parent": "mid"}, "mid": {"parent": "top"}, "top": {}, "other": {"parent": "top"}}},
            "level": {"labels": {"mild": {}, "hard": {}, "worst": {}}},
        },
    }
)
CHILD, MID, TOP, OTHER, MILD, HARD, WORST = range(7)
PARENTS = {CHILD: MID, MID: TOP, OTHER: TOP}
SPEC = ModelSpec.model_validate(
    {"encoders": {"text": {"weights": {"kind": "random"}}}, "hierarchy": True, "ordinal_heads": ["level"]}
)
BOTH = LabelStructure.of(SPEC, TAXONOMY)
LOGITS = st.lists(st.lists(st.floats(-200, 200, width=32), min_size=7, max_size=7), max_size=4)
TARGETS = st.lists(st.sampled_from([0.0, 1.0, math.nan]), min_size=7, max_size=7)


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def softplus(x):
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def test_label_structure_without_dependencies_changes_nothing():
    plain = LabelStructure.of(SPEC.model_copy(update={"hierarchy": False, "ordinal_heads": ()}), TAXONOMY)
    raw = torch.randn(3, 7)
    assert plain.constrain(raw) is raw
    assert plain.loss_logits(raw, torch.ones(3, 7)) == (raw, raw)


@settings(deadline=None, max_examples=60)
@given(LOGITS)
def test_constrain_equals_its_definition_and_keeps_the_order(rows):
    raw = torch.tensor(rows, dtype=torch.float32).reshape(len(rows), 7)
    logits = BOTH.constrain(raw)
    assert logits.isfinite().all()
    for child, parent in PARENTS.items():
        assert (logits[:, child] <= logits[:, parent]).all()
    assert (logits[:, HARD] <= logits[:, MILD]).all()
    assert (logits[:, WORST] <= logits[:, HARD]).all()
    for given_row, found in zip(rows, logits.tolist(), strict=True):
        assert found[CHILD] == given_row[CHILD]
        assert found[MID] == max(given_row[CHILD], given_row[MID])
        assert found[TOP] == max(given_row[:4])
        product = 1.0
        for rank in (MILD, HARD, WORST):
            product *= sigmoid(given_row[rank])
            assert sigmoid(found[rank]) == pytest.approx(product, rel=1e-4, abs=1e-30)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-30, 30, width=32), min_size=7, max_size=7), TARGETS)
def test_masked_loss_with_structure_equals_the_papers_definitions(row, targets):
    """C-HMCNN's MCLoss (equation 4) over the tree, CORN's conditional tasks (equation 5) over the ranks."""
    known = {i: t for i, t in enumerate(targets) if not math.isnan(t)}
    expected, count = 0.0, 0
    below = {CHILD: [CHILD], MID: [MID, CHILD], TOP: [TOP, MID, OTHER, CHILD], OTHER: [OTHER]}
    for label, tree in below.items():
        if known.get(label) == 1:
            expected += softplus(-max(row[i] for i in tree if i == label or known.get(i) == 1))
        elif label in known:
            expected += softplus(max(row[i] for i in tree))
        count += label in known
    for rank, lower in ((MILD, None), (HARD, MILD), (WORST, HARD)):
        reached = lower is None or known.get(lower) == 1 or known.get(rank) == 1
        if rank in known and reached:
            expected += softplus(-row[rank] if known[rank] == 1 else row[rank])
            count += 1
    loss = MaskedLoss(BinaryCrossEntropy(), TAXONOMY, structure=BOTH)
    raw, wanted = torch.tensor([row]), torch.tensor([targets])
    assert loss(raw, wanted).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert loss.weight(wanted).item() == count
    targets_NL = np.array([targets])
    assert counted_targets(targets_NL, ~np.isnan(targets_NL), np.zeros(7, bool), BOTH).sum() == count


def test_masked_loss_of_a_hierarchy_never_raises_a_label_that_is_not_positive():
    raw = torch.tensor([[3.0, 0.0, -1.0, 2.0, 0.0, 0.0, 0.0]], requires_grad=True)
    targets = torch.full((1, 7), torch.nan)
    targets[0, TOP], targets[0, OTHER] = 1.0, 0.0
    MaskedLoss(BinaryCrossEntropy(), TAXONOMY, structure=BOTH)(raw, targets).backward()
    assert raw.grad[0, TOP] < 0 < raw.grad[0, OTHER]
    assert raw.grad[0, CHILD] == raw.grad[0, MID] == 0


def _fit(structure, x, y, width=8):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(x.shape[1], width), nn.Tanh(), nn.Linear(width, 7))
    loss, optimizer = MaskedLoss(BinaryCrossEntropy(), TAXONOMY, structure=structure), torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(250):
        optimizer.zero_grad()
        (loss(model(x), y) / loss.weight(y)).backward()
        optimizer.step()
    return lambda given: structure.constrain(model(given)).detach()


@pytest.mark.usefixtures("one_thread")
def test_ordinal_head_learns_ranks():
    """Four ranks of a noisy latent: predictions are rank-consistent, and as close to the truth as the best thresholds of x."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3000, 2, generator=generator)
    rank = (2 * x[:, 0] + 0.3 * torch.randn(3000, generator=generator)).div(1.0).add(1.5).clamp(0, 3).floor()
    y = torch.full((3000, 7), torch.nan)
    for step, label in enumerate((MILD, HARD, WORST), start=1):
        y[:, label] = (rank >= step).float()
    predict = _fit(LabelStructure(ordinal=BOTH.ordinal), x[:2000], y[:2000])
    flagged = predict(x[2000:])[:, [MILD, HARD, WORST]] >= 0
    best = (2 * x[2000:, 0] + 1.5).clamp(0, 3).floor()
    assert (flagged.int().diff(dim=1) <= 0).all()
    error, least = ((found - rank[2000:]).abs().mean() for found in (flagged.sum(1), best))
    assert error < least + 0.05


@pytest.mark.usefixtures("one_thread")
def test_hierarchy_makes_predictions_coherent():
    """Label child lies inside mid, which lies inside top: independent outputs contradict each other near the borders."""
    generator = torch.Generator().manual_seed(2)
    x = 2 * torch.rand(900, 2, generator=generator) - 1
    y = torch.full((900, 7), torch.nan)
    for label, radius in ((CHILD, 0.69), (MID, 0.695), (TOP, 0.7)):
        known = torch.rand(900, generator=generator) < 0.5
        wrong = torch.rand(900, generator=generator) < 0.2
        y[known, label] = ((x.norm(dim=1) < radius) ^ wrong)[known].float()
    grid = torch.cartesian_prod(torch.linspace(-1, 1, 60), torch.linspace(-1, 1, 60))
    truth = grid.norm(dim=1) < 0.7

    def contradictions(logits):
        flagged = logits >= 0
        return int((flagged[:, CHILD] & ~flagged[:, MID]).sum() + (flagged[:, MID] & ~flagged[:, TOP]).sum())

    free, coherent = _fit(LabelStructure(), x, y)(grid), _fit(LabelStructure(subtrees=BOTH.subtrees), x, y)(grid)
    assert contradictions(free) > 5
    assert contradictions(coherent) == 0
    assert ((coherent[:, TOP] >= 0) == truth).float().mean() > 0.85

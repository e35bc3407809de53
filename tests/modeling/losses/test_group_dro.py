"""Group DRO: against the algorithm as the paper writes it, on several ranks, and on a case with a spurious feature."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from vigil_data.taxonomy import Taxonomy
from vigil_modeling.losses import GroupDRO, MaskedLoss
from vigil_modeling.losses.group_dro import updated_weights
from vigil_modeling.specs import BinaryCrossEntropy

TAXONOMY = Taxonomy.model_validate({"name": "t", "heads": {"x": {"labels": {"a": {}, "b": {}}}}})
ONE = Taxonomy.model_validate({"name": "t", "heads": {"x": {"labels": {"a": {}}}}})


def alone(values):
    return np.array([values])


def cells(logits, targets):
    """Binary cross-entropy in float64 by its definition, NaN for unknown targets."""
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    return -(targets * np.log(p) + (1 - targets) * np.log(1 - p))


def make_batch(seed, count=24):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 2, generator=random)
    targets = torch.randint(0, 2, (count, 2), generator=random).float()
    targets[torch.rand(count, 2, generator=random) < 0.3] = float("nan")
    return logits, targets, torch.randint(0, 3, (count,), generator=random)


def test_group_dro_is_the_papers_algorithm():
    """Algorithm 1 with the means of the batch's groups; group 3 never occurs, group 1 is absent from one batch."""
    dro = GroupDRO(MaskedLoss(BinaryCrossEntropy(), TAXONOMY), 0.7, 4, alone)
    q = np.full(4, 0.25)
    for step in range(5):
        logits, targets, groups = make_batch(step)
        if step == 2:
            groups[groups == 1] = 0
        loss = dro(logits, targets, groups)
        cells_NL = cells(logits, targets.double().numpy())
        means = [np.nanmean(cells_NL[(groups == g).numpy()]) if (groups == g).any() else 0.0 for g in range(4)]
        q = q * np.exp(0.7 * np.array(means))
        q = q / q.sum()
        assert loss.item() == pytest.approx(float(q @ means), rel=1e-5)
        np.testing.assert_allclose(dro.weights_G, q, rtol=1e-6)


def test_group_dro_with_one_group_is_the_mean_loss():
    loss = MaskedLoss(BinaryCrossEntropy(label_weights={"a": 3.0}), TAXONOMY)
    logits, targets, _ = make_batch(0)
    found = GroupDRO(loss, 1.0, 1, alone)(logits, targets, torch.zeros(24, dtype=torch.int64))
    assert found.item() == pytest.approx((loss(logits, targets) / loss.weight(targets)).item(), rel=1e-6)


def test_group_dro_on_ranks_has_the_gradient_and_weights_of_one_process():
    logits, targets, groups = make_batch(1)
    parts = [slice(0, 5), slice(5, 24)]  # unequal, and group 0 is on the second rank alone
    groups[parts[0]] = groups[parts[0]].clamp(min=1)
    targets[0] = float("nan")
    sent: list = [None, None]
    barrier = threading.Barrier(2)

    def rank(number):
        def gather(values):
            sent[number] = values
            barrier.wait(timeout=20)
            gathered = np.array(sent)
            barrier.wait(timeout=20)
            return gathered

        own = logits[parts[number]].clone().requires_grad_()
        dro = GroupDRO(MaskedLoss(BinaryCrossEntropy(), TAXONOMY), 0.5, 3, gather)
        for _ in range(3):
            own.grad = None
            dro(own, targets[parts[number]], groups[parts[number]]).backward()
        return own.grad, dro.weights_G

    with ThreadPoolExecutor(2) as pool:
        (first, left), (second, right) = pool.map(rank, range(2))
    whole = logits.clone().requires_grad_()
    dro = GroupDRO(MaskedLoss(BinaryCrossEntropy(), TAXONOMY), 0.5, 3, alone)
    for _ in range(3):
        whole.grad = None
        dro(whole, targets, groups).backward()
    assert np.array_equal(left, right)
    np.testing.assert_allclose(left, dro.weights_G, rtol=1e-6)
    np.testing.assert_allclose(torch.cat([first, second]).numpy() / 2, whole.grad.numpy(), rtol=1e-5, atol=1e-8)


def test_group_dro_ignores_an_empty_batch_and_a_loss_that_is_not_finite():
    dro = GroupDRO(MaskedLoss(BinaryCrossEntropy(), ONE), 1.0, 2, alone)
    empty = dro(torch.zeros(0, 1, requires_grad=True), torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64))
    assert empty.item() == 0
    logits = torch.tensor([[float("nan")], [1.0]])
    assert torch.isnan(dro(logits, torch.ones(2, 1), torch.tensor([0, 1])))
    assert dro.weights_G.tolist() == [0.5, 0.5]


def test_updated_weights_do_not_overflow():
    found = updated_weights(np.array([0.5, 0.5]), np.array([1e4, 1e4 - 1]), 1.0)
    np.testing.assert_allclose(found, [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))])


@pytest.mark.parametrize("seed", range(2))
def test_group_dro_raises_the_accuracy_of_the_worst_group_above_that_of_the_mean_loss(seed):
    """A spurious feature agrees with the label in 95 % of the items; the core feature alone is right in every group.

    The best linear classifier of the mean loss uses both, and fails where they disagree; that of the worst group uses the core
    feature alone, whose accuracy is Phi(1) = .841 in every group (Sagawa et al. 2020, section 3.1).
    """
    erm, robust = (fit(seed, step_size) for step_size in (None, 0.05))
    assert min(erm) < 0.6
    assert min(robust) > 0.79
    assert max(robust) - min(robust) < 0.08


def draw(count, random, agreement):
    y = torch.randint(0, 2, (count,), generator=random)
    a = torch.where(torch.rand(count, generator=random) < agreement, y, 1 - y)
    core = 2.0 * y - 1 + torch.randn(count, generator=random)
    spurious = 2.0 * a - 1 + 0.5 * torch.randn(count, generator=random)
    return torch.stack([core, spurious], 1), y[:, None].float(), 2 * y + a


def fit(seed, step_size):
    """Train a linear classifier; return its accuracy in each group."""
    random = torch.Generator().manual_seed(seed)
    x, y, groups = draw(4000, random, 0.95)
    model = nn.Linear(2, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    loss = MaskedLoss(BinaryCrossEntropy(), ONE)
    dro = GroupDRO(loss, step_size, 4, alone) if step_size else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(400):
        rows = torch.randint(0, 4000, (256,), generator=random)
        raw = model(x[rows])
        value = dro(raw, y[rows], groups[rows]) if dro else loss(raw, y[rows]) / len(rows)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    x, y, groups = draw(8000, random, 0.5)
    right = ((model(x) > 0).float() == y)[:, 0]
    return [right[groups == group].float().mean().item() for group in range(4)]

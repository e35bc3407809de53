"""Loss of spans against a loop over tokens in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vigil_modeling.losses import span_loss


def by_hand(logits, targets, item) -> float:
    cells: dict[tuple[int, int], list[float]] = {}
    for s in range(logits.shape[0]):
        for t in range(logits.shape[1]):
            for k in range(logits.shape[2]):
                x, y = float(logits[s, t, k]), float(targets[s, t, k])
                if not math.isnan(x) and not math.isnan(y):
                    loss = math.log1p(math.exp(-abs(x))) + max(x, 0) - x * y
                    cells.setdefault((int(item[s]), k), []).append(loss)
    return sum(sum(of) / len(of) for of in cells.values())


@given(seed=st.integers(0, 999), segments=st.integers(1, 5), tokens=st.integers(1, 6), labels=st.integers(1, 3))
def test_span_loss_is_the_mean_of_each_items_known_tokens(seed, segments, tokens, labels):
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(segments, tokens, labels, generator=random)
    targets = torch.randint(0, 2, logits.shape, generator=random).float()
    targets[torch.rand(logits.shape, generator=random) < 0.4] = torch.nan
    unread = torch.rand(logits.shape, generator=random) < 0.2
    item = torch.randint(0, 3, (segments,), generator=random).sort().values
    leaf = logits.clone().requires_grad_()
    loss = span_loss(leaf.masked_fill(unread, torch.nan), targets, item)
    assert loss.item() == pytest.approx(by_hand(logits.masked_fill(unread, torch.nan), targets, item), rel=1e-5, abs=1e-6)
    loss.backward()
    assert leaf.grad.isfinite().all()
    assert (leaf.grad[targets.isnan() | unread] == 0).all()


def test_span_loss_of_nothing_known_is_zero_with_zero_gradients():
    leaf = torch.randn(2, 3, 1, requires_grad=True)
    loss = span_loss(leaf, torch.full((2, 3, 1), torch.nan), torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == 0
    assert (leaf.grad == 0).all()

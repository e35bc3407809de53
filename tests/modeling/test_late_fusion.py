"""Late fusion against a loop over items in float64: experts of the modalities that an item has, weighted log odds."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.items import MODALITIES
from vigil_modeling.fusion import Alone, Experts, LogOpinionPool

WIDTH, LABELS = 8, 3
ITEMS = st.lists(st.tuples(*[st.integers(0, 2)] * len(MODALITIES)), max_size=6)


@pytest.fixture(scope="module")
def parts(taxonomy):
    torch.manual_seed(0)
    experts, pool = Experts(MODALITIES, taxonomy, WIDTH, 0.3).eval(), LogOpinionPool(MODALITIES, LABELS).eval()
    with torch.no_grad():
        for parameter in [*experts.parameters(), *pool.parameters()]:
            parameter.add_(0.3 * torch.randn_like(parameter))
    return experts, pool


def pack(counts, seed=0):
    """Tokens, rows of their items, rows of the items, and tokens of each modality."""
    counts = torch.tensor(counts, dtype=torch.int64).reshape(-1, len(MODALITIES))
    rows = torch.arange(len(counts))
    item = torch.cat([rows.repeat_interleave(count) for count in counts.T])
    return torch.randn(len(item), WIDTH, generator=torch.Generator().manual_seed(seed)), item, rows, counts.sum(0).tolist()


@settings(deadline=None, max_examples=25)
@given(counts=ITEMS, seed=st.integers(0, 99))
def test_log_opinion_pool_equals_a_float64_loop_over_items(parts, counts, seed):
    experts, pool = parts
    tokens, item, rows, sizes = pack(counts, seed)
    with torch.no_grad():
        alone = experts(tokens, item, rows, sizes)
        raw, evidence = pool(alone, item, sizes)
        assert raw.shape == (len(counts), LABELS)
        assert alone.present_MN.T.tolist() == [[n > 0 for n in count] for count in counts]
        weight, prior = torch.stack([each() for each in pool.log_weights.values()]).double().exp(), pool.prior_L.double()
        start = np.concatenate([[0], np.cumsum(sizes)])
        for n, count in enumerate(counts):
            for label in range(LABELS):
                logit, total = float(prior[label]), 0.0
                for m in range(len(MODALITIES)):
                    if count[m]:
                        # The expert of a modality on this item alone.
                        own = tokens[start[m] : start[m + 1]][item[start[m] : start[m + 1]] == n]
                        z, _ = experts[MODALITIES[m]](own, torch.zeros(len(own), dtype=torch.int64), torch.arange(1))
                        logit += float(weight[m, label]) * (float(z[0, label]) - float(prior[label]))
                        total += float(weight[m, label])
                assert raw[n, label].item() == pytest.approx(logit, abs=1e-4)
                for m in range(len(MODALITIES)):
                    mine = (item == n) & (torch.arange(len(item)) >= start[m]) & (torch.arange(len(item)) < start[m + 1])
                    within = alone.evidence_TL[mine, label].sum().item()
                    due = within * float(weight[m, label]) / (total + abs(1 - total)) if count[m] else 0
                    assert evidence[mine, label].sum().item() == pytest.approx(due, abs=1e-5)
    assert (evidence >= 0).all()


def test_log_opinion_pool_is_the_posterior_of_independent_modalities(taxonomy):
    """Two experts that know their posteriors, inputs independent given the label: weights of 1 give the joint posterior."""
    generator = np.random.default_rng(0)
    prior, pool = 0.2, LogOpinionPool(("text", "image"), 1)
    torch.nn.init.constant_(pool.prior_L, math.log(prior / (1 - prior)))
    likelihood = generator.uniform(0.05, 0.95, (2, 50, 2))  # p(x_m | y) of each item
    joint = prior * likelihood[..., 1].prod(0) / (prior * likelihood[..., 1].prod(0) + (1 - prior) * likelihood[..., 0].prod(0))
    alone = math.log(prior / (1 - prior)) + np.log(likelihood[..., 1] / likelihood[..., 0])
    given = Alone(torch.tensor(alone, dtype=torch.float32)[..., None], torch.ones(2, 50, dtype=torch.bool), torch.zeros(0, 1))
    raw, _ = pool(given, torch.zeros(0, dtype=torch.int64), [0, 0])
    np.testing.assert_allclose(torch.sigmoid(raw[:, 0]).detach(), joint, rtol=1e-4)

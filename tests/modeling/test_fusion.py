"""Packed fusion against a loop over items in float64, and the properties that packing must not break."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.items import MODALITIES
from vigil_modeling.fusion import AttentionLayout, Fusion, build_fusion, softmax_by_item
from vigil_modeling.specs import BottleneckFusion, GatedFusion, MeanFusion, TransformerFusion

WIDTH, LABELS = 8, 3
SPECS = [
    MeanFusion(),
    GatedFusion(hidden=5),
    TransformerFusion(layers=0, heads=2),
    TransformerFusion(layers=2, heads=4),
    BottleneckFusion(layers=3, fusion_layer=1, bottlenecks=2, heads=4),
    BottleneckFusion(layers=2, bottlenecks=1, heads=2),
]
ITEMS = st.lists(st.tuples(*[st.integers(0, 2)] * len(MODALITIES)), max_size=6)
"""Tokens of each modality of each item."""


def make(spec, seed=0) -> Fusion:
    torch.manual_seed(seed)
    fusion = build_fusion(spec, WIDTH, LABELS, 0.3, MODALITIES).eval()
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return fusion


def pack(counts, seed=0):
    """Tokens, rows of their items, rows of the items, and tokens of each modality; modality by modality, items in order."""
    counts = torch.tensor([n if isinstance(n, tuple) else (n, 0, 0) for n in counts], dtype=torch.int64).reshape(
        -1, len(MODALITIES)
    )
    rows = torch.arange(len(counts))
    item = torch.cat([rows.repeat_interleave(count) for count in counts.T])
    tokens = torch.randn(len(item), WIDTH, generator=torch.Generator().manual_seed(seed))
    return tokens, item, rows, counts.sum(0).tolist()


def norm(module, x):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + module.eps) * array(module.weight) + array(module.bias)


def array(tensor):
    return tensor.detach().numpy().astype(np.float64)


def linear(module, x):
    return x @ array(module.weight).T + (0 if module.bias is None else array(module.bias))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def feedforward(module, x):
    return linear(module[3], gelu(linear(module[1], norm(module[0], x))))


def attend(block, x):
    """A pre-norm layer of self-attention among all rows of ``x``."""
    size = WIDTH // block.heads
    query, key, value = np.split(linear(block.query_key_value, norm(block.norm, x)), 3, axis=1)
    mixed = np.empty_like(x)
    for head in (slice(h * size, (h + 1) * size) for h in range(block.heads)):
        for t in range(len(x)):
            mixed[t, head] = softmax(key[:, head] @ query[t, head] / math.sqrt(size)) @ value[:, head]
    x = x + linear(block.out[0], mixed)
    return x + feedforward(block.feedforward, x)


def read_out(queries, x):
    size = WIDTH // queries.heads
    key, value = np.split(linear(queries.key_value, norm(queries.norm, x)), 2, axis=1)
    query = linear(queries.query, array(queries.query_LD))
    gathered, evidence = np.empty((LABELS, WIDTH)), np.zeros((len(x), LABELS))
    for label in range(LABELS):
        for head in (slice(h * size, (h + 1) * size) for h in range(queries.heads)):
            share = softmax(key[:, head] @ query[label, head] / math.sqrt(size))
            gathered[label, head] = share @ value[:, head]
            evidence[:, label] += share / queries.heads
    hidden = array(queries.query_LD) + linear(queries.out[0], gathered)
    return hidden + feedforward(queries.feedforward, hidden), evidence


def one_mean(fusion, parts):
    tokens = np.concatenate(parts)
    count = len(tokens)
    hidden = tokens.mean(0) if count else array(fusion.prior_PD)[0]
    return np.tile(hidden, (LABELS, 1)), np.full((count, LABELS), 1 / max(count, 1))


def one_gated(fusion, parts):
    values = norm(fusion.norm, np.concatenate([*parts, array(fusion.prior_PD)]))
    scores = linear(fusion.score, np.tanh(linear(fusion.tanh, values)) / (1 + np.exp(-linear(fusion.gate, values))))
    share = np.stack([softmax(scores[:, label]) for label in range(LABELS)], 1)
    return share.T @ values, share[:-1]


def one_transformer(fusion, parts):
    x = np.concatenate([*parts, array(fusion.prior_PD)])
    for block in fusion.blocks:
        x = attend(block, x)
    hidden, evidence = read_out(fusion.queries, x)
    return hidden, evidence[:-1]


def one_bottleneck(fusion, parts):
    """Nagrani et al. 2021, equations 8 and 9."""
    shared = array(fusion.prior_PD)
    for depth, blocks in enumerate(fusion.layers):
        copies = []
        for m, block in enumerate(blocks.values()):
            if not len(parts[m]):
                continue
            parts[m], copy = np.split(attend(block, np.concatenate([parts[m], shared])), [len(parts[m])])
            copies.append(copy)
        if copies and depth >= fusion.fusion_layer:
            shared = np.mean(copies, axis=0)
    hidden, evidence = read_out(fusion.queries, np.concatenate([*parts, shared]))
    return hidden, evidence[: -len(shared)]


REFERENCE = {
    MeanFusion: one_mean,
    GatedFusion: one_gated,
    TransformerFusion: one_transformer,
    BottleneckFusion: one_bottleneck,
}


@pytest.mark.parametrize("spec", SPECS, ids=str)
@settings(deadline=None, max_examples=25)
@given(counts=ITEMS, seed=st.integers(0, 99))
def test_fusion_equals_a_float64_loop_over_items(spec, counts, seed):
    fusion = make(spec, seed)
    tokens, item, rows, sizes = pack(counts, seed)
    with torch.no_grad():
        hidden, evidence = fusion(tokens, item, rows, sizes)
    assert hidden.shape == (len(counts), LABELS, WIDTH)
    assert evidence.shape == (sum(map(sum, counts)), LABELS)
    for row in range(len(counts)):
        parts = [array(part[of == row]) for part, of in zip(tokens.split(sizes), item.split(sizes), strict=True)]
        expected_hidden, expected_evidence = REFERENCE[type(spec)](fusion, parts)
        np.testing.assert_allclose(hidden[row], expected_hidden, atol=2e-5)
        np.testing.assert_allclose(evidence[item == row], expected_evidence, atol=1e-5)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@settings(deadline=None, max_examples=25)
@given(counts=ITEMS, data=st.data())
def test_fusion_does_not_depend_on_token_order(spec, counts, data):
    fusion = make(spec)
    tokens, item, rows, sizes = pack(counts)
    places = torch.arange(len(tokens)).split(sizes)  # Tokens of a modality are adjacent.
    order = torch.tensor([i for part in places for i in data.draw(st.permutations(part.tolist()))], dtype=torch.int64)
    with torch.no_grad():
        hidden, evidence = fusion(tokens, item, rows, sizes)
        shuffled_hidden, shuffled_evidence = fusion(tokens[order], item[order], rows, sizes)
    torch.testing.assert_close(shuffled_hidden, hidden, atol=1e-5, rtol=0)
    torch.testing.assert_close(shuffled_evidence, evidence[order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_fusion_of_an_item_does_not_depend_on_other_items(spec):
    fusion = make(spec)
    tokens, item, rows, sizes = pack([(2, 0, 1), (3, 1, 2), (0, 0, 0)])
    loud = torch.where((item == 1).unsqueeze(1), 1e4 * tokens, tokens)
    with torch.no_grad():
        hidden, _ = fusion(tokens, item, rows, sizes)
        beside_loud, _ = fusion(loud, item, rows, sizes)
    torch.testing.assert_close(beside_loud[[0, 2]], hidden[[0, 2]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_fusion_evidence_and_prior_sum_to_one(spec):
    fusion = make(spec)
    counts = [0, 1, 4]
    with torch.no_grad():
        _, evidence = fusion(*pack(counts))
    assert (evidence >= 0).all()
    for total in torch.stack([part.sum(0) for part in evidence.split(counts)])[1:]:
        assert (total <= 1 + 1e-6).all()
        if not isinstance(spec, MeanFusion):
            assert (total < 1 - 1e-4).all()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_fusion_gradients_are_finite_for_empty_items_and_empty_batches(spec):
    for counts in ([0, 2], [0], []):
        fusion = make(spec).train()
        hidden, _ = fusion(*pack(counts))
        hidden.square().sum().backward()
        for name, parameter in fusion.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_softmax_by_item_gradients_equal_torch_softmax():
    scores = torch.randn(5, 2, dtype=torch.float32, requires_grad=True)
    item, values = torch.tensor([0, 0, 1, 1, 1]), torch.randn(5, 2)
    (softmax_by_item(scores, item, torch.arange(2)) * values).sum().backward()
    ours, scores.grad = scores.grad, None
    (torch.cat([scores[:2].softmax(0), scores[2:].softmax(0)]) * values).sum().backward()
    torch.testing.assert_close(ours, scores.grad)


def test_softmax_by_item_handles_scores_beyond_the_range_of_exp():
    share = softmax_by_item(torch.tensor([[500.0], [-500.0], [-900.0]]), torch.tensor([0, 0, 1]), torch.arange(2))
    assert share.flatten().tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_fusion_under_bfloat16_autocast_is_close_to_float32(spec):
    fusion = make(spec)
    packed = pack([1, 3, 0, 2])
    with torch.no_grad():
        exact, _ = fusion(*packed)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded, evidence = fusion(*packed)
    assert evidence.dtype == torch.float32
    torch.testing.assert_close(rounded.float(), exact, atol=0.15, rtol=0.05)


@pytest.mark.parametrize("counts", [[3, 0, 1, 4], [40, 0, 0], [7, 7, 7, 7, 7, 7]], ids=str)
def test_attention_layout_rows_equal_the_mask(counts, monkeypatch):
    """Values and gradients of the padded rows and of the mask over all tokens, in shuffled order."""
    fusion = make(TransformerFusion(layers=2, heads=2))
    tokens, item, rows, _ = pack(counts)
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(1))
    tokens, item = tokens[order].requires_grad_(), item[order]
    found = {}
    for masked in (False, True):
        monkeypatch.setattr(torch.jit, "is_tracing", lambda masked=masked: masked)
        padded = AttentionLayout(*fusion.with_priors(tokens, item, rows)[1:], rows).place_T is not None
        assert padded == (not masked and counts != [40, 0, 0])
        hidden, evidence = fusion(tokens, item, rows)
        (hidden.square().sum() + evidence.square().sum()).backward()
        found[masked] = [hidden.detach(), evidence.detach(), tokens.grad, *(p.grad for p in fusion.parameters())]
        tokens.grad = None
        fusion.zero_grad()
    for ours, expected in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)

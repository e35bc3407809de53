"""Roles and times of segments: exact features, no effect unless the recipe asks for it, and what a model learns by them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vigil_data.items import MAX_SECONDS, MODALITIES, ROLES
from vigil_modeling.fusion import build_fusion
from vigil_modeling.safety_model import build_model
from vigil_modeling.segment_position import SegmentPosition
from vigil_modeling.specs import TimePosition, TransformerFusion

from .test_safety_model import make_batch, make_items

COUNTS = [{"text": 3, "image": 2, "audio": 2}, {"text": 2, "image": 0, "audio": 0}, {"text": 0, "image": 0, "audio": 0}]
BOTH = {"segment_roles": True, "time_position": {}}


def placed_batch(seed=0):
    """A batch whose segments have random roles, and times if they are text or audio."""
    generator = torch.Generator().manual_seed(seed)
    batch = make_batch(make_items(COUNTS))
    segments = {}
    for modality, of in batch.segments.items():
        count = len(of.item)
        time = torch.rand(count, 2, generator=generator).cumsum(1) * 100 if modality != "image" else of.time
        segments[modality] = replace(of, role=torch.randint(0, len(ROLES), (count,), generator=generator), time=time)
    return replace(batch, segments=segments)


def trained_weights(model):
    """Weights as after training; they start at zero."""
    torch.manual_seed(3)
    for parameter in model.position.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture(scope="module")
def models(make_spec, inputs, taxonomy):
    """Models with equal weights: without roles and times, with both at their initial weights, and with trained ones."""
    made = []
    for changes in ({}, BOTH, BOTH):
        torch.manual_seed(0)
        made.append(build_model(make_spec({"kind": "transformer"}, **changes), inputs, taxonomy).eval())
    trained_weights(made[2])
    return made


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.floats(0, MAX_SECONDS), st.floats(0, MAX_SECONDS)).map(sorted), min_size=1, max_size=4))
def test_segment_position_is_that_of_a_float64_loop(times):
    torch.manual_seed(1)
    spec = TimePosition(periods=5, shortest=2.0, longest=600.0)
    position = SegmentPosition(6, roles=True, time=spec)
    for parameter in position.parameters():
        torch.nn.init.normal_(parameter)
    role_T = torch.arange(len(times)) % len(ROLES)
    time_T2 = torch.tensor([*times[:-1], [-1.0, -1.0]])
    found_TD = position(role_T, time_T2).detach().numpy()
    weight_DW = position.time.weight.detach().numpy().astype(np.float64)
    for row, (start, end) in enumerate(time_T2.numpy().astype(np.float64)):
        expected_D = position.role_RD[role_T[row]].detach().numpy().astype(np.float64)
        if start >= 0:
            waves = []
            for moment in (start, end):
                periods = [2.0 * 300.0 ** (place / 4) for place in range(5)]
                waves.append([2 * math.pi * moment / period for period in periods])
            sines, cosines = np.sin(waves), np.cos(waves)
            expected_D = expected_D + weight_DW @ np.concatenate([sines, cosines], axis=1).ravel()
        # A phase is exact to the spacing of float32 numbers of cycles.
        cycles = max(start, 1) / 2.0 + max(end, 1) / 2.0
        np.testing.assert_allclose(found_TD[row], expected_D, atol=1e-4 + 40 * cycles * 2.0**-23)


def test_safety_model_without_the_keys_ignores_roles_and_times(models):
    plain, _, _ = models
    assert [plain.segment_inputs(m) for m in ("text", "image", "audio")] == [("item",)] * 3
    with torch.no_grad():
        assert torch.equal(plain(placed_batch()).logits_NL, plain(make_batch(make_items(COUNTS))).logits_NL)


def test_safety_model_with_the_keys_starts_as_without_them(models):
    plain, initial, _ = models
    assert initial.segment_inputs("text") == initial.segment_inputs("audio") == ("item", "role", "time")
    assert initial.segment_inputs("image") == ("item", "role")
    with torch.no_grad():
        assert torch.equal(initial(placed_batch()).logits_NL, plain(placed_batch()).logits_NL)


def test_safety_model_with_the_keys_depends_on_roles_and_times(models):
    _, _, trained = models
    batch = placed_batch()
    text = batch.segments["text"]
    with torch.no_grad():
        before_NL = trained(batch).logits_NL
        for changed in (replace(text, role=(text.role + 1) % len(ROLES)), replace(text, time=text.time + 1.5)):
            after_NL = trained(replace(batch, segments={**batch.segments, "text": changed})).logits_NL
            assert ((after_NL - before_NL).abs().amax(1) > 1e-3).tolist() == [True, True, False]


def test_safety_model_does_not_depend_on_the_order_of_placed_segments(models):
    _, _, trained = models
    batch = placed_batch()
    turned = {m: s.map(lambda tensor: tensor.flip(0)) for m, s in batch.segments.items()}
    alone = {m: replace(s, role=s.role.flip(0)) for m, s in batch.segments.items()}
    with torch.no_grad():
        straight, reverse, other = (trained(replace(batch, segments=s)) for s in (batch.segments, turned, alone))
    torch.testing.assert_close(reverse.logits_NL, straight.logits_NL, atol=1e-5, rtol=0)
    for modality, evidence_SL in straight.evidence.items():
        torch.testing.assert_close(reverse.evidence[modality].flip(0), evidence_SL, atol=1e-5, rtol=0)
    assert (other.logits_NL - straight.logits_NL).abs().max() > 1e-3


def test_safety_model_gives_roles_and_times_a_gradient_on_every_rank(make_model):
    model = make_model(**BOTH)
    batch = placed_batch()
    model(batch, touch_all=True).logits_NL.square().sum().backward()
    used = {int(role) for segments in batch.segments.values() for role in segments.role}
    assert set(model.position.role_RD.grad.abs().sum(1).nonzero()[:, 0].tolist()) == used
    assert model.position.time.weight.grad.abs().sum() > 0
    for items in ([], make_items([COUNTS[2]] * 2)):  # no item, and items without a segment
        model.zero_grad()
        model(make_batch(items), touch_all=True).logits_NL.sum().backward()
        assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.position.parameters())


def accuracy(make, position, steps, lr):
    """Train a fusion on batches of ``make``: tokens ``[N, K, D]``, roles ``[N, K]``, times ``[N, K, 2]`` and targets ``[N]``."""
    fusion = build_fusion(TransformerFusion(layers=2), 32, 1, 0.0, MODALITIES)
    head = torch.nn.Linear(32, 1)
    optimizer = torch.optim.AdamW([*fusion.parameters(), *head.parameters(), *position.parameters()], lr)

    def logits(tokens_NKD, role_NK, time_NK2):
        count, segments = role_NK.shape
        tokens_TD = tokens_NKD.flatten(0, 1) + position(role_NK.flatten(), time_NK2.flatten(0, 1))
        item_T = torch.arange(count).repeat_interleave(segments)
        return head(fusion(tokens_TD, item_T, torch.arange(count))[0][:, 0])[:, 0]

    for _ in range(steps):
        *given, target_N = make(64)
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(logits(*given), target_N).backward()
        optimizer.step()
    *given, target_N = make(1000)
    with torch.no_grad():
        return ((logits(*given) > 0) == (target_N > 0.5)).float().mean().item()


@pytest.mark.parametrize(("roles", "least", "most"), [(True, 0.95, 1.0), (False, 0.6, 0.85)])
def test_segment_position_separates_what_is_said_from_what_it_answers(roles, least, most):
    """The label is that of the body; a context of the same words hides it from a model that does not know which is which."""
    torch.manual_seed(0)
    words_WD = torch.randn(8, 32)

    def make(count):
        word_N2 = torch.randint(0, 8, (count, 2))
        role_N2 = torch.tensor([ROLES.index("body"), ROLES.index("context")]).expand(count, 2)
        return words_WD[word_N2], role_N2 * int(roles), torch.full((count, 2, 2), -1.0), (word_N2[:, 0] < 4).float()

    assert least <= accuracy(make, SegmentPosition(32, True, None), 80, 2e-3) <= most


def test_segment_position_lines_a_transcript_up_with_the_window_of_its_second():
    """The label is the content of the one of two windows in which something is said."""
    torch.manual_seed(1)
    kinds_KD = torch.randn(3, 32)

    def make(count):
        first_N, said_N = torch.randint(0, 2, (2, count))
        start_N = 5.0 * torch.randint(0, 60, (count,))
        later_N = start_N + 5.0 * torch.randint(1, 12, (count,))
        text_N = torch.where(said_N == 0, start_N, later_N)
        starts_N3 = torch.stack([start_N, later_N, text_N + 1], 1)
        ends_N3 = torch.stack([start_N + 5, later_N + 5, text_N + 4], 1)
        kind_N3 = torch.stack([first_N, 1 - first_N, torch.full_like(first_N, 2)], 1)
        target_N = torch.where(said_N == 0, first_N, 1 - first_N).float()
        return kinds_KD[kind_N3], torch.zeros_like(kind_N3), torch.stack([starts_N3, ends_N3], 2), target_N

    assert accuracy(make, SegmentPosition(32, False, TimePosition(longest=600)), 400, 3e-3) > 0.8


def test_time_position_checks_its_periods():
    with pytest.raises(ValidationError, match="longest must be longer than shortest"):
        TimePosition(shortest=10, longest=10)

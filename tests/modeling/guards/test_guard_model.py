"""The guard: prompts that share rows against one prompt after another through the complete language model of transformers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.items import MODALITIES, ROLES
from vigil_data.loading.batch import Batch, Segments
from vigil_data.specs import Inputs
from vigil_data.taxonomy import Taxonomy
from vigil_modeling.guards import guard_model
from vigil_modeling.losses import MaskedLoss, span_loss
from vigil_modeling.safety_model import build_model
from vigil_modeling.specs import BinaryCrossEntropy, GuardSpec

TAXONOMY = Taxonomy.model_validate(
    {
        "name": "guard",
        "heads": {
            "first": {
                "labels": {
                    "insult": {"definition": "The item insults a person.", "violates": ["name calling"]},
                    "threat": {"definition": "The text threatens a person.", "parent": "insult"},
                }
            },
            "second": {"labels": {"cat": {"definition": "The picture shows a cat, or the text names one."}}},
        },
    }
)
ORDERS = ("policy_first", "item_first")
L = 3


def inputs_of(tokenizer) -> Inputs:
    return Inputs.model_validate(
        {
            "text": {"tokenizer": {"kind": "local", "path": str(tokenizer)}, "overlap": 0, "special_tokens": False},
            "image": {"size": 32},
            "audio": {"rate": 16_000, "window": 0.5},
        }
    )


@pytest.fixture(scope="module")
def make_guard(tiny_lm):
    """A function from an order, a family and the changes of a spec to a guard of three modalities, in evaluation mode."""

    def make(order="item_first", family="qwen3", modalities=MODALITIES, row_tokens=2048, **changes):
        torch.manual_seed(1)
        encoders = {
            "text": {"kind": "decoder", "weights": {"kind": "local", "path": str(tiny_lm(family))}},
            "image": {"weights": {"kind": "random"}, "name": "test_efficientnet"},
            "audio": {"kind": "mel_timm", "weights": {"kind": "random"}, "name": "test_resnet", "mels": 32, "pool": "none"},
        }
        encoders = {m: encoders[m] | changes.get(m, {}) for m in modalities}
        prompt = {"order": order, "max_tokens": 400, "row_tokens": row_tokens}
        spec = GuardSpec.model_validate({"kind": "guard", "encoders": encoders, "prompt": prompt} | changes.get("model", {}))
        inputs = inputs_of(tiny_lm(family))
        inputs = inputs.model_copy(update={m: None for m in MODALITIES if m not in modalities})
        return build_model(spec, inputs, TAXONOMY).eval()

    return make


def make_batch(counts, seed=0, targets=None) -> Batch:
    """A batch whose item n has ``counts[n]`` segments of each modality, of random content, lengths and roles."""
    random = torch.Generator().manual_seed(seed)
    segments = {}
    for modality in MODALITIES:
        items = [row for row, count in enumerate(counts) for _ in range(count.get(modality, 0))]
        if not items:
            continue
        if modality == "text":
            lengths = torch.randint(1, 30, (len(items),), generator=random)
            mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
            made = {"input_ids": torch.randint(5, 400, mask.shape, generator=random) * mask, "attention_mask": mask}
        elif modality == "image":
            made = {"pixels": torch.randint(0, 256, (len(items), 3, 32, 32), generator=random, dtype=torch.uint8)}
        else:
            made = {"waveform": 0.1 * torch.randn(len(items), 8000, generator=random)}
        role = torch.randint(0, len(ROLES), (len(items),), generator=random)
        segments[modality] = Segments(torch.tensor(items), made, role, torch.full((len(items), 2), -1.0))
    unknown = torch.full((len(counts), L), torch.nan)
    return Batch(tuple(map(str, range(len(counts)))), segments, unknown if targets is None else torch.tensor(targets))


MIXED = [{"text": 2, "image": 1}, {"text": 1}, {"image": 2, "audio": 1}, {}, {"text": 1, "audio": 2}]


@torch.no_grad()
def one_by_one(model, complete, batch):
    """Logits ``[N, L]`` and evidence of each modality ``[S, L]`` by hand: each prompt alone, through the complete model."""
    pieces, embed = model.pieces, complete.get_input_embeddings()

    def constant(ids):
        return [(embed(torch.tensor(list(ids), dtype=torch.int64)), None)]

    policies = [[*constant(pieces.policy_heading), *constant(clause.ids)] for clause in model.clauses]
    items = [constant(pieces.content_heading) for _ in batch.ids]
    evidence = {m: torch.zeros(len(s.item), L) for m, s in batch.segments.items()}
    for modality, found in batch.segments.items():
        if modality != "text":
            tokens = model.encode(modality, **found.inputs)
        for number, (item, role) in enumerate(zip(found.item.tolist(), found.role.tolist(), strict=True)):
            if modality == "text":
                length = int(found.inputs["attention_mask"][number].sum())
                content = embed(found.inputs["input_ids"][number, :length])
            else:
                content = tokens[number]
            items[item] += [*constant(pieces.headings[modality][ROLES[role]]), (content, (modality, number))]
    present = {int(i) for found in batch.segments.values() for i in found.item}
    logits = torch.zeros(len(batch), L)
    for n, own in enumerate(items):
        item = own if n in present else [*own, *constant(pieces.empty)]
        for label, policy in enumerate(policies):
            parts = (policy, item) if pieces.order == "policy_first" else (item, policy)
            prompt = [*constant(pieces.header), *parts[0], *constant(pieces.gap), *parts[1], *constant(pieces.question)]
            output = complete(
                inputs_embeds=torch.cat([part for part, _ in prompt])[None], use_cache=False, output_attentions=True
            )
            yes, no = output.logits[0, -1, list(pieces.answer_ids)].tolist()
            logits[n, label] = yes - no
            attention, start = output.attentions[-1][0, :, -1].mean(0), 0
            for part, of in prompt:
                if of is not None:
                    evidence[of[0]][of[1], label] += attention[start : start + len(part)].sum()
                start += len(part)
    return logits, evidence


def complete_model(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma"])
@pytest.mark.parametrize("order", ORDERS)
def test_guard_equals_the_complete_language_model_over_one_prompt_after_another(make_guard, tiny_lm, family, order):
    model, batch = make_guard(order, family), make_batch(MIXED)
    with torch.no_grad():
        prediction = model(batch)
    expected, evidence = one_by_one(model, complete_model(tiny_lm(family)), batch)
    assert expected.std() > 0.1
    torch.testing.assert_close(prediction.logits_NL, expected, atol=1e-4, rtol=0)
    for modality, found in evidence.items():
        torch.testing.assert_close(prediction.evidence[modality], found, atol=1e-5, rtol=0)
        assert found.min() > 0


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma"])
def test_guard_answers_are_two_columns_of_the_complete_output_layer(make_guard, tiny_lm, family):
    model, hidden_AD = make_guard(family=family, modalities=("text",)), torch.randn(7, 32)
    with torch.no_grad():
        expected = complete_model(tiny_lm(family)).get_output_embeddings()(hidden_AD)[:, list(model.pieces.answer_ids)]
        torch.testing.assert_close(model.answers(hidden_AD), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("order", ORDERS)
def test_guard_would_differ_under_a_mask_without_blocks(make_guard, monkeypatch, order):
    model, batch = make_guard(order), make_batch(MIXED)
    with torch.no_grad():
        apart = model(batch).logits_NL
        monkeypatch.setattr(guard_model, "block_mask", lambda block_RT, sees_RBB: _causal(block_RT))
        mixed = model(batch).logits_NL
    assert (apart - mixed).abs().max() > 1e-2


def _causal(block_RT):
    T = block_RT.shape[1]
    return torch.ones(T, T, dtype=torch.bool).tril().expand(len(block_RT), 1, T, T)


@pytest.fixture(scope="module")
def text_and_image(make_guard):
    return make_guard(modalities=("text", "image"))


@settings(deadline=None, max_examples=10)
@given(
    counts=st.lists(st.fixed_dictionaries({"text": st.integers(0, 2), "image": st.integers(0, 1)}), min_size=1, max_size=4),
    row_tokens=st.sampled_from([64, 300, 2048]),
    order=st.sampled_from(ORDERS),
)
def test_guard_logits_do_not_depend_on_what_a_prompt_shares_its_row_with(text_and_image, counts, row_tokens, order):
    model, batch = text_and_image, make_batch(counts)
    model.pieces = replace(model.pieces, order=order, row_tokens=row_tokens)
    with torch.no_grad():
        together = model(batch)
        alone = [model(_only(batch, n)).logits_NL for n in range(len(counts))]
    torch.testing.assert_close(together.logits_NL, torch.cat(alone), atol=1e-4, rtol=0)
    shares = sum([_by_item(batch, m, part) for m, part in together.evidence.items()], torch.zeros(len(counts), L))
    assert (shares <= 1 + 1e-5).all()  # the rest is the weight of the prompt itself


def _only(batch, n):
    segments = {}
    for modality, found in batch.segments.items():
        chosen = (found.item == n).nonzero()[:, 0]
        if len(chosen):
            kept = found.map(lambda tensor, chosen=chosen: tensor[chosen])
            segments[modality] = replace(kept, item=torch.zeros_like(kept.item))
    return Batch((batch.ids[n],), segments, batch.targets[n : n + 1])


def _by_item(batch, modality, part_SL):
    return torch.zeros(len(batch), L).index_add(0, batch.segments[modality].item, part_SL)


NAN = float("nan")
PARTLY_KNOWN = [[1.0, NAN, 0.0], [NAN, NAN, NAN], [NAN, 0.25, 1.0], [0.0, NAN, NAN], [NAN, 1.0, NAN]]


@pytest.mark.parametrize("order", ORDERS)
def test_guard_asks_nothing_about_unknown_targets_and_has_the_same_loss(make_guard, order):
    model, batch = make_guard(order), make_batch(MIXED, targets=PARTLY_KNOWN)
    loss = MaskedLoss(BinaryCrossEntropy(), TAXONOMY, structure=model.structure)
    everything = model.questions(batch)
    complete = loss(model(batch).raw_NL, batch.targets)
    gradients = torch.autograd.grad(complete, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    model.language_model.train()
    model.training = True  # the picture's batch norm keeps its running statistics, so that the two are comparable
    asked = model.questions(batch)
    assert [(q.item, q.clauses) for q in asked] == [(0, (0,)), (0, (2,)), (2, (1,)), (2, (2,)), (3, (0,)), (4, (1,))]
    tokens = [model.assemble(batch, {"image": 1, "audio": 16}, questions).tokens for questions in (everything, asked)]
    assert tokens[1] < 0.6 * tokens[0]
    assert model.assemble(batch, {"image": 1, "audio": 16}, asked).block.shape[1] % guard_model.ROW_MULTIPLE == 0
    partial = loss(model(batch).raw_NL, batch.targets)
    torch.testing.assert_close(partial, complete, atol=1e-4, rtol=1e-5)
    again = torch.autograd.grad(partial, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    for left, right in zip(gradients, again, strict=True):
        if left is not None or right is not None:
            torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-3)


def test_guard_with_a_hierarchy_asks_what_the_loss_of_a_known_parent_reads(make_guard):
    batch = make_batch([{"text": 1}] * 3, targets=[[0.0, NAN, NAN], [1.0, NAN, NAN], [NAN, 1.0, NAN]])
    model = make_guard(modalities=("text",), model={"hierarchy": True})
    loss = MaskedLoss(BinaryCrossEntropy(), TAXONOMY, structure=model.structure)
    complete = loss(model(batch).raw_NL, batch.targets)
    model.train()
    asked = [(q.item, q.clauses[0]) for q in model.questions(batch)]
    assert asked == [(0, 0), (0, 1), (1, 0), (2, 1)]  # no insult is known, so no threat is: item 0's threat is in its loss
    torch.testing.assert_close(loss(model(batch).raw_NL, batch.targets), complete, atol=1e-4, rtol=1e-5)
    logits_NL = model.eval()(batch).logits_NL
    assert (logits_NL[:, 0] >= logits_NL[:, 1]).all()


@pytest.mark.parametrize("hierarchy", [False, True])
def test_guard_for_known_targets_computes_the_logits_that_validation_reads(make_guard, hierarchy):
    targets = [[1.0, NAN, NAN], [NAN, 0.0, 1.0], [NAN, NAN, NAN]]
    batch = make_batch([{"text": 1}, {"text": 2, "image": 1}, {"text": 1}], targets=targets)
    model = make_guard(model={"hierarchy": hierarchy})
    known = ~torch.isnan(batch.targets)
    partial = model.for_known_targets(batch)
    assert len(model.questions(partial)) == 3 + hierarchy < len(model.questions(batch)) == 9
    # A threat is an insult, so the logit of a known insult is the larger of the two.
    torch.testing.assert_close(model(partial).logits_NL[known], model(batch).logits_NL[known], atol=1e-4, rtol=1e-5)
    with_sample = model.for_known_targets(batch, np.array([True, False, False]))
    assert len(model.questions(with_sample)) == 3 + 2  # all three labels of the first item
    known[0] = True
    torch.testing.assert_close(model(with_sample).logits_NL[known], model(batch).logits_NL[known], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("counts", [[], [{}], MIXED])
def test_guard_touch_all_gives_every_weight_a_gradient(make_guard, counts):
    model = make_guard("policy_first").train()
    batch = make_batch(counts)  # no target is known
    prediction = model(batch, touch_all=True)
    assert prediction.raw_NL.shape == (len(counts), L)
    (prediction.raw_NL.sum() + 0 * sum(p.sum() for p in model.parameters() if not counts)).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad.abs().max() == 0 for p in model.parameters() if p.requires_grad)


def test_guard_soft_tokens_begin_with_the_scale_of_the_embeddings(make_guard):
    model, batch = make_guard(), make_batch([{"image": 8}])
    scale = model.language_model.embed(torch.arange(400)).detach().std()
    with torch.no_grad():
        tokens_SPD = model.encode("image", **batch.segments["image"].inputs)
    assert float(tokens_SPD.std()) == pytest.approx(float(scale), rel=0.3)


def test_guard_gradients_reach_encoders_of_pictures_and_sound_through_the_prompt(make_guard):
    model = make_guard().train()
    batch = make_batch([{"image": 2, "audio": 2}], targets=[[1.0, 0.0, 1.0]])
    model(batch).raw_NL[0, 0].backward()
    assert [name for name, p in model.named_parameters() if "norm" not in name and p.grad is None] == []
    for modality in ("image", "audio"):
        assert max(p.grad.abs().max() for p in model.encoder(modality).parameters() if p.grad is not None) > 0


def test_block_mask_sees_own_block_and_ancestors_up_to_itself():
    sees = torch.tensor([[[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 0, 1]]], dtype=torch.bool)
    block = torch.tensor([[1, 1, 2, 2, 3, 0]])
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert guard_model.block_mask(block, sees)[0, 0].int().tolist() == expected


@torch.no_grad()
def spans_one_by_one(model, complete, batch):
    """Log-odds of spans by hand: the hidden states of each prompt alone, of the label that the span is of."""
    pieces, inputs = model.pieces, batch.segments["text"].inputs
    item_S, role_S = batch.segments["text"].item.tolist(), batch.segments["text"].role.tolist()
    expected = torch.full((*inputs["input_ids"].shape, len(model.span_labels)), torch.nan)
    for n in range(len(batch)):
        texts = [s for s, item in enumerate(item_S) if item == n]
        item, places = [*pieces.content_heading], {}
        for s in texts:
            ids = inputs["input_ids"][s, : int(inputs["attention_mask"][s].sum())].tolist()
            item += pieces.headings["text"][ROLES[role_S[s]]]
            places[s] = (len(item), len(item) + len(ids))
            item += ids
        for k, label in enumerate(model.span_labels):
            policy = [*pieces.policy_heading, *model.clauses[model.labels.index(label)].ids]
            before = [*pieces.header, *([*policy, *pieces.gap] if pieces.order == "policy_first" else [])]
            after = [*pieces.gap, *policy] if pieces.order == "item_first" else []
            ids = torch.tensor([[*before, *item, *after, *pieces.question]])
            states_TD = complete.model(ids).last_hidden_state[0]
            for s, (start, stop) in places.items():
                own_TD = states_TD[len(before) + start : len(before) + stop]
                expected[s, : stop - start, k] = own_TD @ model.spans.weight[k] + model.spans.bias[k]
    return expected


@pytest.mark.parametrize("order", ORDERS)
def test_guard_reads_spans_in_the_prompt_of_their_label(make_guard, tiny_lm, order):
    spans = {"spans": {"columns": {"cat": "one", "insult": "two"}}}
    model, batch = make_guard(order, modalities=("text",), model=spans), make_batch([{"text": 2}, {}, {"text": 1}])
    with torch.no_grad():
        found_STK = model(batch).spans_STK
    expected_STK = spans_one_by_one(model, complete_model(tiny_lm("qwen3")), batch)
    torch.testing.assert_close(found_STK, expected_STK, atol=1e-4, rtol=0, equal_nan=True)
    difference = (found_STK[..., 0] - model.spans.bias[0]) / model.spans.weight[0].norm()
    assert difference[~difference.isnan()].std() > 0.01


@pytest.mark.parametrize("counts", [[{"text": 1, "image": 2}], [{"image": 2}]])
def test_guard_gives_the_span_head_a_gradient_on_every_rank(make_guard, counts):
    model = make_guard(modalities=("text", "image"), model={"spans": {"columns": {"cat": "one"}}}).train()
    batch = make_batch(counts, targets=[[1.0, float("nan"), 0.0]])
    prediction = model(batch, touch_all=True)
    loss = prediction.logits_NL.sum()
    if prediction.spans_STK is not None:
        targets = torch.where(prediction.spans_STK.isnan(), torch.nan, 1.0)
        loss = loss + span_loss(prediction.spans_STK, targets, batch.segments["text"].item)
    loss.backward()
    assert (prediction.spans_STK is not None) == ("text" in counts[0])
    assert (model.spans.weight.grad != 0).any() == ("text" in counts[0])
    assert model.spans.bias.grad is not None


def test_guard_reads_no_spans_of_a_label_that_is_not_asked(make_guard):
    model = make_guard(modalities=("text",), model={"spans": {"columns": {"cat": "one"}}}).train()
    batch = make_batch([{"text": 1}, {"text": 1}], targets=[[1.0, float("nan"), float("nan")], [1.0, float("nan"), 1.0]])
    known_STK = ~model(batch).spans_STK.isnan()
    assert known_STK.any(1)[:, 0].tolist() == [False, True]

"""The whole model: ragged batches, missing modalities, freezing, and gradients on a rank that lacks a modality."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_data.errors import UserError
from vigil_data.items import MODALITIES
from vigil_data.loading.batch import Batch, Segments
from vigil_data.taxonomy import Taxonomy
from vigil_modeling.losses import span_loss
from vigil_modeling.safety_model import build_model

FUSIONS = [
    {"kind": "mean"},
    {"kind": "gated"},
    {"kind": "transformer"},
    {"kind": "bottleneck", "layers": 3, "fusion_layer": 1},
    {"kind": "late"},
]
PER_ITEM = st.fixed_dictionaries({m: st.integers(0, 2) for m in MODALITIES})


def segment(modality, generator):
    match modality:
        case "text":
            length = int(torch.randint(1, 9, (), generator=generator))
            return {
                "input_ids": torch.randint(1, 60, (length,), generator=generator),
                "attention_mask": torch.ones(length, dtype=torch.int64),
            }
        case "image":
            return {"pixels": torch.randint(0, 256, (3, 32, 32), generator=generator, dtype=torch.uint8)}
    return {"waveform": 0.1 * torch.randn(8000, generator=generator)}


def make_items(counts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [{m: [segment(m, generator) for _ in range(n)] for m, n in count.items()} for count in counts]


def make_batch(items, padding=0):
    segments = {}
    for modality in MODALITIES:
        found = [(row, s) for row, item in enumerate(items) for s in item[modality]]
        if found:
            arrays = {
                name: torch.nn.utils.rnn.pad_sequence([s[name] for _, s in found], batch_first=True) for name in found[0][1]
            }
            if modality == "text":
                arrays = {name: torch.nn.functional.pad(array, (0, padding)) for name, array in arrays.items()}
            count = len(found)
            role, time = torch.zeros(count, dtype=torch.int64), torch.full((count, 2), -1.0)
            segments[modality] = Segments(torch.tensor([row for row, _ in found]), arrays, role, time)
    return Batch(tuple(map(str, range(len(items)))), segments, torch.full((len(items), 3), torch.nan))


def total(prediction):
    """A number that depends on all that is learned from."""
    return prediction.logits_NL.sum() + (0 if prediction.alone is None else prediction.alone.raw_MNL.sum())


@pytest.fixture(scope="module")
def models(make_spec, inputs, taxonomy):
    torch.manual_seed(0)
    return [build_model(make_spec(fusion), inputs, taxonomy).eval() for fusion in FUSIONS]


@settings(deadline=None, max_examples=15)
@given(counts=st.lists(PER_ITEM, max_size=4), seed=st.integers(0, 9), padding=st.integers(0, 7))
def test_safety_model_item_does_not_depend_on_its_batch(models, counts, seed, padding):
    items = make_items(counts, seed)
    for model in models:
        with torch.no_grad():
            logits = model(make_batch(items)).logits_NL
            padded = model(make_batch(items, padding)).logits_NL
            alone = [model(make_batch([item])).logits_NL for item in items]
        assert logits.shape == (len(items), 3)
        assert logits.isfinite().all()
        torch.testing.assert_close(padded, logits, atol=1e-5, rtol=0)
        if alone:
            torch.testing.assert_close(torch.cat(alone), logits, atol=1e-5, rtol=0)


def test_safety_model_does_not_depend_on_segment_order(models):
    items = make_items([{"text": 2, "image": 2, "audio": 2}] * 2)
    turned = [{m: list(reversed(segments)) for m, segments in item.items()} for item in items]
    for model in models:
        with torch.no_grad():
            straight, reverse = model(make_batch(items)), model(make_batch(turned))
        torch.testing.assert_close(straight.logits_NL, reverse.logits_NL, atol=1e-5, rtol=0)
        for modality in MODALITIES:
            torch.testing.assert_close(straight.evidence[modality], reverse.evidence[modality][[1, 0, 3, 2]], atol=1e-5, rtol=0)


def test_safety_model_evidence_of_a_segment_is_the_sum_over_its_tokens(models):
    items = make_items([{"text": 1, "image": 1, "audio": 2}, {"text": 0, "image": 0, "audio": 0}])
    mean = models[0]
    assert mean.encoder("audio").tokens > 1
    with torch.no_grad():
        evidence = mean(make_batch(items)).evidence
    tokens = {m: mean.encoder(m).tokens for m in MODALITIES}
    total = tokens["text"] + tokens["image"] + 2 * tokens["audio"]
    for modality, part in evidence.items():
        torch.testing.assert_close(part, torch.full_like(part, tokens[modality] / total))


def test_safety_model_predicts_the_prior_for_items_without_segments(models):
    for model in models:
        with torch.no_grad():
            logits = model(make_batch(make_items([dict.fromkeys(MODALITIES, 0)] * 3))).logits_NL
        assert logits.isfinite().all()
        torch.testing.assert_close(logits, logits[:1].expand_as(logits), atol=1e-6, rtol=0)


def test_safety_model_ignores_modalities_that_it_lacks(make_model):
    model = make_model(encoders={"text": {}}).eval()
    assert model.modalities == ("text",)
    both = make_batch(make_items([{"text": 1, "image": 1, "audio": 0}]))
    text = make_batch(make_items([{"text": 1, "image": 0, "audio": 0}]))
    with torch.no_grad():
        prediction = model(both)
        torch.testing.assert_close(prediction.logits_NL, model(text).logits_NL)
    assert set(prediction.evidence) == {"text"}


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS, ids=str)
def test_safety_model_touch_all_gives_every_weight_a_gradient_and_changes_no_value(make_model, fusion, recomputes):
    model = make_model(fusion, dropout=0.0, auxiliary_heads={})
    plain = copy.deepcopy(model)
    if recomputes:
        model.checkpoint_activations()
    batch = make_batch(make_items([{"text": 1, "image": 0, "audio": 0}] * 2))
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    torch.manual_seed(1)
    total(model(batch, touch_all=True)).backward()
    torch.manual_seed(1)
    total(plain(batch)).backward()
    for (name, touched), parameter in zip(model.named_parameters(), plain.parameters(), strict=True):
        if touched.requires_grad:
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(touched.grad, expected, msg=lambda text, name=name: f"{name}: {text}")
    assert all(buffers[name].equal(buffer) for name, buffer in model.named_buffers())
    model(make_batch(make_items([dict.fromkeys(MODALITIES, 2)] * 2)))
    assert model.encoder("image").training
    assert model.projections["image"].training


def test_safety_model_empty_batch_touches_every_weight(make_model):
    model = make_model()
    prediction = model(make_batch([]), touch_all=True)
    assert prediction.logits_NL.shape == (0, 3)
    prediction.logits_NL.sum().backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in model.parameters() if p.requires_grad)


def test_safety_model_uses_every_weight_when_all_modalities_are_present(make_model):
    model = make_model()
    model(make_batch(make_items([dict.fromkeys(MODALITIES, 1)] * 2))).logits_NL.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_freeze_keeps_encoders_in_evaluation_mode_and_unchanged(make_model):
    model = make_model(encoders={"text": {"frozen": True}, "image": {"frozen": 2}, "audio": {}}).train()
    text, image = model.encoder("text"), model.encoder("image")
    assert not any(p.requires_grad for p in text.parameters())
    assert not text.training
    layers = image.layers()
    assert [any(p.requires_grad for p in layer) for layer in layers] == [False, False] + [True] * (len(layers) - 2)
    assert image.training
    before = {name: buffer.clone() for name, buffer in image.named_buffers() if "running" in name}
    model(make_batch(make_items([dict.fromkeys(MODALITIES, 1)] * 2)))
    changed = {name for name, buffer in image.named_buffers() if "running" in name and not before[name].equal(buffer)}
    frozen = {id(p) for layer in layers[:2] for p in layer}
    norms = {name.rpartition(".")[0] for name in changed}
    assert norms
    assert not any(id(image.get_submodule(name).weight) in frozen for name in norms)
    assert len(norms) < sum(isinstance(m, torch.nn.BatchNorm2d) for m in image.modules())
    assert not model.eval().training
    assert not image.training


def test_freeze_refuses_more_layers_than_there_are(make_model):
    with pytest.raises(UserError, match=r"model\.encoders\.text\.frozen: frozen is 9, but the encoder has 3 layers"):
        make_model(encoders={"text": {"frozen": 9}})


def test_encoder_layers_hold_every_parameter_once(make_model):
    model = make_model()
    for modality in MODALITIES:
        encoder = model.encoder(modality)
        listed = [id(p) for layer in encoder.layers() for p in layer]
        assert len(encoder.layers()) > 2
        assert all(encoder.layers())
        assert sorted(listed) == sorted(map(id, encoder.parameters()))


def test_heads_accept_labels_named_like_module_attributes(make_spec, inputs, taxonomy):
    assert "train" in taxonomy.heads
    assert build_model(make_spec(), inputs, taxonomy).training


def test_build_model_is_deterministic_for_a_seed(make_model):
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(make_model().state_dict())
    assert all(value.equal(states[1][name]) for name, value in states[0].items())
    assert not all(value.equal(states[2][name]) for name, value in states[0].items())


@pytest.mark.parametrize("fusion", FUSIONS, ids=str)
def test_safety_model_under_bfloat16_autocast_is_close_and_trains(make_model, fusion):
    model = make_model(fusion, dropout=0.0).eval()
    batch = make_batch(
        make_items([dict.fromkeys(MODALITIES, 2), {"text": 1, "image": 0, "audio": 0}, dict.fromkeys(MODALITIES, 0)])
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(batch).logits_NL
    with torch.no_grad():
        torch.testing.assert_close(rounded.float(), model(batch).logits_NL, atol=0.1, rtol=0.1)
    rounded.float().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_checkpoint_activations_changes_only_memory(make_model, training):
    model = make_model().train(training)
    checkpointed = copy.deepcopy(model)
    checkpointed.checkpoint_activations()
    batch = make_batch(make_items([dict.fromkeys(MODALITIES, 2), {"text": 1, "image": 0, "audio": 0}]))
    kept = []
    for each in (model, checkpointed):
        torch.manual_seed(3)
        sizes: dict[int, int] = {}

        def pack(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            total = each(batch, touch_all=True).logits_NL.square().sum()
        total.backward()
        kept.append(sum(sizes.values()))
    for (name, expected), found in zip(model.named_parameters(), checkpointed.parameters(), strict=True):
        if expected.requires_grad:
            torch.testing.assert_close(found.grad, expected.grad, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")
    if training:
        assert kept[1] < kept[0]


def test_late_fusion_trains_each_expert_by_its_own_loss_alone(make_model):
    model = make_model({"kind": "late"}, auxiliary_heads={}, dropout=0.0)
    batch = make_batch(make_items([{"text": 1, "image": 1, "audio": 1}, {"text": 2, "image": 2, "audio": 1}]))
    model(batch).raw_NL.sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        "pool.prior_L",
        *(f"pool.log_weights.{m}.log_weight_L" for m in MODALITIES),
    }
    model.zero_grad()
    model(batch).alone.raw_MNL[0].sum().backward()
    touched = {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None and (p.grad != 0).any()}
    assert touched == {"text"}  # Its encoder, projection and expert.


def test_auxiliary_heads_are_of_training_alone(make_model):
    """They change no prediction, and a model without them has none of their weights; those of late fusion stay."""
    model = make_model({"kind": "gated"}, auxiliary_heads={}, dropout=0.0)
    batch = make_batch(make_items([{"text": 1, "image": 2, "audio": 0}, {"text": 0, "image": 0, "audio": 0}]))
    model.encoders.eval()
    trained = model(batch)
    assert trained.alone.present_MN.tolist() == [[True, False], [True, False], [False, False]]
    with torch.no_grad():
        seen = model.eval()(batch)
        assert seen.alone is None
        assert model.has_auxiliary_heads
        model.drop_auxiliary_heads()
        torch.testing.assert_close(model(batch).logits_NL, seen.logits_NL, rtol=0, atol=0)
    assert not any(name.startswith("experts") for name in model.state_dict())
    late = make_model({"kind": "late"}, auxiliary_heads={})
    late.drop_auxiliary_heads()
    assert late.experts is not None


def test_auxiliary_head_of_a_modality_sees_nothing_of_the_others(make_model):
    model = make_model(auxiliary_heads={}, dropout=0.0)
    model.encoders.eval()
    items = make_items([dict.fromkeys(MODALITIES, 1)] * 2)
    others = make_items([dict.fromkeys(MODALITIES, 1)] * 2, seed=1)
    mixed = [{"text": item["text"], "image": other["image"], "audio": []} for item, other in zip(items, others, strict=True)]
    alone, changed = (model(make_batch(each)).alone for each in (items, mixed))
    torch.testing.assert_close(changed.raw_MNL[0], alone.raw_MNL[0], atol=1e-5, rtol=0)
    assert not torch.allclose(changed.raw_MNL[1], alone.raw_MNL[1])
    assert not changed.present_MN[2].any()


@pytest.mark.parametrize("fusion", FUSIONS, ids=str)
def test_label_rows_are_the_tensors_that_depend_on_the_labels(fusion, make_spec, inputs, taxonomy):
    spec = make_spec(fusion, auxiliary_heads={})
    more = taxonomy.model_dump(mode="json")
    for head in more["heads"].values():
        head["labels"]["new" + next(iter(head["labels"]))] = {}
    small, large = (build_model(spec, inputs, Taxonomy.model_validate(each)) for each in (taxonomy.model_dump(mode="json"), more))
    shapes = {name: tensor.shape for name, tensor in large.state_dict().items()}
    assert {name for name, tensor in small.state_dict().items() if tensor.shape != shapes[name]} == small.label_rows()


COUNTS = [{"text": 2, "image": 1, "audio": 0}, {"text": 0, "image": 1, "audio": 0}, {"text": 1, "image": 0, "audio": 1}]


def test_safety_model_reads_spans_from_the_states_of_tokens(make_model):
    model, batch = make_model(spans={"columns": {"c": "one", "a": "two"}}).eval(), make_batch(make_items(COUNTS), padding=3)
    inputs = batch.segments["text"].inputs
    with torch.no_grad():
        found_STK = model(batch).spans_STK
        states_STD = model.encoder("text").model(**inputs).last_hidden_state
    assert model.span_labels == ("a", "c")
    padding_ST = inputs["attention_mask"] == 0
    assert padding_ST.any()
    assert (found_STK.isnan().all(2) == padding_ST).all()
    expected_STK = states_STD @ model.spans.weight.T + model.spans.bias
    torch.testing.assert_close(found_STK[~padding_ST], expected_STK[~padding_ST], atol=1e-5, rtol=0)


def test_safety_model_with_spans_predicts_the_same_labels(make_model):
    plain, marking = make_model().eval(), make_model(spans={"columns": {"a": "one"}}).eval()
    marking.load_state_dict(plain.state_dict(), strict=False)
    batch = make_batch(make_items(COUNTS))
    with torch.no_grad():
        assert torch.equal(plain(batch).logits_NL, marking(batch).logits_NL)
        assert plain(batch).spans_STK is None


@pytest.mark.parametrize("modalities", [("text", "image"), ("image",)])
def test_safety_model_gives_the_span_head_a_gradient_on_every_rank(make_model, modalities):
    model = make_model(spans={"columns": {"a": "one"}})
    batch = make_batch(make_items([{"text": 0, "image": 0, "audio": 0} | dict.fromkeys(modalities, 2)]))
    prediction = model(batch, touch_all=True)
    loss = total(prediction)
    if prediction.spans_STK is not None:
        unknown = torch.full_like(prediction.spans_STK, torch.nan)
        loss = loss + span_loss(prediction.spans_STK, unknown, batch.segments["text"].item)
    loss.backward()
    assert (prediction.spans_STK is None) == ("text" not in modalities)
    assert all((parameter.grad == 0).all() for parameter in model.spans.parameters())


def test_safety_model_with_spans_needs_text(make_spec):
    with pytest.raises(ValueError, match="spans: the model has no text encoder"):
        make_spec(encoders={"image": None}, spans={"columns": {"a": "one"}})

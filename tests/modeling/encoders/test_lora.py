"""Low-rank adapters: what is trained, what changes, and messages."""

import pytest
import torch
from torch import nn

from vigil_data.errors import UserError
from vigil_modeling.specs import TransformersText

pytest.importorskip("peft")
VIT = {"name": "test_vit", "weights": {"kind": "random"}}


def encoders(**text):
    return {"text": {"lora": {"rank": 2, **text}}, "image": VIT | {"lora": {"rank": 2, "targets": ["qkv", "proj"]}}}


def blanks(model):
    return {m: model.encode(m, **model.encoder(m).blank()) for m in model.modalities}


def test_add_lora_trains_the_adapters_alone(make_model):
    model = make_model(encoders=encoders())
    trained = {name for name, p in model.encoders.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.encoders.named_parameters() if ".lora_" in name}
    assert {name.split(".")[0] for name in trained} == {"text", "image"}
    assert all(any(f".{t}." in name for t in ("qkv", "proj")) for name in trained if name.startswith("image"))
    torch.manual_seed(0)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # The second factor is zero at first, so the first step leaves the first factor unchanged.
        optimizer.zero_grad()
        sum(tokens.square().sum() for tokens in blanks(model).values()).backward()
        optimizer.step()
    changed = {name for name, p in model.encoders.named_parameters() if not torch.equal(p, before[f"encoders.{name}"])}
    assert changed == trained


def test_add_lora_changes_no_output_at_first(make_model):
    plain, adapted = make_model(encoders={"text": {}, "image": VIT}).eval(), make_model(encoders=encoders()).eval()
    own = {name.replace("base_layer.", ""): value for name, value in adapted.state_dict().items() if ".lora_" not in name}
    plain.load_state_dict(own)
    for modality, tokens in blanks(plain).items():
        torch.testing.assert_close(blanks(adapted)[modality], tokens, rtol=0, atol=0)


def test_add_lora_keeps_layers_and_activation_checkpointing(make_model):
    model = make_model(encoders=encoders(dropout=0.5))
    for modality in model.modalities:
        encoder = model.encoder(modality)
        held = [id(p) for layer in encoder.layers() for p in layer]
        assert sorted(held) == sorted(id(p) for p in encoder.parameters())
        assert len(encoder.layers()) > 2
    model.checkpoint_activations()
    sum(tokens.sum() for tokens in blanks(model).values()).backward()
    adapters = [p for name, p in model.encoders.named_parameters() if ".lora_B" in name]
    assert adapters
    assert all(p.grad is not None for p in adapters)
    assert any(isinstance(m, nn.Dropout) and m.p == 0.5 and m.training for m in model.encoder("text").modules())


def test_add_lora_names_the_layers_that_exist(make_model):
    with pytest.raises(
        UserError, match=r"model\.encoders\.text\.lora\.targets: no linear layer is called querry; there are .*query"
    ):
        make_model(encoders={"text": {"lora": {"targets": ["querry", "value"]}}})
    with pytest.raises(UserError, match=r"model\.encoders\.image\.lora: the encoder has no linear layer"):
        make_model(encoders={"image": {"lora": {}}})


def test_lora_and_frozen_exclude_each_other():
    with pytest.raises(ValueError, match="leave frozen out"):
        TransformersText.model_validate({"weights": {"kind": "random"}, "lora": {}, "frozen": 2})

"""Programs of ``torch.export`` on their own."""

import torch
from torch import nn

from vigil_data.specs import Inputs
from vigil_modeling.safety_model import build_model
from vigil_modeling.specs import ModelSpec
from vigil_serving.export.modules import example_inputs
from vigil_serving.export.torch_export import save_encoder

MODERNBERT = {
    "model_type": "modernbert",
    "vocab_size": 100,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
} | dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)


def test_save_encoder_in_bfloat16_with_autocast_in_the_encoder(tokenizer, taxonomy, tmp_path) -> None:
    """ModernBERT computes its rotary embeddings in a region of autocast of its own."""
    inputs = Inputs.model_validate(
        {"text": {"tokenizer": {"kind": "local", "path": str(tokenizer)}, "max_tokens": 16, "overlap": 4}}
    )
    spec = {"width": 16, "encoders": {"text": {"weights": {"kind": "random"}, "config": MODERNBERT}}, "fusion": {"kind": "mean"}}
    network = build_model(ModelSpec.model_validate(spec), inputs, taxonomy).eval()
    save_encoder(network, "text", example_inputs(network, inputs), tmp_path / "text.pt2", bfloat16=True)
    encode = torch.export.load(tmp_path / "text.pt2").module()
    ids_ST = torch.randint(1, 100, (5, 9))
    with torch.no_grad():
        expected_SPD = network.encode("text", input_ids=ids_ST, attention_mask=torch.ones_like(ids_ST))
        found_SPD = encode(ids_ST, torch.ones_like(ids_ST))
    assert isinstance(encode, nn.Module)
    torch.testing.assert_close(found_SPD, expected_SPD, atol=0.05, rtol=0.05)
    assert not found_SPD.equal(expected_SPD)

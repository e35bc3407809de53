"""A bundle of text and images whose tokenizer, calibration and policy use what a client must support."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from vigil_data.decode import Decoder
from vigil_data.loading.batch import collate
from vigil_data.loading.packing import pack
from vigil_data.specs import ImageInput, Inputs, Local, TextInput, TextNormalization
from vigil_evaluation.calibration.calibrators import Calibration, Calibrator, FittedCalibration, LabelCalibration
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_modeling.safety_model import SafetyModel, build_model
from vigil_modeling.specs import Encoders, ModelSpec, Random, TimePosition, TimmImage, TransformerFusion, TransformersText
from vigil_serving.export.pipeline import export_model
from vigil_serving.export.publish import Provenance
from vigil_serving.parity.cases import make_item


@pytest.fixture(scope="session")
def text_image_bundle(taxonomy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a BERT tokenizer, a calibration by presence, and a policy with cells of markets and presences."""
    folder = tmp_path_factory.mktemp("node")
    vocabulary = _bert_tokenizer(folder / "tokenizer.json")
    everything = TextNormalization(homoglyphs="fold", separated="join", leetspeak="fold")
    inputs = Inputs(
        text=TextInput(
            tokenizer=Local(path=str(folder / "tokenizer.json")), max_tokens=24, overlap=4, max_passages=4, normalize=everything
        ),
        image=ImageInput(size=24, max_images=3, max_pixels=1_000_000),
    )
    config = {"model_type": "bert", "vocab_size": vocabulary, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoders = Encoders(
        text=TransformersText(weights=Random(), config={**config, "intermediate_size": 32}),
        image=TimmImage(weights=Random(), name="test_resnet", pool="none"),
    )
    torch.manual_seed(7)
    fusion = TransformerFusion(layers=1, heads=2)
    spec = ModelSpec(width=16, encoders=encoders, fusion=fusion, segment_roles=True, time_position=TimePosition())
    model = build_model(spec, inputs, taxonomy)
    for parameter in model.position.parameters():  # as after training; they start at zero
        torch.nn.init.normal_(parameter, std=0.3)
    # Calibrators that spread the probabilities of a random model, so that a wrong token or pixel changes decisions.
    scam, promotion, tobacco = _middle_logits(model.eval(), inputs)
    steep = Calibrator("platt", {"slope": 10.0, "intercept": -10 * scam})
    asymmetric = Calibrator(
        "beta", {"a": 10.0, "b": 9.0, "c": float(-10 * np.log(_logistic(scam)) + 9 * np.log(_logistic(-scam)))}
    )
    knots = {"raw": [_logistic(promotion + d) for d in (-0.1, 0.0, 0.1)], "calibrated": [0.1, 0.6, 0.7]}
    own = Calibrator("platt", {"slope": 10.0, "intercept": -10 * tobacco})
    calibrators = {
        "scam": LabelCalibration(steep, {"image": asymmetric}, {}, 0, 0),
        "promotion": LabelCalibration(Calibrator("isotonic", knots), {}, {}, 0, 0),
        "tobacco": LabelCalibration(own, {"text": Calibrator("temperature", {"temperature": 0.5})}, {}, 0, 0),
    }
    cells = {
        (None, None): {"scam": {"label": 0.125, "review": 0.5, "remove": 0.75}, "tobacco": {"limit": 0.625}},
        ("de", None): {"scam": {"label": 0.25, "remove": 0.5}},
        (None, "text+image"): {"scam": {"review": 0.5}, "tobacco": {"limit": 0.25}},
    }
    policy = CompiledPolicy("tiny", 1, ("allow", "label", "limit", "review", "remove"), ("tobacco", "scam"), "alongside", cells)
    return export_model(
        model,
        inputs,
        taxonomy,
        {"scam": 0.5, "promotion": 0.55, "tobacco": 0.5},
        [],
        to=folder / "bundle",
        provenance=Provenance("node"),
        calibrated=FittedCalibration(Calibration("presence", calibrators), None, None),
        policy=policy,
    ).path


def _middle_logits(model: SafetyModel, inputs: Inputs) -> list[float]:
    """Median log odds of each label on synthetic items, before calibration."""
    decoder = Decoder(inputs, ())
    items = [
        make_item(pattern, n, inputs, placed=True) for n in range(12) for pattern in (["text"], ["image"], ["text", "image"])
    ]
    with torch.no_grad():
        logits_NL = model(collate(pack([decoder.decode(item) for item in items]))).logits_NL
    return [float(x) for x in logits_NL.median(dim=0).values]


def _logistic(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def _bert_tokenizer(path: Path) -> int:
    """Write a tokenizer like BERT's, and return the size of its vocabulary."""
    characters = "abcdefghijklmnopqrstuvwxyz0123456789$+%.,;:?!()/=你好привет"
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "deal",
        "now",
        "new",
        "win",
        "##ing",
        *characters,
        *(f"##{c}" for c in characters),
    ]
    vocabulary = {word: place for place, word in enumerate(dict.fromkeys(words))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens([AddedToken(token, special=True) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]")])
    template = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=template)
    made.save(str(path))
    return len(vocabulary)

"""A tiny guard of text and pictures, exported once with float16 and int8, for the tests of guards in serving."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from tiny_bundle import Exported
from tiny_lm import config_of

from vigil_data.specs import ImageInput, Inputs, Local, TextInput
from vigil_data.taxonomy import Head, Label, Taxonomy
from vigil_modeling.guards.guard_model import GuardModel, build_guard
from vigil_modeling.specs import DecoderText, GuardEncoders, GuardSpec, Lora, Random, SpanSpec, TimmImage

GUARD_THRESHOLDS = {"scam": 0.547, "promotion": 0.331, "tobacco": 0.621}
"""Within the widest gaps between the guard's probabilities on the cases, so that float16 flips nothing."""


@pytest.fixture(scope="session")
def guard_taxonomy() -> Taxonomy:
    conduct = {
        "scam": Label(definition="Tricks a person for money.", violates=("false promises",)),
        "promotion": Label(definition="Sells a thing.", parent="scam"),
    }
    goods = {"tobacco": Label(definition="Shows cigarettes.", allowed=("a sign that forbids smoking",))}
    return Taxonomy(name="tiny", heads={"conduct": Head(labels=conduct), "goods": Head(labels=goods)})


@pytest.fixture(scope="session")
def make_tiny_guard(
    tiny_lm_tokenizer: Callable[[str], Path], guard_taxonomy: Taxonomy
) -> Callable[..., tuple[GuardModel, Inputs]]:
    """A function from a family of language models, modalities and values of ``prompt`` to a random guard and its inputs."""

    def make(
        family: str, *modalities: str, lora: bool = False, spans: Sequence[str] = (), **prompt: object
    ) -> tuple[GuardModel, Inputs]:
        tokenizer = Local(path=str(tiny_lm_tokenizer(family)))
        inputs = {
            "text": TextInput(tokenizer=tokenizer, max_tokens=24, overlap=4, max_passages=4, special_tokens=False),
            "image": ImageInput(size=32, max_images=2),
        }
        encoders = {
            "text": DecoderText(weights=Random(), config=config_of(family), lora=Lora(rank=2) if lora else None),
            "image": TimmImage(weights=Random(), name="test_resnet", pool="none"),
        }
        spec = GuardSpec(
            encoders=GuardEncoders(**{m: encoders[m] for m in modalities}),
            prompt={"order": "policy_first", "instruction": "Judge the item.", "max_tokens": 208, "row_tokens": 416, **prompt},
            hierarchy=True,
            spans=SpanSpec(columns=dict.fromkeys(spans, "column")) if spans else None,
        )
        made = Inputs(**{m: inputs[m] for m in modalities})
        torch.manual_seed(11)
        guard = build_guard(spec, made, guard_taxonomy).eval()
        for name, parameter in guard.named_parameters():  # random language models answer nearly the same to everything
            if parameter.ndim > 1 and ("text" in name or name.startswith("answers")):
                torch.nn.init.normal_(parameter, std=0.1 if "text" in name else 0.3)
        if guard.spans is not None:
            torch.nn.init.normal_(guard.spans.weight, std=0.5)
        return guard, made

    return make


@pytest.fixture(scope="session")
def exported_guard(
    make_tiny_guard: Callable[..., tuple[GuardModel, Inputs]], guard_taxonomy: Taxonomy, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """A guard with LoRA and its bundle, with the variants fp16 and int8."""
    from vigil_serving.export.pipeline import export_model
    from vigil_serving.export.publish import Provenance
    from vigil_serving.parity.cases import make_item
    from vigil_serving.specs import ExportSpec, Int8Spec

    guard, inputs = make_tiny_guard("llama", "text", "image", lora=True)
    to = tmp_path_factory.mktemp("exported-guard") / "bundle"
    examples = [make_item(["text", "image"][n % 2 :], 1000 + n, inputs, placed=True) for n in range(8)]
    spec = ExportSpec(formats=("fp16", "int8"), int8=Int8Spec(max_flips=1, max_ap_loss=1, required=False))
    export_model(
        guard,
        inputs,
        guard_taxonomy,
        GUARD_THRESHOLDS,
        examples,
        to=to,
        provenance=Provenance("tiny-guard"),
        spec=spec,
        calibration=examples,
    )
    return Exported(guard, inputs, guard_taxonomy, GUARD_THRESHOLDS, to)

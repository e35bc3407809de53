"""Tiny guards of language models with weights, whose adapters and answers are changed as training changes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from vigil_data.specs import Inputs
from vigil_data.taxonomy import Taxonomy
from vigil_modeling.guards.guard_model import GuardModel, build_guard
from vigil_modeling.specs import GuardSpec
from vigil_serving.export.publish import Provenance

TAXONOMY = Taxonomy.model_validate(
    {
        "name": "tiny",
        "heads": {
            "words": {
                "labels": {
                    "abuse": {"definition": "The item is unfriendly.", "violates": ["shouting!"]},
                    "insult": {"definition": "The item insults a person.", "violates": ["name calling"], "parent": "abuse"},
                    "spam": {"definition": "The item sells something.", "allowed": ["a question?"]},
                }
            }
        },
    }
)
THRESHOLDS = {"abuse": 0.4, "insult": 0.5, "spam": 0.6}


class TinyGuard(NamedTuple):
    model: GuardModel
    spec: GuardSpec
    inputs: Inputs

    def export(self, to: Path, **options: Any) -> Any:
        from vigil_serving.huggingface.export import export_guard

        given = {"thresholds": THRESHOLDS, "examples": [], "provenance": Provenance("tiny guard"), **options}
        return export_guard(self.model, self.spec, self.inputs, TAXONOMY, to=to, **given)


@pytest.fixture(scope="session")
def tiny_guard(tiny_lm: Callable[[str], Path]) -> Callable[..., TinyGuard]:
    """A function from a family of language models to a guard."""

    def make(family: str, *, order: str = "policy_first", image: bool = False, **prompt: Any) -> TinyGuard:
        source = {"kind": "local", "path": str(tiny_lm(family))}
        text = {"kind": "decoder", "weights": source, "lora": {"rank": 2, "targets": ["q_proj", "v_proj"]}}
        encoders: dict[str, Any] = {"text": text}
        inputs: dict[str, Any] = {
            "text": {"tokenizer": source, "max_tokens": 64, "overlap": 0, "special_tokens": False, "max_passages": 4}
        }
        if image:
            options = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
            encoders["image"] = {"weights": {"kind": "random"}, "name": "vit_tiny_patch16_224", "options": options}
            inputs["image"] = {"size": 16}
        spec = GuardSpec.model_validate(
            {
                "kind": "guard",
                "encoders": encoders,
                "prompt": {"order": order, "max_tokens": 400, "row_tokens": 400, **prompt},
                "hierarchy": True,
            }
        )
        of = Inputs.model_validate(inputs)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = build_guard(spec, of, TAXONOMY)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_" in name or name.startswith("answers."):
                        parameter.normal_(std=0.2)
        return TinyGuard(model.eval(), spec, of)

    return make

"""Model card of a guard's folder: README.md in the Hugging Face hub's format, with the prompt that other programs send."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from vigil_data.items import ROLES, Role
from vigil_data.prompts.messages import chat_messages
from vigil_data.prompts.pieces import HEADINGS
from vigil_data.prompts.specs import PromptSpec
from vigil_serving.bundle.load import ExportedModel
from vigil_serving.bundle.metadata import BundleMetadata, Parity
from vigil_serving.bundle.model_card import flatten, front_matter, hub_facts, markdown_environment
from vigil_serving.llm_server.folder import LanguageModelFacts

EXAMPLE: tuple[tuple[Role, str], ...] = (("title", "An offer"), ("body", "Call now and win."))
"""The item that the card's prompt is about."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of a written folder with the trained guard, each prompt run alone with transformers.

    Attributes:
        parity: of probabilities and decisions.
        log_odds_difference: largest difference of the log odds of an item and a label.
        prompts: prompts whose item was not cut.
        rendered_equal: those of them that the tokenizer's own chat template renders to the same tokens.
    """

    parity: Parity
    log_odds_difference: float
    prompts: int
    rendered_equal: int


def guard_card(
    model: ExportedModel,
    metadata: BundleMetadata,
    facts: LanguageModelFacts,
    agreement: Agreement,
    *,
    spec: PromptSpec,
    system: bool | None,
    plain: str,
    architecture: str,
    evaluation: Mapping[str, Any],
    left_out: str,
) -> str:
    """Render the model card.

    Args:
        model: prompt, thresholds and calibration.
        metadata: content of bundle.json.
        facts: content of llm.json.
        agreement: agreement with the trained guard.
        spec: the recipe's ``model.prompt``.
        system: whether the chat template has a system message; ``None`` without a chat template.
        plain: the example's prompt as the model reads it.
        architecture: transformers' class of the model.
        evaluation: split to the content of its metrics.json, where known.
        left_out: modalities that the trained guard reads and the folder does not, as text.
    """
    assert model.prompt is not None
    pieces, clause = model.prompt.pieces, model.prompt.clauses[0]
    messages = ""
    if system is not None:
        assert pieces.order != "auto"
        written = chat_messages(spec, pieces.order, clause.text, EXAMPLE, system=system)
        messages = json.dumps(written, indent=2, ensure_ascii=False)
    template = files("vigil_serving.huggingface").joinpath("guard_card.md.jinja").read_text(encoding="utf-8")
    rendered = markdown_environment().from_string(template)
    text = rendered.render(
        front_matter=front_matter(
            metadata.licences,
            "transformers",
            "text-generation",
            ["content-safety", "guard", "vigil"],
            hub_facts(metadata.name, metadata.lineage, evaluation, "text-generation"),
        ),
        metadata=metadata,
        prompt=model.prompt,
        thresholds=model.thresholds,
        answers=pieces.answers,
        label=clause.label,
        messages=messages,
        plain=plain,
        headings=", ".join(f"{role}: {HEADINGS['text'][role]}" for role in ROLES),
        subtrees=facts.subtrees,
        golden=len(facts.golden),
        parity=agreement.parity,
        dtype=agreement.parity.variant,
        agreement=agreement,
        architecture=architecture,
        evaluation={split: metrics["overall"] for split, metrics in evaluation.items()},
        lineage=flatten(metadata.lineage),
        left_out=left_out,
    )
    return text.rstrip("\n") + "\n"

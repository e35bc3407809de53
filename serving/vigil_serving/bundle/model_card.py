"""The model card: README.md of the bundle, in the Hugging Face hub's form (YAML facts on top, Markdown below)."""

import io
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from ruamel.yaml import YAML

from vigil_data.taxonomy import Taxonomy
from vigil_serving.bundle.licences import hub_name
from vigil_serving.bundle.load import Bundle

PIPELINES = {"text": "text-classification", "image": "image-classification", "audio": "audio-classification"}
"""The hub's names of tasks; it has none for several modalities."""


def card(bundle: Bundle, taxonomy: Taxonomy, facts: Mapping[str, Any]) -> str:
    """Write the card.

    Args:
        bundle: the bundle, its parity measured.
        taxonomy: its labels, with what reviewers are told.
        facts: ``evaluation``, where known: split to the content of its metrics.json.
    """
    # Markdown, not HTML: the filter `cell` escapes
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)  # noqa: S701
    environment.filters |= {"cell": cell, "number": _number, "probability": _probability, "change": _change}
    template = environment.from_string(files("vigil_serving.bundle").joinpath("model_card.md.jinja").read_text(encoding="utf-8"))
    signature = bundle.signature
    evaluation = {split: findings["overall"] for split, findings in dict(facts.get("evaluation", {})).items()}
    rendered = template.render(
        head=_head(bundle),
        bundle=bundle,
        taxonomy=taxonomy,
        signature=signature,
        labels=[(name, label) for head in taxonomy.heads.values() for name, label in head.labels.items()],
        lineage=_flat(signature.lineage),
        evaluation=evaluation,
    )
    return rendered.rstrip("\n") + "\n"


def cell(value: object) -> str:
    """A value as text that stays within one Markdown table cell, whatever it holds."""
    text = " ".join(str(value).split())
    for mark in "\\`*_[]|#":
        text = text.replace(mark, "\\" + mark)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _head(bundle: Bundle) -> str:
    """The facts that the hub reads."""
    pipeline = PIPELINES.get("+".join(bundle.signature.modalities))
    licence = hub_name(bundle.signature.licences)
    head = {
        **({"license": licence} if licence else {}),
        **({"license_name": "several", "license_link": "#licences"} if licence == "other" else {}),
        "library_name": "vigil",
        **({"pipeline_tag": pipeline} if pipeline else {}),
        "tags": ["content-safety", "multi-label", "onnx", *_forms(bundle), *bundle.signature.modalities],
    }
    text = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(head, text)
    return text.getvalue()


def _forms(bundle: Bundle) -> list[str]:
    """Tags of what the bundle has beside the ONNX graphs."""
    variants = [variant for variant in bundle.signature.variants if variant != "fp32"]
    return [*(["torchscript"] if "torchscript" in bundle.signature.graphs else []), *variants]


def _change(change: Mapping[str, float | None]) -> str:
    """Of several changes of average precision the worst, with its label."""
    known = {label: value for label, value in change.items() if value is not None}
    if not known:
        return "-"
    label = min(known, key=lambda name: known[name])
    return f"{known[label]:+.4f} ({label})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _probability(value: float) -> str:
    return f"{value:.4g}"


def _flat(lineage: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    """Nested facts as dotted names with values."""
    found: list[tuple[str, object]] = []
    for name, value in lineage.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return found

"""Model card: README.md of the bundle, in the Hugging Face hub's format (YAML front matter, then Markdown)."""

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from jinja2 import Environment, StrictUndefined
from ruamel.yaml import YAML

from vigil_data.taxonomy import Taxonomy
from vigil_serving.bundle.licences import hub_name
from vigil_serving.bundle.load import ExportedModel
from vigil_serving.bundle.metadata import BundleMetadata, Licence

PIPELINE_TAGS = {"text": "text-classification", "image": "image-classification", "audio": "audio-classification"}
"""The hub's names of tasks; it has none for several modalities."""


def model_card(model: ExportedModel, metadata: BundleMetadata, taxonomy: Taxonomy, evaluation: Mapping[str, Any]) -> str:
    """Render the model card.

    Args:
        model: inputs, thresholds, calibration and policy.
        metadata: content of bundle.json.
        taxonomy: the labels with their descriptions.
        evaluation: split to the content of its metrics.json, where known.
    """
    pipeline = PIPELINE_TAGS.get("+".join(metadata.modalities))
    formats = [*(["torchscript"] if "torchscript" in metadata.graphs else []), *(v for v in metadata.variants if v != "fp32")]
    formats += metadata.modalities
    template = markdown_environment().from_string(
        files("vigil_serving.bundle").joinpath("model_card.md.jinja").read_text(encoding="utf-8")
    )
    rendered = template.render(
        front_matter=front_matter(
            metadata.licences,
            "vigil",
            pipeline,
            ["content-safety", "multi-label", "onnx", *formats],
            hub_facts(metadata.name, metadata.lineage, evaluation, pipeline),
        ),
        model=model,
        metadata=metadata,
        taxonomy=taxonomy,
        labels=[(name, label) for head in taxonomy.heads.values() for name, label in head.labels.items()],
        lineage=flatten(metadata.lineage),
        evaluation={split: metrics["overall"] for split, metrics in evaluation.items()},
    )
    return rendered.rstrip("\n") + "\n"


def markdown_environment() -> Environment:
    """Return an environment for Markdown, whose filters escape and round values."""
    # Markdown, not HTML: the filter `cell` escapes
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)  # noqa: S701
    environment.filters |= {
        "cell": markdown_cell,
        "fenced": fenced,
        "number": _three_digits,
        "probability": _four_digits,
        "change": largest_ap_loss,
    }
    return environment


def fenced(text: str, language: str = "text") -> str:
    """Return a block of code, whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def markdown_cell(value: object) -> str:
    """Escape a value so that it stays within one Markdown table cell."""
    text = " ".join(str(value).split())
    for mark in "\\`*_[]|#":
        text = text.replace(mark, "\\" + mark)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def front_matter(
    licences: Mapping[str, Licence], library: str, pipeline: str | None, tags: Sequence[str], facts: Mapping[str, Any]
) -> str:
    """Return the YAML that the hub reads.

    Args:
        licences: part to its licence.
        library: library that loads the model.
        pipeline: the hub's name of the task, if it has one.
        tags: words by which the model is found.
        facts: further fields; see :func:`hub_facts`.
    """
    licence = hub_name(licences)
    fields = {
        **({"license": licence} if licence else {}),
        **({"license_name": "several", "license_link": "#licences"} if licence == "other" else {}),
        "library_name": library,
        **({"pipeline_tag": pipeline} if pipeline else {}),
        "tags": [*tags],
        **facts,
    }
    text = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(fields, text)
    return text.getvalue()


def hub_facts(name: str, lineage: Mapping[str, Any], evaluation: Mapping[str, Any], pipeline: str | None) -> dict[str, Any]:
    """Return the dataset, the metrics as the hub's ``model-index``, and the lineage under ``vigil``, for :func:`front_matter`.

    Args:
        name: name of the model.
        lineage: origin of the model, as in bundle.json.
        evaluation: split to the content of its metrics.json.
        pipeline: the hub's name of the task, if it has one.
    """
    dataset = lineage.get("dataset") or {}
    facts: dict[str, Any] = {}
    if dataset:
        facts["datasets"] = [PurePath(str(dataset["path"])).name]
    results = []
    for split, metrics in evaluation.items():
        macro = {metric: found["value"] for metric, found in (metrics["overall"].get("macro") or {}).items()}
        values = [
            {"type": metric, "name": f"macro {metric.replace('_', ' ')}", "value": value}
            for metric, value in macro.items()
            if value is not None
        ]
        if values:
            evaluated = str(metrics["facts"].get("dataset") or dataset.get("path") or split)
            path, _, version = evaluated.partition(" version ")
            of = {"name": PurePath(path).name, "type": PurePath(path).name, "split": split}
            task = {"type": pipeline or "other", "name": "content safety"}
            revision = {"revision": version} if version else {}
            results.append({"task": task, "dataset": of | revision, "metrics": values})
    if results:
        facts["model-index"] = [{"name": name, "results": results}]
    git = lineage.get("git") or {}
    own = {
        "run": lineage.get("run_id"),
        "checkpoint": lineage.get("checkpoint"),
        "recipe": lineage.get("recipe"),
        "commit": git.get("commit"),
        "dirty": git.get("dirty"),
        "evaluations": {split: results_digest(metrics) for split, metrics in evaluation.items()} or None,
        "dataset": {"name": facts["datasets"][0], **{k: v for k, v in dataset.items() if k != "path"}} if dataset else None,
    }
    if known := {key: value for key, value in own.items() if value is not None}:
        facts["vigil"] = known
    return facts


def results_digest(metrics: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the metrics.json that has this content."""
    return hashlib.sha256((json.dumps(metrics, indent=2, allow_nan=False) + "\n").encode()).hexdigest()


def largest_ap_loss(change: Mapping[str, float | None]) -> str:
    """Return the lowest change of average precision, with its label; a dash if none was measured."""
    known = {label: value for label, value in change.items() if value is not None}
    if not known:
        return "-"
    label = min(known, key=lambda name: known[name])
    return f"{known[label]:+.4f} ({label})"


def _three_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _four_digits(value: float) -> str:
    return f"{value:.4g}"


def flatten(lineage: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    """Return the values of a lineage, nested ones with dotted names."""
    found: list[tuple[str, object]] = []
    for name, value in lineage.items():
        found += flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return found

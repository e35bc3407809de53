"""Statements of reasons: one for each measure, in the fields of the European Union's transparency database.

They state facts of the decision (label, probability, threshold, policy) and policy text, and nothing of the content or its
author.
"""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vigil_data.errors import UserError
from vigil_data.filesystem import make_folder, replaced_file
from vigil_data.taxonomy import Label
from vigil_monitoring.transparency.codes import OTHER, ContentType
from vigil_monitoring.transparency.counts import language_code
from vigil_monitoring.transparency.mapping import LabelMapping, TransparencyMapping
from vigil_monitoring.transparency.measures import Measure
from vigil_monitoring.transparency.statement import Statement

OF_MODALITY: Mapping[str, ContentType] = {
    "text": "CONTENT_TYPE_TEXT",
    "image": "CONTENT_TYPE_IMAGE",
    "audio": "CONTENT_TYPE_AUDIO",
    "video": "CONTENT_TYPE_VIDEO",
}
_SOURCES = {"own initiative": "SOURCE_VOLUNTARY", "notice": "SOURCE_ARTICLE_16", "trusted flagger": "SOURCE_TRUSTED_FLAGGER"}


def write_statements(
    measures: Iterable[Measure], mapping: TransparencyMapping, texts: Mapping[str, Label], to: Path
) -> tuple[int, Counter[str]]:
    """Write statements as JSON Lines, and next to them a CSV of ``puid``, ``id`` and ``time`` by which each is found again.

    The bodies are those that the database takes at ``/statement``, and up to 100 at once at ``/statements``. The CSV is not for
    the
    database: ids may be personal data.

    Args:
        measures: the measures.
        mapping: categories, grounds and restrictions.
        texts: policy text of labels.
        to: the JSON Lines file; the CSV is named ``NAME.index.csv``.

    Returns:
        Number of statements, in total and by category.

    Raises:
        UserError: if the mapping lacks something that a statement must have.
    """
    if mapping.posted is None:
        raise UserError(
            f"the mapping {mapping.name} does not say when content was posted, which every statement states; set `posted` to a "
            "column of the traffic, or to time if content is decided when it is posted"
        )
    for name, of in mapping.labels.items():
        if of.explanation is None and not (name in texts and (texts[name].definition or texts[name].description)):
            raise UserError(
                f"the mapping {mapping.name} has no explanation of label {name}, nor has its taxonomy a text; add one of them"
            )
    categories: Counter[str] = Counter()
    make_folder(to.parent)
    with (
        replaced_file(to) as new,
        replaced_file(to.with_suffix(".index.csv")) as index,
        new.open("w", encoding="utf-8") as lines,
        index.open("w", encoding="utf-8", newline="") as rows,
    ):
        writer = csv.writer(rows, lineterminator="\r\n")
        writer.writerow(["puid", "id", "time"])
        for measure in measures:
            statement = make_statement(measure, mapping, texts.get(measure.label))
            lines.write(json.dumps(statement.model_dump(mode="json", exclude_none=True), ensure_ascii=False) + "\n")
            writer.writerow([statement.puid, measure.id, measure.time.isoformat()])
            categories[statement.category] += 1
    return categories.total(), categories


def make_statement(measure: Measure, mapping: TransparencyMapping, text: Label | None) -> Statement:
    """Return the statement of reasons of a measure.

    Args:
        measure: the measure.
        mapping: categories, grounds and restrictions.
        text: policy text of its label; ``None`` if the mapping explains it.

    Raises:
        UserError: if a value is missing or not one that the database takes.
    """
    of, action = mapping.labels[measure.label], mapping.actions[measure.action]
    if measure.posted is None:
        raise UserError(f"item {measure.id}: the time of posting is not known; log it, and for people's measures give `posted`")
    ground: dict[str, Any] = {"illegal_content_legal_ground": of.reference, "illegal_content_explanation": _explanation(of, text)}
    if of.ground == "terms":
        ground = {"incompatible_content_ground": of.reference, "incompatible_content_explanation": _explanation(of, text)}
    code = language_code(measure.language).upper()
    types = _content_types(measure, mapping)
    by_person = "AUTOMATED_DECISION_PARTIALLY" if measure.detected_by == "automated" else "AUTOMATED_DECISION_NOT_AUTOMATED"
    try:
        return Statement(
            decision_visibility=action.visibility or None,
            decision_visibility_other=action.visibility_other,
            decision_monetary=action.monetary,
            decision_monetary_other=action.monetary_other,
            decision_provision=action.provision,
            decision_account=action.account,
            decision_ground=f"DECISION_GROUND_{'ILLEGAL' if of.ground == 'law' else 'INCOMPATIBLE'}_CONTENT",
            decision_ground_reference_url=mapping.terms_url if of.ground == "terms" else None,
            **ground,
            category=of.category,
            category_specification=(of.subcategory,),
            category_specification_other=measure.label.replace("_", " ") if of.subcategory == OTHER else None,
            content_type=types,
            content_type_other=(measure.content_type or "unknown")[:500] if "CONTENT_TYPE_OTHER" in types else None,
            content_language=code if len(code) == 2 and code.isascii() and code.isalpha() else None,
            content_date=measure.posted.date().isoformat(),
            territorial_scope=mapping.countries,
            application_date=measure.time.date().isoformat(),
            decision_facts=_facts(measure),
            source_type=_SOURCES[measure.origin],
            automated_detection="Yes" if measure.detected_by == "automated" else "No",
            automated_decision="AUTOMATED_DECISION_FULLY" if measure.means == "automated" else by_person,
            puid=puid(measure),
        )
    except ValidationError as error:
        found = error.errors()[0]
        where = ".".join(map(str, found["loc"])) or "statement"
        raise UserError(
            f"item {measure.id}: {where}: {found['msg']}; the transparency database would refuse this statement"
        ) from None


def puid(measure: Measure) -> str:
    """Return the statement's unique identifier: a hash, since ids may be personal data or have characters that are refused."""
    key = json.dumps([measure.id, measure.action, measure.label, measure.time.isoformat()])
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def _explanation(of: LabelMapping, text: Label | None) -> str:
    explained = of.explanation or (text.definition or text.description if text else "")
    return explained[:2000]


def _content_types(measure: Measure, mapping: TransparencyMapping) -> tuple[ContentType, ...]:
    """Return the codes of the content type, or else of the modalities; CONTENT_TYPE_OTHER if neither is known or mapped."""
    if (mapped := mapping.content_types.get(measure.content_type or "")) is not None:
        return mapped
    modalities = (measure.presence or "").split("+")
    return tuple(OF_MODALITY[of] for of in modalities) if set(modalities) <= set(OF_MODALITY) else ("CONTENT_TYPE_OTHER",)


def _facts(measure: Measure) -> str:
    """Return what the decision relied on, in standard language."""
    label = measure.label.replace("_", " ")
    if measure.means == "human":
        found = "a classifier brought the content to them" if measure.detected_by == "automated" else "without a classifier"
        return f"A person found that the content falls under the label '{label}' ({found}). Action: '{measure.action}'."
    text = (
        f"A classifier found that the content falls under the label '{label}' with a calibrated probability of "
        f"{measure.probability:.4f}, which reaches the threshold of {measure.threshold:.4f} for the action '{measure.action}'."
    )
    if measure.also:
        text += f" It also reaches thresholds for: {', '.join(of.replace('_', ' ') for of in measure.also)}."
    made_by = [f"policy {measure.policy}"] * bool(measure.policy) + [f"model {measure.bundle}"] * bool(measure.bundle)
    return (text + (f" Decided by {', '.join(made_by)}." if made_by else ""))[:5000]

"""Label Studio: tasks and labelling configuration out, its export "JSON" in.

Formats: https://labelstud.io/guide/task_format and https://labelstud.io/tags/choices. A skipped task is "cannot tell" for each of
its labels; ``lead_time`` is divided among the answers of an annotation; ``ground_truth`` marks an adjudicated answer.
"""

import io
import json
import wave
from base64 import b64encode
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from vigil_data.errors import Problems, UserError
from vigil_data.importers.table_reader import TableRow
from vigil_data.reviews.decisions import CANNOT_TELL
from vigil_monitoring.reviews.content import QueueContent
from vigil_monitoring.reviews.policy import ReviewPolicy
from vigil_monitoring.reviews.rows import VALUES, Link, Skipped, whole_text

CONFIDENCE = "answer-confidence"
"""Control for how sure a reviewer is; no label has such a name."""
CONFIDENCES = {"not sure": 0.5, "fairly sure": 0.75, "sure": 1.0}
NO_IMAGE = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
"""One transparent pixel: each task has a value for each object of the configuration."""


def lines(items: QueueContent, link: Link, policy_version: str) -> Iterator[str]:
    """Yield the tasks, a JSON list with one task a line."""
    images, audio = items.most_media
    before = "[\n"
    for item, labels in items:
        data: dict[str, Any] = {
            "id": item.id,
            "labels": labels,
            "ask": f"Answer for: {', '.join(labels)}",
            "policy_version": policy_version,
            "text": whole_text(item),
        }
        for modality, contents, most, absent in (
            ("image", item.image, images, NO_IMAGE),
            ("audio", item.audio, audio, _silence()),
        ):
            for place in range(most):
                data[f"{modality}_{place + 1}"] = link(contents[place]) if place < len(contents) else absent
        yield f"{before}{json.dumps({'data': data}, ensure_ascii=False)}"
        before = ",\n"
    yield "\n]\n"


def configuration(items: QueueContent, policy: ReviewPolicy) -> str:
    """Return the labelling configuration of a queue's tasks."""
    images, audio = items.most_media
    view = ET.Element("View")
    ET.SubElement(view, "Header", value="$ask")
    ET.SubElement(view, "Text", name="text", value="$text")
    for modality, tag, most in (("image", "Image", images), ("audio", "Audio", audio)):
        for place in range(1, most + 1):
            ET.SubElement(view, tag, name=f"{modality}_{place}", value=f"${modality}_{place}")
    always = set.intersection(*(set(labels) for labels in items.labels.values()))
    for label in items.asked:
        text = policy.text(label)
        about = " ".join(part for part in (text["question"], text["definition"]) if part)
        heading = f"{text['heading']}: {about}" if about else text["heading"]
        ET.SubElement(view, "Header", value=heading.replace("$", "\N{FULLWIDTH DOLLAR SIGN}"), size="5")  # $ starts a variable
        # A question that some tasks do not ask must not be required.
        choices = _choices(view, label, VALUES)
        if label in always:
            choices.set("required", "true")
    ET.SubElement(view, "Header", value="How sure are you?", size="5")
    _choices(view, CONFIDENCE, CONFIDENCES)
    ET.indent(view)
    return ET.tostring(view, encoding="unicode") + "\n"


def _choices(view: ET.Element, name: str, values: Iterable[str]) -> ET.Element:
    choices = ET.SubElement(view, "Choices", name=name, toName="text", choice="single", showInline="true")
    for value in values:
        ET.SubElement(choices, "Choice", value=value)
    return choices


def _silence() -> str:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(8000)
        file.writeframes(b"\x80" * 800)
    return f"data:audio/wav;base64,{b64encode(buffer.getvalue()).decode()}"


def rows(file: Path, problems: Problems, skipped: Skipped) -> Iterator[TableRow]:
    """Yield the answers of an export, one row for each label of each annotation.

    Args:
        file: the export, in the format "JSON".
        problems: collects tasks that are not of Vigil, and choices that are no answers.
        skipped: counts tasks without annotations.

    Raises:
        UserError: if the file is not such an export.
    """
    try:
        tasks = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    if not isinstance(tasks, list) or not all(isinstance(task, dict) and _objects(task.get("annotations")) for task in tasks):
        raise UserError(
            f"{file}: not an export of Label Studio in the format JSON; choose JSON, not JSON-MIN or CSV, when exporting"
        )
    for number, task in enumerate(tasks, 1):
        data = task.get("data")
        if not isinstance(data, dict) or not isinstance(data.get("id"), str) or not isinstance(data.get("labels"), list):
            problems.add(f"{file}: task {task.get('id', number)}", "has no id and labels; it is not from `vigil monitor queue`")
            continue
        if not task["annotations"]:
            skipped["tasks without annotations"] += 1
        for annotation in task["annotations"]:
            position = f"{file}: task {task.get('id', number)}, annotation {annotation.get('id', '')}".rstrip()
            yield from _annotation(annotation, data, position, problems)


def _objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) and _results(entry.get("result")) for entry in value)


def _results(value: Any) -> bool:
    """Whether the results of an annotation have the form that :func:`_annotation` reads."""
    return value is None or (
        isinstance(value, list)
        and all(isinstance(of, dict) and isinstance(of.get("value", {}), dict) for of in value)
        and all(isinstance(of.get("value", {}).get("choices", []), list) for of in value)
    )


def _annotation(annotation: dict[str, Any], data: dict[str, Any], position: str, problems: Problems) -> Iterator[TableRow]:
    chosen: dict[str, Any] = {}
    confidence = None
    for result in annotation.get("result") or ():
        if result.get("type") != "choices":
            continue  # a control that somebody added
        label, choice = str(result.get("from_name")), str(*result.get("value", {}).get("choices", [])[:1])
        if label == CONFIDENCE:
            confidence = CONFIDENCES.get(choice)
        elif choice not in VALUES:
            problems.add(position, f"{label} is {choice!r}, not one of {', '.join(VALUES)}")
        else:
            chosen[label] = VALUES[choice]
    if annotation.get("was_cancelled"):
        chosen = dict.fromkeys(data["labels"], CANNOT_TELL)
    by = annotation.get("completed_by")
    lead = annotation.get("lead_time")
    common = {
        "id": data["id"],
        "reviewer": (by.get("email") or f"user {by.get('id')}") if isinstance(by, dict) else None if by is None else f"user {by}",
        "time": annotation.get("updated_at") or annotation.get("created_at"),
        "policy_version": data.get("policy_version"),
        "confidence": confidence,
        "adjudicated": annotation.get("ground_truth") or None,
        "minutes": round(lead / 60 / len(chosen), 4) if isinstance(lead, int | float) and chosen else None,
    }
    for label, value in chosen.items():
        yield TableRow(position, {**common, "label": label, "value": value})

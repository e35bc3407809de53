"""ROOST Coop: bodies of its Submit Items API out, the bodies of its action callbacks in.

Formats: ``docs/api/items.md`` and ``docs/api/actions.md`` of https://github.com/roostorg/coop. A callback has no time; the
service that receives it adds ``time``.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from vigil_data.errors import Problems, UserError
from vigil_data.importers.table_reader import TableRow
from vigil_data.specs import Spec
from vigil_data.yaml_files.read_spec import read_spec
from vigil_monitoring.reviews.content import AskedItem
from vigil_monitoring.reviews.rows import NO, VALUES, YES, Link, Skipped, whole_text

ITEMS_PER_REQUEST = 100


class CoopMapping(Spec):
    """What the actions and policies of a Coop mean."""

    actions: Mapping[str, Literal["yes", "no", "cannot tell"]] = Field(min_length=1, description="id of an action to its answer")
    policies: Mapping[str, str] = Field({}, description="id of a policy to the label that it is about")
    others: Literal["no", "unknown"] = Field(
        "unknown", description="answer for asked labels that no policy of a yes names: no, or none"
    )


class _MappingFile(Spec):
    coop: CoopMapping = Field(description="what the actions and policies of a Coop mean")


def read_mapping(file: Path, labels: Sequence[str]) -> CoopMapping:
    """Read a mapping.

    Raises:
        UserError: one line for each mistake, such as a policy about a label that the queue does not have.
    """
    mapping = read_spec(_MappingFile, file, "mapping", "coop: {actions: {ACTION_ID: yes}}").coop
    if unknown := [f"{policy} is about {label}" for policy, label in mapping.policies.items() if label not in labels]:
        raise UserError(f"{file}: coop.policies: {unknown[0]}, which is no label of the queue; it has {', '.join(labels)}")
    return mapping


def lines(items: Iterable[AskedItem], link: Link, item_type: str) -> Iterator[str]:
    """Yield bodies of requests to ``POST /api/v1/items/async/``, one a line, each with up to 100 items."""
    batch: list[dict[str, Any]] = []
    for item, labels in items:
        data = {
            "text": whole_text(item),
            "images": [link(content) for content in item.image],
            "audio": [link(content) for content in item.audio],
            "questions": ", ".join(labels),
        }
        batch.append({"id": item.id, "typeId": item_type, "data": {name: of for name, of in data.items() if of}})
        if len(batch) == ITEMS_PER_REQUEST:
            yield _body(batch)
            batch = []
    if batch:
        yield _body(batch)


def _body(items: list[dict[str, Any]]) -> str:
    return json.dumps({"items": items}, ensure_ascii=False) + "\n"


def rows(
    bodies: Iterable[TableRow], problems: Problems, skipped: Skipped, mapping: CoopMapping, asked: Mapping[str, Sequence[str]]
) -> Iterator[TableRow]:
    """Yield the answers of callbacks, one row for each label.

    Args:
        bodies: bodies of callbacks, each with ``time``.
        problems: collects bodies that are no callbacks, and policies that the mapping lacks.
        skipped: counts actions that nobody took by hand, that the mapping does not name, or on items of no queue.
        mapping: what actions and policies mean.
        asked: item to the labels to answer; Coop has other items too.
    """
    for body in bodies:
        values = body.values
        try:
            id_, action = str(values["item"]["id"]), str(values["action"]["id"])
            policies = [str(policy["id"]) for policy in values.get("policies") or ()]
        except (KeyError, TypeError):
            problems.add(body.position, "not the body of an action callback: it has no item, action or policies with an id")
            continue
        if not values.get("actorEmail"):
            skipped["actions of rules, which no reviewer took"] += 1
        elif id_ not in asked:
            skipped["actions on items that the queue does not ask about"] += 1
        elif (answer := mapping.actions.get(action)) is None:
            skipped["actions that the mapping does not name"] += 1
        elif unknown := [policy for policy in policies if policy not in mapping.policies]:
            problems.add(body.position, f"policy {unknown[0]} is not in the mapping; add it under coop.policies")
        elif answer == YES and not policies and len(asked[id_]) > 1:
            problems.add(body.position, "the action answers yes, but no policy says for which of several labels")
        else:
            named = [mapping.policies[policy] for policy in policies] or asked[id_]
            answers: dict[str, str] = dict.fromkeys(named, answer)
            if answer == YES and mapping.others == NO:
                answers |= {label: NO for label in asked[id_] if label not in answers}
            common = {"id": id_, "reviewer": values["actorEmail"], "time": values.get("time")}
            for label, value in answers.items():
                yield TableRow(body.position, {**common, "label": label, "value": VALUES[value]})

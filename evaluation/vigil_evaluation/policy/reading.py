"""Reads a compiled policy from JSON: every mistake is one line that says where it is."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vigil_data import json_fields
from vigil_evaluation.policy.constraints import ACTIONS, REVIEW, Appeals, Cell, ConstraintResult, Thresholds, optional_text

FORMAT = 1
"""Of the JSON form."""

_NAMES = (
    *("format", "name", "version", "actions", "labels", "review", "cells", "costs", "appeals", "severities", "shown", "facts"),
    "digest",
)


def read_content(value: Any) -> tuple[dict[str, Any], str]:
    """The fields of a :class:`vigil_evaluation.policy.compiled_policy.CompiledPolicy`, and the digest that they are said to have.

    Raises:
        UserError: one line, if something is malformed.
    """
    where = "policy"
    read = json_fields.mapping(value, where)
    if read.get("format") != FORMAT:
        json_fields.wrong(f"{where}.format", f"is {read.get('format')!r}; this Vigil reads {FORMAT}")
    read = json_fields.mapping(value, where, _NAMES)
    listed = {name: json_fields.items(read[name], f"{where}.{name}") for name in ("labels", "actions", "shown")}
    labels = [json_fields.text(label, f"{where}.labels.{i}") for i, label in enumerate(listed["labels"])]
    if len(set(labels)) != len(labels):
        json_fields.wrong(f"{where}.labels", "names a label twice")
    actions = listed["actions"]
    if not actions or actions != [action for action in ACTIONS if action in actions] or actions[0] != ACTIONS[0]:
        json_fields.wrong(f"{where}.actions", f"must be allow and some of {', '.join(ACTIONS[1:])}, in this order")
    if read["review"] not in (("before", "beside") if REVIEW in actions else (None,)):
        json_fields.wrong(f"{where}.review", f"does not go with the actions {', '.join(actions)}: {read['review']!r}")
    facts = json_fields.mapping(read["facts"], f"{where}.facts")
    content = {
        "name": json_fields.text(read["name"], f"{where}.name"),
        "version": json_fields.count(read["version"], f"{where}.version"),
        "actions": tuple(actions),
        "labels": tuple(labels),
        "review": read["review"],
        "cells": _read_cells(read["cells"], f"{where}.cells", labels, actions),
        "costs": _numbers(read["costs"], f"{where}.costs"),
        "appeals": {
            action: _read_appeals(given, f"{where}.appeals.{action}") for action, given in _each(read, "appeals", actions)
        },
        "severities": _numbers(read["severities"], f"{where}.severities"),
        "shown": tuple(ConstraintResult.from_dict(shown, f"{where}.shown.{i}") for i, shown in enumerate(listed["shown"])),
        "facts": {key: json_fields.text(fact, f"{where}.facts.{key}") for key, fact in facts.items()},
    }
    return content, json_fields.text(read["digest"], f"{where}.digest")


def _each(read: Mapping[str, Any], name: str, allowed: Sequence[str]) -> list[tuple[str, Any]]:
    given = json_fields.mapping(read[name], f"policy.{name}")
    if unknown := sorted(set(given) - set(allowed)):
        json_fields.wrong(f"policy.{name}", f"has unknown {', '.join(unknown)}")
    return list(given.items())


def _numbers(value: Any, where: str) -> dict[str, float]:
    return {key: json_fields.number(number, f"{where}.{key}", 0) for key, number in json_fields.mapping(value, where).items()}


def _read_appeals(value: Any, where: str) -> Appeals:
    read = json_fields.mapping(value, where, Appeals.__slots__)
    return Appeals(
        json_fields.number(read["wrong"], f"{where}.wrong", 0, 1),
        json_fields.number(read["right"], f"{where}.right", 0, 1),
        json_fields.number(read["cost"], f"{where}.cost", 0),
    )


def _read_cells(value: Any, where: str, labels: Sequence[str], actions: Sequence[str]) -> dict[Cell, Thresholds]:
    cells: dict[Cell, Thresholds] = {}
    for i, entry in enumerate(json_fields.items(value, where)):
        here = f"{where}.{i}"
        read = json_fields.mapping(entry, here, ("market", "presence", "thresholds"))
        cell = (optional_text(read["market"], f"{here}.market"), optional_text(read["presence"], f"{here}.presence"))
        if cell in cells:
            json_fields.wrong(here, "is of a market and presence that another is of")
        cells[cell] = _read_thresholds(read["thresholds"], f"{here}.thresholds", labels, actions)
    if (None, None) not in cells:
        json_fields.wrong(where, "lack the one for all markets and presences")
    return cells


def _read_thresholds(value: Any, where: str, labels: Sequence[str], actions: Sequence[str]) -> Thresholds:
    given = json_fields.mapping(value, where)
    if unknown := sorted(set(given) - set(labels)):
        json_fields.wrong(where, f"are of unknown {', '.join(unknown)}")
    thresholds: dict[str, dict[str, float]] = {}
    for label, by in given.items():
        read = json_fields.mapping(by, f"{where}.{label}")
        if unknown := sorted(set(read) - set(actions[1:])):
            json_fields.wrong(f"{where}.{label}", f"has unknown {', '.join(unknown)}")
        thresholds[label] = {action: json_fields.number(cut, f"{where}.{label}.{action}", 0, 1) for action, cut in read.items()}
        for action, cut in thresholds[label].items():
            if float(np.float32(cut)) != cut:
                json_fields.wrong(f"{where}.{label}.{action}", f"{cut!r} is no float32 number")
    return thresholds

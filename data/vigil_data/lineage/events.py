"""Nodes of the lineage, and the events that record them: one JSON object a line."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FORMAT = 1

KINDS = (
    "reviews",
    "dataset",
    "run",
    "checkpoint",
    "evaluation",
    "policy",
    "bundle",
    "publication",
    "promotion",
    "traffic",
    "queue",
)
"""Kinds of nodes, in the order in which they are made; reviews of a queue begin the next round."""

Key = tuple[str, str]
"""Kind and digest, which identify a node."""


@dataclass(frozen=True, slots=True)
class Input:
    """What a node was made from.

    Attributes:
        kind: one of :data:`KINDS`.
        digest: identifies it within its kind.
        role: what it was used for, such as ``data`` or ``weights``.
        name: a short name for readers, if known; also ``path`` and ``facts`` as of a :class:`Node`.
    """

    kind: str
    digest: str
    role: str = ""
    name: str = ""
    path: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """Kind and digest."""
        return self.kind, self.digest


@dataclass(frozen=True, slots=True)
class Node:
    """Something that a command made.

    Attributes:
        kind: one of :data:`KINDS`.
        digest: identifies it within its kind: dataset version, SHA-256 of its schema and files; run, its id; checkpoint,
            SHA-256 of its manifest; evaluation, of metrics.json; policy, of policy.json; bundle, of its manifest; queue and
            reviews, of the file.
        name: a short name for readers.
        path: where it was made, absolute.
        facts: small JSON values that describe it; no ids and no content of items.
    """

    kind: str
    digest: str
    name: str = ""
    path: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """Kind and digest."""
        return self.kind, self.digest

    def as_input(self, role: str) -> Input:
        """Return the node as the input of another one."""
        return Input(self.kind, self.digest, role, self.name, self.path, self.facts)


@dataclass(frozen=True, slots=True)
class Event:
    """A record that a node was made.

    Attributes:
        time: when, ISO 8601, UTC.
        by: who.
        command: the command, without secrets and without values that name items.
        node: the node.
        inputs: what it was made from.
    """

    time: str
    by: str
    command: str
    node: Node
    inputs: tuple[Input, ...] = ()

    def to_line(self) -> bytes:
        """Return the event as a line of JSON.

        Raises:
            ValueError: if a fact is NaN.
            TypeError: if a fact is no JSON value.
        """
        value = {
            "format": FORMAT,
            "time": self.time,
            "by": self.by,
            "command": self.command,
            "node": _described(self.node),
            "inputs": [{**_described(of), "role": of.role} for of in self.inputs],
        }
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Event":
        """Return the event of a line.

        Raises:
            ValueError: if it is none.
        """
        try:
            value = json.loads(line)
            if value["format"] != FORMAT:
                raise ValueError(f"of format {value['format']}, but this version of Vigil reads format {FORMAT}")
            node = value["node"]
            inputs = tuple(
                Input(of["kind"], of["digest"], of["role"], of.get("name", ""), of.get("path", ""), of.get("facts") or {})
                for of in value["inputs"]
            )
            made = Node(node["kind"], node["digest"], node.get("name", ""), node.get("path", ""), node.get("facts") or {})
            return cls(value["time"], value["by"], value["command"], made, inputs)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("not an event of the ledger of lineage") from error


def _described(of: Node | Input) -> dict[str, Any]:
    """Return what is known of a node; what is not known is left out."""
    value: dict[str, Any] = {"kind": of.kind, "digest": of.digest, "name": of.name, "path": of.path, "facts": dict(of.facts)}
    return {name: each for name, each in value.items() if each}

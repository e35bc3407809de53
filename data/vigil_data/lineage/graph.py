"""The graph of all events: what each thing was made from, and what was made from it.

Example:
    >>> graph = read_ledger()
    >>> [node.kind for node in graph.walk(graph.find("bundles/scam"), "up")]
    ['bundle', 'checkpoint', 'run', 'dataset']
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from vigil_data.errors import UserError, capped
from vigil_data.filesystem import StrPath
from vigil_data.lineage.digests import identify
from vigil_data.lineage.events import KINDS, Event, Input, Key, Node
from vigil_data.lineage.ledger import FOLDER, read_events, workspace

Direction = Literal["up", "down"]
"""Towards what a node was made from, or towards what was made from it."""

MIN_PREFIX = 4
"""Fewest characters of a digest that name a node."""


class Edge(NamedTuple):
    """A neighbour of a node.

    Attributes:
        role: what the input of the two was used for.
        node: the neighbour.
    """

    role: str
    node: Node


class Graph:
    """Nodes by kind and digest; of one that several events describe, the newest facts count, and all paths are kept.

    Args:
        events: in any order.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._nodes: dict[Key, Node] = {}
        self._times: dict[Key, str] = {}
        self._paths: dict[Key, dict[str, str]] = {}
        self._made: dict[Key, Event] = {}
        self._inputs: dict[Key, dict[Key, str]] = {}
        self._outputs: dict[Key, dict[Key, str]] = {}
        for event in sorted(events, key=lambda event: event.time):
            self.add(event)

    def add(self, event: Event) -> None:
        """Add an event; one without a time describes what lies on disk, and is older than all that were recorded."""
        node = event.node
        self._describe(node, event.time, known=True)
        first = self._made.get(node.key)
        if first is None or not first.time or (event.time and event.time < first.time):
            self._made[node.key] = event
        inputs = self._inputs.setdefault(node.key, {})
        for of in event.inputs:
            if of.key != node.key:
                self._describe(of, event.time, known=False)
                inputs[of.key] = of.role
                self._outputs.setdefault(of.key, {})[node.key] = of.role

    def _describe(self, of: Node | Input, time: str, *, known: bool) -> None:
        """Take over what an event states of a node; ``known``: the event is about the node, not about one made from it."""
        key = of.key
        old, before = self._nodes.get(key), self._times.get(key, "")
        if of.path:
            paths = self._paths.setdefault(key, {})
            paths[of.path] = max(paths.get(of.path, ""), time)
        if old is None:
            self._nodes[key] = Node(of.kind, of.digest, of.name, of.path, of.facts)
        elif known and time >= before:
            self._nodes[key] = replace(old, name=of.name or old.name, path=of.path or old.path, facts={**old.facts, **of.facts})
        elif of.facts or not old.name or not old.path:
            self._nodes[key] = replace(old, name=old.name or of.name, path=old.path or of.path, facts={**of.facts, **old.facts})
        if known and time >= before:
            self._times[key] = time

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, node: object) -> bool:
        return isinstance(node, Node | Input) and node.key in self._nodes

    def nodes(self, *kinds: str) -> list[Node]:
        """Return the nodes of some kinds (default: all), in the order in which they were first recorded."""
        return [node for node in self._nodes.values() if not kinds or node.kind in kinds]

    def get(self, kind: str, digest: str) -> Node | None:
        """Return a node; ``None`` if there is none."""
        return self._nodes.get((kind, digest))

    def paths(self, node: Node) -> list[str]:
        """Return all paths at which a node was seen, the newest first; not all of them need exist."""
        paths = self._paths.get(node.key, {})
        return sorted(paths, key=lambda path: paths[path], reverse=True)

    def made(self, node: Node) -> Event | None:
        """Return the first event about a node; ``None`` if it is only known as an input."""
        return self._made.get(node.key)

    def inputs(self, node: Node) -> list[Edge]:
        """Return what a node was made from."""
        return [Edge(role, self._nodes[key]) for key, role in self._inputs.get(node.key, {}).items()]

    def outputs(self, node: Node) -> list[Edge]:
        """Return what was made from a node."""
        return [Edge(role, self._nodes[key]) for key, role in self._outputs.get(node.key, {}).items()]

    def walk(self, node: Node, direction: Direction, through: Collection[str] = KINDS) -> Iterator[Node]:
        """Yield a node and all that is above or below it, each once, the nearest first.

        Args:
            node: where to start.
            direction: ``up`` or ``down``.
            through: kinds whose neighbours are visited too.
        """
        edges = self._inputs if direction == "up" else self._outputs
        seen, waiting = {node.key}, deque([node.key])
        while waiting:
            key = waiting.popleft()
            yield self._nodes.get(key, node)
            for other in edges.get(key, ()) if key == node.key or key[0] in through else ():
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)

    def find(self, what: StrPath) -> Node:
        """Return the node that a path, ``KIND:DIGEST`` or a digest names; of a digest the first characters are enough.

        What lies at a path now counts before what was recorded there.

        Raises:
            UserError: if there is none, or several.
        """
        text = str(what)
        path = Path(text)
        if path.exists() and (key := identify(path)) in self._nodes and key is not None:
            return self._nodes[key]
        place = text if "://" in text else str(path.resolve())
        if at := [(paths[place], key) for key, paths in self._paths.items() if place in paths]:
            return self._nodes[max(at)[1]]
        kind, colon, prefix = text.rpartition(":")
        if colon and kind not in KINDS:
            kind, prefix = "", text
        found = [
            node
            for node in self._nodes.values()
            if len(prefix) >= MIN_PREFIX and node.digest.startswith(prefix) and kind in ("", node.kind)
        ]
        if len(found) > 1:
            lines = [f"{text}: is also {node.kind}:{node.digest[:12]} {node.path}".rstrip() for node in found]
            raise UserError(*capped(lines), "name one of them with more characters")
        if not found:
            where = workspace() / FOLDER
            raise UserError(f"{text}: is not in the ledger {where}; name a path, KIND:DIGEST or item:ID, or set VIGIL_WORKSPACE")
        return found[0]


def read_ledger(of: StrPath | None = None) -> Graph:
    """Return the graph of a workspace's ledger.

    Args:
        of: the workspace (default: :func:`.workspace`).

    Raises:
        UserError: if a line of it is damaged.
    """
    return Graph(read_events(of))

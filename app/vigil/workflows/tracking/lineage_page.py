"""The picture of a lineage: one self-contained page with a layer for each kind, from the data to the traffic.

Cards are HTML and lines are SVG, so that names wrap, every card takes the focus, and no script is needed.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from vigil.workflows.tracking.item_exposure import place_of
from vigil_data.filesystem import StrPath
from vigil_data.lineage import KINDS, Graph, Key, Node

MAX_CARDS = 400
"""Nodes in the picture, the marked ones first; the page states how many were left out."""

CARD_WIDTH, CARD_HEIGHT, GAP_X, GAP_Y, TOP = 176, 62, 64, 18, 34
"""Measures in pixels; a layer begins below its title."""


@dataclass(frozen=True, slots=True)
class Card:
    """A node in the picture.

    Attributes:
        id: identifies it in the page.
        node: the node.
        title: its name, with the version of a dataset.
        left: position in pixels.
        top: position in pixels.
        marked: whether the picture is of it.
        place: a path; ``gone`` if it no longer exists.
        gone: whether no path exists.
        facts: what is known of it, as text.
    """

    id: str
    node: Node
    title: str
    left: int
    top: int
    marked: bool
    place: str
    gone: bool
    facts: Sequence[tuple[str, str]]


def write_lineage_page(graph: Graph, title: str, nodes: Sequence[Node], to: StrPath, *, marked: Collection[Node]) -> None:
    """Write the picture of some nodes and the edges among them.

    Args:
        graph: the graph.
        title: what the picture is of.
        nodes: the nodes.
        to: HTML file.
        marked: nodes that stand out.

    Raises:
        Failure: if the file cannot be written.
    """
    from vigil_evaluation.report.rendering import render_page

    keys = {node.key for node in marked}
    chosen = sorted(nodes, key=lambda node: node.key not in keys)[:MAX_CARDS]
    layers = arrange(graph, chosen)
    cards = [
        _card(graph, node, place, row, marked=node.key in keys)
        for place, (_, of) in enumerate(layers)
        for row, node in enumerate(of)
    ]
    by_key = {card.node.key: card for card in cards}
    edges = [
        (_curve(by_key[edge.node.key], card), f"{edge.node.kind} {edge.node.name} → {card.node.kind} {card.title}: {edge.role}")
        for card in cards
        for edge in graph.inputs(card.node)
        if edge.node.key in by_key
    ]
    here = Path(__file__).parent
    render_page(
        here / "lineage_page.html.jinja",
        to,
        own_style=here / "lineage_page.css",
        title=title,
        cards=cards,
        edges=edges,
        layers=[(kind, place * (CARD_WIDTH + GAP_X)) for place, (kind, _) in enumerate(layers)],
        width=max((card.left + CARD_WIDTH for card in cards), default=CARD_WIDTH),
        height=max((card.top + CARD_HEIGHT for card in cards), default=CARD_HEIGHT) + 4,
        left_out=len(nodes) - len(chosen),
        inputs={card.id: [(edge.role, edge.node) for edge in graph.inputs(card.node)] for card in cards},
        written=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def arrange(graph: Graph, nodes: Sequence[Node]) -> list[tuple[str, list[Node]]]:
    """Return the layers, each with its kind, from the data on; a node lies near the height of what it was made from."""
    rows: dict[Key, float] = {}
    layers = []
    for kind in KINDS:
        of = [node for node in nodes if node.kind == kind]
        made = {node.key: (event.time if (event := graph.made(node)) else "") for node in of}
        means = {}
        for place, node in enumerate(sorted(of, key=lambda node: made[node.key])):
            above = [rows[edge.node.key] for edge in graph.inputs(node) if edge.node.key in rows]
            means[node.key] = sum(above) / len(above) if above else float(place)
        of.sort(key=lambda node: (means[node.key], made[node.key]))
        rows |= {node.key: float(row) for row, node in enumerate(of)}
        layers += [(kind, of)] if of else []
    return layers


def _card(graph: Graph, node: Node, layer: int, row: int, *, marked: bool) -> Card:
    version = f" version {node.facts['version']}" if node.kind == "dataset" and node.facts.get("version") else ""
    place = place_of(graph, node)
    made = graph.made(node)
    facts = [("digest", node.digest[:16]), ("path", place)]
    facts += [(name.replace("_", " "), _text(value)) for name, value in node.facts.items() if value not in (None, "", [], {})]
    if made is not None and made.time:
        facts += [("made", made.time[:16].replace("T", " ") + " UTC"), ("by", made.by), ("command", made.command)]
    return Card(
        f"{node.kind}-{node.digest[:16]}",
        node,
        (node.name or node.digest[:8]) + version,
        layer * (CARD_WIDTH + GAP_X),
        TOP + row * (CARD_HEIGHT + GAP_Y),
        marked,
        place,
        "://" not in place and not Path(place).exists(),
        facts,
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _curve(of: Card, to: Card) -> str:
    """Return the SVG path from a card to the one made from it; it bends outwards within a layer, and from a later one."""
    y, end_y, end = of.top + CARD_HEIGHT // 2, to.top + CARD_HEIGHT // 2, to.left
    if of.left == to.left:
        return f"M{end} {y}C{end - GAP_X // 2} {y} {end - GAP_X // 2} {end_y} {end} {end_y}"
    start = of.left + CARD_WIDTH
    if start > end:  # from a queue to its reviews, with which the next round begins
        return f"M{start} {y}C{start + GAP_X // 2} {y} {end - GAP_X // 2} {end_y} {end} {end_y}"
    middle = (start + end) // 2
    return f"M{start} {y}C{middle} {y} {middle} {end_y} {end} {end_y}"

"""`vigil lineage`: what something was made from, what was made from it, and which runs and bundles have seen an item."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from rich.tree import Tree

    from vigil.workflows.tracking.item_exposure import Seen
    from vigil_data.lineage import Direction, Graph, Node

ITEM = "item:"
MAX_LINES = 500
"""Lines of a tree; --json has all."""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("lineage")(lineage)


def lineage(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="A path (dataset, run, checkpoint, evaluation, policy.json, bundle, traffic log), KIND:DIGEST, or item:ID.",
        ),
    ],
    *,
    up: Annotated[bool, typer.Option("--up", help="Only what it was made from.")] = False,
    down: Annotated[bool, typer.Option("--down", help="Only what was made from it.")] = False,
    kind: Annotated[
        str | None, typer.Option(metavar="LIST", help="Show only these kinds, such as run,bundle (default: all).")
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With item:ID: look for the item in this dataset (default: in all).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the picture to this HTML file, too.")] = None,
    openlineage: Annotated[
        str | None, typer.Option(metavar="FILE|URL", help="Write the events as OpenLineage to this file or server, too.")
    ] = None,
) -> None:
    """Show the lineage of something from the workspace's ledger: both ways, as a tree, JSON or a picture.

    With item:ID it names the runs and bundles that have seen an item: through joins, splits and merged labels, and by weights.
    See docs/lineage.md.
    """
    from vigil_data.errors import UserError
    from vigil_data.lineage import KINDS, read_ledger

    kinds = KINDS if kind is None else tuple(name.strip() for name in kind.split(",") if name.strip())
    if wrong := [name for name in kinds if name not in KINDS]:
        raise UserError(f"--kind {kind}: {', '.join(wrong)} is not a kind; the kinds are {', '.join(KINDS)}")
    graph = read_ledger()
    if what.startswith(ITEM):
        if up or down:
            raise UserError(f"{what}: leave out --up and --down; an item is followed both ways")
        if openlineage is not None:
            raise UserError(f"{what}: leave out --openlineage; it is for what commands have made")
        _show_item(graph, what.removeprefix(ITEM), dataset, kinds, as_json=as_json, html=html)
        return
    if dataset is not None:
        raise UserError("--dataset: only with item:ID")
    node = graph.find(what)
    directions: list[Direction] = ["up"] * (up or not down) + ["down"] * (down or not up)  # type: ignore[assignment]
    walked = {of.key: of for direction in directions for of in graph.walk(node, direction)}
    shown = [of for of in walked.values() if of.kind in kinds or of.key == node.key]
    sent = None
    if openlineage is not None:
        from vigil.workflows.tracking.openlineage_events import send_openlineage

        sent = send_openlineage(shown, graph, openlineage)
    if html is not None:
        _write_page(graph, node.name or what, shown, html, marked=[node])
    if as_json:
        _print_json(graph, shown, {"of": _identity(node)})
        return
    _print(_tree(graph, node, directions, kinds))
    if html is not None:
        typer.echo(f"picture: {html}")
    if sent is not None:
        typer.echo(f"OpenLineage: {sent} events to {openlineage}")


def _show_item(
    graph: "Graph", id_: str, dataset: Path | None, kinds: Collection[str], *, as_json: bool, html: Path | None
) -> None:
    from vigil.workflows.tracking.item_exposure import datasets_of, find_item, find_seen, how, place_of, places_of
    from vigil_data.errors import UserError, one_line
    from vigil_data.progress import Progress

    with Progress("finding the item") as progress:
        datasets = [dataset] if dataset is not None else datasets_of(graph)
        found, erased = find_item(graph, id_, datasets)
        seen = [of for of in find_seen(graph, found, lambda at: progress(f"looking at {at}")) if of and of.node.kind in kinds]
    if not found and not erased:
        where = f"dataset {dataset} has" if dataset is not None else f"none of the {len(datasets)} datasets of the ledger has"
        raise UserError(one_line(f"item:{id_}: {where} this item; name a dataset with --dataset, or set VIGIL_WORKSPACE"))
    if html is not None:
        made = [of.node for of in seen]
        above = {of.key: of for node in made for of in graph.walk(node, "up") if of.kind in ("dataset", "run", "checkpoint")}
        _write_page(graph, f"item {id_}", list((above | {of.key: of for of in made}).values()), html, marked=made)
    if as_json:
        value = {
            "item": id_,
            "datasets": [str(path) for path in found],
            "erased": {str(path): when for path, when in erased.items()},
            "seen_by": [_seen_json(of, places_of(graph, of.node)) for of in seen],
        }
        typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
        return
    for path in found:
        typer.echo(one_line(f"in {path}"))
    for path, when in erased.items():
        typer.echo(one_line(f"erased from {path} on {when}: its certificates are in {path / 'certificates'}"))
    for of in seen:
        version = "" if of.version is None else f" (dataset version {of.version})"
        text = how(of.trained_on, of.validated_on, of.by_weights, of.unknown)
        typer.echo(one_line(f"{of.node.kind} {_with_mark(place_of(graph, of.node))}{version}: {text}"))
    if not seen:
        typer.echo("no run or bundle of the ledger has seen it")
    if html is not None:
        typer.echo(f"picture: {html}")


def _seen_json(of: "Seen", paths: list[str]) -> dict[str, Any]:
    return {
        "kind": of.node.kind,
        "digest": of.node.digest,
        "name": of.node.name,
        "paths": paths,
        "exists": Path(paths[0]).exists(),
        "dataset_version": of.version,
        "trained_on": of.trained_on,
        "validated_on": of.validated_on,
        "by_weights": list(of.by_weights),
        "unknown": of.unknown or None,
    }


def _print_json(graph: "Graph", shown: "list[Node]", value: dict[str, Any]) -> None:
    known = {node.key for node in shown}
    nodes = [
        {
            **_identity(node),
            "facts": dict(node.facts),
            "paths": [{"path": path, "exists": Path(path).exists()} for path in graph.paths(node)],
            "made": None if (made := graph.made(node)) is None else {"time": made.time, "by": made.by, "command": made.command},
            "inputs": [{**_identity(edge.node), "role": edge.role} for edge in graph.inputs(node) if edge.node.key in known],
        }
        for node in shown
    ]
    typer.echo(json.dumps({**value, "nodes": nodes}, indent=2, ensure_ascii=False))


def _identity(node: "Node") -> dict[str, str]:
    return {"kind": node.kind, "digest": node.digest, "name": node.name}


def _write_page(graph: "Graph", title: str, shown: "list[Node]", html: Path, *, marked: "list[Node]") -> None:
    from vigil.workflows.tracking.lineage_page import write_lineage_page

    write_lineage_page(graph, title, shown, html, marked=marked)


class _Branch(NamedTuple):
    tree: "Tree"
    node: "Node"


def _tree(graph: "Graph", node: "Node", directions: "list[Direction]", kinds: Collection[str]) -> "Tree":
    """Return the tree of a node: what it was made from, and what was made from it; what is in two places is spread out once."""
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree(_label(graph, node, ""))
    lines = 0
    for direction, title in (("up", "made from"), ("down", "used for")):
        if direction not in directions:
            continue
        edges = graph.inputs if direction == "up" else graph.outputs
        branch = tree.add(Text(title, style="bold"))
        known, waiting = {node.key}, [_Branch(branch, node)]
        while waiting:
            above, of = waiting.pop()
            below = []
            for role, other in edges(of):
                if lines == MAX_LINES:
                    above.add(Text("… more; --json has all"))
                    break
                again = other.key in known
                known.add(other.key)
                shown = other.kind in kinds
                lines += shown
                at = above.add(_label(graph, other, role, again=again)) if shown else above
                below += [] if again else [_Branch(at, other)]
            waiting += reversed(below)
        if not branch.children:
            branch.add(Text("nothing that the ledger knows", style="dim"))
    return tree


def _label(graph: "Graph", node: "Node", role: str, *, again: bool = False) -> Any:
    """Return one line: kind, name, version, digest, where it is, and what it was used for."""
    from rich.text import Text

    from vigil.workflows.tracking.item_exposure import place_of
    from vigil_data.errors import one_line

    version = f" version {node.facts['version']}" if node.kind == "dataset" and node.facts.get("version") else ""
    text = Text(node.kind, style="cyan")
    text.append(one_line(f" {node.name}{version}".rstrip()), style="bold")
    text.append(f" {node.digest[:8]}", style="dim")
    if graph.paths(node):
        text.append(f"  {one_line(_with_mark(place_of(graph, node)))}", style="default")
    if role and role not in (node.kind, "version"):
        text.append(f"  ({role})", style="dim")
    return text.append("  see above", style="dim") if again else text


def _with_mark(path: str) -> str:
    return path if "://" in path or Path(path).exists() else f"{path} (gone)"


def _print(tree: "Tree") -> None:
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=200)).print(tree, soft_wrap=True)

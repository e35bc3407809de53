"""The lineage of a run as artifacts of Weights & Biases: what the run used, and what was made from it.

The dataset version, a checkpoint that it started from and its teacher are used; its checkpoints, evaluations, policies and
bundles are logged. What another run made from them is that run's. All of it is described by reference: data and weights stay
where they are.

What a bundle was used for (publications, promotions, traffic) is no artifact: it is noted in the metadata of the bundle's
artifact. The newest promotion of an alias, if it named a registry of W&B, is linked there.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vigil_data.lineage import Graph, Node, identify
from vigil_training.tracking.artifacts import collection_name
from vigil_training.tracking.content import ContentRule

Verb = Literal["used", "logged", "noted", "linked"]

REGISTRY = "registry"
"""Fact of a promotion: the registry of W&B in which it is linked, ``[ENTITY/]REGISTRY/NAME``."""

_MADE_BY_RUNS = ("checkpoint", "evaluation", "policy", "bundle")
MODELS = ("run", *_MADE_BY_RUNS)
"""Kinds through which a run's weights come from other runs."""

_USES = ("publication", "promotion", "traffic")
_USED_BY_RUNS = ("dataset", *_MADE_BY_RUNS)


@dataclass(frozen=True, slots=True)
class Step:
    """One edge between a run and an artifact, or a use of a bundle that the run made.

    Attributes:
        verb: whether the run used or logged it; or whether it is noted at the bundle's artifact, or linked in a registry.
        node: what it is.
        role: what the run used it for; empty for what it logged.
        collection: name of the artifact.
        owner: the run that made it; ``None`` if no run did.
        bundle: the bundle, of a use of it.
    """

    verb: Verb
    node: Node
    role: str
    collection: str
    owner: Node | None
    bundle: Node | None = None

    def __str__(self) -> str:
        what = "" if self.bundle is None else f"{self.node.kind} {self.node.name} at "
        return f"{self.verb} {what}{self.collection} ({self.node.digest[:12]})"


def steps_of(graph: Graph, run: Node) -> list[Step]:
    """Return the edges of a run: what it used, what it logged, each after what it was made from, and uses of its bundles."""
    used = [_step(graph, "used", _artifact_of(graph, node), role) for role, node in graph.inputs(run)]
    logged = [
        step
        for node in _descendants(graph, run)
        if (step := _step(graph, "logged", node, "")) is not None and step.owner is not None and step.owner.key == run.key
    ]
    uses = [use for step in logged if step.node.kind == "bundle" for use in _uses(graph, step)]
    return [*(step for step in used if step is not None), *logged, *uses]


def promotion_step(promotion: Node, bundle: Node, run_id: str) -> Step:
    """Return the link of a promoted bundle in its registry."""
    return Step("linked", promotion, promotion.name, owned_collection("bundle", run_id), None, bundle)


def owner_of(graph: Graph, node: Node) -> Node | None:
    """Return the run that made a node: the nearest one above it."""
    return next((above for above in graph.walk(node, "up", _MADE_BY_RUNS) if above.kind == "run"), None)


def owned_collection(kind: str, run_id: str) -> str:
    """Return the name of the artifact of what a run made, such as its checkpoints."""
    return collection_name(kind, run_id)


def metadata_of(graph: Graph, step: Step) -> dict[str, Any]:
    """Return what W&B shows of an artifact: facts of the ledger, with the digests of what it was made from."""
    node, event = step.node, graph.made(step.node)
    made = {} if event is None else {"made": event.time, "command": event.command}
    inputs = [f"{edge.node.kind}:{edge.node.digest} ({edge.role})" for edge in graph.inputs(node)]
    facts = {"kind": node.kind, "name": node.name, "path": node.path, **made, "inputs": inputs, "facts": dict(node.facts)}
    return {name: value for name, value in facts.items() if value}


def note_of(graph: Graph, step: Step) -> dict[str, Any]:
    """Return what the metadata of a bundle's artifact has of a use of it: no item, and no id of one."""
    node, event = step.node, graph.made(step.node)
    note = {"kind": node.kind, "name": node.name, "made": "" if event is None else event.time, "facts": dict(node.facts)}
    return {name: value for name, value in note.items() if value}


def reference_of(node: Node) -> str:
    """Return the address of a node: its path as a URL, or its digest where no path is known."""
    if not node.path:
        return f"urn:vigil:{node.kind}:{node.digest}"
    return node.path if "://" in node.path else Path(node.path).absolute().as_uri()


def files_of(graph: Graph, node: Node, rule: ContentRule, *, weights: bool) -> dict[str, Path | bytes]:
    """Return the files that are sent with an artifact, path to content; none if they have changed since, or are gone.

    Args:
        graph: knows where the node was.
        node: the node.
        rule: which parts of an evaluation are sent.
        weights: whether the files of a checkpoint are sent too.
    """
    place = next((Path(path) for path in graph.paths(node) if "://" not in path and _is_there(node, Path(path))), None)
    if place is None:
        return {}
    match node.kind:
        case "evaluation":
            return dict(rule.evaluation_files(place if place.is_dir() else place.parent))
        case "policy":
            return {"policy.json": place}
        case "bundle":
            return {"manifest.json": place / "manifest.json"}
        case "checkpoint" if weights:
            return {path.relative_to(place).as_posix(): path for path in sorted(place.rglob("*")) if path.is_file()}
        case _:
            return {}


def _is_there(node: Node, path: Path) -> bool:
    return path.exists() and identify(path) == node.key


def _descendants(graph: Graph, run: Node) -> Iterator[Node]:
    """Yield what was made from a run without another run, the nearest first."""
    seen, waiting = {run.key}, deque([run])
    while waiting:
        for _, node in graph.outputs(waiting.popleft()):
            if node.key not in seen and node.kind in _MADE_BY_RUNS:
                seen.add(node.key)
                waiting.append(node)
                yield node


def _uses(graph: Graph, logged: Step) -> Iterator[Step]:
    """Yield what a bundle was used for, and its link in a registry."""
    assert logged.owner is not None
    for role, node in graph.outputs(logged.node):
        if node.kind in _USES:
            yield Step("noted", node, role, logged.collection, logged.owner, logged.node)
        if node.kind == "promotion" and node.facts.get(REGISTRY) and _is_current(graph, node):
            yield promotion_step(node, logged.node, logged.owner.digest)


def _is_current(graph: Graph, promotion: Node) -> bool:
    """Return whether no later promotion let the alias point elsewhere."""

    def made(node: Node) -> str:
        return event.time if (event := graph.made(node)) is not None else ""

    same = [node for node in graph.nodes("promotion") if (node.path, node.name) == (promotion.path, promotion.name)]
    return max(same, key=made).key == promotion.key


def _artifact_of(graph: Graph, node: Node) -> Node:
    """Return what stands for a node as an input: for a run, whose weights are used, its newest checkpoint."""
    if node.kind != "run":
        return node
    checkpoints = [edge.node for edge in graph.outputs(node) if edge.node.kind == "checkpoint"]
    made = {each.key: event.time for each in checkpoints if (event := graph.made(each)) is not None}
    return max(checkpoints, key=lambda each: made.get(each.key, ""), default=node)


def _step(graph: Graph, verb: Verb, node: Node, role: str) -> Step | None:
    if node.kind not in _USED_BY_RUNS:
        return None
    owner = owner_of(graph, node) if node.kind in _MADE_BY_RUNS else None
    name = (
        collection_name(node.kind, node.name or node.digest[:12]) if owner is None else owned_collection(node.kind, owner.digest)
    )
    return Step(verb, node, role, name, owner)

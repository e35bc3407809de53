"""Lineage of review queues and of the answers to them: traffic → queue → reviews."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from vigil_data.filesystem import StrPath, sha256_file
from vigil_data.lineage import Input, Node, record
from vigil_serving.traffic.lineage import traffic_digest


def traffic_inputs(traffic: str, bundles: Iterable[str], role: str) -> list[Input]:
    """Return a traffic log's decisions of some bundles as inputs; a table of another program's scores names no bundle."""
    path = Path(traffic).resolve()
    return [Input("traffic", traffic_digest(path, bundle), role, path.name, str(path)) for bundle in bundles]


def file_input(kind: Literal["queue", "reviews"], file: StrPath, role: str) -> Input:
    """Return a queue, or a file of decisions, as an input."""
    path = Path(file)
    return Input(kind, sha256_file(path), role, path.name, str(path.resolve()))


def record_queue(queue: Path, inputs: Iterable[Input], **facts: Any) -> None:
    """Record that a queue was written, and from what."""
    known = {name: value for name, value in facts.items() if value not in (None, "")}
    record(Node("queue", sha256_file(queue), queue.name, str(queue.resolve()), known), list(inputs))


def record_answers(reviews: Path, queue: Path, decisions: int) -> None:
    """Record that a file has reviewers' decisions on a queue."""
    node = Node("reviews", sha256_file(reviews), reviews.name, str(reviews.resolve()), {"decisions": decisions})
    record(node, [file_input("queue", queue, "queue")])

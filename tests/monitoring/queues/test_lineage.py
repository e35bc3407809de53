"""Lineage of queues: from the traffic that they were drawn from to the answers that were given."""

from pathlib import Path

from vigil_data.lineage import Graph, Node, read_ledger
from vigil_monitoring.queues.lineage import file_input, record_answers
from vigil_monitoring.queues.queue import Queue, QueueRecord, queue_table, record_file, write_queue
from vigil_serving.traffic.lineage import record_traffic
from vigil_serving.traffic.options import Origin

BUNDLES = ("a" * 64, "b" * 64)


def draw(to: Path, *earlier: Path, traffic: str = "", bundles: tuple[str, ...] = ()) -> Path:
    row = {"id": to.stem, "purpose": "estimate", "ask": ["spam"], "inclusion_probability": 0.5}
    record = QueueRecord("probability", ("spam",), traffic=traffic, bundles=bundles, earlier=tuple(map(str, earlier)))
    write_queue(to, Queue(queue_table([row], ["spam"]), record))
    return to


def inputs(graph: Graph, node: Node) -> set[tuple[str, str, str]]:
    return {(role, of.kind, of.name) for role, of in graph.inputs(node)}


def test_queue_follows_from_traffic_and_earlier_queues_and_reviews_from_a_queue(tmp_path: Path) -> None:
    for bundle in BUNDLES:
        record_traffic(tmp_path / "log", Origin("serve", "live", bundle, None, ("spam",)))
    first = draw(tmp_path / "first.jsonl", traffic=str(tmp_path / "log"), bundles=BUNDLES)
    second = draw(tmp_path / "second.jsonl", first, tmp_path / "gone.jsonl")
    reviews = tmp_path / "reviews.jsonl"
    reviews.write_text("{}")
    record_answers(reviews, second, 1)
    graph = read_ledger()
    node = graph.find(first)
    assert inputs(graph, node) == {("live", "traffic", "log")}
    assert [edge.node.digest for edge in graph.inputs(graph.inputs(node)[1].node)] == [BUNDLES[1]]
    assert (node.facts["kind"], node.facts["rows"]) == ("probability", 1)
    assert inputs(graph, graph.find(second)) == {("earlier", "queue", "first.jsonl")}
    assert [of.name for of in graph.walk(graph.find(reviews), "up")] == [
        "reviews.jsonl",
        "second.jsonl",
        "first.jsonl",
        "log",
        "log",
        "",
        "",
    ]


def test_queue_has_further_inputs_and_is_found_where_it_was_moved(tmp_path: Path) -> None:
    first = draw(tmp_path / "first.jsonl")
    row = {"id": "p1", "purpose": "mined", "ask": ["spam"]}
    queue = Queue(queue_table([row], ["spam"]), QueueRecord("non-probability", ("spam",)))
    write_queue(tmp_path / "second.jsonl", queue, [file_input("queue", first, "reviewed")])
    moved = (tmp_path / "second.jsonl").rename(tmp_path / "moved.jsonl")
    record_file(tmp_path / "second.jsonl").rename(record_file(moved))
    graph = read_ledger()
    assert inputs(graph, graph.find(moved)) == {("reviewed", "queue", "first.jsonl")}

"""Replay: the edges of a run at W&B follow from the ledger, whatever was recorded first."""

import json
import random
from types import SimpleNamespace

import pytest

from vigil_data.lineage import Event, Graph, Input, Node
from vigil_training.tracking.content import ContentRule
from vigil_training.tracking.sync.replay import files_of, metadata_of, owner_of, reference_of, steps_of
from vigil_training.tracking.sync.sending import in_order


def event(number, node, *inputs):
    return Event(f"2026-01-01T00:00:{number:02}.000000+00:00", "ann", "vigil train", node, tuple(inputs))


def digest(letter):
    return letter * 64


POSTS = Node("dataset", digest("d"), "posts", "/data/posts", {"version": 3})
FIRST, SECOND, STUDENT = (Node("run", run_id, name) for run_id, name in (("11111111", "a"), ("22222222", "b"), ("33333333", "c")))
EARLY, LATE = (Node("checkpoint", digest(letter), name) for letter, name in (("1", "step-10"), ("2", "step-20")))
OTHER = Node("checkpoint", digest("3"), "step-30")
EVALUATION, POLICY = Node("evaluation", digest("e"), "test"), Node("policy", digest("f"), "strict")
BUNDLE, TRAFFIC = Node("bundle", digest("b"), "scam", "/bundles/scam"), Node("traffic", digest("7"))
EVENTS = [
    event(1, POSTS),
    event(2, FIRST, POSTS.as_input("data")),
    event(3, EARLY, FIRST.as_input("run")),
    event(4, LATE, FIRST.as_input("run")),
    event(5, EVALUATION, LATE.as_input("model"), POSTS.as_input("data")),
    event(6, POLICY, EVALUATION.as_input("predictions")),
    event(7, BUNDLE, LATE.as_input("weights"), POLICY.as_input("policy")),
    event(8, TRAFFIC, BUNDLE.as_input("bundle")),
    event(9, SECOND, POSTS.as_input("data"), LATE.as_input("init_from")),
    event(10, OTHER, SECOND.as_input("run")),
    event(11, STUDENT, POSTS.as_input("data"), FIRST.as_input("teacher")),
]


def named(steps):
    return [(step.verb, step.collection, step.node.digest[0]) for step in steps]


@pytest.mark.parametrize("seed", range(5))
def test_steps_of_a_run_are_what_it_used_and_what_no_other_run_made(seed):
    events = random.Random(seed).sample(EVENTS, len(EVENTS))
    graph = Graph(events)
    used, *logged = named(steps_of(graph, FIRST))
    assert used == ("used", "dataset-posts", "d")
    assert {each for each in logged if each[0] != "logged"} == {("noted", "bundle-11111111", "7")}
    assert {each for each in logged if each[0] == "logged"} == {
        ("logged", "checkpoint-11111111", "1"),
        ("logged", "checkpoint-11111111", "2"),
        ("logged", "evaluation-11111111", "e"),
        ("logged", "policy-11111111", "f"),
        ("logged", "bundle-11111111", "b"),
    }
    order = [each[2] for each in logged]
    assert order.index("2") < order.index("e") < order.index("f")
    assert named(steps_of(graph, SECOND)) == [
        ("used", "dataset-posts", "d"),
        ("used", "checkpoint-11111111", "2"),
        ("logged", "checkpoint-22222222", "3"),
    ]
    assert ("used", "checkpoint-11111111", "2") in named(steps_of(graph, STUDENT)), "of a run, its newest checkpoint is used"


def promotion(number, bundle, **facts):
    node = Node("promotion", digest("p") + str(number), "champion", "/models/promotions.jsonl", facts)
    return event(number, node, bundle.as_input("promoted"))


def test_steps_note_uses_of_a_bundle_and_link_the_newest_promotion_that_names_a_registry():
    other = Node("bundle", digest("c"), "other")
    first, second = promotion(20, BUNDLE, registry="model/scam"), promotion(21, other)

    def uses(*events):
        return [
            (step.verb, step.node.digest[-2:], str(step)) for step in steps_of(Graph([*EVENTS, *events]), FIRST) if step.bundle
        ]

    noted = ("noted", "77", f"noted traffic  at bundle-11111111 ({'7' * 12})")
    assert uses(first) == [
        noted,
        ("noted", "20", f"noted promotion champion at bundle-11111111 ({'p' * 12})"),
        ("linked", "20", f"linked promotion champion at bundle-11111111 ({'p' * 12})"),
    ]
    assert [verb for verb, _, _ in uses(first, second)] == ["noted", "noted"], "the alias points elsewhere by now"
    assert [verb for verb, _, _ in uses(promotion(20, BUNDLE))] == ["noted", "noted"], "it names no registry"


def test_owner_is_not_found_through_traffic_and_its_reviews():
    queue, reviews = Node("queue", digest("8")), Node("reviews", digest("9"))
    labelled, measured = Node("dataset", digest("a"), "posts"), Node("evaluation", digest("0"), "of a table")
    events = [
        event(12, queue, TRAFFIC.as_input("live")),
        event(13, reviews, queue.as_input("queue")),
        event(14, labelled, reviews.as_input("reviews")),
        event(15, measured, labelled.as_input("evaluated")),
    ]
    graph = Graph([*EVENTS, *events])
    assert FIRST.key in {node.key for node in graph.walk(measured, "up")}
    assert owner_of(graph, measured) is None
    assert owner_of(graph, BUNDLE) == FIRST


def test_every_artifact_has_one_run_that_logs_it():
    graph = Graph(EVENTS)
    logged = [step.node.key for run in (FIRST, SECOND, STUDENT) for step in steps_of(graph, run) if step.verb == "logged"]
    assert sorted(logged) == sorted(node.key for node in graph.nodes("checkpoint", "evaluation", "policy", "bundle"))


def test_metadata_names_what_an_artifact_was_made_from():
    graph = Graph(EVENTS)
    [step] = [step for step in steps_of(graph, FIRST) if step.node.kind == "bundle"]
    assert metadata_of(graph, step) == {
        "kind": "bundle",
        "name": "scam",
        "path": "/bundles/scam",
        "made": "2026-01-01T00:00:07.000000+00:00",
        "command": "vigil train",
        "inputs": [f"checkpoint:{LATE.digest} (weights)", f"policy:{POLICY.digest} (policy)"],
    }
    json.dumps(metadata_of(graph, step))


def test_reference_is_an_address():
    assert reference_of(BUNDLE) == "file:///bundles/scam"
    assert reference_of(Node("dataset", "d", path="s3://bucket/posts")) == "s3://bucket/posts"
    assert reference_of(EARLY) == f"urn:vigil:checkpoint:{EARLY.digest}"


def test_files_are_sent_only_while_they_are_those_that_were_recorded(tmp_path):
    from vigil_data.filesystem import sha256_file

    folder = tmp_path / "step-00000010"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "weights.bin").write_bytes(b"weights")
    node = Node("checkpoint", sha256_file(folder / "manifest.json"), path=str(folder))
    graph, rule = Graph([event(1, node)]), ContentRule("full")
    assert files_of(graph, node, rule, weights=False) == {}
    assert set(files_of(graph, node, rule, weights=True)) == {"manifest.json", "weights.bin"}
    (folder / "manifest.json").write_text('{"another": 1}')
    assert files_of(graph, node, rule, weights=True) == {}


def test_files_of_an_evaluation_follow_the_content_rule(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from vigil_data.filesystem import sha256_file

    (tmp_path / "metrics.json").write_text('{"overall": {"labels": {}}}')
    (tmp_path / "report.html").write_text("a text of an item")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "predictions.parquet")
    node = Node("evaluation", sha256_file(tmp_path / "metrics.json"), path=str(tmp_path))
    graph = Graph([event(1, node)])
    assert set(files_of(graph, node, ContentRule("full"), weights=False)) == {"metrics.json", "report.html"}
    assert set(files_of(graph, node, ContentRule("ids"), weights=True)) == {"metrics.json"}


@pytest.mark.parametrize("seed", range(20))
def test_in_order_puts_each_run_after_those_whose_checkpoints_it_used(seed):
    random_ = random.Random(seed)
    ids = [f"{number:08x}" for number in range(8)]
    events, above = [], {run_id: set() for run_id in ids}
    for number, run_id in enumerate(ids):
        inputs = []
        for other in random_.sample(ids[:number], min(number, random_.randrange(3))):
            inputs.append(Input("checkpoint", other * 8, "init_from"))
            above[run_id] |= {other} | above[other]
        events += [
            event(2 * number, Node("run", run_id), *inputs),
            event(2 * number + 1, Node("checkpoint", run_id * 8), Input("run", run_id)),
        ]
    given = random_.sample(ids, 6)
    ordered = [run.run_id for run in in_order([SimpleNamespace(run_id=run_id) for run_id in given], Graph(events))]
    assert sorted(ordered) == sorted(given)
    assert [(run_id, other) for n, run_id in enumerate(ordered) for other in ordered[n:] if other in above[run_id]] == []

"""The graph is that of all events whatever their order, and finds things by what lies on disk and by what was recorded."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_data.errors import UserError
from vigil_data.filesystem import sha256_file
from vigil_data.lineage import Event, Graph, Input, Node, read_ledger, record

KINDS = ("dataset", "run", "bundle")
DIGITS = st.integers(0, 5)


def event(second: int, node: Node, *inputs: Input) -> Event:
    return Event(f"2026-01-01T00:00:{second:02d}.000000+00:00", "ann", "vigil train", node, inputs)


@given(
    made=st.lists(st.tuples(st.sampled_from(KINDS), DIGITS, st.lists(st.tuples(st.sampled_from(KINDS), DIGITS))), max_size=12),
    order=st.randoms(use_true_random=False),
)
def test_graph_walks_all_that_is_reachable_in_any_order_of_events(
    made: list[tuple[str, int, list[tuple[str, int]]]], order: random.Random
) -> None:
    events = [
        event(second, Node(kind, str(digest), facts={"second": second}), *(Input(k, str(d), "used") for k, d in inputs))
        for second, (kind, digest, inputs) in enumerate(made)
    ]
    order.shuffle(events)
    graph = Graph(events)
    above: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for kind, digest, inputs in made:
        above.setdefault((kind, str(digest)), set()).update((k, str(d)) for k, d in inputs if (k, d) != (kind, digest))
    for key in above:
        reached = {key}
        while more := {of for each in reached for of in above.get(each, ())} - reached:
            reached |= more
        node = graph.get(*key)
        assert node is not None
        walked = [each.key for each in graph.walk(node, "up")]
        assert len(walked) == len(set(walked))
        assert set(walked) == reached
        for other in reached:
            found = graph.get(*other)
            assert found is not None
            assert key in {each.key for each in graph.walk(found, "down")}
        newest = max(second for second, (kind, digest, _) in enumerate(made) if (kind, str(digest)) == key)
        assert node.facts == {"second": newest}


def test_graph_keeps_all_paths_and_the_newest_facts() -> None:
    old = event(1, Node("run", "r1", "a", "/w/a", {"commit": "1", "recipe": "x"}))
    new = event(5, Node("run", "r1", "b", "/w/b", {"commit": "2"}))
    as_input = event(9, Node("bundle", "b1"), Input("run", "r1", "weights", "c", "/w/c", {"commit": "0", "extra": True}))
    graph = Graph([as_input, new, old])
    run = graph.get("run", "r1")
    assert run is not None
    assert run == Node("run", "r1", "b", "/w/b", {"commit": "2", "recipe": "x", "extra": True})
    assert graph.paths(run) == ["/w/c", "/w/b", "/w/a"]
    assert graph.made(run) == old
    assert [(edge.role, edge.node.digest) for edge in graph.outputs(run)] == [("weights", "b1")]


def test_find_takes_what_lies_at_a_path_before_what_was_recorded_there(tmp_path: Path, workspace: Path) -> None:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps({"ap": 0.5}))
    here = Node("evaluation", sha256_file(folder / "metrics.json"), "test", str(folder))
    moved = tmp_path / "moved"
    record(here)
    record(Node("evaluation", "e" * 64, "later", str(folder)))
    assert read_ledger().find(folder) == here
    folder.rename(moved)
    assert read_ledger().find(moved) == here
    assert read_ledger().find(folder).name == "later"
    assert read_ledger().find(f"evaluation:{here.digest[:8]}") == here
    assert read_ledger().find(here.digest[:8]) == here


def test_find_names_what_is_unknown_and_what_is_ambiguous(workspace: Path) -> None:
    record(Node("run", "abcd0001", "a", "/w/a"))
    record(Node("run", "abcd0002", "b", "/w/b"))
    with pytest.raises(UserError, match=r"abcd: is also run:abcd0001 /w/a"):
        read_ledger().find("abcd")
    assert read_ledger().find("run:abcd0002").name == "b"
    for unknown in ("bundle:abcd0002", "nowhere", "abc"):
        with pytest.raises(UserError, match=f"{unknown}: is not in the ledger {workspace}"):
            read_ledger().find(unknown)

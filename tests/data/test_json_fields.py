"""Values out of JSON: built as their types say, or refused in one line that says where."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_data import json_fields
from vigil_data.errors import UserError


class Ends(NamedTuple):
    low: float
    high: float


@dataclass(frozen=True)
class Leaf:
    name: str
    size: int | None = None


@dataclass(frozen=True)
class Tree:
    kind: Literal["oak", "elm"]
    leaves: tuple[Leaf, ...]
    by_name: Mapping[str, float]
    tall: bool
    axes: tuple[int | str, ...]
    anything: Any = None
    notes: Mapping[str, str] = field(default_factory=dict)


leaves = st.builds(Leaf, st.text(max_size=5), st.none() | st.integers(-9, 9))
trees = st.builds(
    Tree,
    st.sampled_from(["oak", "elm"]),
    st.lists(leaves, max_size=3).map(tuple),
    st.dictionaries(st.text(max_size=3), st.floats(-1e9, 1e9), max_size=3),
    st.booleans(),
    st.lists(st.integers() | st.text(max_size=3), max_size=3).map(tuple),
    st.none() | st.lists(st.integers(), max_size=2),
)


@given(trees)
def test_structure_reads_what_was_written(tree: Tree) -> None:
    assert json_fields.structure(Tree, json.loads(json.dumps(asdict(tree))), "tree") == tree


@dataclass(frozen=True)
class Limited:
    count: json_fields.Count
    share: json_fields.Fraction | None
    action: Annotated[str, json_fields.OneOf(("allow", "remove"))] = "allow"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"count": -1}, "x.count: must be at least 0, not -1"),
        ({"count": 1.0}, "x.count: must be a whole number, not 1.0"),
        ({"share": 1.1}, "x.share: must be in [0, 1], not 1.1"),
        ({"share": float("nan")}, "x.share: must be a finite number, not nan"),
        ({"action": "ban"}, "x.action: must be one of allow, remove, not 'ban'"),
        ({"action": 1}, "x.action: must be text, not 1"),
    ],
)
def test_structure_checks_limits(change: dict[str, Any], problem: str) -> None:
    sound = {"count": 0, "share": None, "action": "remove"}
    assert json_fields.structure(Limited, sound, "x") == Limited(0, None, "remove")
    with pytest.raises(UserError) as caught:
        json_fields.structure(Limited, {**sound, **change}, "x")
    assert str(caught.value) == problem


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"kind": "ash"}, "tree.kind: must be 'oak' or 'elm', not 'ash'"),
        ({"leaves": {}}, "tree.leaves: must be a list, not {}"),
        ({"leaves": [{"name": 1}]}, "tree.leaves.0.name: must be text, not 1"),
        ({"leaves": [{"name": "a", "size": 1.5}]}, "tree.leaves.0.size: must be a whole number, not 1.5"),
        ({"leaves": [{"name": "a", "size": True}]}, "tree.leaves.0.size: must be a whole number, not True"),
        ({"leaves": [{"size": 1}]}, "tree.leaves.0: lacks name"),
        ({"by_name": {"a": "b"}}, "tree.by_name.a: must be a finite number, not 'b'"),
        ({"tall": 1}, "tree.tall: must be true or false, not 1"),
        ({"axes": [None]}, "tree.axes.0: must be text, not None"),
        ({"more": 1}, "tree: has unknown more"),
    ],
)
def test_structure_reports_position_and_reason(change: dict[str, Any], problem: str) -> None:
    sound = {"kind": "oak", "leaves": [], "by_name": {}, "tall": True, "axes": []}
    assert json_fields.structure(Tree, sound, "tree") == Tree("oak", (), {}, True, ())
    with pytest.raises(UserError) as caught:
        json_fields.structure(Tree, {**sound, **change}, "tree")
    assert str(caught.value) == problem


def test_structure_reads_a_named_tuple_from_a_list() -> None:
    assert json_fields.structure(Ends, [0.25, 0.5], "interval") == Ends(0.25, 0.5)
    assert json_fields.structure(Ends | None, None, "interval") is None
    with pytest.raises(UserError, match=r"^interval: must be a list of low, high, not of 1 values$"):
        json_fields.structure(Ends, [0.25], "interval")
    with pytest.raises(UserError, match=r"^interval\.high: must be a finite number"):
        json_fields.structure(Ends, [0.25, "a"], "interval")

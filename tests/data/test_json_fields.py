"""Values out of JSON: built as their types say, or refused in one line that says where."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_data import json_fields
from vigil_data.errors import UserError


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
def test_structure_says_where_and_what(change: dict[str, Any], problem: str) -> None:
    sound = {"kind": "oak", "leaves": [], "by_name": {}, "tall": True, "axes": []}
    assert json_fields.structure(Tree, sound, "tree") == Tree("oak", (), {}, True, ())
    with pytest.raises(UserError) as caught:
        json_fields.structure(Tree, {**sound, **change}, "tree")
    assert str(caught.value) == problem

"""The fast reading of resolved recipes against the YAML library."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vigil_data.errors import UserError
from vigil_training.overview.recipe_values import _read_lines, flatten, read_values
from vigil_training.recipe.resolve import ResolvedRecipe, dump_recipe, resolve_recipe

KEYS = st.text("abcdefgh_", min_size=1, max_size=5)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**6), 10**6),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.text(max_size=12),
    st.sampled_from(
        ["yes", "null", "1e-3", "~", "a: b", "a #b", "- a", "[a]", "'", '"', "2026-01-01", "12:30", "./a/b", "True", "{a: 1}"]
    ),
)
VALUES = st.dictionaries(
    KEYS,
    st.recursive(SCALARS | st.lists(SCALARS, max_size=3), lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=8),
    max_size=4,
)


@given(VALUES)
@example({"_": "a\x85b", "nested": {"a": ["\u2028", "\u2029"]}})
def test_read_values_reads_what_dump_recipe_writes(values):
    text = dump_recipe(ResolvedRecipe(recipe=None, values=values, origins={}))
    assert read_values(text) == dict(flatten(values)), text


@pytest.mark.parametrize("name", ["comments", "demo", "demo-guard"])
def test_read_values_reads_shipped_recipes_without_the_library(name, repository):
    resolved = resolve_recipe(repository / "recipes" / f"{name}.yaml")
    text = dump_recipe(resolved)
    assert _read_lines(text) == read_values(text) == dict(flatten(json.loads(json.dumps(resolved.values))))


@pytest.mark.parametrize("text", ["", "- a\n", "a: [", "7\n", "{", "a: 1\n b: 2\n"])
def test_read_values_refuses_what_is_no_recipe(text):
    with pytest.raises(UserError, match="not "):
        read_values(text)

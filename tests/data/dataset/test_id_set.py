"""An id set holds what a set of Python holds, in a fraction of its memory."""

import sys

from hypothesis import given
from hypothesis import strategies as st

from vigil_data.dataset.id_set import IdSet


@given(st.lists(st.text(max_size=3)), st.lists(st.text(max_size=3)))
def test_id_set_equals_a_set(added: list[str], asked: list[str]) -> None:
    ids = IdSet(added)
    assert len(ids) == len(set(added))
    assert all(id_ in ids for id_ in added)
    assert [id_ in ids for id_ in asked] == [id_ in set(added) for id_ in asked]


def test_id_set_grows_and_stays_small() -> None:
    names = [f"comment-{n}" for n in range(50_000)]
    ids = IdSet(names)
    assert len(ids) == 50_000
    assert all(name in ids for name in names)
    assert not any(f"reply-{n}" in ids for n in range(50_000))
    memory = sys.getsizeof(ids._slots)
    assert memory <= 32 * 50_000
    assert memory < (sys.getsizeof(set(names)) + sum(map(sys.getsizeof, names))) / 3

"""kill -9 at any moment of a change leaves a dataset at its old or its new version, and the change succeeds when run again."""

from collections.abc import Callable
from pathlib import Path

import killed_operations
import pytest
from killed_operations import ERASED_IDS, OPERATIONS, kill_at_random_moments


def nothing_left(folder: Path) -> None:
    """After an erasure: no journal, and no byte of an erased item."""
    if (folder / "erasures.jsonl").exists():
        assert not (folder / "erasing.json").exists()
        stored = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
        assert [id_ for id_ in ERASED_IDS | {"broken-1"} if id_.encode() in stored] == []


@pytest.mark.prove
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_killed_operation_leaves_the_old_or_the_new_version(
    name: str, tmp_path: Path, proofs: Callable[[int, int], int]
) -> None:
    killed = kill_at_random_moments(OPERATIONS[name], tmp_path, proofs(3, 50), seed=name, check=nothing_left)
    print(f"{name}: old version after {killed.old} kills, new one after {killed.new}; {killed.ended} ended before their kill")
    assert killed.old + killed.new > 0, "some kill hit"


def test_kill_at_random_moments_finds_an_operation_that_is_not_atomic(tmp_path: Path) -> None:
    """The harness can fail: two imports one after the other have a state between the old and the new one."""
    with pytest.raises(AssertionError, match="left another state"):
        kill_at_random_moments(
            killed_operations.Operation(killed_operations.OPERATIONS["import"].prepare, killed_operations.import_in_two_steps),
            tmp_path,
            8,
            seed="two steps",
        )

"""CheckpointWriter on several ranks, recovery, retention, and full disks."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vigil_data.errors import Failure
from vigil_training.checkpoint.manifest import verify_checkpoint
from vigil_training.checkpoint.reader import CheckpointReader, find_resumable, list_checkpoints
from vigil_training.checkpoint.retention import steps_to_keep
from vigil_training.checkpoint.shards import Fragment, InventoryEntry
from vigil_training.checkpoint.writer import CheckpointMetadata, CheckpointWriter, recover_checkpoints
from vigil_training.distributed.world import World
from vigil_training.recipe.specs import CheckpointSpec

RECIPE = "r" * 64


def make(folder: Path, rank: int = 0, size: int = 1, token: str = "t", timeout: float = 60.0, **spec: Any) -> CheckpointWriter:
    return CheckpointWriter(folder, World(rank, size, rank, size), CheckpointSpec(**spec), "max", token=token, timeout=timeout)


def save(
    writer: CheckpointWriter, step: int, value: float | None = None, elements: int = 8, part: tuple[int, int] = (0, 1)
) -> None:
    """Save this rank's part of a tensor filled with the step."""
    rank, size = part
    share = elements // size
    values = torch.full((share,), float(step))
    about = CheckpointMetadata(step, 0, False, RECIPE, "ddp", "f1", value)
    inventory = {"w": InventoryEntry((elements,), "float32", True, False)}
    writer.save(about, {"step": step}, [Fragment("weight", "w", (elements,), rank * share, values)], inventory)


def save_and_wait(writer: CheckpointWriter, step: int) -> None:
    save(writer, step, elements=200_000)
    writer.wait()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("background", [True, False])
def test_save_copies_the_values_at_the_call(tmp_path: Path, background: bool) -> None:
    writer = make(tmp_path, background=background)
    values, state = torch.zeros(1 << 20), {"list": [1]}
    inventory = {"w": InventoryEntry((1 << 20,), "float32", True, False)}
    about = CheckpointMetadata(1, 0, False, RECIPE, "single", "f1", None)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    writer.save(about, state, [Fragment("weight", "w", (1 << 20,), 0, values)], inventory)
    values.add_(1.0)
    state["list"].append(2)
    torch.rand(1)
    inventory.clear()
    writer.wait()
    reader = CheckpointReader(tmp_path / "step-00000001")
    assert not reader.read_full("weight", "w").any()
    assert reader.state == {"list": [1]}
    generators = reader.rng_state(0)
    assert generators is not None
    assert torch.equal(generators["torch"], before)
    assert list(reader.manifest.inventory) == ["w"]


def test_save_by_four_ranks_in_threads(tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            writer = make(tmp_path, rank, 4, keep_last=3)
            for step in range(1, 13):
                save(writer, step, elements=400, part=(rank, 4))
            writer.wait()
            writer.close()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failed == []
    assert names(tmp_path) == ["step-00000010", "step-00000011", "step-00000012"]
    for path in list_checkpoints(tmp_path):
        assert verify_checkpoint(path).world == 4
        assert torch.equal(CheckpointReader(path).read_full("weight", "w"), torch.full((400,), float(path.name[-2:])))
        assert not list(path.glob("*.done"))


def test_wait_names_a_rank_without_a_file(tmp_path: Path) -> None:
    save(writer := make(tmp_path, token="first"), 1)
    writer.wait()
    main, one = make(tmp_path, 0, 4, timeout=0.3), make(tmp_path, 1, 4)
    save(one, 2, part=(1, 4))
    one.wait()
    save(main, 2, part=(0, 4))
    with pytest.raises(Failure, match=r"no file of rank 2, 3 within 0.3 s; the newest complete checkpoint is step-00000001"):
        main.wait()
    assert isinstance(main.error, Failure)
    assert names(tmp_path) == ["step-00000001"]
    with pytest.raises(Failure, match="rank 2, 3"):
        save(main, 3)


def test_wait_reports_the_failure_of_another_rank_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main, one = make(tmp_path, 0, 2, timeout=3600), make(tmp_path, 1, 2)
    save(main, 1, part=(0, 2))
    with monkeypatch.context() as patch:
        patch.setattr("vigil_training.checkpoint.writer.rank_file", lambda rank: "no/such/folder")
        save(one, 1, part=(1, 2))
        with pytest.raises(Failure, match=r"no/such/folder: cannot be written: No such file or directory; there is no complete"):
            one.wait()
    with pytest.raises(Failure, match="no/such/folder: cannot be written"):
        main.wait(60)
    assert [name for name in names(tmp_path) if not name.startswith(".")] == []


def test_wait_and_close_with_a_timeout(tmp_path: Path) -> None:
    main = make(tmp_path, 0, 2)
    save(main, 1, part=(0, 2))
    with pytest.raises(Failure, match=r"still being written after 0.05 s"):
        main.wait(0.05)
    main.close(grace=0.05)
    assert "no file of rank 1 when the run ended" in str(main.error)
    assert names(tmp_path) == []


def test_close_completes_a_checkpoint_within_the_grace(tmp_path: Path) -> None:
    main, one = make(tmp_path, 0, 2), make(tmp_path, 1, 2)
    save(main, 1, part=(0, 2))
    ending = threading.Thread(target=main.close)
    ending.start()
    save(one, 1, part=(1, 2))
    one.close()
    ending.join()
    assert main.error is None
    verify_checkpoint(tmp_path / "step-00000001")


def test_save_ignores_files_of_a_killed_start(tmp_path: Path) -> None:
    old = make(tmp_path, 1, 2, token="old")
    save(old, 5, part=(1, 2), elements=800)
    old.wait()
    assert names(tmp_path) == [".step-00000005.old-1.part"]
    main = make(tmp_path, 0, 2, token="new", timeout=0.2)
    save(main, 5, part=(0, 2))
    with pytest.raises(Failure, match="no file of rank 1"):
        main.wait()
    recover_checkpoints(tmp_path)
    assert names(tmp_path) == []


def test_recover_checkpoints_restores_a_replaced_one(tmp_path: Path) -> None:
    save(writer := make(tmp_path), 1)
    save(writer, 2)
    writer.wait()
    (tmp_path / "step-00000001").rename(tmp_path / ".step-00000001.replaced")
    for left in (".step-00000002.replaced", ".step-00000003.gone", ".step-00000004.t-9.part"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "file").write_text("x")
    (tmp_path / ".other").mkdir()
    recover_checkpoints(tmp_path)
    assert names(tmp_path) == [".other", "step-00000001", "step-00000002"]
    recover_checkpoints(tmp_path / "absent")


def test_save_replaces_a_checkpoint_of_the_same_step(tmp_path: Path) -> None:
    save(writer := make(tmp_path), 3, value=None)
    save(writer, 3, value=0.5)
    writer.wait()
    assert names(tmp_path) == ["step-00000003"]
    assert verify_checkpoint(tmp_path / "step-00000003").value == 0.5


def test_prune_removes_damaged_checkpoints_of_later_steps(tmp_path: Path) -> None:
    save(writer := make(tmp_path, keep_last=3), 1)
    save(writer, 7, value=0.9)
    writer.wait()
    (tmp_path / "step-00000007" / "state.json").write_text("")
    assert find_resumable(tmp_path, RECIPE) == tmp_path / "step-00000001"
    save(again := make(tmp_path, token="again", keep_last=3), 4)
    again.wait()
    assert names(tmp_path) == ["step-00000001", "step-00000004"]


def test_prune_leaves_a_checkpoint_with_an_unreadable_manifest(tmp_path: Path) -> None:
    save(writer := make(tmp_path, keep_last=1), 1)
    writer.wait()
    (tmp_path / "step-00000001" / "manifest.json").write_text("{}")
    for step in (2, 3):
        save(writer, step)
    writer.wait()
    assert names(tmp_path) == ["step-00000001", "step-00000003"]


@given(
    values=st.dictionaries(st.integers(1, 60), st.none() | st.integers(0, 4).map(float), min_size=1),
    last=st.integers(1, 4),
    best=st.integers(1, 4),
    every=st.none() | st.integers(1, 20),
    mode=st.sampled_from(["max", "min"]),
)
def test_steps_to_keep(values: dict[int, float | None], last: int, best: int, every: int | None, mode: Any) -> None:
    spec = CheckpointSpec(keep_last=last, keep_best=best, keep_every=every)
    kept = steps_to_keep(values, spec, mode)
    for step, value in values.items():
        newer = sum(other > step for other in values)
        # Checkpoints that are better, or equal and earlier.
        ahead = sum(
            other is not None
            and value is not None
            and ((other > value if mode == "max" else other < value) or (other == value and at < step))
            for at, other in values.items()
        )
        wanted = newer < last or (value is not None and ahead < best) or (every is not None and step % every == 0)
        assert (step in kept) == wanted


def test_prune_keeps_best_and_regular_checkpoints(tmp_path: Path) -> None:
    writer = make(tmp_path, keep_last=2, keep_best=1, keep_every=5)
    for step in range(1, 13):
        save(writer, step, value={3: 0.9, 8: 0.9}.get(step, 0.1))
    writer.wait()
    assert [int(name[-2:]) for name in names(tmp_path)] == [3, 5, 10, 11, 12]


@pytest.mark.parametrize("background", [True, False])
def test_save_on_a_full_disk_fails_and_keeps_older_checkpoints(small_disk: Path, background: bool) -> None:
    folder = small_disk / "checkpoints"
    writer = make(folder, background=background, keep_last=3)
    for step in (1, 2):
        save(writer, step, elements=200_000)
    with pytest.raises(Failure) as caught:
        save_and_wait(writer, 3)
    assert str(caught.value) == (
        f"{folder}/.step-00000003.t-3.part/rank-00000.safetensors: cannot be written: No space left on device; free some space; "
        "the newest complete checkpoint is step-00000002"
    )
    assert names(folder) == ["step-00000001", "step-00000002"]
    for path in list_checkpoints(folder):
        verify_checkpoint(path)


def test_save_on_a_full_disk_of_one_rank_fails_on_rank_0_too(small_disk: Path) -> None:
    main, one = make(small_disk, 0, 2), make(small_disk, 1, 2)
    save(main, 1, elements=8)
    about = CheckpointMetadata(1, 0, False, RECIPE, "ddp", "f1", None)
    one.save(about, {}, [Fragment("weight", "w", (1 << 20,), 0, torch.zeros(1 << 20))], {})
    for writer in (one, main):
        with pytest.raises(Failure, match=r"rank-00001.safetensors: cannot be written: No space left on device"):
            writer.wait(60)
    recover_checkpoints(small_disk)
    assert names(small_disk) == []

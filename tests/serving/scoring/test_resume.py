"""`vigil score` killed, damaged, crowded and out of space: in the end every item is in the table exactly once."""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_data.dataset.dataset import write
from vigil_data.errors import Failure, UserError
from vigil_data.items import Item
from vigil_serving.bundle.load import read
from vigil_serving.parity.cases import make_item
from vigil_serving.scoring import workdir
from vigil_serving.scoring.job_spec import Plan, plan_of
from vigil_serving.scoring.score import Scored, score
from vigil_serving.scoring.shards import Damaged, Parts

ITEMS, CHUNK = 600, 5
VIGIL = Path(sys.executable).with_name("vigil")


class Job(NamedTuple):
    """What is scored again and again, and the tables of a scoring that nobody disturbed."""

    bundle: Path
    dataset: Path
    parquet: bytes
    rows: pa.Table

    def score(self, to: Path, **options: object) -> Scored:
        return score(self.bundle, self.dataset, to, **{"threads": 1, "chunk": CHUNK, **options})

    def command(self, to: Path, *options: str) -> list[str]:
        return [str(VIGIL), "score", str(self.bundle), str(self.dataset), "--to", str(to), "--threads", "1", *options]

    def is_whole(self, to: Path) -> bool:
        if to.suffix == ".parquet":
            return to.read_bytes() == self.parquet
        table = lance.dataset(str(to)).to_table()
        return table.to_pylist() == self.rows.rename_columns(table.column_names).to_pylist()


@pytest.fixture(scope="module")
def job(exported, tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("job")
    patterns = [["text"], ["text"], ["text", "image"], ["audio"], []]
    made = [make_item(patterns[n % 5], n % 45, exported.inputs) for n in range(ITEMS)]
    write(folder / "dataset", [Item(f"{n:04}", item.text, item.image, item.audio) for n, item in enumerate(made)])
    to = folder / "out.parquet"
    score(exported.bundle, folder / "dataset", to, threads=1, chunk=CHUNK)
    table = pq.read_table(to)
    assert table["id"].to_pylist() == [f"{n:04}" for n in range(ITEMS)]
    return Job(exported.bundle, folder / "dataset", to.read_bytes(), table)


@contextmanager
def interrupted(job: Job, to: Path, after: int, **options: object) -> Iterator[Path]:
    """The folder of parts of a scoring that was stopped after some items."""

    def stop(done: int, _: int) -> None:
        if done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job.score(to, progress=stop, **options)
    yield workdir.folder_of(to)


MOMENTS = ("starting", "scoring", "scoring", "scoring", "joining")


def _wait_for(moment: str, folder: Path, process: "subprocess.Popen[bytes]", dice: random.Random) -> None:
    """Return at a random time within the moment, or when the process has ended."""
    if moment == "starting":
        time.sleep(dice.uniform(0, 1.5))
        return
    before = len(list(folder.glob("*.part")))
    wanted = before + dice.randint(1, 30)
    while process.poll() is None:
        if moment == "joining" and any(folder.glob(".out.*")):
            break
        if moment == "scoring" and len(list(folder.glob("*.part"))) >= wanted:
            break
        time.sleep(0.001)
    time.sleep(dice.uniform(0, 0.02))


@pytest.mark.prove
@pytest.mark.parametrize("suffix", ["parquet", "lance"])
def test_killed_at_random_moments(job: Job, suffix: str, tmp_path: Path, proofs: Callable[[int, int], int]) -> None:
    dice = random.Random(suffix)
    to = tmp_path / f"out.{suffix}"
    folder, wanted = workdir.folder_of(to), proofs(3, 25)
    kills: dict[str, int] = {}
    finished = kept = 0
    while sum(kills.values()) < wanted:
        moment = MOMENTS[sum(kills.values()) % len(MOMENTS)]
        parts = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.part")}
        process = subprocess.Popen(job.command(to, "--chunk", str(CHUNK)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        _wait_for(moment, folder, process, dice)
        process.kill()
        _, said = process.communicate(timeout=60)
        if process.returncode == 0:
            finished += 1
        else:
            assert process.returncode == -9, said
            kills[moment] = kills.get(moment, 0) + 1
            after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.part")}
            if after and not to.exists():  # else it was killed while it cleaned up
                assert parts.items() <= after.items(), "what was written is not scored again"
                kept = max(kept, len(after))
        if to.exists():
            assert job.is_whole(to), "the table is there only when it is complete"
    done = subprocess.run(job.command(to, "--chunk", str(CHUNK)), check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert job.is_whole(to)
    assert list(tmp_path.iterdir()) == [to], "nothing of the work is left"
    print(
        f"{suffix}: killed {kills}, ended before the kill {finished}; the most parts that a kill left: {kept} of {ITEMS // CHUNK}"
    )


def test_damaged_and_foreign_parts_are_told_and_scored_anew(job: Job, tmp_path: Path) -> None:
    to, said = tmp_path / "out.parquet", []
    with interrupted(job, tmp_path / "other.parquet", 30, where="id >= '0100'") as other, interrupted(job, to, 60) as folder:
        files = sorted(folder.glob("*.part"))
        assert len(files) == 12
        files[0].write_bytes(files[0].read_bytes()[:-100])
        content = bytearray(files[3].read_bytes())
        content[len(content) // 2] ^= 4
        files[3].write_bytes(content)
        shutil.copy(min(other.glob("*.part")), files[5])
        shutil.copy(files[8], files[7])
        files[9].write_bytes(b"")
    found = job.score(to, say=said.append)
    assert found.resumed == 60 - 5 * CHUNK
    assert [line.split(": ")[0] for line in said] == [str(files[n]) for n in (0, 3, 5, 7, 9)]
    assert all(line.endswith("it was altered or cut off, or belongs to another scoring; scored anew") for line in said)
    assert job.is_whole(to)


TABLE = pa.table({"id": ["a", "b"], "x": [1.5, None]})
PLAN = Plan("b", "d", 1, "t", None, None, "fp32", 2, 8, "c")


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> tuple[Parts, bytes]:
    parts = Parts(tmp_path_factory.mktemp("parts"), PLAN)
    parts.write(1, TABLE)
    return parts, parts.file(1).read_bytes()


@given(st.data())
def test_every_flip_and_every_cut_is_found(part: tuple[Parts, bytes], data: st.DataObject) -> None:
    parts, whole = part
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytes([*whole[:at], whole[at] ^ data.draw(st.integers(1, 255)), *whole[at + 1 :]])
    for content in (flipped, whole[:at], whole + b"\0"):
        parts.file(1).write_bytes(content)
        with pytest.raises(Damaged):
            parts.read(1)
    parts.file(1).write_bytes(whole)
    assert parts.read(1).equals(TABLE)
    parts.file(2).write_bytes(whole)
    assert not parts.is_whole(2)
    assert not Parts(parts.folder, replace(PLAN, bundle="c")).is_whole(1)


def test_another_scoring_is_refused_until_its_parts_are_thrown_away(job: Job, tmp_path: Path) -> None:
    to = tmp_path / "out.parquet"
    with interrupted(job, to, 20, where="id >= '0100'") as folder:
        pass
    with pytest.raises(UserError) as caught:
        job.score(to, chunk=7)
    assert str(caught.value) == (
        f"{folder}: holds 4 of 100 parts of another scoring: where id >= '0100', not none; chunk 5, not 7; rows 500, not 600; "
        "ask for the same to go on, or throw them away with --restart"
    )
    assert len(list(folder.glob("*.part"))) == 4
    assert job.score(to, restart=True).resumed == 0
    assert job.is_whole(to)
    assert list(tmp_path.iterdir()) == [to]


def test_a_new_version_and_a_dataset_made_anew_are_another_scoring(job: Job, tmp_path: Path) -> None:
    data, to = tmp_path / "dataset", tmp_path / "out.parquet"
    items = [Item(f"{n}", (f"text {n}",)) for n in range(20)]
    write(data, items)
    with interrupted(job._replace(dataset=data), to, 10):
        pass
    write(data, [Item("20", ("one more",))], append=True)
    with pytest.raises(UserError, match=r"of another scoring: version 1, not 2; written \S+, not \S+; rows 20, not 21; ask"):
        job._replace(dataset=data).score(to)
    shutil.rmtree(data)
    write(data, items[::-1])
    with pytest.raises(UserError, match=r"of another scoring: written \S+, not \S+; ask"):
        job._replace(dataset=data).score(to)


def test_what_nobody_can_read_is_not_gone_on_with(job: Job, tmp_path: Path) -> None:
    to = tmp_path / "out.parquet"
    with interrupted(job, to, 20) as folder:
        (folder / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"plan\.json: damaged, so nobody knows what was scored; --restart"):
        job.score(to)
    assert job.score(to, restart=True).items == ITEMS


def test_parts_of_other_items_are_never_joined(job: Job, tmp_path: Path) -> None:
    to = tmp_path / "out.parquet"
    plan, _ = plan_of(read(job.bundle), job.dataset, split=None, where=None, variant="fp32", chunk=CHUNK)
    with interrupted(job, to, 20) as folder:
        parts = Parts(folder, plan)
        parts.write(1, parts.read(2))
    with pytest.raises(Failure, match=r"00000001\.part: holds other items than the dataset's rows; throw the parts away"):
        job.score(to)
    assert not to.exists()
    with interrupted(job, to, 0, restart=True) as folder:
        assert not folder.exists()

    def damage(done: int, total: int) -> None:
        if done == total:
            Parts(folder, plan).file(3).write_bytes(b"")

    with pytest.raises(Failure, match=r"00000003\.part: it was altered .*; start the same command again, which scores it anew"):
        job.score(to, progress=damage)
    assert job.score(to).resumed == ITEMS - CHUNK
    assert job.is_whole(to)


def test_one_process_at_a_time(job: Job, tmp_path: Path) -> None:
    to = tmp_path / "out.parquet"
    seen: list[subprocess.CompletedProcess[str]] = []

    def crowd(done: int, _: int) -> None:
        if done and not seen:
            seen.append(subprocess.run(job.command(to), check=False, capture_output=True, text=True, timeout=60))

    assert job.score(to, progress=crowd).items == ITEMS
    host = os.uname().nodename
    assert (seen[0].returncode, seen[0].stderr) == (
        2,
        f"error: {to}: process {os.getpid()} on {host} is writing it; wait for its end, or name another output\n",
    )
    assert job.is_whole(to)


@pytest.mark.parametrize(("suffix", "kibibytes", "where"), [("parquet", 2, "part"), ("parquet", 8, "out"), ("lance", 8, "out")])
def test_a_disk_that_takes_no_more_ends_with_one_line(job: Job, tmp_path: Path, suffix: str, kibibytes: int, where: str) -> None:
    to = tmp_path / f"out.{suffix}"
    command = ["bash", "-c", f'ulimit -f {kibibytes}; exec "$@"', "bash", *job.command(to, "--chunk", str(CHUNK))]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert "cannot be written: " in lines[0]
    assert "File too large" in lines[0]
    assert ".part: " in lines[0] if where == "part" else f"{to}: " in lines[0]
    assert not to.exists()
    assert not list(workdir.folder_of(to).glob(".*.partial"))
    assert job.score(to).resumed == (0 if where == "part" else ITEMS)
    assert job.is_whole(to)

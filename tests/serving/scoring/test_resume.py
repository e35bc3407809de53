"""`vigil score` after kills, damaged shards, concurrent runs and a full disk: every item is in the table exactly once."""

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
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_data.dataset.dataset import write
from vigil_data.errors import Failure, UserError
from vigil_data.items import Item
from vigil_serving.bundle.load import load_bundle
from vigil_serving.parity.cases import make_item
from vigil_serving.scoring import workdir
from vigil_serving.scoring.job_spec import JobSpec, make_job_spec
from vigil_serving.scoring.score import ScoringSummary, score_dataset
from vigil_serving.scoring.shards import DamagedShard, Shards

ITEMS, CHUNK = 600, 5
VIGIL = Path(sys.executable).with_name("vigil")


class ScoringCase(NamedTuple):
    """What is scored, and the table of an uninterrupted run."""

    bundle: Path
    dataset: Path
    parquet: bytes
    rows: pa.Table

    def score(self, to: Path, **options: object) -> ScoringSummary:
        return score_dataset(self.bundle, self.dataset, to, **{"threads": 1, "chunk": CHUNK, **options})

    def command(self, to: Path, *options: str) -> list[str]:
        return [str(VIGIL), "score", str(self.bundle), str(self.dataset), "--to", str(to), "--threads", "1", *options]

    def is_complete(self, to: Path) -> bool:
        if to.suffix == ".parquet":
            return to.read_bytes() == self.parquet
        table = lance.dataset(str(to)).to_table()
        return table.to_pylist() == self.rows.rename_columns(table.column_names).to_pylist()


@pytest.fixture(scope="module")
def job(exported, tmp_path_factory: pytest.TempPathFactory) -> ScoringCase:
    folder = tmp_path_factory.mktemp("job")
    patterns = [["text"], ["text"], ["text", "image"], ["audio"], []]
    made = [make_item(patterns[n % 5], n % 45, exported.inputs) for n in range(ITEMS)]
    write(folder / "dataset", [Item(f"{n:04}", item.text, item.image, item.audio) for n, item in enumerate(made)])
    to = folder / "out.parquet"
    score_dataset(exported.bundle, folder / "dataset", to, threads=1, chunk=CHUNK)
    table = pq.read_table(to)
    assert table["id"].to_pylist() == [f"{n:04}" for n in range(ITEMS)]
    return ScoringCase(exported.bundle, folder / "dataset", to.read_bytes(), table)


@contextmanager
def interrupted(job: ScoringCase, to: Path, after: int, **options: object) -> Iterator[Path]:
    """Give the work folder of a job that was interrupted after some items."""

    def stop(_task: str, done: int, _total: int | None) -> None:
        if done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job.score(to, progress=stop, **options)
    yield workdir.workdir_path(to)


MOMENTS = ("starting", "scoring", "scoring", "scoring", "merging")


def _wait_for(moment: str, folder: Path, process: "subprocess.Popen[bytes]", dice: random.Random) -> None:
    """Return at a random time within the moment, or when the process has ended."""
    if moment == "starting":
        time.sleep(dice.uniform(0, 1.5))
        return
    before = len(list(folder.glob("[0-9]*.shard")))
    wanted = before + dice.randint(1, 30)
    while process.poll() is None:
        if moment == "merging" and any(folder.parent.glob(".out.*.partial*")):
            break
        if moment == "scoring" and len(list(folder.glob("[0-9]*.shard"))) >= wanted:
            break
        time.sleep(0.001)
    time.sleep(dice.uniform(0, 0.02))


@pytest.mark.prove
@pytest.mark.parametrize("suffix", ["parquet", "lance"])
def test_score_resumes_after_kills_at_random_moments(
    job: ScoringCase, suffix: str, tmp_path: Path, proofs: Callable[[int, int], int]
) -> None:
    dice = random.Random(suffix)
    to = tmp_path / f"out.{suffix}"
    folder, wanted = workdir.workdir_path(to), proofs(3, 25)
    kills: dict[str, int] = {}
    finished = kept = 0
    while sum(kills.values()) < wanted:
        moment = MOMENTS[sum(kills.values()) % len(MOMENTS)]
        before = {path.name: path.stat().st_mtime_ns for path in folder.glob("[0-9]*.shard")}
        process = subprocess.Popen(job.command(to, "--chunk", str(CHUNK)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        _wait_for(moment, folder, process, dice)
        process.kill()
        _, stderr = process.communicate(timeout=60)
        if process.returncode == 0:
            finished += 1
        else:
            assert process.returncode == -9, stderr
            kills[moment] = kills.get(moment, 0) + 1
            after = {path.name: path.stat().st_mtime_ns for path in folder.glob("[0-9]*.shard")}
            if after and not to.exists():  # else it was killed while it cleaned up
                assert before.items() <= after.items(), "written shards are not scored again"
                kept = max(kept, len(after))
        if to.exists():
            assert job.is_complete(to), "the table appears only when it is complete"
    done = subprocess.run(job.command(to, "--chunk", str(CHUNK)), check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert job.is_complete(to)
    assert list(tmp_path.iterdir()) == [to], "no temporary files are left"
    print(f"{suffix}: killed {kills}, ended before the kill {finished}; most shards left by a kill: {kept} of {ITEMS // CHUNK}")


def test_score_int8_resumed_after_a_kill_or_in_other_chunks_decides_the_same(
    job: ScoringCase, quantized: Path, tmp_path: Path
) -> None:
    int8 = job._replace(bundle=quantized)
    int8.score(tmp_path / "undisturbed.parquet", variant="int8", chunk=100)
    int8.score(tmp_path / "whole.parquet", variant="int8", chunk=ITEMS)
    to = tmp_path / "killed.parquet"
    command = int8.command(to, "--chunk", str(CHUNK), "--variant", "int8")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _wait_for("scoring", workdir.workdir_path(to), process, random.Random(0))
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -9
    assert not to.exists()
    assert int8.score(to, variant="int8").resumed >= CHUNK
    expected, fp32 = _decisions(tmp_path / "undisturbed.parquet"), _probabilities(job.rows)
    for name in ("whole", "killed"):
        table = pq.read_table(tmp_path / f"{name}.parquet")
        assert _decisions(tmp_path / f"{name}.parquet") == expected
        difference = np.abs(_probabilities(table) - _probabilities(pq.read_table(tmp_path / "undisturbed.parquet"))).max()
        assert difference <= 1e-6, "of 8-bit steps, none is rounded to another side"
        assert np.abs(_probabilities(table) - fp32).max() > 1e-4, "the variant is not float32"


def _decisions(path: Path) -> list[dict[str, object]]:
    """Return what the table decides: all columns but those of floating point."""
    table = pq.read_table(path)
    return table.select([field.name for field in table.schema if not _holds_floats(field.type)]).to_pylist()


def _probabilities(table: pa.Table) -> np.ndarray:
    columns = [table[field.name] for field in table.schema if pa.types.is_floating(field.type)]
    return np.stack([column.to_numpy() for column in columns], axis=1)


def _holds_floats(kind: pa.DataType) -> bool:
    return "float" in str(kind) or "double" in str(kind)


def test_score_logs_damaged_shards_and_scores_them_again(
    job: ScoringCase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    to = tmp_path / "out.parquet"
    with interrupted(job, tmp_path / "other.parquet", 30, where="id >= '0100'") as other, interrupted(job, to, 60) as folder:
        files = sorted(folder.glob("[0-9]*.shard"))
        assert len(files) == 12
        files[0].write_bytes(files[0].read_bytes()[:-100])
        content = bytearray(files[3].read_bytes())
        content[len(content) // 2] ^= 4
        files[3].write_bytes(content)
        shutil.copy(min(other.glob("[0-9]*.shard")), files[5])
        shutil.copy(files[8], files[7])
        files[9].write_bytes(b"")
    found = job.score(to)
    assert found.resumed == 60 - 5 * CHUNK
    logged = [record.getMessage() for record in caplog.records if record.name == "vigil.score"]
    assert [line.split(": ")[0] for line in logged] == [str(files[n]) for n in (0, 3, 5, 7, 9)]
    assert all(line.endswith("altered, cut off, or of another job; scored again") for line in logged)
    assert job.is_complete(to)


TABLE = pa.table({"id": ["a", "b"], "x": [1.5, None]})
JOB_SPEC = JobSpec(
    bundle="b", dataset="d", version=1, written="t", split=None, where=None, variant="fp32", chunk=2, rows=8, columns="c"
)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shards, bytes]:
    shards = Shards(tmp_path_factory.mktemp("shards"), JOB_SPEC)
    shards.write(1, TABLE)
    return shards, shards.file(1).read_bytes()


@given(st.data())
def test_shards_detect_every_flipped_and_missing_byte(shard: tuple[Shards, bytes], data: st.DataObject) -> None:
    shards, complete = shard
    at = data.draw(st.integers(0, len(complete) - 1))
    flipped = bytes([*complete[:at], complete[at] ^ data.draw(st.integers(1, 255)), *complete[at + 1 :]])
    for content in (flipped, complete[:at], complete + b"\0"):
        shards.file(1).write_bytes(content)
        with pytest.raises(DamagedShard):
            shards.read(1)
    shards.file(1).write_bytes(complete)
    assert shards.read(1).equals(TABLE)
    shards.file(2).write_bytes(complete)
    assert not shards.is_complete(2)
    assert not Shards(shards.folder, replace(JOB_SPEC, bundle="c")).is_complete(1)


def test_score_refuses_shards_of_another_job_without_restart(job: ScoringCase, tmp_path: Path) -> None:
    to = tmp_path / "out.parquet"
    with interrupted(job, to, 20, where="id >= '0100'") as folder:
        pass
    with pytest.raises(UserError) as caught:
        job.score(to, chunk=7)
    assert str(caught.value) == (
        f"{folder}: has 4 of 100 shards of another job: where id >= '0100', not none; chunk 5, not 7; rows 500, not 600; "
        "run the same command as before to resume it, or discard its shards with --restart"
    )
    assert len(list(folder.glob("[0-9]*.shard"))) == 4
    assert job.score(to, restart=True).resumed == 0
    assert job.is_complete(to)
    assert list(tmp_path.iterdir()) == [to]


def test_score_refuses_shards_of_another_version_or_dataset(job: ScoringCase, tmp_path: Path) -> None:
    data, to = tmp_path / "dataset", tmp_path / "out.parquet"
    items = [Item(f"{n}", (f"text {n}",)) for n in range(20)]
    write(data, items)
    with interrupted(job._replace(dataset=data), to, 10):
        pass
    write(data, [Item("20", ("one more",))], append=True)
    with pytest.raises(UserError, match=r"of another job: version 1, not 2; written \S+, not \S+; rows 20, not 21; run"):
        job._replace(dataset=data).score(to)
    shutil.rmtree(data)
    write(data, items[::-1])
    with pytest.raises(UserError, match=r"of another job: written \S+, not \S+; run"):
        job._replace(dataset=data).score(to)


def test_score_refuses_a_damaged_job_file(job: ScoringCase, tmp_path: Path) -> None:
    to = tmp_path / "out.parquet"
    with interrupted(job, to, 20) as folder:
        (folder / "job.json").write_text("{")
    with pytest.raises(UserError, match=r"job\.json: damaged, so its job is unknown; discard its shards with --restart"):
        job.score(to)
    assert job.score(to, restart=True).items == ITEMS


def test_score_never_merges_shards_of_other_items(job: ScoringCase, tmp_path: Path) -> None:
    to = tmp_path / "out.parquet"
    spec, _ = make_job_spec(
        load_bundle(job.bundle, check_hashes=False), job.dataset, split=None, where=None, variant="fp32", chunk=CHUNK
    )
    with interrupted(job, to, 20) as folder:
        shards = Shards(folder, spec)
        shards.write(1, shards.read(2))
    with pytest.raises(Failure, match=r"00000001\.shard: its items are not the dataset's rows; discard the shards"):
        job.score(to)
    assert not to.exists()
    with interrupted(job, to, 0, restart=True) as folder:
        assert not folder.exists()

    def damage(_task: str, done: int, total: int | None) -> None:
        if done == total:
            Shards(folder, spec).file(3).write_bytes(b"")

    with pytest.raises(Failure, match=r"00000003\.shard: altered, .*; run the same command again to score it again"):
        job.score(to, progress=damage)
    assert job.score(to).resumed == ITEMS - CHUNK
    assert job.is_complete(to)


def test_score_locks_its_output(job: ScoringCase, tmp_path: Path) -> None:
    to = tmp_path / "out.parquet"
    seen: list[subprocess.CompletedProcess[str]] = []

    def run_second(_task: str, done: int, _total: int | None) -> None:
        if done and not seen:
            seen.append(subprocess.run(job.command(to), check=False, capture_output=True, text=True, timeout=60))

    assert job.score(to, progress=run_second).items == ITEMS
    host = os.uname().nodename
    assert (seen[0].returncode, seen[0].stderr) == (
        2,
        f"error: {to}: process {os.getpid()} on {host} is writing it; wait until it ends, or name another output\n",
    )
    assert job.is_complete(to)


@pytest.mark.parametrize(("suffix", "kibibytes", "where"), [("parquet", 2, "shard"), ("parquet", 8, "out"), ("lance", 8, "out")])
def test_score_on_a_full_disk_fails_with_one_line(
    job: ScoringCase, tmp_path: Path, suffix: str, kibibytes: int, where: str
) -> None:
    to = tmp_path / f"out.{suffix}"
    command = ["bash", "-c", f'ulimit -f {kibibytes}; exec "$@"', "bash", *job.command(to, "--chunk", str(CHUNK))]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert "cannot be written: " in lines[0]
    assert "File too large" in lines[0]
    assert ".shard: " in lines[0] if where == "shard" else f"{to}: " in lines[0]
    assert not to.exists()
    assert not list(workdir.workdir_path(to).glob(".*.partial*"))
    assert not list(tmp_path.glob(".*.partial*"))
    assert lines[0].endswith("; then run the same command again: finished shards are kept")
    assert job.score(to).resumed == (0 if where == "shard" else ITEMS)
    assert job.is_complete(to)

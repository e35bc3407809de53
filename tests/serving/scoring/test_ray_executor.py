"""`vigil score --ray`: two real nodes on this machine; one is killed while it scores."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
from ray_nodes import RAY_WARNINGS

from vigil_data.dataset.dataset import write
from vigil_data.errors import Failure, UserError
from vigil_data.items import Item
from vigil_serving.bundle import manifest
from vigil_serving.parity.cases import make_item
from vigil_serving.scoring import ray_executor, workdir
from vigil_serving.scoring.ray_executor import ShardWorker, WorkerJob, count_attempts, score_on_ray
from vigil_serving.scoring.score import RayOptions, score_dataset

pytestmark = RAY_WARNINGS


@pytest.fixture(scope="module")
def dataset(exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 items of every presence pattern."""
    patterns = [["text"], ["text", "image"], ["audio"], ["image"], ["text", "image", "audio"], []]
    made = [make_item(patterns[n % 6], n % 60, exported.inputs) for n in range(240)]
    path = tmp_path_factory.mktemp("ray") / "dataset"
    write(path, [Item(f"{n:03}", item.text, item.image, item.audio) for n, item in enumerate(made)])
    return path


@pytest.fixture(scope="module")
def undisturbed(exported, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The table that one local process writes."""
    to = tmp_path_factory.mktemp("undisturbed") / "out.parquet"
    score_dataset(exported.bundle, dataset, to, threads=1, chunk=4)
    return to.read_bytes()


def _marking(marks: Path) -> type[ShardWorker]:
    """Return a slow worker that leaves a file for each shard it starts, named by number and node."""

    class Marking(ShardWorker):
        def __call__(self, batch):
            node = ray.get_runtime_context().get_node_id()
            for number in batch["shard"]:
                (marks / f"{number}.{node}.{os.getpid()}").touch()
            time.sleep(0.2)
            return super().__call__(batch)

    return Marking


@pytest.mark.prove
def test_ray_executor_survives_the_loss_of_a_node(
    cluster, exported, dataset: Path, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proofs: Callable
) -> None:
    for trial in range(proofs(1, 5)):
        marks = tmp_path / f"marks{trial}"
        marks.mkdir()
        monkeypatch.setattr(ray_executor, "ShardWorker", _marking(marks))
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        killed: list[int] = []

        def kill(_task: str, done: int, _total: int | None, node=node, killed=killed, marks=marks, trial=trial) -> None:
            begun = sum(node.node_id in mark.name for mark in marks.iterdir())
            if begun > 1 + 5 * trial and not killed:
                cluster.remove_node(node, allow_graceful=False)
                killed.append(done)

        to = tmp_path / f"out{trial}.parquet"
        found = score_dataset(exported.bundle, dataset, to, threads=1, chunk=4, ray=RayOptions("auto"), progress=kill)
        assert killed, "the second node started no shards"
        assert killed[0] < 240
        begun = Counter(mark.name.split(".")[1] for mark in marks.iterdir())
        assert len(begun) == 2
        assert found.items == 240
        assert to.read_bytes() == undisturbed, "each item once, in order, with the same numbers"
        print(f"killed at {killed[0]} of 240 items; shards started by each node: {sorted(begun.values())}, of 60")


def test_ray_and_local_executors_resume_each_other(cluster, exported, dataset: Path, undisturbed: bytes, tmp_path: Path) -> None:
    def stop(_task: str, done: int, _total: int | None) -> None:
        if done >= 80:
            raise KeyboardInterrupt

    for first, second in ((RayOptions("auto"), None), (None, RayOptions("auto"))):
        to = tmp_path / f"{first is None}.parquet"
        with pytest.raises(KeyboardInterrupt):
            score_dataset(exported.bundle, dataset, to, threads=1, chunk=4, ray=first, progress=stop)
        found = score_dataset(exported.bundle, dataset, to, threads=1, chunk=4, ray=second)
        assert 80 <= found.resumed < 240
        assert to.read_bytes() == undisturbed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["False.parquet", "True.parquet"]


def test_ray_executor_scores_under_another_policy_text(cluster, exported_guard, tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text("name: new\nheads: {conduct: {labels: {scam: {definition: 'Names a cat, or a dog.'}}}}\n")
    write(tmp_path / "dataset", [Item(f"{n:03}", (f"a red cat and {n} dogs",)) for n in range(24)])
    tables = {}
    for name, ray_options in (("local", None), ("ray", RayOptions("auto"))):
        to = tmp_path / f"{name}.parquet"
        found = score_dataset(
            exported_guard.bundle,
            tmp_path / "dataset",
            to,
            chunk=4,
            threads=1,
            ray=ray_options,
            policy_text=tmp_path / "new.yaml",
        )
        assert (found.not_evaluated, found.uncalibrated) == (("scam",), ("scam",))
        tables[name] = to.read_bytes()
    assert tables["ray"] == tables["local"]
    score_dataset(exported_guard.bundle, tmp_path / "dataset", tmp_path / "own.parquet", chunk=4, threads=1)
    own, other = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("own", "ray"))
    assert own["probability.scam"] != other["probability.scam"]
    assert set(other["policy_text.scam"].to_pylist()).isdisjoint(own["policy_text.scam"].to_pylist())


def test_score_command_joins_a_running_cluster(cluster, exported, dataset: Path, undisturbed: bytes, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("vigil")), "score", str(exported.bundle), str(dataset), "--chunk", "4"]
    command += ["--ray", cluster.address, "--to", str(tmp_path / "out.parquet")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "240 items in" in done.stdout
    assert (tmp_path / "out.parquet").read_bytes() == undisturbed


def test_ray_executor_reports_worker_errors_in_one_line(
    cluster, exported, bundle_copy: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="--threads 9: the largest node of the cluster has 1 CPUs"):
        score_dataset(exported.bundle, dataset, tmp_path / "out.parquet", threads=9, ray=RayOptions("auto"))

    class Broken(ShardWorker):
        def _load(self):
            raise ValueError("unknown cause")

    (bundle_copy / manifest.THRESHOLDS).write_text("{}")
    with _kept(exported, dataset, tmp_path) as shards:
        with pytest.raises(Failure, match=r"^\S+ thresholds\.json was changed after the export$"):
            list(score_on_ray(WorkerJob(bundle_copy, shards, 1), [0, 1], "auto", None))
        monkeypatch.setattr(ray_executor, "ShardWorker", Broken)
        with pytest.raises(Failure, match=r"^\S+ shard [01]: ValueError: unknown cause$"):
            list(score_on_ray(WorkerJob(exported.bundle, shards, 1), [0, 1], "auto", None))
    assert list(tmp_path.iterdir()) == [bundle_copy]


def _kept(exported, dataset: Path, tmp_path: Path):
    from vigil_serving.bundle.load import load_bundle
    from vigil_serving.scoring.job_spec import make_job_spec

    spec, _ = make_job_spec(
        load_bundle(exported.bundle, check_hashes=False), dataset, split=None, where=None, variant="fp32", chunk=4
    )
    return workdir.open_workdir(tmp_path / "out.parquet", spec, restart=False)


@pytest.mark.prove
def test_ray_executor_fails_on_a_shard_that_kills_its_workers(
    cluster, exported, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proofs: Callable
) -> None:
    """Ray itself would retry without limit; `make prove` lets all five workers die, the test only the last one."""

    class Dying(ShardWorker):
        def _load(self):
            os._exit(1)

    monkeypatch.setattr(ray_executor, "ShardWorker", Dying)
    with _kept(exported, dataset, tmp_path) as shards:
        (shards.folder / ".00000003.attempts.partial").write_bytes(b"x" * proofs(4, 0))
        with pytest.raises(Failure, match=r"00000003\.shard: 5 workers died while scoring it"):
            list(score_on_ray(WorkerJob(exported.bundle, shards, 1), [3], "auto", None))


def test_count_attempts_counts_only_dead_processes(tmp_path: Path) -> None:
    for _ in range(9):
        with count_attempts(tmp_path / "attempts", "too many"):
            pass
    with pytest.raises(ValueError, match="broken"), count_attempts(tmp_path / "attempts", "too many"):
        raise ValueError("broken")
    assert not list(tmp_path.iterdir())


def test_shard_worker_skips_complete_shards(exported, dataset: Path, tmp_path: Path) -> None:
    with _kept(exported, dataset, tmp_path) as shards:
        worker = ShardWorker(WorkerJob(exported.bundle, shards, 1))
        first = worker({"shard": [0, 1]})
        assert (list(first["shard"]), list(first["reason"])) == ([0, 1], ["", ""])
        kept = shards.file(1).stat()
        shards.file(0).write_bytes(b"")
        worker({"shard": [0, 1]})
        assert shards.is_complete(0)
        assert (shards.file(1).stat().st_ino, shards.file(1).stat().st_mtime_ns) == (kept.st_ino, kept.st_mtime_ns)


def test_score_command_refuses_an_address_without_a_cluster(exported, dataset: Path, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("vigil")), "score", str(exported.bundle), str(dataset)]
    command += ["--ray", "127.0.0.1:1", "--to", str(tmp_path / "out.parquet")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=180)
    assert done.returncode == 2, done.stderr
    assert "error: --ray 127.0.0.1:1: no cluster answers" in done.stderr
    assert not list(tmp_path.iterdir())

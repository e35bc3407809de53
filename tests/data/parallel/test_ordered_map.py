"""Results come in the order of the tasks, from this process, from others, and from Ray, where lost tasks run again."""

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from damaged_media import picture, sound
from negation import negated
from ray_nodes import RAY_WARNINGS

from vigil.cli import main
from vigil_data.dataset import history
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.enrichment.engines import EngineError, Finding
from vigil_data.enrichment.enrich import enrich
from vigil_data.errors import Failure, UserError
from vigil_data.items import Item
from vigil_data.parallel.ordered_map import TASKS_PER_PROCESS, ordered_map
from vigil_data.parallel.ray_cluster import RayCluster

pytestmark = RAY_WARNINGS


def test_ordered_map_reads_few_tasks_ahead_and_raises_in_their_order() -> None:
    drawn: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(7):
            drawn.append(number)
            yield number
        raise UserError("the file ends here")

    results = ordered_map(negated, tasks(), processes=2)
    found = []
    for _ in range(7):
        found.append(next(results))
        assert len(drawn) - len(found) < 2 * TASKS_PER_PROCESS
    with pytest.raises(UserError, match="the file ends here"):
        next(results)
    assert found == [0, -1, -2, -3, -4, -5, -6], "all that were drawn before the error, as without processes"
    with pytest.raises(UserError) as refused:
        list(ordered_map(negated, [6, 7, 8], processes=2))
    assert refused.value.lines == ("no 7", "nor 77")
    with pytest.raises(Failure, match="a process of this command died"):
        list(ordered_map(negated, [9, 1], processes=2))


def test_ray_raises_errors_of_tasks_in_one_line(cluster) -> None:
    def broken(number: int) -> int:
        if number == 7:
            raise UserError("no 7", "nor 77")
        return 1 // number

    with pytest.raises(UserError) as refused:
        list(ordered_map(broken, [1, 7, 0], cluster=RayCluster(ray)))
    assert refused.value.lines == ("no 7", "nor 77")
    with pytest.raises(Failure, match=r"^a task on Ray failed: ZeroDivisionError: integer division or modulo by zero$"):
        list(ordered_map(broken, [0], cluster=RayCluster(ray)))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 posts with near-duplicates, damaged media, files under wrong names, replies, and rows with errors."""
    folder = tmp_path_factory.mktemp("posts")
    for form, name in (("PNG", "a.png"), ("JPEG", "b.jpg"), ("WEBP", "c.webp"), ("PNG", "wrong.jpg")):
        (folder / name).write_bytes(picture(form))
    (folder / "cut.png").write_bytes(picture("PNG")[:200])  # its header is whole
    (folder / "junk.png").write_bytes(b"junk")
    (folder / "a.flac").write_bytes(sound("FLAC"))
    images = ["a.png", "b.jpg", "c.webp", "wrong.jpg", "cut.png", "junk.png"]
    with (folder / "posts.jsonl").open("w") as file:
        for n in range(30):
            row: dict[str, Any] = {"id": f"post{n}", "text": hashlib.sha256(b"%d" % (n if n % 3 == 0 else n // 2)).hexdigest()}
            row["targets"] = {"spam": n % 3 / 2}
            if n % 3:
                row["image"] = images[n % 6]
            if n % 5 == 0:
                row["audio"] = "a.flac"
            if n == 20:
                row["parent_id"] = "post3"
            if n == 21:
                row["targets"] = {"spam": 7}
            if n == 22:
                row["image"] = "../outside.png"
            file.write(json.dumps(row) + "\n")
    return folder / "posts.jsonl"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vigil", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        assert isinstance(left.value.code, int)
        return left.value.code, *capsys.readouterr()

    return run


def whole(path: Path) -> dict[str, Any]:
    """All that a dataset holds, but for times and the words of commands."""
    dataset = Dataset(path)
    quarantine = dataset.quarantine().drop_columns(["quarantined_at", "command"]).to_pylist()
    changes = [entry.change for entry in history.read(path)]
    return {
        "items": dataset.table(dataset.schema.names),
        "quarantine": json.dumps(quarantine, default=str).replace(str(path), "DATASET"),
        "versions": [version["version"] for version in dataset.versions()],
        "log": [change and replace(change, command="", when=None) for change in changes],
    }


def test_ray_prepares_the_same_dataset_as_one_process(cluster, manifest: Path, tmp_path: Path, run) -> None:
    """Import, check, near-duplicates and enrichment by their commands; what they print and write is equal."""
    known = tmp_path / "known.csv"
    known.write_text(f"kind,value,list,action\nsha256,{hashlib.sha256(picture('WEBP')).hexdigest()},fairs,flag\n")
    printed: dict[str, list[tuple[int, str]]] = {}
    stored: dict[str, dict[str, Any]] = {}
    for where, options in (("here", []), ("ray", ["--ray", "auto"])):
        to = tmp_path / where
        commands = (
            ["check", manifest, "--json"],
            ["import", "manifest", manifest, "--to", to, "--bad-rows", "quarantine", "--match", known],
            ["check", to, "--json", "--quarantine"],
            ["duplicates", to, "--json"],
            ["enrich", to, "language"],
        )
        found = [run("data", *command, *options) for command in commands]
        printed[where] = [(code, out.replace(str(to), "DATASET")) for code, out, _ in found]
        stored[where] = whole(to)
    assert printed["ray"] == printed["here"]
    assert [code for code, _ in printed["ray"]] == [1, 0, 0, 0, 0]
    here, there = stored["here"], stored["ray"]
    assert there["items"].equals(here["items"])
    for part in ("quarantine", "versions", "log"):
        assert there[part] == here[part]
    # The comparison is of what matters: something was refused at each stage, flagged, clustered and enriched.
    assert {row["id"] for row in json.loads(here["quarantine"])} >= {"post21", "post22", "post4", "post5"}
    columns = here["items"].to_pydict()
    assert "fairs" in columns["matched_lists"]
    assert None in columns["cluster"]
    assert any(columns["cluster"])
    assert all(columns["language_engine"])


def test_enrich_on_ray_survives_a_killed_worker_and_keeps_findings(cluster, tmp_path: Path) -> None:
    killed = tmp_path / "killed"

    class Mortal:
        kind, name, identity, modality = "ocr", "mortal", "mortal 1", "image"

        def __init__(self, failing: str = "", marker: Path | None = None) -> None:
            self.failing, self.marker = failing, marker

        def __call__(self, item: Item) -> Finding:
            if self.marker is not None and item.id == "20" and not self.marker.exists():
                self.marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if item.id == self.failing:
                raise EngineError("it fails")
            return Finding([f"{len(image)} bytes" for image in item.image])

    items = [Item(str(n), (f"text {n}",), (picture("PNG"),) * (n % 3)) for n in range(60)]
    for name in ("here", "there"):
        write(tmp_path / name, items)
    done = enrich(tmp_path / "here", Mortal())
    with pytest.raises(Failure, match=r"^item 49: it fails; finished items are kept"):
        enrich(tmp_path / "there", Mortal("49", killed), cluster=RayCluster(ray))
    assert killed.exists()
    assert enrich(tmp_path / "there", Mortal(), cluster=RayCluster(ray)) == done
    assert whole(tmp_path / "there")["items"].equals(whole(tmp_path / "here")["items"])


@pytest.mark.parametrize(
    ("address", "reason"),
    [("127.0.0.1:1", "no cluster answers: [Errno 111] Connection refused"), ("head", "must be HOST:PORT, auto or local")],
)
def test_connected_refuses_an_address_without_a_cluster(manifest: Path, tmp_path: Path, run, address: str, reason: str) -> None:
    code, _, error = run(
        "data", "import", "manifest", manifest, "--to", tmp_path / "d", "--bad-rows", "quarantine", "--ray", address
    )
    assert (code, error) == (2, f"error: --ray {address}: {reason}\n")
    assert not (tmp_path / "d").exists()


def test_ray_runs_a_task_again_whose_worker_was_killed(cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mortal(number: int) -> tuple[int, int]:
        attempts = tmp_path / str(number)
        attempts.write_text(f"{(int(attempts.read_text()) if attempts.exists() else 0) + 1}")
        if number == 2 and attempts.read_text() == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 99:
            os.kill(os.getpid(), signal.SIGKILL)
        return number, os.getpid()

    found = list(ordered_map(mortal, range(6), cluster=RayCluster(ray)))
    assert [number for number, _ in found] == list(range(6))
    assert os.getpid() not in {process for _, process in found}
    assert (tmp_path / "2").read_text() == "2"
    monkeypatch.setattr("vigil_data.parallel.ordered_map.MAX_RETRIES", 1)
    with pytest.raises(Failure, match=r"^Ray failed: WorkerCrashedError: "):
        list(ordered_map(mortal, [99], cluster=RayCluster(ray)))
    assert (tmp_path / "99").read_text() == "2"

"""`vigil loop`: what it prints, and the job that continues a loop after its training."""

import json
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_slurm import FakeSlurm, directives

from vigil.cli import build
from vigil.cli import loop as commands
from vigil.workflows.loop.iterations import Iteration
from vigil.workflows.loop.specs import read_loop
from vigil_data.errors import UserError
from vigil_monitoring.queues.queue import Queue, QueueRecord, queue_table, write_queue
from vigil_slurm.client import job_comment

KEYS = "name: tiny\nfolder: loop\ntraffic: traffic.parquet\ndataset: dataset\nretrain: null\nmine: null\ndays: 2\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a loop's file and traffic of three days, as the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop.yaml").write_text(KEYS)
    times = pa.array([f"2026-01-0{day}T10:00:00Z" for day in (1, 2, 3)]).cast(pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"id": ["a", "b", "c"], "time": times, "probability.hate": [0.1, 0.2, 0.9]}), "traffic.parquet")
    return tmp_path


def vigil(*arguments: str) -> object:
    return build()(list(arguments), prog_name="vigil", standalone_mode=False)


def test_status_shows_the_iterations(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vigil("loop", "status", "loop.yaml")
    assert capsys.readouterr().out == "loop: no iteration yet; vigil loop run loop.yaml\n"
    keys = read_loop(Path("loop.yaml")).model_dump(mode="json")
    done = Iteration(1, "2026-01-02", "2026-01-03", keys, None, {"sample": 0.5}, outcome="rejected", rejected="worse")
    for iteration in (done, replace(done, number=2, outcome=None, rejected="")):
        state = folder / "loop" / f"{iteration.number:04d}" / "state.json"
        state.parent.mkdir(parents=True)
        state.write_text(json.dumps(asdict(iteration)))
    vigil("loop", "status", "loop.yaml")
    printed = capsys.readouterr().out
    assert "rejected: worse" in printed
    assert "in progress" in printed
    vigil("loop", "status", "loop.yaml", "--json")
    assert [of["number"] for of in json.loads(capsys.readouterr().out)] == [1, 2]


def test_surroundings_read_answers_days_and_champion(folder: Path) -> None:
    loop = read_loop(Path("loop.yaml"))
    outside = commands._surroundings(loop, Path("loop.yaml"), lambda *_: None)
    assert outside.newest_day() == date(2026, 1, 3)
    assert outside.champion() is None
    rows = [{"id": id_, "inclusion_probability": 0.5, "purpose": "estimate", "ask": ["hate"]} for id_ in ("a", "b", "b")]
    write_queue(folder / "q.jsonl", Queue(queue_table(rows, ("hate",)), QueueRecord("probability", ("hate",))))
    queue = commands_queue(folder)
    assert outside.answered(queue) == (2, 0), "an id that was decided twice is asked once"
    answer = {"id": "b", "label": "hate", "value": "cannot tell", "reviewer": "ann", "time": "2026-01-04T00:00:00Z"}
    (folder / "r.jsonl").write_text(json.dumps(answer) + "\n")
    assert outside.answered(queue) == (2, 1)
    assert not outside.trained(folder / "run")


def commands_queue(folder: Path):
    from vigil.workflows.loop.steps import Queue as QueueFiles

    return QueueFiles(folder / "q.jsonl", folder / "r.jsonl")


def test_continue_after_submits_a_job_that_depends_on_the_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "loop.yaml").write_text(KEYS.replace("retrain: null", "retrain: {recipe: r.yaml}") + "slurm: {time: '30'}\n")
    run = folder / "loop" / "0001" / "run"
    run.mkdir(parents=True)
    slurm = FakeSlurm(folder / "fakes", "sbatch", "squeue")
    queue = slurm.folder / "queue"
    queue.write_text(f"77|PENDING|Priority|0:00|1|N/A|{job_comment(str(run), False)}\n")
    slurm.script("squeue", f"cat '{queue}'")
    slurm.script("sbatch", "echo 78")
    for name, value in slurm.environment().items():
        monkeypatch.setenv(name, value)
    arguments = read_loop(Path("loop.yaml")), Path("loop.yaml"), Path("loop/0001/run"), "77"
    commands._continue_after(*arguments)
    assert "job 78 continues the loop after job 77" in capsys.readouterr().out
    script = (folder / "loop" / "0001" / "job.sh").read_text()
    assert directives(script)["dependency"] == "afterok:77"
    assert script.rstrip().endswith("loop run loop.yaml")

    with queue.open("a") as lines:
        lines.write(f"78|PENDING|Dependency|0:00|1|N/A|{job_comment(str(run.parent), False)}\n")
    commands._continue_after(*arguments)
    assert capsys.readouterr().out == "", "one is enough"
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    commands._continue_after(*arguments)
    assert "job 78 continues" in capsys.readouterr().out, "a job that submits the training again needs one behind it"


def test_run_names_the_mistakes_of_the_file(folder: Path) -> None:
    (folder / "loop.yaml").write_text(KEYS + "sample: null\n")
    with pytest.raises(UserError, match="sample and mine are both null"):
        vigil("loop", "run", "loop.yaml")

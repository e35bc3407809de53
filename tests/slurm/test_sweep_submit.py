"""`vigil sweep submit` and `cancel`: the array that Slurm receives, the folders of its tasks, and what is refused."""

import json
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm, directives

SWEEP = """
name: cheap
function: objective:score
metric: score
trials: 3
space: {x: {float: [0, 1]}}
"""


class Login:
    """A login node: a folder to work in with a sweep file, and fakes of Slurm's commands."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.slurm = folder / "my work", FakeSlurm(folder / "fakes", "sbatch", "squeue", "scancel")
        self.folder.mkdir()
        (self.folder / "sweep.yaml").write_text(SWEEP)
        self.slurm.script("sbatch", "echo 41")

    def vigil(self, *arguments: str, status: int = 0) -> str:
        done = self.slurm.vigil(*arguments, cwd=self.folder)
        assert done.returncode == status, done.stderr
        return done.stderr if status else done.stdout

    def sweep(self, *arguments: str, status: int = 0) -> str:
        return self.vigil("sweep", *arguments, status=status)


@pytest.fixture
def login(tmp_path: Path) -> Login:
    return Login(tmp_path)


def test_sweep_submit_queues_an_array_of_workers(login: Login) -> None:
    script = login.sweep("submit", "sweep.yaml", "--tasks", "4", "--time", "30", "--after", "7", "--dry-run")
    assert not (login.folder / "sweeps").exists()
    assert login.slurm.calls == []
    options = directives(script)
    assert (options["array"], options["time"], options["dependency"], options["nodes"]) == ("0-3", "30", "afterok:7", "1")
    said = login.sweep("submit", "sweep.yaml", "--tasks", "4", "--time", "30", "--after", "7").splitlines()
    assert said[0] == "job 41: sweeps/cheap (4 workers, 3 trials)"
    folder = login.folder / "sweeps" / "cheap"
    assert (folder / "workers" / "task-0" / "job.sh").read_text() == script
    assert f"sweep worker '{folder}'" in script
    registered = [json.loads(line) for line in (login.folder.parent / "vigil" / "jobs.jsonl").read_text().splitlines()]
    tasks = [folder / "workers" / f"task-{task}" for task in range(4)]
    assert [(job["job"], job["run"]) for job in registered] == [(f"41_{task}", str(run)) for task, run in enumerate(tasks)]
    assert all((run / "slurm").is_dir() for run in tasks)

    # Its tasks are in the queue: they are not submitted twice, and can be cancelled together.
    queue = "\n".join(f"41_{task}|RUNNING|None|1:00|1|{task}|vigil:{folder}/workers/task-%a" for task in range(2))
    (login.slurm.folder / "queue").write_text(queue + "\n8|RUNNING|None|1:00|1|N/A|vigil:/elsewhere/workers/task-0\n")
    login.slurm.script("squeue", f"cat '{login.slurm.folder}/queue'")
    assert "task-1: job 41_1 is RUNNING" in login.sweep("submit", "sweep.yaml", "--tasks", "4", status=2)
    assert login.sweep("cancel", "sweeps/cheap").splitlines() == ["cancelled job 41_0", "cancelled job 41_1"]
    assert login.slurm.calls_of("scancel") == [["41_0"], ["41_1"]]
    assert (folder / "workers" / "task-1" / "slurm" / "stop").exists()


def test_sweep_submit_refuses_a_sweep_that_has_ended_and_cancel_one_without_tasks(login: Login) -> None:
    login.sweep("submit", "sweep.yaml", "--tasks", "1")
    assert "sweeps/cheap: has no task in the queue" in login.sweep("cancel", "sweeps/cheap", status=2)
    events = login.folder / "sweeps" / "cheap" / "events"
    events.mkdir()
    ends = [{"trial": number, "attempt": 0, "state": "FAIL", "time": 1.0} for number in range(3)]
    (events / "n1-1-a.jsonl").write_text("".join(json.dumps(end) + "\n" for end in ends))
    assert "sweeps/cheap: all 3 trials have ended; there is nothing to submit" in login.sweep(
        "submit", "sweep.yaml", "--tasks", "1", status=2
    )


def test_jobs_shows_the_trial_of_a_worker_and_how_many_it_has_ended(login: Login) -> None:
    login.sweep("submit", "sweep.yaml", "--tasks", "2")
    folder = login.folder / "sweeps" / "cheap"

    def worker(name: str, restart: int, *events: dict[str, object]) -> None:
        slurm = {"job": "41_0", "restart": restart}
        facts: dict[str, object] = {"worker": {"host": "n1", "boot": "", "pid": 1, "locked": False, "slurm": slurm}}
        (folder / "events").mkdir(exist_ok=True)
        lines: list[dict[str, object]] = [facts, *({"attempt": 0, **event} for event in events)]
        (folder / "events" / f"{name}.jsonl").write_text("".join(json.dumps({**line, "time": 1.0}) + "\n" for line in lines))

    lost = {"trial": 1, "state": "RUNNING", "user": {"run": "trials/0001"}}
    worker("n1-1-a", 0, {"trial": 0, "state": "RUNNING"}, {"trial": 0, "state": "COMPLETE", "values": [1.0]}, lost)
    worker("n2-2-b", 1, {"trial": 2, "state": "RUNNING", "user": {"run": "trials/0002"}})
    (folder / "trials" / "0002").mkdir(parents=True)
    (folder / "trials" / "0002" / "metrics.jsonl").write_text('{"step": 30, "epoch": 2, "train/loss": 0.25}\n')
    queue = (
        f"41_0|RUNNING|None|1:00|1|0|vigil:{folder}/workers/task-%a\n8|RUNNING|None|1:00|1|N/A|vigil:/elsewhere/workers/task-0"
    )
    (login.slurm.folder / "queue").write_text(queue + "\n")
    login.slurm.script("squeue", f"cat '{login.slurm.folder}/queue'")
    shown = login.vigil("jobs").splitlines()
    assert " ".join(shown[0].split()) == "job run sweep state nodes elapsed epoch step loss restarts log"
    assert "cheap: 0 ended" in shown[1]
    assert "cheap: trial 2, 1 ended  RUNNING" in shown[2]
    assert shown[2].split("1:00")[1].split()[:3] == ["2", "30", "0.25"]
    assert shown[3].split()[:3] == ["8", "/elsewhere/workers/task-0", "-"]
    found = {job["job"]: (job["sweep"], job["step"]) for job in json.loads(login.vigil("jobs", "--json"))}
    assert found["41_0"] == ({"name": "cheap", "trial": 2, "ended": 1}, 30)
    assert found["41_1"] == ({"name": "cheap", "trial": None, "ended": 0}, None)
    assert found["8"] == (None, None)

"""`vigil jobs`, `vigil logs` and `vigil cancel`, from Slurm's queue, the registry and the run folders."""

import json
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import FakeSlurm

from vigil_slurm.run_state import RunProgress, read_attempts, read_progress
from vigil_slurm.tail_log import follow_log


class Account:
    """A user's account: a folder of runs, the registry of submitted jobs, and fakes of Slurm's commands."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.slurm = folder / "work", FakeSlurm(folder / "fakes", "squeue", "scontrol", "scancel")
        self.folder.mkdir()
        self.queue: list[str] = []

    def submitted(self, job: str, name: str, **files: Any) -> Path:
        """Make a run that was submitted as ``job``, with JSON files in it."""
        run = self.folder / name
        (run / "slurm").mkdir(parents=True, exist_ok=True)
        (run / "resolved.yaml").touch()
        for file, value in files.items():
            (run / f"{file}.json").write_text(json.dumps(value))
        registry = self.folder.parent / "vigil" / "jobs.jsonl"
        registry.parent.mkdir(exist_ok=True)
        with registry.open("a") as stream:
            stream.write(json.dumps({"job": job, "run": str(run), "time": "2026-01-01T00:00:00+00:00", "nodes": 2}) + "\n")
        return run

    def queues(self, job: str, run: Path | str, state: str, reason: str = "None", index: str = "N/A") -> None:
        self.queue.append(f"{job}|{state}|{reason}|1:02:03|2|{index}|vigil:{run}")
        self.answers("squeue", "\n".join(self.queue))

    def answers(self, command: str, text: str) -> None:
        (self.slurm.folder / f"{command}.answer").write_text(text + "\n")
        self.slurm.script(command, f"cat '{self.slurm.folder}/{command}.answer'")

    def vigil(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.slurm.vigil(*arguments, cwd=self.folder)

    def jobs(self) -> list[dict[str, Any]]:
        done = self.vigil("jobs", "--json")
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout))


@pytest.fixture
def account(tmp_path: Path) -> Account:
    return Account(tmp_path)


def write_attempts(run: Path, job: str, *outcomes: str | None) -> None:
    """Write an attempt of 65 seconds for each outcome; ``None`` stands for one without an end."""
    lines = []
    for restart, outcome in enumerate(outcomes):
        start = {"event": "start", "job": job, "restart": restart, "nodes": "n[1-2]", "time": "2026-01-01T00:00:00+00:00"}
        end = {
            "event": "end",
            "job": job,
            "restart": restart,
            "status": 85,
            "outcome": outcome,
            "time": "2026-01-01T00:01:05+00:00",
        }
        lines += [start] if outcome is None else [start, end]
    (run / "slurm" / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_jobs_shows_a_running_job(account: Account) -> None:
    run = account.submitted("7", "runs/a | b")
    write_attempts(run, "7", "preempted", None)
    (run / "metrics.jsonl").write_text(
        '{"step": 10, "epoch": 0, "train/loss": 0.5}\n{"step": 12, "epoch": 1, "validation/loss": 0.4}\n{"step": 2'
    )
    account.queues("7", run, "RUNNING")
    expected = {
        "job": "7",
        "run": str(run),
        "state": "RUNNING",
        "reason": "",
        "active": True,
        "nodes": "2",
        "elapsed": "1:02:03",
        "step": 12,
        "epoch": 1,
        "loss": 0.5,
        "restarts": 1,
        "log": f"{run}/slurm/7.log",
        "sweep": None,
    }
    assert account.jobs() == [expected]
    header, row = account.vigil("jobs").stdout.splitlines()
    assert header.split() == ["job", "run", "state", "nodes", "elapsed", "epoch", "step", "loss", "restarts", "log"]
    assert row.split() == [
        "7",
        *["runs/a", "|", "b", "RUNNING", "2", "1:02:03", "1", "12", "0.5", "1", "runs/a", "|", "b/slurm/7.log"],
    ]


def test_jobs_shows_why_a_job_waits_and_whether_it_is_requeued(account: Account) -> None:
    first, again = account.submitted("7", "first"), account.submitted("8", "again")
    write_attempts(again, "8", "preempted")
    account.queues("7", first, "PENDING", "Priority")
    account.queues("8", again, "PENDING", "BeginTime")
    account.queues("9", account.folder / "elsewhere", "PENDING", "Dependency")
    shown = [(row["job"], row["state"], row["reason"], row["restarts"]) for row in account.jobs()]
    assert shown == [("7", "PENDING", "Priority", 0), ("8", "REQUEUED", "BeginTime", 1), ("9", "PENDING", "Dependency", 0)]


def test_jobs_ignores_other_jobs(account: Account) -> None:
    account.answers("squeue", "5|RUNNING|None|1:00|1|N/A|my comment\n6|RUNNING|None|1:00|1|N/A|")
    assert account.jobs() == []
    assert account.vigil("jobs").stdout == "no jobs; submit one with `vigil submit`\n"
    assert account.slurm.calls_of("squeue")[0][:1] == ["--me"]


def test_jobs_shows_each_task_of_an_array(account: Account) -> None:
    account.queues("7_0", "/runs/50%% a-%a", "RUNNING", index="0")
    account.queues("7_12", "/runs/50%% a-%a", "RUNNING", index="12")
    account.queues("8", "/runs/50%% a-%a", "RUNNING")
    assert [row["run"] for row in account.jobs()] == ["/runs/50% a-0", "/runs/50% a-12", "/runs/50%% a-%a"]


@pytest.mark.parametrize(
    ("files", "outcomes", "slurm", "state", "reason"),
    [
        ({"thresholds": {}}, ["finished"], "COMPLETED", "COMPLETED", ""),
        ({"thresholds": {}}, [None], None, "COMPLETED", ""),
        ({"failure": {"status": 1, "lines": ["no memory", "more"]}}, ["failed"], "FAILED", "FAILED", "no memory"),
        ({"failure": {}}, ["failed"], None, "FAILED", ""),
        ({}, ["preempted", "gave-up"], "FAILED", "GAVE UP", ""),
        ({}, ["stopped"], "FAILED", "STOPPED", ""),
        ({}, ["preempted"], "TIMEOUT", "TIMEOUT", ""),
        ({}, [], "CANCELLED", "CANCELLED", ""),
        ({}, ["preempted"], "FAILED", "FAILED", "preempted, and not started again"),
        ({}, [None], "FAILED", "FAILED", ""),
        ({}, ["preempted"], None, "ENDED", "preempted"),
        ({}, [], None, "ENDED", ""),
    ],
)
def test_jobs_shows_how_a_job_ended(
    account: Account, files: dict[str, Any], outcomes: list[str | None], slurm: str | None, state: str, reason: str
) -> None:
    run = account.submitted("7", "run", **files)
    write_attempts(run, "7", *outcomes)
    if slurm is not None:
        account.answers("scontrol", f"JobId=70 JobName=x JobState=RUNNING\nJobId=7 JobName=y JobState={slurm} Reason=None")
    (row,) = account.jobs()
    assert (row["state"], row["reason"], row["active"]) == (state, reason, False)
    assert row["restarts"] == max(0, len(outcomes) - 1)
    assert row["elapsed"] == ("1:05" if outcomes and outcomes[-1] else "")


def test_jobs_shows_the_newest_job_of_each_existing_run(account: Account) -> None:
    account.submitted("7", "run")
    run = account.submitted("8", "run", thresholds={})
    account.submitted("9", "gone").joinpath("resolved.yaml").unlink()
    (account.folder / "gone" / "slurm").rmdir()
    (account.folder / "gone").rmdir()
    assert [row["job"] for row in account.jobs()] == ["8"]
    account.queues("10", run, "RUNNING")
    assert [row["job"] for row in account.jobs()] == ["10"]


def test_jobs_all_shows_more_than_20_ended_jobs(account: Account) -> None:
    for number in range(25):
        account.submitted(str(number), f"run-{number}", thresholds={})
    lines = account.vigil("jobs").stdout.splitlines()
    assert len(lines) == 22
    assert lines[-1] == "… and 5 older ones: vigil jobs --all"
    assert len(account.vigil("jobs", "--all").stdout.splitlines()) == 26


def test_jobs_fails_in_one_line_without_a_controller(account: Account) -> None:
    account.slurm.script("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    done = account.vigil("jobs")
    assert (done.returncode, done.stderr) == (1, "error: squeue: slurm_load_jobs error: Unable to contact slurm controller\n")


def test_logs_of_a_run_and_of_a_job(account: Account) -> None:
    account.submitted("6", "run")
    run = account.submitted("7", "run")
    (run / "slurm" / "6.log").write_text("old\n")
    (run / "slurm" / "7.log").write_text("new\nand more")
    (run / "train.log").write_text("rank 0\n")
    (run / "ranks").mkdir()
    (run / "ranks" / "rank-3.log").write_text("rank 3\n")
    assert account.vigil("logs", "run").stdout == "new\nand more"
    assert account.vigil("logs", "6").stdout == "old\n"
    assert account.vigil("logs", "7", "--rank", "0").stdout == "rank 0\n"
    assert account.vigil("logs", "run", "--rank", "3").stdout == "rank 3\n"
    gone = account.vigil("logs", "run", "--rank", "4")
    assert gone.returncode == 2
    assert gone.stderr == f"error: {run}/ranks/rank-4.log: no such log, and job 7 is not in the queue\n"


def test_logs_refuses_a_log_that_does_not_exist_yet(account: Account) -> None:
    account.queues("7", account.submitted("7", "run"), "PENDING", "Priority")
    done = account.vigil("logs", "7")
    assert done.returncode == 2
    assert "does not exist yet: job 7 is PENDING (Priority); -f waits for it" in done.stderr


def test_logs_follow_ends_with_the_job(account: Account) -> None:
    run = account.submitted("7", "run")
    (run / "slurm" / "7.log").write_text("all\n")
    assert account.vigil("logs", "7", "-f").stdout == "all\n"


def test_follow_log_reads_a_growing_file(tmp_path: Path) -> None:
    path, gone = tmp_path / "log", threading.Event()

    def write() -> None:
        with path.open("w") as stream:
            for number in range(50):
                stream.write(f"line {number} é\n")
                stream.flush()
                time.sleep(0.001)
        gone.set()

    writer = threading.Thread(target=write)
    writer.start()
    text = "".join(follow_log(path, lambda: not gone.is_set(), poll_seconds=0.005, check_seconds=0.01))
    writer.join()
    assert text == "".join(f"line {number} é\n" for number in range(50))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("9", "9: not a Vigil job"),
        ("nothing", "nothing: this user has submitted no job"),
        ("5", "5: an array; name one of"),
    ],
)
@pytest.mark.parametrize("command", ["logs", "cancel"])
def test_logs_and_cancel_refuse_unknown_names(account: Account, command: str, name: str, message: str) -> None:
    account.submitted("5_1", "task")
    done = account.vigil(command, name)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")


def test_cancel_ends_a_job_and_marks_the_run_as_stopped(account: Account) -> None:
    run = account.submitted("7", "run")
    account.queues("7", run, "RUNNING")
    done = account.vigil("cancel", "run")
    assert (done.returncode, done.stdout) == (0, "cancelled job 7\n")
    assert account.slurm.calls_of("scancel") == [["7"]]
    assert (run / "slurm" / "stop").exists()


def test_cancel_signal_reaches_running_ranks(account: Account) -> None:
    run = account.submitted("7", "run")
    account.queues("7", run, "RUNNING")
    assert account.vigil("cancel", "7", "--signal", "USR1").stdout == "sent USR1 to job 7: it saves a checkpoint and stops\n"
    account.queue.clear()
    account.queues("7", run, "PENDING")
    assert account.vigil("cancel", "7", "--signal", "USR1").stdout == "cancelled job 7\n"
    assert account.slurm.calls_of("scancel") == [["--signal=USR1", "7"], ["7"]]


def test_cancel_refuses_a_job_outside_the_queue(account: Account) -> None:
    run = account.submitted("7", "run")
    done = account.vigil("cancel", "7")
    assert (done.returncode, done.stderr) == (2, "error: 7: not in the queue; `vigil jobs` shows how it ended\n")
    assert not (run / "slurm" / "stop").exists()


def test_read_progress_of_a_long_file(tmp_path: Path) -> None:
    assert read_progress(tmp_path) == RunProgress()
    file = tmp_path / "metrics.jsonl"
    file.write_text("not json\n[1]\n")
    assert read_progress(tmp_path) == RunProgress()
    with file.open("a") as stream:
        stream.writelines(
            json.dumps({"step": step, "epoch": step // 1000, "train/loss": 1 / (step + 1)}) + "\n" for step in range(5000)
        )
        stream.write('{"step": 5000, "epoch": 5, "train/loss": null}\n')
    assert read_progress(tmp_path) == RunProgress(5000, 5, 1 / 5000)


def test_read_attempts_skips_incomplete_lines(tmp_path: Path) -> None:
    (tmp_path / "slurm").mkdir()
    assert read_attempts(tmp_path) == []
    write_attempts(tmp_path, "7", "preempted", None)
    with (tmp_path / "slurm" / "attempts.jsonl").open("a") as stream:
        stream.write('{"event": "end"}\n7\n{"event": "end", "job": "9", "restart": 0}\n{"ev')
    first, second = read_attempts(tmp_path)
    assert (first.outcome, first.status, first.restart) == ("preempted", 85, 0)
    assert (second.outcome, second.end, second.restart) == (None, None, 1)

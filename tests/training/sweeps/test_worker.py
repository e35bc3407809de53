"""Workers of a sweep: killed, stopped, and lost in the middle of trials."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from vigil_data.errors import UserError
from vigil_training.distributed.preemption import REQUEUE_STATUS, Preempted, Preemption
from vigil_training.sweeps.event_log import EventLog
from vigil_training.sweeps.results import best_results, read_results
from vigil_training.sweeps.sampling import build_sampler, distribution_of, draw_point
from vigil_training.sweeps.space import encode
from vigil_training.sweeps.sweep_folder import SweepFolder
from vigil_training.sweeps.worker import run_worker

MakeSweep = Callable[..., SweepFolder]
pytestmark = pytest.mark.filterwarnings("ignore:lance is not fork-safe")  # Workers of a function do not use it.

NOT_ASKED: Any = SimpleNamespace(asked=None)

SPACE = "space:\n  x: {float: [0, 1]}\n"


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna.logging, "set_verbosity", lambda _: None)


def raw_events(folder: SweepFolder) -> list[dict[str, Any]]:
    """Return all complete lines of all workers, read without the code under test."""
    lines = [line for file in (folder.path / "events").glob("*.jsonl") for line in file.read_bytes().split(b"\n")[:-1]]
    return [json.loads(line) for line in lines]


def test_workers_that_are_killed_ten_times_end_each_trial_once_and_lose_no_report(
    make_sweep: MakeSweep, fork_worker: Callable[[SweepFolder], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EPOCH_SECONDS", "0.1")
    text = "trials: 24\nretries: 20\nsampler: {kind: tpe, startup: 6}\npruner: {kind: asha}\n"
    folder, draw = make_sweep(text + SPACE), random.Random(0)
    workers = [fork_worker(folder) for _ in range(3)]
    for _ in range(10):
        time.sleep(draw.uniform(0.2, 0.8))
        victim = workers.pop(0)
        victim.kill()
        victim.join()
        torn = max((folder.path / "events").glob("*.jsonl"), key=lambda path: f"-{victim.pid}-" in path.name)
        with torn.open("a") as file:
            file.write('{"trial": 0, "attempt": 0, "state": "FAI')
        workers.append(fork_worker(folder))
    for worker in workers:
        worker.join(50)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]

    events = raw_events(folder)
    ends = [event["trial"] for event in events if event.get("state") in ("COMPLETE", "PRUNED", "FAIL")]
    assert sorted(ends) == list(range(24))
    trials = folder.study().trials
    assert {trial.state.name for trial in trials} >= {"COMPLETE", "PRUNED"}
    assert all(("pruned" in trial.user_attrs) == (trial.state.name == "PRUNED") for trial in trials if trial.state.name != "FAIL")
    assert any(trial.user_attrs["attempts"] > 1 for trial in trials)
    reported = {(trial.params["x"], epoch, value) for trial in trials for epoch, value in trial.intermediate_values.items()}
    answered = {tuple(json.loads(line)) for line in Path("truth").read_text().splitlines()}
    assert answered <= reported
    [best] = best_results(folder.plan.spec, read_results(folder))
    assert (best.values or (0,))[0] > trials[0].value  # type: ignore[operator]


def test_worker_that_is_stopped_releases_its_trial_and_the_next_one_resumes_it(
    make_sweep: MakeSweep, fork_worker: Callable[[SweepFolder], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EPOCH_SECONDS", "0.3")
    folder = make_sweep("trials: 1\nretries: 0\n" + SPACE)
    worker = fork_worker(folder)
    while not any("intermediate" in event for event in raw_events(folder) if worker.is_alive()):
        time.sleep(0.02)
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(20)
    assert worker.exitcode == REQUEUE_STATUS
    [waiting] = read_results(folder)
    assert (waiting.state, waiting.epochs) == ("waiting", 1)
    monkeypatch.setenv("EPOCH_SECONDS", "0")
    run_worker(folder, NOT_ASKED)
    [trial] = read_results(folder)
    assert (trial.state, trial.attempts, trial.epochs, trial.point) == ("complete", 2, 4, waiting.point)


def test_trial_whose_worker_is_lost_more_often_than_it_is_retried_has_failed(make_sweep: MakeSweep) -> None:
    folder = make_sweep("trials: 1\nretries: 2\n" + SPACE)
    for attempt in range(3):
        dead = folder.storage()
        dead.log.read()
        assert dead.create_new_trial(0) == 0 if attempt == 0 else dead.take_over(0, attempt - 1)
        dead.log.close()
    run_worker(folder, NOT_ASKED)
    [trial] = read_results(folder)
    assert (trial.state, trial.reason) == ("failed", "its worker was lost 3 times")


def test_worker_takes_over_from_another_machine_when_the_heartbeat_is_old(make_sweep: MakeSweep) -> None:
    folder = make_sweep("trials: 1\nstale_after: 30\n" + SPACE)
    lost = folder.storage()
    lost.log.open()
    lost.create_new_trial(0)
    [running] = read_results(folder)
    assert (running.state, running.attempts) == ("running", 1)
    old = time.time() - 31
    os.utime(lost.log.path(lost.log.worker), (old, old))
    os.utime(lost.log.claim_path(0, 0), (old, old))
    assert read_results(folder)[0].state == "lost"
    run_worker(folder, NOT_ASKED)
    assert (read_results(folder)[0].state, read_results(folder)[0].attempts) == ("complete", 2)


def test_worker_whose_trial_was_taken_over_ends_and_writes_nothing_more(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EPOCH_SECONDS", "0.05")
    folder = make_sweep("trials: 2\n" + SPACE)

    class TakesOver:
        """Takes the trial over once the worker has reported."""

        other = EventLog(folder.path)

        @property
        def asked(self) -> None:
            self.other.read()
            if self.other.trials and self.other.trials[0].merged("intermediate"):
                self.other.claim(0, 1)

    with pytest.raises(Preempted, match="trial 0 was taken over"):
        run_worker(folder, TakesOver())  # type: ignore[arg-type]
    assert not any(event.get("state") in ("COMPLETE", "FAIL") for event in raw_events(folder))
    TakesOver.other.close()


def test_trial_that_raises_has_failed_with_its_reason_and_the_sweep_goes_on(make_sweep: MakeSweep) -> None:
    folder = make_sweep("sampler: {kind: grid}\nspace:\n  x: {choice: [0.97, 0.5]}\n")
    run_worker(folder, NOT_ASKED)
    failed, complete = read_results(folder)
    assert (failed.state, failed.reason) == ("failed", "ValueError: too large")
    assert "Traceback" in folder.log_file(0).read_text()
    assert complete.state == "complete"
    assert complete.values == pytest.approx((0.96,))


def test_trial_whose_process_is_killed_has_failed_and_the_sweep_goes_on(make_sweep: MakeSweep, tmp_path: Path) -> None:
    (tmp_path / "objective.py").write_text(
        "import os, signal\ndef f(point, report):\n    if point['x'] == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return {'score': 1.0}\n"
    )
    folder = make_sweep("sampler: {kind: grid}\nspace:\n  x: {choice: [1, 2]}\n")
    run_worker(folder, NOT_ASKED)
    killed, complete = read_results(folder)
    assert (killed.state, complete.state) == ("failed", "complete")
    assert "SIGKILL" in killed.reason


def test_pareto_front_and_constraints_on_metrics(make_sweep: MakeSweep) -> None:
    text = "sampler: {kind: grid}\nspace:\n  x: {choice: [0.1, 0.3, 0.5, 0.2]}\nconstraints: [cost * 2 <= 0.9]\n"
    folder = make_sweep(text, metric="[score, {name: cost, direction: minimize}]")
    run_worker(folder, NOT_ASKED)
    results = read_results(folder)
    # Scores 0.96, 1, 0.96, 0.99 at costs 0.1, 0.3, 0.5, 0.2: the third is dominated, and violates the constraint.
    assert [result.number for result in best_results(folder.plan.spec, results)] == [1, 3, 0]
    assert [result.violated for result in results] == [(), (), ("cost * 2 <= 0.9",), ()]
    assert [bool(sum(trial.constraints.values()) > 0) for trial in folder.study().trials] == [False, False, True, False]


@pytest.mark.parametrize("kind", ["tpe", "random", "gp"])
def test_points_satisfy_conditions_and_constraints_and_random_ones_do_not_depend_on_workers(
    make_sweep: MakeSweep, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    space = "{x: {float: [0, 1]}, kind: {choice: [a, b]}, n: {int: [1, 9], when: {kind: b}}}"
    sampler = "{kind: random}" if kind == "random" else f"{{kind: {kind}, startup: 5}}"
    folder = make_sweep(f"trials: 20\nsampler: {sampler}\nspace: {space}\nconstraints: ['x * 10 + n <= 9', x <= 0.8]\n")
    storage, plan = folder.storage(), folder.plan
    points = []
    for number in range(7 if kind == "gp" else 14):
        assert storage.create_new_trial(0) == number
        study = folder.study(storage, sampler=build_sampler(plan.spec, number))
        point = draw_point(study, number, plan.spec, plan.key_constraints, plan.fixed)
        spec = plan.spec.space
        storage.start_trial(number, {key: (distribution_of(spec[key]), encode(spec[key], point[key])) for key in point}, {})
        study.tell(number, point["x"])
        points.append(point)
    assert all(("n" in point) == (point["kind"] == "b") for point in points)
    assert all(point["x"] <= 0.8 and point["x"] * 10 + point.get("n", -9) <= 9 for point in points)
    if kind == "tpe":  # which is drawn beyond the edge, where no trial has been
        assert max(point["x"] for point in points[6:]) > 0.75
    if kind == "random":
        other = folder.study(folder.storage(), sampler=build_sampler(plan.spec, 9))
        assert draw_point(other, 9, plan.spec, plan.key_constraints, plan.fixed) == points[9]
    storage.log.close()


def test_constraints_that_no_point_satisfies_end_the_worker_with_one_message(make_sweep: MakeSweep) -> None:
    folder = make_sweep("trials: 2\n" + SPACE + "constraints: [x >= 2]\n")
    with pytest.raises(UserError, match="none of 1000 points satisfies the constraints x >= 2"):
        run_worker(folder, NOT_ASKED)


def test_worker_that_was_asked_to_stop_starts_no_trial(make_sweep: MakeSweep) -> None:
    folder = make_sweep("trials: 2\n" + SPACE)
    stop = Preemption()
    stop.asked = "SIGTERM"
    with pytest.raises(Preempted, match="stopped by SIGTERM"):
        run_worker(folder, stop)
    assert read_results(folder) == []

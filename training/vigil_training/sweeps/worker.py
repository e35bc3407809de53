"""A worker of a sweep: takes one trial after the other until all have ended.

Any number of workers share a sweep folder, on any machines that see it. A worker that is killed loses nothing: another one, or
the next start, resumes its trial from the trial's last checkpoint.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import optuna

from vigil_data.filesystem import make_folder
from vigil_training.distributed.preemption import REQUEUE_STATUS, Preempted, Preemption
from vigil_training.sweeps.event_log import EventLog, TrialLostError
from vigil_training.sweeps.liveness import lost_trials, newest_attempt
from vigil_training.sweeps.sampling import build_pruner, build_sampler, distribution_of, draw_point
from vigil_training.sweeps.space import Point, decode_point, encode
from vigil_training.sweeps.storage import SweepFullError, SweepStorage
from vigil_training.sweeps.sweep_folder import SweepFolder
from vigil_training.sweeps.trials.channel import VARIABLE, WORKER_VARIABLE, Message, Receiver

log = logging.getLogger("vigil.sweep")

POLL_SECONDS = 0.2
"""How often a worker looks at its trial's process, and for signals."""

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_STEP_ID", "SLURM_PROCID")
"""Place of the worker among the processes that srun or a launcher started."""

MAX_BEAT_SECONDS = 10.0
"""Longest time between two heartbeats."""


def run_worker(folder: SweepFolder, stop: Preemption) -> None:
    """Run trials until all of the sweep have ended, also those of other workers: one that is lost is taken over.

    Args:
        folder: the sweep folder.
        stop: says when this worker is asked to stop.

    Raises:
        Preempted: if it was asked to stop; its trial is resumed by whoever is next. Also if another worker has taken its trial
            over, since a machine that was cut off would otherwise lose one trial after the other.
        UserError: if no point satisfies the constraints.
        Failure: if the sweep folder cannot be written.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = folder.storage()
    storage.log.open(slurm=_slurm_job())
    try:
        with _heartbeat(storage.log, _beat_seconds(folder)):
            while True:
                if stop.asked is not None:
                    raise Preempted(f"stopped by {stop.asked}; the same command continues the sweep")
                number = _next_trial(folder, storage)
                if number is not None:
                    _Trial(folder, storage, number, stop).run()
                elif next(storage.log.open_trials(), None) is None:
                    return
                else:
                    time.sleep(min(POLL_SECONDS * 5, folder.plan.spec.stale_after / 4))
    finally:
        storage.log.close()


def run_point(folder: SweepFolder, point: Point, stop: Preemption) -> None:
    """Run one trial with a given point, such as one that W&B's agent asks for; does nothing if the sweep has all its trials.

    A trial that is stopped ends, since nobody continues it: pruned if it has reported a value, or else failed.

    Args:
        folder: the sweep folder.
        point: the point.
        stop: says when this trial is asked to stop.

    Raises:
        Failure: if the sweep folder cannot be written.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = folder.storage()
    storage.log.open(slurm=_slurm_job())
    try:
        with _heartbeat(storage.log, _beat_seconds(folder)):
            try:
                number = storage.create_new_trial(0)
            except SweepFullError:
                return
            space = folder.plan.spec.space
            dimensions = {key: (distribution_of(space[key]), encode(space[key], value)) for key, value in point.items()}
            storage.start_trial(number, dimensions, {})
            try:
                _Trial(folder, storage, number, stop).run()
            except Preempted:
                if storage.take_over(number, newest_attempt(storage.log, storage.log.trials[number])):
                    _end_stopped(folder, storage, number)
    finally:
        storage.log.close()


def close_lost_trials(folder: SweepFolder) -> None:
    """End the trials whose worker was lost, where nobody would resume them."""
    storage = folder.storage()
    storage.log.read()
    storage.log.read_claims()
    storage.log.open(slurm=_slurm_job())
    try:
        for trial, attempt in lost_trials(storage.log, folder.plan.spec.stale_after):
            if storage.take_over(trial.number, attempt):
                _end_stopped(folder, storage, trial.number)
    finally:
        storage.log.close()


def _end_stopped(folder: SweepFolder, storage: SweepStorage, number: int) -> None:
    """End a trial that was stopped and that nobody continues."""
    epochs = storage.get_trial(number).intermediate_values
    if not epochs:
        _end(folder, storage, number, reason="it was stopped before its first validation")
        return
    storage.set_trial_user_attrs(number, {"reason": f"stopped after {max(epochs)} epochs"})
    folder.study(storage).tell(number, state=optuna.trial.TrialState.PRUNED)
    log.info("trial %d was stopped after %d epochs", number, max(epochs))


def _next_trial(folder: SweepFolder, storage: SweepStorage) -> int | None:
    """Take over a trial whose worker was lost, or create one; ``None`` if the others are running."""
    spec = folder.plan.spec
    storage.log.read()
    storage.log.read_claims()
    for trial, attempt in lost_trials(storage.log, spec.stale_after):
        lost = trial.state == "RUNNING"
        if not storage.take_over(trial.number, attempt):
            continue
        if lost and trial.losses > spec.retries:
            reason = f"its worker was lost {trial.losses} times"
            _end(folder, storage, trial.number, reason=reason)
            continue
        return trial.number
    try:
        return storage.create_new_trial(0)
    except SweepFullError:
        return None


class _Trial:
    """One attempt of a trial that this worker has claimed."""

    def __init__(self, folder: SweepFolder, storage: SweepStorage, number: int, stop: Preemption) -> None:
        self._folder = folder
        self._storage = storage
        self._number = number
        self._stop = stop
        self._attempt = newest_attempt(storage.log, storage.log.trials[number])
        self._pruner = build_pruner(folder.plan.spec.pruner)
        self._end: Message = {}

    def run(self) -> None:
        """Run the trial's process to its end, and record what became of it.

        Raises:
            Preempted: if this worker was asked to stop.
            TrialLostError: if another worker has taken the trial over.
        """
        folder, storage, number = self._folder, self._storage, self._number
        point = self._start()
        started = time.monotonic()
        try:
            status = self._run_process(point)
        except KeyboardInterrupt:
            storage.release(number)
            raise
        interruptions = storage.get_trial(number).user_attrs.get("interruptions", 0)
        if not self._end and status in (REQUEUE_STATUS, 130, -signal.SIGTERM, -signal.SIGINT):
            if self._stop.asked is not None:
                storage.release(number)
                raise Preempted(f"stopped by {self._stop.asked} in trial {number}; the same command continues the sweep")
            if interruptions < folder.plan.spec.retries:  # By a signal to the process, or the loss of a rank.
                storage.set_trial_user_attrs(number, {"interruptions": interruptions + 1})
                storage.release(number)
                return
        seconds = storage.get_trial(number).user_attrs.get("seconds", 0.0) + time.monotonic() - started
        storage.set_trial_user_attrs(number, {"seconds": round(seconds, 3)})
        _end(folder, storage, number, metrics=self._end.get("metrics"), reason=self._end.get("reason") or _why(status))

    def _start(self) -> Point:
        """Return the trial's point, which is drawn if the trial has none, and record who runs it."""
        folder, storage, number = self._folder, self._storage, self._number
        plan = folder.plan
        params = storage.get_trial(number).params
        facts = {"worker": storage.log.worker, "run": str(folder.run_folder(number).relative_to(folder.path))}
        facts |= {"attempts": self._attempt + 1}  # type: ignore[dict-item]
        if params:
            storage.set_trial_user_attrs(number, facts)
            return decode_point(plan.spec.space, params)
        study = folder.study(storage, sampler=build_sampler(plan.spec, number))
        point = draw_point(study, number, plan.spec, plan.key_constraints, plan.fixed)
        dimensions = {key: (distribution_of(plan.spec.space[key]), encode(plan.spec.space[key], point[key])) for key in point}
        storage.start_trial(number, dimensions, facts)
        return point

    def _run_process(self, point: Point) -> int:
        """Run the process, answer its reports, and return its exit status."""
        folder, number = self._folder, self._number
        command = [sys.executable, "-m", "vigil_training.sweeps.trials.process", str(folder.path), str(number), json.dumps(point)]
        command += [] if (function := folder.plan.spec.function) is None else [function]
        make_folder(folder.log_file(number).parent)
        beat_seconds, next_look, asked = _beat_seconds(folder), 0.0, False
        with Receiver() as receiver, folder.log_file(number).open("ab") as output:
            process = start_process(command, output, _environment(receiver.path))
            try:
                while process.poll() is None:
                    receiver.serve(self._answer, POLL_SECONDS)
                    if self._stop.asked is not None and not asked:
                        asked = True
                        process.terminate()
                    if time.monotonic() > next_look:
                        next_look = time.monotonic() + beat_seconds
                        self._check_claim()
                receiver.serve(self._answer, 0.0)
            except KeyboardInterrupt:
                process.terminate()
                process.wait()
                raise
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        return process.returncode

    def _answer(self, message: Message) -> Message:
        """Record what the trial's process reports, and decide whether it is pruned."""
        if "step" not in message:
            self._end = message
            return {}
        plan, storage, number = self._folder.plan, self._storage, self._number
        value = message["metrics"].get(plan.spec.metric[0].name)
        if len(plan.spec.metric) > 1 or value is None:
            return {"stop": False}
        storage.set_trial_intermediate_value(number, message["step"], float(value))
        study = self._folder.study(storage, pruner=self._pruner)
        stop = self._pruner.prune(study, storage.get_trial(number))
        if stop:
            storage.set_trial_user_attrs(number, {"pruned": message["step"]})
        return {"stop": stop}

    def _check_claim(self) -> None:
        if self._storage.log.claim_path(self._number, self._attempt + 1).exists():
            raise TrialLostError(f"{self._folder.path}: trial {self._number} was taken over by another worker")


def start_process(command: Sequence[str], output: IO[bytes], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Start the process of a trial, which ends with this one."""
    # In its own process group, so that a terminal's Ctrl-C reaches this process alone, which ends the other.
    return subprocess.Popen(  # noqa: S603 (our own command)
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        process_group=0,
    )


def _end(
    folder: SweepFolder, storage: SweepStorage, number: int, *, metrics: dict[str, float] | None = None, reason: str
) -> None:
    """End a trial: complete with metrics, pruned, or failed for a reason."""
    plan, trial = folder.plan, storage.get_trial(number)
    wanted = [metric.name for metric in plan.spec.metric]
    missing = [] if metrics is None else [name for name in wanted if metrics.get(name) is None or metrics[name] != metrics[name]]
    if missing:
        reason, metrics = f"the best validation has no value of {', '.join(missing)}", None
    pruned = trial.user_attrs.get("pruned")
    study = folder.study(storage, sampler=build_sampler(plan.spec, number))
    if metrics is None:
        storage.set_trial_user_attrs(number, {"reason": reason})
        study.tell(number, state=optuna.trial.TrialState.FAIL)
        log.info("trial %d failed: %s", number, reason)
        return
    facts: dict[str, Any] = {"metrics": metrics}
    if pruned is not None:
        facts["reason"] = f"pruned after epoch {pruned}"
    storage.set_trial_user_attrs(number, facts)
    for constraint in plan.metric_constraints:
        values = {**plan.fixed, **decode_point(plan.spec.space, trial.params), **metrics}
        trial.set_constraint(constraint.text, constraint.violation(values))
    for key, value in trial.system_attrs.items():
        if key.startswith("constraints"):
            storage.set_trial_system_attr(number, key, value)
    if pruned is not None:
        study.tell(number, state=optuna.trial.TrialState.PRUNED)
        log.info("trial %d was pruned after epoch %d", number, pruned)
        return
    study.tell(number, [metrics[name] for name in wanted])
    log.info("trial %d: %s", number, ", ".join(f"{name} {metrics[name]:.6g}" for name in wanted))


def _why(status: int) -> str:
    """Return why a trial's process that sent no result has ended."""
    if status == -signal.SIGKILL:
        return "its process was killed (SIGKILL), perhaps because the machine had no memory left"
    if status < 0:
        return f"its process was ended by {signal.Signals(-status).name}"
    if status == REQUEUE_STATUS:
        return "its process was interrupted"
    return f"its process ended with status {status}; its output is in logs/"


def _beat_seconds(folder: SweepFolder) -> float:
    return min(MAX_BEAT_SECONDS, folder.plan.spec.stale_after / 6)


@contextlib.contextmanager
def _heartbeat(events: EventLog, seconds: float) -> Iterator[None]:
    """Show life in a thread while the block runs."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(seconds):
            events.beat()

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _environment(socket: str) -> dict[str, str]:
    """Return the environment of a trial's process: that of the worker, which is no rank of the trial's training."""
    return {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES} | {
        VARIABLE: socket,
        WORKER_VARIABLE: str(os.getpid()),
    }


def _slurm_job() -> dict[str, Any] | None:
    """Return the job of this process as Slurm names it in squeue, and how often it was requeued; ``None`` outside a job."""
    environment = os.environ
    if "SLURM_JOB_ID" not in environment:
        return None
    array = environment.get("SLURM_ARRAY_JOB_ID")
    job = environment["SLURM_JOB_ID"] if array is None else f"{array}_{environment['SLURM_ARRAY_TASK_ID']}"
    return {"job": job, "restart": int(environment.get("SLURM_RESTART_COUNT", "0"))}

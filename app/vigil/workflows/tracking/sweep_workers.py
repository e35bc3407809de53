"""The workers of `vigil sweep run` on this machine: processes that share a sweep folder."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vigil_data.errors import Failure
from vigil_data.progress import Progress
from vigil_training.distributed.launch import end_with
from vigil_training.distributed.preemption import REQUEUE_STATUS, Preempted, Preemption

if TYPE_CHECKING:
    from vigil_training.sweeps.results import TrialResult
    from vigil_training.sweeps.sweep_folder import SweepFolder

ENDED = ("complete", "pruned", "failed")
POLL_SECONDS = 1.0


def run_workers(folder: "SweepFolder", count: int, show: "Callable[[TrialResult], None]") -> None:
    """Run workers until all trials have ended.

    Args:
        folder: the sweep folder.
        count: number of workers.
        show: called with each trial that ends.

    Raises:
        Preempted: if this process was asked to stop; the workers have released their trials.
        Failure: if every worker failed before all trials had ended.
    """
    from vigil_training.sweeps.results import read_results

    shown = {result.number for result in read_results(folder) if result.state in ENDED}
    with Preemption() as stop, Progress("trials", unit="trials") as progress:
        workers = [_start(folder, index) for index in range(count)]
        try:
            asked = False
            while True:
                alive = any(worker.poll() is None for worker in workers)
                results = read_results(folder)
                for result in results:
                    if result.state in ENDED and result.number not in shown:
                        shown.add(result.number)
                        show(result)
                progress("trials", len(shown), folder.plan.trials)
                if not alive:
                    break
                if stop.asked is not None and not asked:
                    asked = True
                    _terminate(workers)
                time.sleep(POLL_SECONDS)
        finally:  # Also after Ctrl-C: the workers release their trials.
            _terminate(workers)
            for worker in workers:
                worker.wait()
    if len(shown) < folder.plan.trials:
        statuses = [worker.returncode for worker in workers]
        if stop.asked is not None or all(status == REQUEUE_STATUS for status in statuses):
            raise Preempted(f"stopped by {stop.asked or 'a signal'}; the same command continues the sweep")
        failure = Failure(
            f"{folder.path}: no worker is left, and {folder.plan.trials - len(shown)} trials have not ended; see above"
        )
        failure.status = 2 if 2 in statuses else 1
        raise failure


def _terminate(workers: "list[subprocess.Popen[bytes]]") -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()


def _start(folder: "SweepFolder", index: int) -> "subprocess.Popen[bytes]":
    parent, environment, gpus = os.getpid(), dict(os.environ), _gpus()
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
    # In its own process group, so that a terminal's Ctrl-C reaches this process alone, which then ends the workers.
    return subprocess.Popen(  # noqa: S603 (our own command)
        [sys.executable, "-m", "vigil", "sweep", "worker", str(folder.path)],
        env=environment,
        process_group=0,
        preexec_fn=lambda: end_with(parent),  # noqa: PLW1509
    )


def _gpus() -> list[str]:
    """Return the GPUs that workers may use: those of CUDA_VISIBLE_DEVICES, or all of NVIDIA's driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu]
    return [str(number) for number, _ in enumerate(sorted(Path("/proc/driver/nvidia/gpus").glob("*")))]

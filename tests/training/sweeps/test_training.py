"""Trials that train the tiny recipe, in forked processes: torch is imported once."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from vigil_training.distributed.preemption import Preempted
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.resolve import dump_recipe, resolve_recipe
from vigil_training.runs.run import Run
from vigil_training.sweeps.results import best_results, read_results
from vigil_training.sweeps.sweep_file import read_sweep
from vigil_training.sweeps.sweep_folder import SweepFolder, open_sweep
from vigil_training.sweeps.trials import process
from vigil_training.sweeps.worker import run_worker


class Forked:
    """A trial's process with the interface of ``subprocess.Popen``."""

    def __init__(self, command: list[str], output: Any, environment: dict[str, str]) -> None:
        def work() -> None:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os.environ.clear()
            os.environ.update(environment)
            sys.argv = command[2:]
            try:
                process.main()
            except SystemExit as end:
                os._exit(end.code if isinstance(end.code, int) else 1)
            os._exit(0)

        self._process = multiprocessing.get_context("fork").Process(target=work)
        self._process.start()
        self.terminate, self.kill = self._process.terminate, self._process.kill

    def poll(self) -> int | None:
        self._process.join(0)
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode


@pytest.fixture
def make_sweep(
    tmp_path: Path, make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], SweepFolder]]:
    """A function that opens a sweep of the tiny recipe, whose processes are forked."""
    from vigil_training.trainer import fit  # noqa: F401 (imported before processes are forked)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vigil_training.sweeps.worker.start_process", Forked)
    monkeypatch.setattr(optuna.logging, "set_verbosity", lambda _: None)
    Path("tiny.yaml").write_text(dump_recipe(resolve_recipe(make_recipe(training__epochs=3))))

    def make(text: str) -> SweepFolder:
        Path("sweep.yaml").write_text("name: tiny\nrecipe: tiny.yaml\n" + text)
        return open_sweep(read_sweep("sweep.yaml"), "sweep")

    return make  # type: ignore[return-value]


def test_sweep_trains_prunes_and_finds_a_better_recipe(make_sweep: Callable[[str], SweepFolder]) -> None:
    folder = make_sweep(
        "metric: validation/macro_ap\nsampler: {kind: grid}\npruner: {kind: asha, reduction: 2}\n"
        "space:\n  optimizer.lr: {choice: [0.003, 0.000001, 0.01]}\n"
    )
    run_worker(folder, SimpleNamespace(asked=None))  # type: ignore[arg-type]
    first, slow, fast = read_results(folder)
    assert [result.state for result in (first, slow, fast)][:2] == ["complete", "pruned"]
    runs = [Run(folder.run_folder(number)) for number in range(3)]
    assert all(run.finished for run in runs)
    assert [run.recipe.optimizer.lr for run in runs] == [0.003, 0.000001, 0.01]
    assert '"sweep/pruned": 1.0' in runs[1].metrics.read_text()
    assert slow.epochs == 1
    [best] = best_results(folder.plan.spec, [first, slow, fast])
    checkpoint = process.best_metrics(runs[best.number])
    assert best.values == (checkpoint["validation/macro_ap"],)


def test_trial_of_a_stopped_worker_resumes_from_its_checkpoint_and_latency_is_measured(
    make_sweep: Callable[[str], SweepFolder],
) -> None:
    folder = make_sweep(
        "metric: [validation/macro_ap, latency_ms]\ntrials: 1\nretries: 0\nspace:\n  optimizer.lr: {choice: [0.003]}\n"
    )

    class Stop:
        """Asks to stop once the run has a checkpoint."""

        @property
        def asked(self) -> str | None:
            return "SIGTERM" if list(folder.run_folder(0).glob("checkpoints/step-*")) else None

    with pytest.raises(Preempted, match="in trial 0"):
        run_worker(folder, Stop())  # type: ignore[arg-type]
    assert read_results(folder)[0].state == "waiting"
    run_worker(folder, SimpleNamespace(asked=None))  # type: ignore[arg-type]
    [trial] = read_results(folder)
    assert (trial.state, trial.attempts) == ("complete", 2)
    assert "resuming" in (folder.run_folder(0) / "train.log").read_text()
    assert trial.values is not None
    assert 0 < trial.values[1] < 10_000

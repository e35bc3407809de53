"""Trials that train the tiny recipe, in processes of their own."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

from vigil_training.distributed.preemption import Preempted
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.resolve import dump_recipe, resolve_recipe
from vigil_training.runs.run import Run
from vigil_training.sweeps.results import best_results, read_results
from vigil_training.sweeps.sweep_file import read_sweep
from vigil_training.sweeps.sweep_folder import open_sweep
from vigil_training.sweeps.trials.process import best_metrics
from vigil_training.sweeps.worker import run_worker

SWEEP = """\
name: tiny
recipe: tiny.yaml
metric: validation/macro_ap
sampler: {kind: grid}
pruner: {kind: asha, reduction: 2}
space:
  optimizer.lr: {choice: [0.003, 0.000001]}
constraints: [latency_ms <= 60000]
retries: 0
"""


def test_stopped_trial_resumes_from_its_checkpoint_and_a_worse_one_is_pruned(
    tmp_path: Path, make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(optuna.logging, "set_verbosity", lambda _: None)
    Path("tiny.yaml").write_text(dump_recipe(resolve_recipe(make_recipe(training__epochs=3))))
    Path("sweep.yaml").write_text(SWEEP)
    folder = open_sweep(read_sweep("sweep.yaml"), "sweep")

    class Stop:
        """Asks to stop once the run has a checkpoint."""

        @property
        def asked(self) -> str | None:
            return "SIGTERM" if list(folder.run_folder(0).glob("checkpoints/step-*")) else None

    with pytest.raises(Preempted, match="in trial 0"):
        run_worker(folder, Stop())  # type: ignore[arg-type]
    assert [result.state for result in read_results(folder)] == ["waiting"]

    run_worker(folder, SimpleNamespace(asked=None))  # type: ignore[arg-type]
    good, slow = results = read_results(folder)
    assert [(result.state, result.attempts, result.epochs) for result in results] == [("complete", 2, 3), ("pruned", 1, 1)]
    runs = [Run(folder.run_folder(number)) for number in range(2)]
    assert all(run.finished for run in runs)
    assert [run.recipe.optimizer.lr for run in runs] == [0.003, 0.000001]
    assert "resuming" in runs[0].log.read_text()
    assert '"sweep/pruned": 1.0' in runs[1].metrics.read_text()
    assert best_results(folder.plan.spec, results) == [good]
    assert good.values == (best_metrics(runs[0])["validation/macro_ap"],)
    assert good.values > (slow.values or ())
    measured = folder.study().trials[0].user_attrs["metrics"]
    assert 0 < measured["latency_ms"] < 60_000

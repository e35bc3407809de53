"""The process of a trial: trains the point's recipe, or calls the sweep's function. A worker starts it.

    python -m vigil_training.sweeps.trials.process SWEEPDIR NUMBER POINT [FUNCTION]

A function is called without importing what only trainings need.
"""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vigil_data.errors import Failure, UserError
from vigil_training.distributed.launch import end_with
from vigil_training.distributed.preemption import REQUEUE_STATUS
from vigil_training.distributed.world import find_world
from vigil_training.sweeps.trials.channel import WORKER_VARIABLE, send

if TYPE_CHECKING:
    from vigil_training.runs.run import Run


def main() -> None:
    """Run the trial; exit with the statuses of `vigil train`, and send the reason of a failure."""
    folder, number, point, *function = sys.argv[1:]
    if find_world() is None:  # A rank ends with the process that launched it.
        end_with(int(os.environ[WORKER_VARIABLE]))
    try:
        if function:
            send({"metrics": _call(function[0], json.loads(point))})
        else:
            _train(folder, int(number), json.loads(point))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        status = 2 if isinstance(error, UserError) else error.status if isinstance(error, Failure) else 1
        if isinstance(error, UserError | Failure):
            sys.stderr.write(f"error: {error}\n")
        else:
            traceback.print_exc()
        if status != REQUEUE_STATUS:
            text = next(iter(str(error).splitlines()), "")
            send({"reason": text if isinstance(error, UserError | Failure) else f"{type(error).__name__}: {text}"})
        sys.exit(status)


def _train(path: str, number: int, point: dict[str, Any]) -> None:
    """Train the trial's recipe, and send its metrics; with several ranks, start them and exit with their status."""
    from vigil_training.distributed.preemption import Preemption
    from vigil_training.distributed.world import World
    from vigil_training.recipe.resolve import dump_recipe
    from vigil_training.recipe.specs import Ranks
    from vigil_training.sweeps.specs import LATENCY
    from vigil_training.sweeps.sweep_folder import SweepFolder

    folder = SweepFolder(path)
    resolved = folder.plan.recipe_of(point, number)
    strategy, world = resolved.recipe.strategy, find_world()
    if world is None and isinstance(strategy, Ranks) and strategy.world > 1:
        from vigil_training.distributed.launch import launch

        sys.exit(launch(strategy.devices, [sys.executable, "-m", "vigil_training.sweeps.trials.process", *sys.argv[1:]]))
    # Signals are handled from here, as the imports take seconds in which a job may be preempted.
    with Preemption(ignore_on_exit=True) as preemption:
        from vigil_training.trainer.fit import fit_recipe

        run = fit_recipe(
            resolved.recipe, dump_recipe(resolved), folder.run_folder(number), world or World(), preemption, report=_report
        )
    if world is None or world.is_main:
        metrics = best_metrics(run)
        if folder.plan.needs_latency:
            from vigil_training.runs.latency import measure_size_and_latency

            measured = measure_size_and_latency({"trial": run}, run.dataset(), run.recipe.data.validation)
            metrics[LATENCY] = measured["trial"]["milliseconds"]
        send({"metrics": metrics})


def best_metrics(run: "Run") -> dict[str, float]:
    """Return the metrics of the validation with the best monitor, whose weights the run keeps as its best checkpoint."""
    training = run.recipe.training
    best: dict[str, Any] = {}
    for line in run.metrics.read_text().splitlines():
        metrics = json.loads(line)
        value = metrics.get(training.monitor)
        sign = 1 if training.mode == "max" else -1
        if value is not None and (not best or sign * value > sign * best[training.monitor]):
            best = metrics
    return {name: value for name, value in best.items() if name.startswith("validation/") and value is not None}


def _report(step: int, metrics: Mapping[str, float]) -> bool:
    return bool(send({"step": step, "metrics": dict(metrics)})["stop"])


def _call(name: str, point: dict[str, Any]) -> dict[str, float]:
    """Call the sweep's function with a point and :func:`_report`, and return its metrics."""
    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"function: {name} cannot be imported: {error}") from error
    return {key: float(value) for key, value in function(point, _report).items()}


if __name__ == "__main__":
    main()

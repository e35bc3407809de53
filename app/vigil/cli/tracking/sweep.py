"""`vigil sweep`: check, run, worker, submit, status, best and plot: hyperparameter search with a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vigil.cli.tracking import sweep_plot, sweep_submit
from vigil.cli.tracking.sweep_submit import prepare_engine

if TYPE_CHECKING:
    from vigil_training.sweeps.results import TrialResult
    from vigil_training.sweeps.sweep_folder import SweepFolder

SweepDir = Annotated[Path, typer.Argument(metavar="SWEEPDIR", help="A sweep folder.")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    group = typer.Typer(help="Search the hyperparameters of a recipe.", no_args_is_help=True)
    group.command("check")(check)
    group.command("run")(run)
    group.command("worker")(worker)
    group.command("submit")(sweep_submit.submit)
    group.command("cancel")(sweep_submit.cancel)
    group.command("status")(status)
    group.command("best")(best)
    group.command("plot")(sweep_plot.plot)
    group.command("schema")(schema)
    app.add_typer(group, name="sweep")


def check(sweep: Annotated[Path, typer.Argument(metavar="SWEEP", help="A sweep, a YAML file.")]) -> None:
    """Check a sweep: its keys, its recipe, and points with the extreme values of every key. Nothing is trained."""
    from vigil_training.sweeps.sweep_file import read_sweep

    plan = read_sweep(sweep)
    typer.echo(f"ok  {sweep}: {plan.trials} trials over {len(plan.spec.space)} keys")


def run(
    sweep: Annotated[Path, typer.Argument(metavar="SWEEP", help="A sweep, a YAML file.")],
    to: Annotated[Path | None, typer.Option(help="The sweep folder (default: sweeps/NAME).", metavar="DIR")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Trials at a time; with GPUs, each worker gets its own.")] = 1,
) -> None:
    """Run a sweep on this machine, or continue it: the same command resumes its trials.

    Each trial is a run in SWEEPDIR/trials, and its output is in SWEEPDIR/logs. Other workers may join at any time, on any machine
    that sees the folder: vigil sweep worker SWEEPDIR. Exit status 85: stopped; start it again.
    """
    from vigil.workflows.tracking.sweep_workers import run_workers
    from vigil_training.sweeps.sweep_file import read_sweep
    from vigil_training.sweeps.sweep_folder import open_sweep

    _check_optuna()
    plan = read_sweep(sweep)
    folder = open_sweep(plan, to or Path("sweeps") / plan.spec.name)
    prepare_engine(folder)
    run_workers(folder, workers, lambda result: typer.echo(_line(folder, result)))
    _print_best(folder)
    if plan.recipe is not None:
        typer.echo(f"next: vigil sweep best {folder.path} --to recipe.yaml")


def worker(sweep: SweepDir) -> None:
    """Run trials of a sweep that was started, until all have ended. Any number of workers may run, on any machine.

    A trial whose worker is lost is resumed by another one. Exit status 85: stopped, and its trial is resumed by the next.
    """
    from vigil_training.distributed.preemption import Preemption
    from vigil_training.sweeps.sweep_folder import SweepFolder

    _check_optuna()
    folder = SweepFolder(sweep)
    with Preemption(ignore_on_exit=True) as stop:
        if folder.plan.spec.engine == "wandb":
            from vigil_training.sweeps.wandb_engine.agent import run_agent

            run_agent(folder, stop)
            return
        from vigil_training.sweeps.worker import run_worker

        run_worker(folder, stop)


def status(sweep: SweepDir) -> None:
    """Show the trials of a sweep: state, values and points, and the best so far. Nothing is changed."""
    from vigil_training.sweeps.results import read_results
    from vigil_training.sweeps.sweep_folder import SweepFolder

    folder = SweepFolder(sweep)
    results = read_results(folder)
    for result in results:
        typer.echo(_line(folder, result))
    states = [result.state for result in results]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    ended = sum(state in ("complete", "pruned", "failed") for state in states)
    typer.echo(f"{ended} of {folder.plan.trials} trials have ended" + (f": {counted}" if counted else ""))
    _print_best(folder)
    if ended < folder.plan.trials and "running" not in states:
        typer.echo(f"no worker is running; next: vigil sweep worker {folder.path}")


def best(
    sweep: SweepDir,
    to: Annotated[Path | None, typer.Option(help="Write the recipe to this file.", metavar="FILE")] = None,
    trial: Annotated[int | None, typer.Option(min=0, help="The trial to take (default: the best).")] = None,
) -> None:
    """Write the recipe of the best trial, which `vigil train` takes; with several metrics, list the Pareto front."""
    from vigil_data.errors import UserError
    from vigil_data.filesystem import write_file
    from vigil_training.sweeps.results import best_results, read_results, recipe_text
    from vigil_training.sweeps.sweep_folder import SweepFolder

    folder = SweepFolder(sweep)
    results = read_results(folder)
    chosen = best_results(folder.plan.spec, results)
    if trial is not None:
        if trial >= len(results):
            raise UserError(f"{sweep}: has no trial {trial}; `vigil sweep status {sweep}` lists {len(results)}")
        chosen = [results[trial]]
    if not chosen:
        raise UserError(f"{sweep}: no trial is complete and within the constraints; see `vigil sweep status {sweep}`")
    for result in chosen:
        typer.echo(_line(folder, result))
    if to is None:
        return
    if len(chosen) > 1:
        raise UserError(f"{sweep}: {len(chosen)} trials are on the Pareto front; choose one of them with --trial")
    write_file(to, recipe_text(folder, chosen[0]))
    typer.echo(f"next: vigil train {to}")


def schema(
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Write to this file (default: standard output).")
    ] = None,
) -> None:
    """Print the JSON Schema of sweep files, with which editors complete and explain keys."""
    from vigil_data.filesystem import write_file
    from vigil_training.sweeps.json_schema import sweep_schema_text

    if to is None:
        typer.echo(sweep_schema_text(), nl=False)
        return
    write_file(to, sweep_schema_text())
    typer.echo(f"wrote {to}")


def _check_optuna() -> None:
    from importlib.util import find_spec

    from vigil.entry import install_hint
    from vigil_data.errors import UserError

    if find_spec("optuna") is None:
        raise UserError(f"a sweep needs optuna; {install_hint('optuna')}")


def _print_best(folder: "SweepFolder") -> None:
    from vigil_training.sweeps.results import best_results, read_results

    found = best_results(folder.plan.spec, read_results(folder))
    if len(folder.plan.spec.metric) > 1:
        typer.echo(f"Pareto front: {', '.join(f'trial {result.number}' for result in found) or 'no trial yet'}")
    elif found:
        typer.echo(f"best: trial {found[0].number}, {_values(folder, found[0])}")


def _line(folder: "SweepFolder", result: "TrialResult") -> str:
    """Return a trial as a line of the table."""
    import json

    seconds = "" if result.seconds is None else f"{result.seconds:.0f} s"
    point = " ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={json.dumps(value)}" for key, value in result.point.items()
    )
    notes = [result.reason] if result.reason else []
    notes += [f"violates {text}" for text in result.violated]
    if result.heartbeat is not None:
        notes.append(f"epoch {result.epochs}, heartbeat {result.heartbeat:.0f} s ago")
    if result.attempts > 1:
        notes.append(f"started {result.attempts} times")
    line = f"{result.number:>4}  {result.state:<8}  {_values(folder, result):<24}  {seconds:>7}  {point}"
    return line + (f"  ({'; '.join(notes)})" if notes else "")


def _values(folder: "SweepFolder", result: "TrialResult") -> str:
    names = [metric.name for metric in folder.plan.spec.metric]
    return " ".join(f"{name} {value:.4g}" for name, value in zip(names, result.values or (), strict=False)) or "-"

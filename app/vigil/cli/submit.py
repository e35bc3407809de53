"""`vigil submit`: a recipe into Slurm's queue, checked here and now on the login node."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vigil_slurm.batch_script import Job
    from vigil_slurm.site import Site
    from vigil_training.recipe.resolve import ResolvedRecipe


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("submit")(submit)


def submit(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values that replace the recipe's.", metavar="KEY.PATH=VALUE")
    ] = None,
    *,
    run: Annotated[Path | None, typer.Option(help="The run folder; runs/NAME if not given.", metavar="DIR")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Machines: strategy.nodes.", metavar="N")] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="Ranks on each machine, with a GPU each: strategy.devices.", metavar="N")
    ] = None,
    time: Annotated[str | None, typer.Option(help="Time limit, such as 90 or 1-12:00:00.", metavar="TIME")] = None,
    partition: Annotated[str | None, typer.Option(metavar="NAME", help="As for sbatch.")] = None,
    account: Annotated[str | None, typer.Option(metavar="NAME", help="As for sbatch.")] = None,
    qos: Annotated[str | None, typer.Option(metavar="NAME", help="As for sbatch.")] = None,
    array: Annotated[
        str | None, typer.Option(help="A run for each seed, such as 0-4 or 0-9%2, in DIR-SEED.", metavar="SEEDS")
    ] = None,
    after: Annotated[str | None, typer.Option(help="Jobs that must end well first, with commas.", metavar="JOB")] = None,
    profile: Annotated[
        str | None, typer.Option(help="Site profile, a name or a path; the variable VIGIL_SITE if not given.", metavar="SITE")
    ] = None,
    max_requeues: Annotated[int | None, typer.Option(min=0, help="Restarts after which the job gives up.", metavar="N")] = None,
    signal_before: Annotated[
        int | None, typer.Option(min=0, help="Seconds before the time limit at which it saves.", metavar="SECONDS")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the batch script; write and submit nothing.")] = False,
) -> None:
    """Submit a recipe to Slurm: checked here, trained there, requeued until it is finished.

    The run folder gets resolved.yaml and job.sh, the batch script. What the site needs (partition, modules, container, network)
    is in a site profile. The same command on the same folder goes on where an ended job stopped.
    """
    from vigil_slurm.batch_script import render
    from vigil_slurm.profiles import find
    from vigil_slurm.site import Site
    from vigil_training.recipe.resolve import read_spec

    asked = {
        "time": time,
        "partition": partition,
        "account": account,
        "qos": qos,
        "max_requeues": max_requeues,
        "signal_before": signal_before,
    }
    site = read_spec(Site, find(profile), "site profile", "partition: gpu", asked)
    resolved = _resolve(recipe, overrides or [], nodes, gpus_per_node)
    folder = Path(os.path.abspath(run or Path("runs") / resolved.recipe.name))  # noqa: PTH100 (resolve() would follow links)
    job = _job(resolved, site, folder, array, after)
    tasks = _tasks(array, overrides or [])
    script = render(job, site)
    runs = [folder] if tasks is None else [folder.with_name(f"{folder.name}-{task}") for task in tasks]
    _check(resolved, runs, tasks)
    if dry_run:
        typer.echo(script, nl=False)
        return
    _submit(resolved, script, runs, tasks, job)


def _resolve(recipe: Path, overrides: Sequence[str], nodes: int | None, devices: int | None) -> "ResolvedRecipe":
    """The recipe with the ranks that were asked for."""
    from vigil_data.errors import UserError
    from vigil_training.recipe.resolve import resolve_recipe
    from vigil_training.recipe.specs import Single

    resolved = resolve_recipe(recipe, overrides)
    asked = {"nodes": nodes, "devices": devices}
    if isinstance(resolved.recipe.strategy, Single):
        if (nodes or 1) * (devices or 1) > 1:
            raise UserError(
                f"{recipe}: strategy.kind is single, which is one process; add strategy.kind=ddp or strategy.kind=deepspeed "
                "for --nodes and --gpus-per-node"
            )
        return resolved
    ranks = [f"strategy.{key}={value}" for key, value in asked.items() if value is not None]
    return resolve_recipe(recipe, [*overrides, *ranks]) if ranks else resolved


def _job(resolved: "ResolvedRecipe", site: "Site", folder: Path, array: str | None, after: str | None) -> "Job":
    from vigil_data.errors import UserError
    from vigil_slurm.batch_script import Job
    from vigil_training.recipe.specs import Ranks

    if after is not None and not re.fullmatch(r"\d+(_\d+)?(,\d+(_\d+)?)*", after):
        raise UserError(f"--after {after}: must be the id of a job, such as 123 or 123_4, or several with commas")
    strategy = resolved.recipe.strategy
    return Job(
        name=resolved.recipe.name,
        run=folder,
        directory=Path.cwd(),
        nodes=strategy.nodes if isinstance(strategy, Ranks) else 1,
        devices=strategy.devices if isinstance(strategy, Ranks) else 1,
        gpus=site.gpus and resolved.recipe.training.accelerator != "cpu",
        command=site.command or (_own_command() if site.container.kind == "none" else "vigil"),
        array=array,
        after=tuple(after.split(",")) if after else (),
    )


def _own_command() -> str:
    """The `vigil` that this process is: what checked the recipe shall train it."""
    import sys

    started, beside = Path(sys.argv[0]), Path(sys.executable).with_name("vigil")
    if started.name == "vigil" and started.is_file():
        return str(started.absolute())
    return str(beside) if beside.is_file() else "vigil"


def _tasks(array: str | None, overrides: Sequence[str]) -> list[int] | None:
    """The seeds of an array."""
    if array is None:
        return None
    from vigil_data.errors import UserError
    from vigil_slurm.tasks import indices

    if given := [override for override in overrides if override.startswith("seed=")]:
        raise UserError(f"{given[-1]}: --array gives each run its seed; leave out one of the two")
    return indices(array)


def _check(resolved: "ResolvedRecipe", runs: Sequence[Path], tasks: Sequence[int] | None) -> None:
    """Refuse folders that hold something else, another recipe's run, or one that has finished."""
    from vigil_data.errors import UserError
    from vigil_training.runs.run import Run, check_run

    for place, run in enumerate(runs):
        if check_run((resolved if tasks is None else _seeded(resolved, tasks[place])).recipe, run) and Run(run).finished:
            raise UserError(f"{_shown(run)}: has finished; there is nothing to submit")


def _submit(resolved: "ResolvedRecipe", script: str, runs: Sequence[Path], tasks: Sequence[int] | None, job: "Job") -> None:
    from vigil_slurm.submit import refuse_busy
    from vigil_slurm.submit import submit as hand_over
    from vigil_training.recipe.resolve import dump_recipe
    from vigil_training.runs.run import open_run

    refuse_busy(runs)
    for place, run in enumerate(runs):
        own = resolved if tasks is None else _seeded(resolved, tasks[place])
        open_run(own.recipe, dump_recipe(own), run)
    number = hand_over(script, runs, tasks, job.nodes)
    ranks = job.nodes * job.devices
    size = f"{job.nodes} node{'s' * (job.nodes > 1)}, {ranks} rank{'s' * (ranks > 1)}"
    shown = _shown(runs[0]) if len(runs) == 1 else f"{len(runs)} runs, {_shown(runs[0])} to {_shown(runs[-1])}"
    typer.echo(f"job {number}: {shown} ({size}{' each' * (len(runs) > 1)})")
    typer.echo(f"follow it:  vigil logs {_quoted(runs[0])} -f\nall runs:   vigil jobs")


def _seeded(resolved: "ResolvedRecipe", seed: int) -> "ResolvedRecipe":
    from dataclasses import replace

    recipe = resolved.recipe.model_copy(update={"seed": seed})
    return replace(resolved, recipe=recipe, values={**resolved.values, "seed": seed})


def _shown(path: Path) -> str:
    """A path as short as it can be from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(_shown(path))

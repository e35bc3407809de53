"""`vigil submit`, `vigil jobs`, `vigil logs` and `vigil cancel`: runs under Slurm."""

import functools
import inspect
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from vigil_slurm.batch_script import BatchJob
    from vigil_slurm.jobs import JobStatus
    from vigil_slurm.site import Site
    from vigil_training.recipe.resolve import ResolvedRecipe
    from vigil_training.sweeps.slurm_tasks import SweepTask

Name = Annotated[str, typer.Argument(help="Run folder, or id of a job.", metavar="RUN|JOB")]

MAX_ENDED_JOBS = 20
"""Ended jobs that are shown without --all."""

SbatchName = Annotated[str | None, typer.Option(metavar="NAME", help="As for sbatch.")]


@dataclass(frozen=True)
class SlurmOptions:
    """Options of the commands that submit jobs; a parameter of each is added by :func:`takes_slurm_options`."""

    time: Annotated[str | None, typer.Option(help="Time limit, such as 90 or 1-12:00:00.", metavar="TIME")] = None
    partition: SbatchName = None
    account: SbatchName = None
    qos: SbatchName = None
    after: Annotated[str | None, typer.Option(help="Jobs that must succeed first, separated by commas.", metavar="JOB")] = None
    profile: Annotated[
        str | None, typer.Option(help="Site profile, a name or a path (default: $VIGIL_SITE).", metavar="SITE")
    ] = None
    max_requeues: Annotated[int | None, typer.Option(min=0, help="Restarts after which the job gives up.", metavar="N")] = None
    signal_before: Annotated[
        int | None, typer.Option(min=0, help="Seconds before the time limit at which to save a checkpoint.", metavar="SECONDS")
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the batch script; write and submit nothing.")] = False

    def read_site(self) -> "Site":
        """Return the site profile, with the options in place of its values."""
        from vigil_data.yaml_files.read_spec import read_spec
        from vigil_slurm.site import Site, find_site

        names = ("time", "partition", "account", "qos", "max_requeues", "signal_before")
        options = {name: getattr(self, name) for name in names}
        return read_spec(Site, find_site(self.profile), "site profile", "partition: gpu", options)

    def jobs_before(self) -> tuple[str, ...]:
        """Return the ids of the jobs of ``--after``."""
        from vigil_data.errors import UserError

        if self.after is None:
            return ()
        if not re.fullmatch(r"\d+(_\d+)?(,\d+(_\d+)?)*", self.after):
            raise UserError(
                f"--after {self.after}: must be the id of a job, such as 123 or 123_4, or several separated by commas"
            )
        return tuple(self.after.split(","))


def takes_slurm_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of :class:`SlurmOptions` to a command, whose argument ``slurm`` receives them."""
    options = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in fields(SlurmOptions)
    ]
    own = [parameter for parameter in inspect.signature(command).parameters.values() if parameter.name != "slurm"]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        slurm = SlurmOptions(**{option.name: values.pop(option.name) for option in options})
        command(**values, slurm=slurm)

    parameters = [*own, *options]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # which typer reads
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("submit")(submit)
    app.command("jobs")(jobs)
    app.command("logs")(logs)
    app.command("cancel")(cancel)


@takes_slurm_options
def submit(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a YAML file.", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values that replace the recipe's.", metavar="KEY.PATH=VALUE")
    ] = None,
    *,
    run: Annotated[Path | None, typer.Option(help="Run folder (default: runs/NAME).", metavar="DIR")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes: strategy.nodes.", metavar="N")] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="Ranks on each node, with one GPU each: strategy.devices.", metavar="N")
    ] = None,
    array: Annotated[
        str | None, typer.Option(help="One run per seed, such as 0-4 or 0-9%2, in DIR-SEED.", metavar="SEEDS")
    ] = None,
    slurm: SlurmOptions,
) -> None:
    """Submit a recipe to Slurm; the job is requeued until the run is finished.

    The recipe is checked here, on the login node. The run folder gets resolved.yaml and job.sh, the batch script. Partition,
    modules, container and network of a cluster are in a site profile. The same command on the same folder resumes an ended job.
    """
    from vigil_slurm.batch_script import render_batch_script
    from vigil_training.recipe.requirements import check_installed

    site = slurm.read_site()
    resolved = _resolve(recipe, overrides or [], nodes, gpus_per_node)
    if site.container.kind == "none":  # A container has packages of its own.
        check_installed(resolved)
    folder = Path(os.path.abspath(run or Path("runs") / resolved.recipe.name))  # noqa: PTH100 (resolve() would follow links)
    job = _make_job(resolved, site, folder, array, slurm.jobs_before())
    seeds = _parse_seeds(array, overrides or [])
    script = render_batch_script(job, site)
    if seeds is None:
        recipes = {folder: resolved}
    else:
        recipes = {folder.with_name(f"{folder.name}-{seed}"): _with_seed(resolved, seed) for seed in seeds}
    _check_runs(recipes, follows=bool(job.after))
    if slurm.dry_run:
        typer.echo(script, nl=False)
        return
    _submit(recipes, script, seeds, job)


def _resolve(recipe: Path, overrides: Sequence[str], nodes: int | None, devices: int | None) -> "ResolvedRecipe":
    """Resolve the recipe with the numbers of nodes and ranks from the command line."""
    from vigil_data.errors import UserError
    from vigil_training.recipe.resolve import resolve_recipe
    from vigil_training.recipe.specs import Single

    resolved = resolve_recipe(recipe, overrides)
    if isinstance(resolved.recipe.strategy, Single):
        if (nodes or 1) * (devices or 1) > 1:
            raise UserError(
                f"{recipe}: strategy.kind is single, which is one process; add strategy.kind=ddp or strategy.kind=deepspeed "
                "for --nodes and --gpus-per-node"
            )
        return resolved
    ranks = [f"strategy.{key}={value}" for key, value in {"nodes": nodes, "devices": devices}.items() if value is not None]
    return resolve_recipe(recipe, [*overrides, *ranks]) if ranks else resolved


def _make_job(resolved: "ResolvedRecipe", site: "Site", folder: Path, array: str | None, after: tuple[str, ...]) -> "BatchJob":
    from vigil_slurm.batch_script import BatchJob
    from vigil_training.recipe.specs import Ranks

    strategy = resolved.recipe.strategy
    return BatchJob(
        name=resolved.recipe.name,
        run=folder,
        directory=Path.cwd(),
        nodes=strategy.nodes if isinstance(strategy, Ranks) else 1,
        devices=strategy.devices if isinstance(strategy, Ranks) else 1,
        gpus=site.gpus and resolved.recipe.training.accelerator != "cpu",
        command=site.command or (own_command() if site.container.kind == "none" else "vigil"),
        array=array,
        after=after,
    )


def own_command() -> str:
    """Return the path of this `vigil`, so that the version that checked the recipe also trains it."""
    started, installed = Path(sys.argv[0]), Path(sys.executable).with_name("vigil")
    if started.name == "vigil" and started.is_file():
        return str(started.absolute())
    return str(installed) if installed.is_file() else "vigil"


def _parse_seeds(array: str | None, overrides: Sequence[str]) -> list[int] | None:
    if array is None:
        return None
    from vigil_data.errors import UserError
    from vigil_slurm.submit import parse_array

    if given := [override for override in overrides if override.startswith("seed=")]:
        raise UserError(f"{given[-1]}: --array sets the seed of each run; leave out one of the two")
    return parse_array(array)


def _with_seed(resolved: "ResolvedRecipe", seed: int) -> "ResolvedRecipe":
    recipe = resolved.recipe.model_copy(update={"seed": seed})
    return replace(resolved, recipe=recipe, values={**resolved.values, "seed": seed})


def _check_runs(recipes: "dict[Path, ResolvedRecipe]", follows: bool) -> None:
    """Refuse run folders that hold something else, another recipe's run, or a finished run, and new runs that cannot start."""
    from vigil_data.errors import UserError
    from vigil_training.recipe.requirements import check_sources
    from vigil_training.runs.run import Run, check_run

    for run, resolved in recipes.items():
        if not check_run(resolved.recipe, run):
            if not follows:  # The job before may train the model that this one starts from.
                check_sources(resolved)
        elif Run(run).finished:
            raise UserError(f"{short_path(run)}: has finished; there is nothing to submit")


def _submit(recipes: "dict[Path, ResolvedRecipe]", script: str, seeds: Sequence[int] | None, job: "BatchJob") -> None:
    from vigil_slurm.submit import refuse_queued, submit_batch_script
    from vigil_training.recipe.resolve import dump_recipe
    from vigil_training.runs.run import open_run

    runs = list(recipes)
    refuse_queued(runs)
    for run, resolved in recipes.items():
        open_run(resolved.recipe, dump_recipe(resolved), run)
    number = submit_batch_script(script, runs, seeds, job.nodes)
    ranks = job.nodes * job.devices
    size = f"{job.nodes} node{'s' * (job.nodes > 1)}, {ranks} rank{'s' * (ranks > 1)}"
    shown = short_path(runs[0]) if len(runs) == 1 else f"{len(runs)} runs, {short_path(runs[0])} to {short_path(runs[-1])}"
    typer.echo(f"job {number}: {shown} ({size}{' each' * (len(runs) > 1)})")
    typer.echo(f"follow it:  vigil logs {shlex.quote(short_path(runs[0]))} -f\nall runs:   vigil jobs")


def jobs(
    everything: Annotated[bool, typer.Option("--all", help="Show all ended jobs (default: the newest 20).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list with all fields.")] = False,
) -> None:
    """List this user's Vigil runs under Slurm: state, step, loss, restarts and log.

    Of a worker of a sweep: the trial that it runs, with its step and loss, and how many it has ended. Ended jobs are read from
    ~/.local/state/vigil/jobs.jsonl and their run folders, without Slurm's accounting.
    """
    from vigil_slurm.jobs import list_jobs

    found = [_with_trial(job) for job in list_jobs()]
    if as_json:
        import json

        typer.echo(json.dumps([asdict(job) | {"sweep": task and task.as_json()} for job, task in found], indent=2))
        return
    if not found:
        typer.echo("no jobs; submit one with `vigil submit`")
        return
    ended = [(job, task) for job, task in found if not job.active]
    hidden = 0 if everything else max(0, len(ended) - MAX_ENDED_JOBS)
    rows = [_cells(job, task) for job, task in [*ended[hidden:], *((job, task) for job, task in found if job.active)]]
    _print_table(rows, [name for name in _HEADER if name != "sweep" or any(task for _, task in found)])
    if hidden:
        typer.echo(f"… and {hidden} older ones: vigil jobs --all")


def _with_trial(job: "JobStatus") -> "tuple[JobStatus, SweepTask | None]":
    """Return a job; one of a sweep with the progress of the trial that it runs, and what else it has done."""
    from vigil_slurm.run_state import read_progress
    from vigil_training.sweeps.slurm_tasks import read_task

    task = read_task(Path(job.run), job.job, running=job.state == "RUNNING")
    if task is None or task.run is None:
        return job, task
    progress = read_progress(task.run)
    return replace(job, step=progress.step, epoch=progress.epoch, loss=progress.loss), task


def logs(
    name: Name,
    following: Annotated[bool, typer.Option("-f", "--follow", help="Follow the log until the job has left the queue.")] = False,
    rank: Annotated[int | None, typer.Option(min=0, help="Print the log of this rank only.", metavar="N")] = None,
) -> None:
    """Print the log of a job over all restarts; for a run folder that of its newest job."""
    from vigil_data.errors import Failure, UserError
    from vigil_slurm.jobs import find_job, find_queued_job, log_path
    from vigil_slurm.tail_log import follow_log
    from vigil_training.runs.run import Run

    job, run = find_job(name)
    path = log_path(run, job) if rank is None else Run(run).log if rank == 0 else Run(run).rank_log(rank)
    queued = find_queued_job(job) if following or not path.is_file() else None
    if not path.is_file() and not (following and queued is not None):
        if queued is None:
            raise UserError(f"{path}: no such log, and job {job} is not in the queue")
        raise UserError(f"{path}: does not exist yet: job {job} is {queued.state} ({queued.reason}); -f waits for it")

    def is_active() -> bool:
        try:
            return find_queued_job(job) is not None
        except Failure:  # The controller may be restarting; it answered the first time.
            return True

    for text in follow_log(path, is_active if following and queued is not None else lambda: False):
        typer.echo(text, nl=False)


def cancel(
    name: Name,
    signal: Annotated[
        str | None, typer.Option(help="Signal for the ranks instead: USR1 saves a checkpoint and stops.", metavar="NAME")
    ] = None,
) -> None:
    """Cancel a job. `vigil submit` with the same run folder resumes from its last checkpoint."""
    from vigil_slurm.jobs import cancel_job, find_job

    job, run = find_job(name)
    typer.echo(cancel_job(job, run, signal))


_HEADER = ("job", "run", "sweep", "state", "nodes", "elapsed", "epoch", "step", "loss", "restarts", "log")
_NUMBERS = ("nodes", "elapsed", "epoch", "step", "loss", "restarts")


def _cells(job: "JobStatus", task: "SweepTask | None") -> dict[str, str]:
    return {
        "job": job.job,
        "run": short_path(job.run),
        "sweep": "-" if task is None else str(task),
        "state": f"{job.state} ({job.reason})" if job.reason else job.state,
        "nodes": job.nodes,
        "elapsed": job.elapsed or "-",
        "epoch": _number(job.epoch),
        "step": _number(job.step),
        "loss": "-" if job.loss is None else f"{job.loss:.4g}",
        "restarts": str(job.restarts),
        "log": short_path(job.log),
    }


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _print_table(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> None:
    """Print columns at their full width, so that output piped into another command is not cut at the terminal's width."""
    lines = [{name: name for name in columns}, *rows]
    widths = {name: max(len(line[name]) for line in lines) for name in columns}
    for line in lines:
        cells = [line[name].rjust(widths[name]) if name in _NUMBERS else line[name].ljust(widths[name]) for name in columns]
        typer.echo("  ".join(cells).rstrip())


def short_path(path: str | Path) -> str:
    """Return a path relative to the working folder where it is inside."""
    return str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else str(path)

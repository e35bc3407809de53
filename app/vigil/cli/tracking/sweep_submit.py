"""`vigil sweep submit` and `vigil sweep cancel`: workers of a sweep as an array of Slurm's."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vigil.cli.slurm import SlurmOptions, own_command, short_path, takes_slurm_options

if TYPE_CHECKING:
    from vigil_slurm.batch_script import BatchJob
    from vigil_slurm.site import Site
    from vigil_training.sweeps.sweep_file import SweepPlan
    from vigil_training.sweeps.sweep_folder import SweepFolder


@takes_slurm_options
def submit(
    sweep: Annotated[Path, typer.Argument(metavar="SWEEP", help="A sweep, a YAML file.")],
    *,
    tasks: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Workers: tasks of the array.")],
    to: Annotated[Path | None, typer.Option(help="The sweep folder (default: sweeps/NAME).", metavar="DIR")] = None,
    slurm: SlurmOptions,
) -> None:
    """Submit a sweep to Slurm: an array of workers, which share the trials.

    Each task runs one trial at a time, with the GPUs that its recipe asks for on one node, until all trials have ended. A
    preempted task saves a checkpoint and is requeued; the trial of a task that is killed, or whose node is lost, is resumed by
    another. The same command continues a sweep whose tasks have ended.
    """
    from vigil_data.errors import UserError
    from vigil_data.filesystem import make_folder
    from vigil_slurm.batch_script import render_batch_script
    from vigil_slurm.submit import refuse_queued, submit_batch_script
    from vigil_training.sweeps.slurm_tasks import task_folders
    from vigil_training.sweeps.sweep_file import read_sweep
    from vigil_training.sweeps.sweep_folder import SweepFolder, open_sweep

    site = slurm.read_site()
    plan = read_sweep(sweep)
    folder = Path(os.path.abspath(to or Path("sweeps") / plan.spec.name))  # noqa: PTH100 (resolve() would follow links)
    job = _make_job(plan, site, folder, tasks, slurm.jobs_before())
    script = render_batch_script(job, site)
    if slurm.dry_run:
        typer.echo(script, nl=False)
        return
    if (folder / "sweep.yaml").is_file():
        ended = sum(trial.ended for trial in SweepFolder(folder).read().trials)
        if ended >= plan.trials:
            raise UserError(f"{short_path(folder)}: all {ended} trials have ended; there is nothing to submit")
    runs = task_folders(folder, tasks)
    refuse_queued(runs)
    prepare_engine(open_sweep(plan, folder))
    for run in runs:
        make_folder(run)
    number = submit_batch_script(script, runs, range(tasks), job.nodes)
    name = shlex.quote(short_path(folder))
    typer.echo(f"job {number}: {short_path(folder)} ({tasks} worker{'s' * (tasks > 1)}, {plan.trials} trials)")
    typer.echo(f"trials:   vigil sweep status {name}\nworkers:  vigil jobs\nend it:   vigil sweep cancel {name}")


def cancel(sweep: Annotated[Path, typer.Argument(metavar="SWEEPDIR", help="A sweep folder.")]) -> None:
    """Cancel the tasks of a sweep. Its trials stay as they are: `vigil sweep submit` or `vigil sweep run` continues them."""
    from vigil_data.errors import UserError
    from vigil_slurm.client import queued_jobs
    from vigil_slurm.jobs import cancel_job
    from vigil_training.sweeps.slurm_tasks import is_task_of

    folder = Path(os.path.abspath(sweep))  # noqa: PTH100 (the name under which it was submitted)
    queued = [job for job in queued_jobs() if is_task_of(Path(job.run), folder)]
    if not queued:
        raise UserError(f"{sweep}: has no task in the queue; `vigil jobs` shows how they ended")
    for job in queued:
        typer.echo(cancel_job(job.job, job.run, None))


def prepare_engine(folder: "SweepFolder") -> None:
    """Create W&B's sweep, if W&B chooses the points, and print where it is."""
    if folder.plan.spec.engine == "wandb":
        from vigil_training.sweeps.wandb_engine.agent import create_wandb_sweep

        typer.echo(f"W&B's sweep: {create_wandb_sweep(folder)}")


def _make_job(plan: "SweepPlan", site: "Site", folder: Path, tasks: int, after: tuple[str, ...]) -> "BatchJob":
    from vigil_slurm.batch_script import BatchJob
    from vigil_training.recipe.specs import Ranks
    from vigil_training.sweeps.slurm_tasks import array_folder

    recipe = plan.recipe
    return BatchJob(
        name=f"sweep-{plan.spec.name}",
        run=array_folder(folder),
        directory=Path.cwd(),
        gpus=site.gpus and (recipe is None or recipe.training.accelerator != "cpu"),
        command=site.command or (own_command() if site.container.kind == "none" else "vigil"),
        array=f"0-{tasks - 1}",
        after=after,
        arguments=("sweep", "worker", str(folder)),
        shared=folder,
        devices_per_rank=recipe.strategy.devices if recipe is not None and isinstance(recipe.strategy, Ranks) else 1,
    )

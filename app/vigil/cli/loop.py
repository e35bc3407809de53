"""`vigil loop`: from a sample of traffic to a promoted model, one iteration after the other."""

import shlex
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from vigil.workflows.loop.iterations import Iteration, LoopSurroundings
    from vigil.workflows.loop.specs import Loop
    from vigil.workflows.loop.steps import Step

File = Annotated[Path, typer.Argument(metavar="LOOP.yaml", help="The loop, a YAML file; see docs/loop.md.")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    text = "Sample traffic, collect reviews, retrain, compare and promote, as steps that are recorded and resume."
    group = typer.Typer(help=text, no_args_is_help=True)
    group.command("run")(run)
    group.command("status")(status)
    app.add_typer(group, name="loop")


def run(context: typer.Context, file: File) -> None:
    """Continue the loop's iteration until it ends or waits for reviews or for a job; begin one if there is enough new traffic.

    Each step is a command that is printed before it runs. After a kill the same command repeats the step that was not finished.
    Run it from cron: with nothing to do it ends at once.
    """
    from vigil.workflows.loop.iterations import run_loop
    from vigil.workflows.loop.specs import read_loop

    loop = read_loop(file)
    vigil = context.find_root().command

    def start(step: "Step", number: int, total: int) -> None:
        typer.secho(f"\n[{number}/{total}] $ vigil {shlex.join(step.command)}", bold=True)
        began = time.perf_counter()
        run_command(vigil, step.command)
        typer.echo(f"[{number}/{total}] {step.name}: {time.perf_counter() - began:.1f} s")

    iteration, waiting = run_loop(loop, _surroundings(loop, file, start))
    _print(loop, iteration, waiting)


def status(
    file: File, as_json: Annotated[bool, typer.Option("--json", help="Print the iterations as JSON, with all fields.")] = False
) -> None:
    """Print the iterations of a loop: their days, finished steps and outcomes."""
    from vigil.workflows.loop.iterations import read_iterations
    from vigil.workflows.loop.specs import read_loop

    loop = read_loop(file)
    iterations = read_iterations(loop)
    if as_json:
        import json
        from dataclasses import asdict

        typer.echo(json.dumps([asdict(iteration) for iteration in iterations], indent=1))
        return
    if not iterations:
        typer.echo(f"{loop.folder}: no iteration yet; vigil loop run {shlex.quote(str(file))}")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("iteration", "days", "finished steps", "outcome", box=None, pad_edge=False, header_style="bold")
    for of in iterations:
        table.add_row(f"{of.number:04d}", f"{of.start} to {of.end}", ", ".join(of.seconds), _outcome(of))
    Console().print(table)


def run_command(vigil: Any, command: Sequence[str]) -> None:
    """Run a `vigil` command in this process, and end with its exit status if it is not 0.

    A training leaves signals ignored, as its process usually ends then; their handlers are restored.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    try:
        status = vigil.main(list(command), prog_name="vigil", standalone_mode=False)
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
    if status:
        raise typer.Exit(int(status))


def _surroundings(loop: "Loop", file: Path, start: Any) -> "LoopSurroundings":
    """Return what the loop asks of reviews, traffic, bundles and Slurm."""
    from datetime import UTC, date, datetime

    from vigil.workflows.loop.iterations import LoopSurroundings
    from vigil.workflows.loop.steps import Queue
    from vigil_data.filesystem import sha256_file
    from vigil_monitoring.queues.queue import read_queue
    from vigil_monitoring.reviews.answers import read_reviews
    from vigil_monitoring.traffic.reader import open_traffic
    from vigil_serving.bundle.manifest import MANIFEST

    def answered(of: Queue) -> tuple[int, int]:
        queue = read_queue(of.queue)
        rows = zip(queue.table["id"].to_pylist(), queue.table["ask"].to_pylist(), strict=True)
        questions = {(id_, label) for id_, labels in rows for label in labels}
        found = {(answer.id, answer.label) for answer in read_reviews(of.reviews, queue)} if of.reviews.exists() else set()
        return len(questions), len(questions & found)

    def newest_day() -> date | None:
        today = datetime.now(UTC).date()
        return max((day for day in open_traffic(loop.traffic).days if day < today), default=None)

    def champion() -> str | None:
        manifest = Path(loop.models, "champion", MANIFEST)
        return sha256_file(manifest) if manifest.is_file() else None

    def job_of(run: Path) -> str | None:
        from vigil_slurm.client import queued_jobs

        return next((job.job for job in queued_jobs() if Path(job.run) == run.absolute()), None)

    def trained(run: Path) -> bool:
        from vigil_training.runs.run import Run

        return run.is_dir() and Run(run).finished

    def continue_after(run: Path, job: str) -> None:
        _continue_after(loop, file, run, job)

    return LoopSurroundings(start, answered, newest_day, champion, job_of, trained, continue_after)


def _continue_after(loop: "Loop", file: Path, run: Path, training: str) -> None:
    """Submit a job that continues the loop once the job that trains a run has succeeded, unless one is in the queue."""
    from vigil.cli.slurm import own_command
    from vigil_data.yaml_files.read_spec import read_spec
    from vigil_slurm.batch_script import BatchJob, render_command_script
    from vigil_slurm.client import queued_jobs
    from vigil_slurm.job_environment import read_job_environment
    from vigil_slurm.site import Site, find_site
    from vigil_slurm.submit import submit_command_script

    assert loop.slurm is not None
    folder, own = run.absolute().parent, read_job_environment().get("job")
    waiting = [job for job in queued_jobs() if Path(job.run) == folder and job.job != own]
    if any(job.reason != "DependencyNeverSatisfied" for job in waiting):  # Slurm is about to cancel such a job.
        return
    site = read_spec(Site, find_site(loop.slurm.profile), "site profile", "partition: gpu", {"time": loop.slurm.time})
    command = site.command or (own_command() if site.container.kind == "none" else "vigil")
    job = BatchJob(f"loop-{loop.name}", folder, Path.cwd(), command=command, after=(training,))
    number = submit_command_script(render_command_script(job, site, ["loop", "run", str(file)]), folder)
    typer.echo(f"job {number} continues the loop after job {training}")


def _print(loop: "Loop", iteration: "Iteration | None", waiting: str | None) -> None:
    from vigil.workflows.loop.iterations import iteration_folder
    from vigil.workflows.loop.steps import promotion

    if iteration is not None and iteration.outcome is not None:
        typer.echo(f"\niteration {iteration.number:04d} ({iteration.start} to {iteration.end}): {_outcome(iteration)}")
        if iteration.outcome == "accepted":
            typer.echo(f"promote it:  vigil {shlex.join(promotion(loop, iteration_folder(loop, iteration)))}")
    for line in (waiting or "").splitlines():
        typer.echo(f"waiting: {line}")


def _outcome(iteration: "Iteration") -> str:
    if iteration.outcome is None:
        return "in progress"
    return f"{iteration.outcome}: {iteration.rejected}" if iteration.rejected else iteration.outcome

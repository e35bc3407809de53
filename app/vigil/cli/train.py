"""`vigil train` and `vigil distill`: train a recipe into a run folder; `vigil lr-range`: find its learning rate."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from vigil_training.recipe.specs import Ranks


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("train")(train)
    app.command("lr-range")(lr_range)
    app.command("distill")(distill)


def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values that replace the recipe's.", metavar="KEY.PATH=VALUE")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="The run folder (default: runs/NAME).", metavar="DIR")] = None,
) -> None:
    """Train a recipe into a run folder, or resume an interrupted run.

    The folder holds everything that the run writes: the resolved recipe, checkpoints, metrics, environment, log, thresholds. The
    same command on the same folder resumes from the last checkpoint; a finished run is left alone. A strategy with several ranks
    starts them on this machine, unless srun or torchrun did. Exit status 85: stopped with a checkpoint; start it again.
    """
    folder = _train(recipe, overrides or [], run)
    if folder is not None:
        typer.echo(f"next: vigil evaluate {folder}")


def distill(
    recipe: Annotated[Path, typer.Argument(help="The student's recipe, a YAML file.", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values that replace the recipe's.", metavar="KEY.PATH=VALUE")
    ] = None,
    *,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="A run, a bundle, or a Parquet or CSV table of scores (default: the recipe's distillation.teacher).",
            metavar="RUN|BUNDLE|TABLE",
        ),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="The run folder (default: runs/NAME).", metavar="DIR")] = None,
    split: Annotated[str, typer.Option(help="Split on which student and teacher are compared.")] = "test",
) -> None:
    """Train a small student on a teacher's scores, and report what it loses.

    The same as vigil train with the key distillation.teacher, and then a comparison of both on one split: average precision
    and AUROC of each label with intervals of the difference, and, if the teacher is a run, weights and latency. The teacher
    scores the training items once, into teacher.parquet of the run folder; distillation.json is the report. The same command
    resumes.
    """
    import json

    chosen = [*(overrides or []), *([] if teacher is None else [f"distillation.teacher={json.dumps(teacher)}"])]
    folder = _train(recipe, chosen, run, distills=True)
    if folder is None:
        return
    from vigil.workflows.distill import compare_with_teacher, report_lines
    from vigil_data.progress import Progress
    from vigil_training.runs.run import Run

    with Progress("comparing") as progress:
        report = compare_with_teacher(Run(folder), split, progress=progress)
    typer.echo("\n".join(report_lines(report)))
    typer.echo(f"next: vigil export {folder} --to bundles/{Run(folder).recipe.name}")


def _train(recipe: Path, overrides: list[str], run: Path | None, distills: bool = False) -> Path | None:
    """Train, and return the run folder; ``None`` on ranks other than 0.

    Args:
        recipe: the recipe.
        overrides: values that replace the recipe's.
        run: the run folder (default: ``runs/NAME``).
        distills: the recipe must name a teacher.
    """
    from vigil_data.errors import UserError
    from vigil_training.distributed.preemption import Preemption
    from vigil_training.distributed.world import World, find_world
    from vigil_training.recipe.requirements import check_installed, check_sources
    from vigil_training.recipe.resolve import dump_recipe, resolve_recipe
    from vigil_training.recipe.specs import Ranks
    from vigil_training.runs.run import check_run

    resolved = resolve_recipe(recipe, overrides)
    if distills and resolved.recipe.distillation is None:
        raise UserError(f"{recipe}: names no teacher; add --teacher, or the key distillation.teacher")
    check_installed(resolved)
    folder = run or Path("runs") / resolved.recipe.name
    strategy, world = resolved.recipe.strategy, find_world()
    if world is None and not check_run(resolved.recipe, folder):
        check_sources(resolved)
    if world is None and isinstance(strategy, Ranks) and strategy.world > 1:
        _launch(strategy)
    # Signals are handled from here, as the imports take seconds in which a job may be preempted.
    with Preemption(ignore_on_exit=True) as preemption:
        from vigil_training.trainer.fit import fit_recipe

        fit_recipe(resolved.recipe, dump_recipe(resolved), folder, world or World(), preemption)
    if world is None or world.is_main:
        return folder
    return None


def lr_range(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values that replace the recipe's.", metavar="KEY.PATH=VALUE")
    ] = None,
    first: Annotated[float, typer.Option("--min", help="Learning rate of the first step.")] = 1e-6,
    last: Annotated[float, typer.Option("--max", help="Learning rate of the last step.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 100,
    *,
    to: Annotated[Path | None, typer.Option(help="Folder for the curve (default: lr-range/NAME).", metavar="DIR")] = None,
) -> None:
    """Find a learning rate: train for some steps while it rises, and see where the loss falls and where training diverges.

    A fresh model of the recipe is trained in this process while optimizer.lr rises exponentially; encoders keep their lr_factor
    and layer_decay. Runs and checkpoints are not touched. The curve is written as curve.csv and curve.svg.
    """
    from vigil_training.recipe.requirements import check_installed
    from vigil_training.recipe.resolve import resolve_recipe

    resolved = resolve_recipe(recipe, overrides or [])
    check_installed(resolved)
    from vigil_training.trainer.lr_range import RangeTest, run_range_test
    from vigil_training.trainer.lr_range_files import write_curve

    curve = run_range_test(resolved.recipe, RangeTest(first, last, steps))
    table, picture = write_curve(curve, to or Path("lr-range") / resolved.recipe.name)
    typer.echo(f"curve: {picture}, {table}")
    end = f"training has diverged at {curve.diverged:.2g}" if curve.diverged else f"training has not diverged up to {last:g}"
    typer.echo(f"the smoothed loss is lowest at {curve.lowest:.2g}; {end}")
    if curve.suggestion is None:
        typer.echo("the loss does not fall: lower --min, or look for a mistake in data or labels")
    else:
        typer.echo(f"suggestion, where the loss falls most steeply: optimizer.lr={curve.suggestion:.2g}")


def _launch(strategy: "Ranks") -> NoReturn:
    """Run this command once for each rank of this machine, and exit with their status.

    Raises:
        UserError: if the recipe names several machines.
    """
    from vigil_data.errors import UserError
    from vigil_training.distributed.launch import launch

    if strategy.nodes > 1:
        raise UserError(
            f"strategy.nodes: {strategy.nodes} machines are started by `vigil submit`, or by torchrun on each of them"
        )
    sys.exit(launch(strategy.devices, [sys.executable, *sys.argv]))

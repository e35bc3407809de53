"""`vigil score`: score a dataset with a bundle, on this machine or on Ray."""

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vigil_serving.scoring.score import RayOptions, ScoringSummary


class Engine(StrEnum):
    """Where items are scored."""

    LOCAL = "local"
    RAY = "ray"


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("score")(score)


def score(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.", metavar="BUNDLE")],
    dataset: Annotated[Path, typer.Argument(help="The dataset's folder.", metavar="DATASET")],
    to: Annotated[Path, typer.Option(help="A Parquet file (.parquet) or a Lance table (.lance).", metavar="OUT")],
    *,
    split: Annotated[str | None, typer.Option(help="Score only this split.")] = None,
    where: Annotated[
        str | None, typer.Option(metavar="SQL", help="Score only rows of a condition, such as \"language = 'en'\".")
    ] = None,
    variant: Annotated[str, typer.Option(help="Variant of the encoders, such as int8.")] = "fp32",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads within an operator (default: all cores; on Ray one per worker).")
    ] = None,
    engine: Annotated[Engine, typer.Option(help="Score on this machine, or on Ray.")] = Engine.LOCAL,
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --engine ray: number of workers (default: as many as fit).")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="With --engine ray: address of the cluster (default: a new one here).")
    ] = None,
    chunk: Annotated[int, typer.Option(min=1, help="Items per shard: what a kill costs at most.")] = 1024,
    restart: Annotated[bool, typer.Option("--restart", help="Discard the shards of an interrupted job.")] = False,
) -> None:
    """Score a dataset with ONNX Runtime; PyTorch is not needed.

    After an interruption or a kill the same command resumes; every item is in the table exactly once.
    """
    ray = _ray_options(engine, workers, ray_address)
    from vigil_data.progress import Progress
    from vigil_serving.scoring.score import score_dataset

    start = time.perf_counter()
    try:
        with Progress("scoring") as progress:
            summary = score_dataset(
                bundle,
                dataset,
                to,
                split=split,
                where=where,
                variant=variant,
                threads=threads,
                chunk=chunk,
                ray=ray,
                restart=restart,
                progress=progress,
            )
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command resumes", err=True)
        raise
    _print_summary(summary, time.perf_counter() - start, to)


def _ray_options(engine: Engine, workers: int | None, address: str | None) -> "RayOptions | None":
    from vigil_data.errors import UserError

    if engine is Engine.LOCAL:
        for name, given in (("--workers", workers), ("--ray-address", address)):
            if given is not None:
                raise UserError(f"{name} {given}: needs --engine ray")
        return None
    from vigil_serving.scoring.score import RayOptions

    return RayOptions(address, workers)


def _print_summary(summary: "ScoringSummary", seconds: float, to: Path) -> None:
    for name, count in [*summary.decided.items(), *summary.actions.items()]:
        typer.echo(f"{name:<32} {count:>9} of {summary.items - summary.errors}")
    if summary.errors:
        typer.echo(f"{summary.errors} items could not be decoded; see the column error")
    if summary.resumed:
        typer.echo(f"{summary.resumed} items were scored before")
    rate = (summary.items - summary.resumed) / seconds
    typer.echo(f"{summary.items} items in {seconds:.1f} s ({rate:,.0f} items/s): {to}")

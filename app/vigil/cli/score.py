"""`vigil score`: a dataset through a bundle into a table, on this machine or on Ray."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vigil_serving.scoring.score import OnRay, Scored

EVERY = 10.0
"""Seconds from line to line where stderr is not a terminal."""


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
        str | None, typer.Option(metavar="SQL", help="Only rows of a condition, such as \"language = 'en'\".")
    ] = None,
    variant: Annotated[str, typer.Option(help="Of the encoders, such as int8.")] = "fp32",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads within an operator; all cores if not given, on Ray one for each worker.")
    ] = None,
    engine: Annotated[Engine, typer.Option(help="Score here, or on Ray.")] = Engine.LOCAL,
    workers: Annotated[int | None, typer.Option(min=1, help="With --engine ray: processes; as many as have room.")] = None,
    ray_address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="With --engine ray: the cluster; one on this machine if not given.")
    ] = None,
    chunk: Annotated[int, typer.Option(min=1, help="Items of a part: what an interruption costs at most.")] = 1024,
    restart: Annotated[bool, typer.Option("--restart", help="Throw away what an interrupted scoring left.")] = False,
) -> None:
    """Score a dataset with ONNX Runtime; PyTorch is not needed.

    Interrupted or killed, the same command goes on where it was, and every item is in the table exactly once.
    """
    ray = _on_ray(engine, workers, ray_address)
    from vigil_serving.scoring.score import score as run

    start = time.perf_counter()
    try:
        with _progress() as (advance, say):
            found = run(
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
                progress=advance,
                say=say,
            )
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on where this one was", err=True)
        raise
    _show(found, time.perf_counter() - start, to)


def _on_ray(engine: Engine, workers: int | None, address: str | None) -> "OnRay | None":
    from vigil_data.errors import UserError

    if engine is Engine.LOCAL:
        for name, given in (("--workers", workers), ("--ray-address", address)):
            if given is not None:
                raise UserError(f"{name} {given}: goes with --engine ray")
        return None
    from vigil_serving.scoring.score import OnRay

    return OnRay(address, workers)


def _show(found: "Scored", seconds: float, to: Path) -> None:
    for label, count in [*found.decided.items(), *found.actions.items()]:
        typer.echo(f"{label:<32} {count:>9} of {found.items - found.errors}")
    if found.errors:
        typer.echo(f"{found.errors} items could not be decoded; the column error says why")
    if found.resumed:
        typer.echo(f"{found.resumed} items had been scored before")
    rate = (found.items - found.resumed) / seconds
    typer.echo(f"{found.items} items in {seconds:.1f} s ({rate:,.0f} items/s): {to}")


@contextmanager
def _progress() -> Iterator[tuple[Callable[[int, int], None], Callable[[str], None]]]:
    """A bar on stderr, or a line every some seconds where that is no terminal: functions that move it and that say something."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    pace = Pace(time.monotonic)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("scoring", total=None, rate="")

        def advance(done: int, total: int) -> None:
            line = pace.line(done, total)
            bar.update(task, completed=done, total=total, rate=f"{pace.rate:,.0f} items/s")
            if line and not console.is_terminal:
                typer.echo(line, err=True)

        yield advance, lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)


class Pace:
    """How fast it goes, not counting what was done before.

    Args:
        clock: gives seconds.

    Attributes:
        rate: items each second since the first call.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.rate = 0.0
        self._clock = clock
        self._first: tuple[float, int] | None = None
        self._said = 0.0

    def line(self, done: int, total: int) -> str | None:
        """Take note of the items done; a line to print if it is time for one."""
        now = self._clock()
        if self._first is None:
            self._first, self._said = (now, done), now
        since, before = self._first
        self.rate = (done - before) / (now - since) if now > since else 0.0
        if now - self._said < EVERY or not self.rate:
            return None
        self._said = now
        return f"scored {done:,} of {total:,} items, {self.rate:,.0f} items/s, {_clock_time((total - done) / self.rate)} left"


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"

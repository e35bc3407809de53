"""`vigil suite`: functional tests of a model: run them, and check and make suites of one's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vigil.workflows.functional_tests import Progress
    from vigil_evaluation.stats.proportions import Proportion
    from vigil_evaluation.suites.results import FunctionalTestResults, SuiteResults

Seed = Annotated[int | None, typer.Option(min=0, help="Of what is random in it; the suite's own if not given.")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    group = typer.Typer(help="Test what a model can do, case by case.", no_args_is_help=True)
    group.command("run")(run)
    group.command("check")(check)
    group.command("make")(make)
    app.add_typer(group, name="suite")


def run(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A run, a bundle, or a Parquet file of scores by id.")],
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="A suite's YAML, a dataset with a functionality, or demo.")],
    *,
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder to write; in the run, or beside the bundle, if not given.")
    ] = None,
    functionality: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Of a dataset: the column that names the tests; functionality.")
    ] = None,
    identity: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="A column that names the group an item speaks of; identity.")
    ] = None,
    pair: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column with the id of an item's counterpart; pair.")
    ] = None,
    template: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column of what items were made from; template.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of a dataset: only this split.")] = None,
    items: Annotated[int | None, typer.Option(min=1, help="Of demo: how many items, beside a counterpart of each.")] = None,
    seed: Seed = None,
    replicates: Annotated[int | None, typer.Option(min=0, help="Bootstrap replicates; 0 for no intervals.")] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL=P", help="Of a table of scores: where a label is flagged; 0.5."),
    ] = None,
) -> None:
    """Run a model over a suite: what it gets right in each functional test, for whom, and whether it follows minimal pairs.

    Writes predictions.parquet, suite.json and suite.html. Labels that only the suite has are skipped and named.
    """
    from vigil.cli.evaluate import parse_thresholds
    from vigil.workflows.functional_tests import SuiteOptions, run_suite
    from vigil_data.errors import UserError

    if threshold and not model.is_file():
        raise UserError("--threshold: goes with a table of scores; a run and a bundle have their own thresholds")
    given = {
        "functionality": functionality,
        "targets": tuple(identity) if identity else None,
        "pair": pair,
        "template": template,
        "split": split,
        "items": items,
        "seed": seed,
        "replicates": replicates,
        "thresholds": parse_thresholds(threshold) if threshold else None,
    }
    options = SuiteOptions(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    with _progress() as advance:
        ran = run_suite(model, suite, to=to, options=options, progress=advance)
    _show(ran.outcome)
    typer.echo(f"report: {ran.folder / 'suite.html'}")


def check(files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Suites, YAML files.")]) -> None:
    """Check suites whole: every mistake of every file, with its line. Nothing is made.

    Exit status 0 if all are right and 2 if one is not.
    """
    from vigil.workflows.functional_tests import read_suite
    from vigil_data.errors import UserError
    from vigil_data.suites.planned_items import draft

    mistakes: list[str] = []
    for file in files:
        try:
            suite = read_suite(file)
        except UserError as error:
            mistakes += error.lines
            continue
        planned = draft(suite).items
        paired = sum(item.pair is not None for item in planned)
        functionalities = len({item.functionality for item in planned})
        typer.echo(f"ok  {file}: {len(planned)} items in {functionalities} functionalities, {paired} minimal pairs")
    if mistakes:
        raise UserError(*dict.fromkeys(mistakes))


def make(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The suite's YAML.")],
    to: Annotated[Path, typer.Option(metavar="DATASET", help="Folder of the dataset to make.")],
    seed: Seed = None,
) -> None:
    """Make the dataset of a suite: texts, pictures and sounds with what is expected, to look at, share or score by anything."""
    from vigil.workflows.functional_tests import make_suite

    with _progress() as advance:
        written = make_suite(file, to, seed, advance)
    typer.echo(f"{to} version {written.version}: {written.kept} items")
    typer.echo(f"look at it:  vigil data show {to}\nrun it:      vigil suite run RUN {to}")


@contextmanager
def _progress() -> "Iterator[Progress]":
    """A progress bar on the standard error stream that leaves nothing behind."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("starting", total=None)
        yield lambda name, done, total: progress.update(bar, description=name, completed=done, total=total)


def _show(outcome: "SuiteResults") -> None:
    """Print accuracy by functionality and label, the groups that fare worst, and what becomes of the minimal pairs."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = outcome.findings
    # A table that is piped is not cut to 80 columns.
    console = Console() if Console().is_terminal else Console(width=160)
    table = Table("functionality", title=f"{outcome.suite}: share of right decisions")
    table.add_column("items", justify="right")
    for label in found.labels:
        table.add_column(Text(label), justify="right")
    table.add_column("all labels right", justify="right")
    for case in found.cases:
        cells = [_share(case.labels[label].accuracy) for label in found.labels]
        table.add_row(Text(case.name), str(case.items), *cells, _share(case.all_right))
    console.print(table)
    if found.pairs is not None:
        pairs = Table("label", title=f"{found.pairs.pairs} minimal pairs")
        for head in ("label flips", "followed", "label stays", "decision changed", "mean |Δ probability|"):
            pairs.add_column(head, justify="right")
        for label, numbers in found.pairs.overall.labels.items():
            shift = "-" if numbers.shift.value is None else f"{numbers.shift.value:.3f}"
            pairs.add_row(
                Text(label),
                str(numbers.follows.count),
                _share(numbers.follows),
                str(numbers.changes.count),
                _share(numbers.changes),
                shift,
            )
        console.print(pairs)
    for line in _notes(outcome, found):
        console.print(f"- {line}", markup=False, highlight=False)


def _notes(outcome: "SuiteResults", found: "FunctionalTestResults") -> Iterator[str]:
    from vigil.workflows.functional_tests import UNSEEN, UNTOLD

    if outcome.skipped:
        yield f"labels that the model does not have, skipped: {', '.join(outcome.skipped)}"
    if found.unit is not None:
        yield f"intervals take items of one {found.unit} together"
    for name, fact in outcome.facts.items():
        if name in (UNSEEN, UNTOLD) or (name == "undecodable" and fact != "0"):
            yield f"{name}: {fact}"
    if found.pairs is not None and found.pairs.alone:
        yield f"{found.pairs.alone} items name a counterpart that is not among the items"


def _share(share: "Proportion") -> str:
    if share.value is None:
        return "-" if not share.count else f"- ({share.count})"
    if share.interval is None:
        return f"{share.value:.1%}"
    return f"{share.value:.1%} ({share.interval.low:.1%}-{share.interval.high:.1%})"

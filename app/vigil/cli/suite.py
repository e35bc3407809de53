"""`vigil suite`: run functional tests on a model, and check and build suites."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vigil_evaluation.stats.proportions import Proportion
    from vigil_evaluation.suites.results import FunctionalTestResults, SuiteResults

AllowOutside = Annotated[
    bool, typer.Option("--allow-outside", help="Let a suite's YAML name media outside its folder (default: refuse them).")
]
Seed = Annotated[int | None, typer.Option(min=0, help="Random seed (default: the suite's).")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    group = typer.Typer(help="Run functional tests on a model.", no_args_is_help=True)
    group.command("run")(run)
    group.command("check")(check)
    group.command("make")(make)
    app.add_typer(group, name="suite")


def run(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A run, a bundle, or a Parquet file of scores by id.")],
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="The YAML of a suite, a dataset, or demo.")],
    *,
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The output folder (default: in the run, or next to the bundle).")
    ] = None,
    functionality: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column that names the tests (default: functionality).")
    ] = None,
    identity: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Column that names the group an item is about (default: identity)."),
    ] = None,
    pair: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column with the id of an item's counterpart (default: pair).")
    ] = None,
    template: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column that names the template of an item (default: template).")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of a dataset (default: all rows).")] = None,
    items: Annotated[
        int | None, typer.Option(min=1, help="Originals of the demo suite, each with one counterpart (default: 300).")
    ] = None,
    seed: Seed = None,
    replicates: Annotated[int | None, typer.Option(min=0, help="Bootstrap replicates; 0 for no intervals.")] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL=P", help="Threshold of a label in a table of scores (default: 0.5)."),
    ] = None,
    allow_outside: AllowOutside = False,
) -> None:
    """Run a model on a suite: accuracy in each functional test, by group, and on minimal pairs.

    Writes predictions.parquet, suite.json and suite.html. Labels that the model lacks are skipped and listed.
    """
    from vigil.cli.evaluate import parse_thresholds
    from vigil.workflows.functional_tests import SuiteOptions, run_suite
    from vigil.workflows.model_source import find_source_kind
    from vigil_data.errors import UserError
    from vigil_data.progress import Progress

    if threshold and find_source_kind(model) in ("run", "bundle"):
        raise UserError("--threshold: only for a table of scores; a run and a bundle have their own thresholds")
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
        "allow_outside": allow_outside,
    }
    options = SuiteOptions(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    with Progress("opening the suite") as progress:
        ran = run_suite(model, suite, to=to, options=options, progress=progress)
        if find_source_kind(model) == "run":
            from vigil_training.runs.run import Run
            from vigil_training.tracking.evaluations.tracked_evaluation import track_suite

            progress("tracking")
            track_suite(Run(model), ran.folder, ran.results)
    _show(ran.results)
    typer.echo(f"report: {ran.folder / 'suite.html'}")


def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Suites, YAML files.")],
    *,
    allow_outside: AllowOutside = False,
) -> None:
    """Check suites and report every mistake in every file with its line. Builds nothing.

    Exits with 0 if all files are valid, else with 2.
    """
    from vigil.workflows.suite_datasets import read_suite
    from vigil_data.errors import UserError
    from vigil_data.suites.planned_items import plan_items

    mistakes: list[str] = []
    for file in files:
        try:
            suite = read_suite(file, allow_outside=allow_outside)
        except UserError as error:
            mistakes += error.lines
            continue
        planned = plan_items(suite).items
        paired = sum(item.pair is not None for item in planned)
        functionalities = len({item.functionality for item in planned})
        typer.echo(f"ok  {file}: {len(planned)} items in {functionalities} functionalities, {paired} minimal pairs")
    if mistakes:
        raise UserError(*dict.fromkeys(mistakes))


def make(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The suite's YAML.")],
    to: Annotated[Path, typer.Option(metavar="DATASET", help="Folder of the new dataset.")],
    *,
    seed: Seed = None,
    allow_outside: AllowOutside = False,
) -> None:
    """Build the dataset of a suite: texts, images and sounds with their targets, to inspect, share or score with any model."""
    from vigil.workflows.suite_datasets import build_suite
    from vigil_data.progress import Progress

    with Progress("building the suite") as progress:
        written = build_suite(file, to, seed, progress, allow_outside=allow_outside)
    typer.echo(f"{to} version {written.version}: {written.kept} items")
    typer.echo(f"inspect it:  vigil data show {to}\nrun it:      vigil suite run RUN {to}")


def _show(outcome: "SuiteResults") -> None:
    """Print accuracy by functionality and label, the results of the minimal pairs, and what stands out."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from vigil_evaluation.report.suite_page import suite_remarks

    found = outcome.findings
    # Piped tables are not cut to 80 columns.
    console = Console() if Console().is_terminal else Console(width=160)
    table = Table("functionality", title=f"{outcome.suite}: accuracy")
    table.add_column("items", justify="right")
    for label in found.labels:
        table.add_column(Text(label), justify="right")
    table.add_column("all labels correct", justify="right")
    for case in found.cases:
        cells = [_share(case.labels[label].accuracy) for label in found.labels]
        table.add_row(Text(case.name), str(case.items), *cells, _share(case.all_right))
    console.print(table)
    if found.pairs is not None:
        pairs = Table("label", title=f"{found.pairs.pairs} minimal pairs")
        for head in ("label flips", "followed", "label stays", "decision changed", "flag lost", "mean |Δ probability|"):
            pairs.add_column(head, justify="right")
        for label, numbers in found.pairs.overall.labels.items():
            shift = "-" if numbers.shift.value is None else f"{numbers.shift.value:.3f}"
            pairs.add_row(
                Text(label),
                str(numbers.follows.count),
                _share(numbers.follows),
                str(numbers.changes.count),
                _share(numbers.changes),
                str(numbers.unflagged),
                shift,
            )
        console.print(pairs)
    for remark in suite_remarks(outcome):
        console.print(f"- {remark.text}", markup=False, highlight=False)
    for line in _notes(outcome, found):
        console.print(f"- {line}", markup=False, highlight=False)


def _notes(outcome: "SuiteResults", found: "FunctionalTestResults") -> Iterator[str]:
    from vigil.workflows.functional_tests import EMPTY_ITEMS_FACT, IGNORED_COLUMNS_FACT, UNKNOWN_LABELS_FACT

    if found.unit is not None:
        yield f"intervals resample items of one {found.unit} together"
    for name, fact in outcome.facts.items():
        if name in (EMPTY_ITEMS_FACT, UNKNOWN_LABELS_FACT, IGNORED_COLUMNS_FACT) or (name == "undecodable" and fact != "0"):
            yield f"{name}: {fact}"


def _share(share: "Proportion") -> str:
    if share.value is None:
        return "-" if not share.count else f"- ({share.count})"
    if share.interval is None:
        return f"{share.value:.1%}"
    return f"{share.value:.1%} ({share.interval.low:.1%}-{share.interval.high:.1%})"

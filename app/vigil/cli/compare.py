"""`vigil compare`: may a challenger replace the champion? A gate for CI and for releases."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from vigil_evaluation.comparison.results import Comparison, ComparisonCell, ReleaseGate

SHOWN = 20
"""The most rows of one table."""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("compare")(compare)


def compare(
    champion: Annotated[Path, typer.Argument(metavar="CHAMPION", help="What is in use: a run, a bundle, or a table of scores.")],
    challenger: Annotated[Path, typer.Argument(metavar="CHALLENGER", help="What is to replace it, likewise.")],
    *,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DATASET", help="What runs and bundles predict; the challenger's dataset if not given."),
    ] = None,
    split: Annotated[str, typer.Option(help="Which of its splits.")] = "test",
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write comparison.json, comparison.html and flips.parquet there.")
    ] = None,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(metavar="X", help="The loss that is accepted: 0.01, and METRIC=X for one metric alone."),
    ] = None,
    require: Annotated[
        str, typer.Option(help="no-regression: nothing is shown to be worse; non-inferiority: all is shown not to be.")
    ] = "no-regression",
    metrics: Annotated[str | None, typer.Option(metavar="A,B", help="Which; those of docs/compare.md if not given.")] = None,
    slices: Annotated[
        str | None, typer.Option(metavar="A,B", help="Columns to compare by; presence always is, and the recipe's if not given.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="What is resampled together; author, where there is one.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="Largest chance that a challenger that is nowhere worse fails.")] = 0.05,
    confidence: Annotated[float | None, typer.Option(help="Of each interval; 0.95 if not given.")] = None,
    replicates: Annotated[int | None, typer.Option(help="Bootstrap replicates; 1000 if not given.")] = None,
    enough: Annotated[int | None, typer.Option(help="Fewest known positives, and negatives, that are compared; 5.")] = None,
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="YAML of the keys under a recipe's `evaluation`.")
    ] = None,
    common: Annotated[bool, typer.Option("--common", help="Compare the items that both have, if they differ.")] = False,
    champion_threshold: Annotated[
        list[str] | None, typer.Option(metavar="LABEL=P", help="Where a table's label is flagged; 0.5 if not given.")
    ] = None,
    challenger_threshold: Annotated[list[str] | None, typer.Option(metavar="LABEL=P", help="Likewise.")] = None,
) -> None:
    """Compare two models on the same items, in every metric, label and slice; exit with 1 if the challenger is a regression.

    A difference counts if it is larger than what chance brings among so many comparisons. docs/compare.md says how.
    """
    from vigil.cli.evaluate import evaluation_settings, parse_thresholds

    gate = _gate(tolerance or [], require, metrics, slices, alpha)
    cuts = tuple(parse_thresholds(given or []) for given in (champion_threshold, challenger_threshold))

    from vigil.workflows.release_gate import ComparisonRequest, compare_sources, raise_on_regression, spec_of, write_comparison

    asked: dict[str, Any] = {"cluster": cluster, "confidence": confidence, "replicates": replicates, "enough": enough}
    own = spec_of(challenger, champion) if settings is None else None
    spec = evaluation_settings(own, settings, asked)
    if slices is not None:
        spec = spec.model_copy(update={"slices": (), "crosses": ()})
    with progress("comparing") as (advance, say):
        question = ComparisonRequest(champion, challenger, data, split, common, (cuts[0], cuts[1]))
        found, flips = compare_sources(question, spec, gate, progress=advance, say=say)
    if to is not None:
        write_comparison(found, flips, to)
    show(found)
    if to is not None:
        typer.echo(f"report: {to / 'comparison.html'}")
    raise_on_regression(found)


@contextmanager
def progress(what: str) -> Iterator[tuple[Callable[[int, int], None], Callable[[str], None]]]:
    """A bar on stderr that leaves nothing behind: functions that move it and that say what is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield (
            lambda done, total: bar.update(task, completed=done, total=total),
            lambda text: bar.update(task, description=text, completed=0, total=None),
        )


def show(found: "Comparison") -> None:
    """Print the verdict, what regressed, what improved, what was left out, and the flipped decisions."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # A table that is piped is not cut to 80 columns.
    console = Console() if Console().is_terminal else Console(width=160)
    console.print(Text("pass" if found.passed else "fail", style="bold green" if found.passed else "bold red"), end="  ")
    console.print(f"{found.challenger.name} against {found.champion.name}", markup=False, highlight=False)
    for line in _facts(found):
        console.print(f"- {line}", markup=False, highlight=False)
    _list(console, "worse by more than the tolerance", found.of("regression"), "p_worse")
    _list(console, "a loss of more than the tolerance is not excluded", found.of("not shown"), None)
    _list(console, "better", found.of("improvement"), "p_better")
    table = Table("label", title="flipped decisions", title_justify="left")
    for head in ("items", "newly flagged", "right to wrong", "wrong to right", "target unknown", "McNemar p"):
        table.add_column(head, justify="right")
    for label, n in found.flips.labels.items():
        counts = (n.items, n.flagged, n.right_to_wrong, n.wrong_to_right, n.unknown)
        table.add_row(Text(label), *map(str, counts), "-" if n.p_value is None else f"{n.p_value:.2g}")
    console.print(table)
    if (actions := found.flips.actions) is not None:
        moved = ", ".join(f"{change.champion} to {change.challenger} {change.items}" for change in actions.changes[:SHOWN])
        console.print(f"- {actions.changed} items get another action: {moved or 'none'}", markup=False, highlight=False)


def _gate(tolerance: Sequence[str], require: str, metrics: str | None, slices: str | None, alpha: float) -> "ReleaseGate":
    """What must hold, from the command line."""
    from vigil_data.errors import UserError
    from vigil_evaluation.comparison.results import GATED_METRICS, ReleaseGate

    tolerances: dict[str, float] = {}
    for text in tolerance:
        metric, equals, value = text.rpartition("=")
        try:
            tolerances[metric if equals else ""] = float(value)
        except ValueError:
            raise UserError(f"--tolerance {text}: write a number such as 0.01, or METRIC=X such as recall=0.02") from None
    if require not in ("no-regression", "non-inferiority"):
        raise UserError(f"--require {require}: write no-regression or non-inferiority")
    gate = ReleaseGate(
        metrics=GATED_METRICS if metrics is None else _names(metrics),
        tolerance=tolerances.pop("", 0.01),
        tolerances=tolerances,
        alpha=alpha,
        require=require,  # type: ignore[arg-type]
        slices=_names(slices or ""),
    )
    gate.check()
    return gate


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _facts(found: "Comparison") -> Iterator[str]:
    """What was compared, and what was left out."""
    how, missing = found.alignment, found.of("not comparable")
    units = f" of {found.units} {found.cluster}s, which are resampled together" if found.cluster else ""
    yield f"{how.items} items{units}; {found.compared} comparisons, of which {found.tested} with any difference"
    tolerances = ", ".join(f"{metric} {value:g}" for metric, value in found.tolerance.items())
    yield f"accepted loss: {tolerances}; at most {found.alpha:.3g} of challengers that lose no more anywhere fail by chance"
    if how.only_champion or how.only_challenger:
        yield f"left out: {how.only_champion} items of the champion alone, {how.only_challenger} of the challenger alone"
    for side, labels in (("champion", how.labels_only_champion), ("challenger", how.labels_only_challenger)):
        if labels:
            yield f"left out: labels of the {side} alone: {', '.join(labels)}"
    for label, count in how.targets_of_one.items():
        yield f"left out: {count} targets of {label} that only one of the two knows"
    for column, count in how.columns_that_differ.items():
        yield f"{count} items differ in the column {column}; the champion's is taken"
    if found.absent_slices:
        yield f"left out: no column {', '.join(found.absent_slices)}"
    if missing:
        groups = list(dict.fromkeys(f"{cell.label or 'mean over labels'} in {cell.where}" for cell in missing))
        rest = f" and {len(groups) - 5} more" if len(groups) > 5 else ""
        yield f"not comparable: {len(missing)} (too few known targets, or not defined), of {'; '.join(groups[:5])}{rest}"


def _list(console: "Console", title: str, cells: "Sequence[ComparisonCell]", p_value: str | None) -> None:
    from rich.table import Table
    from rich.text import Text

    if not cells:
        return
    table = Table("metric", "label", "items", title=f"{title}: {len(cells)}", title_justify="left")
    for head in ("positive", "known", "champion", "challenger", "change", "interval", *(["corrected p"] if p_value else [])):
        table.add_column(head, justify="right")
    for cell in cells[:SHOWN]:
        interval = "-" if cell.interval is None else f"{cell.interval.low:+.3f} to {cell.interval.high:+.3f}"
        table.add_row(
            cell.metric,
            Text(cell.label or "mean over labels"),
            Text(cell.where),
            str(cell.positive),
            str(cell.known),
            *(f"{value:.3f}" for value in (cell.champion, cell.challenger)),
            f"{cell.delta:+.3f}",
            interval,
            *([f"{getattr(cell, p_value):.2g}"] if p_value else []),
        )
    console.print(table)
    if len(cells) > SHOWN:
        console.print(f"  … and {len(cells) - SHOWN} more", highlight=False)

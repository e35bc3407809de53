"""`vigil compare`: compare a challenger with the champion; a gate for CI and releases."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from vigil_evaluation.comparison.results import Comparison, ComparisonCell, ReleaseGate

MAX_ROWS = 20
"""Most rows of a printed table."""


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("compare")(compare)


def compare(
    champion: Annotated[
        Path, typer.Argument(metavar="CHAMPION", help="The model in use: a run, a bundle, or a Parquet table of scores.")
    ],
    challenger: Annotated[Path, typer.Argument(metavar="CHALLENGER", help="The candidate, of the same kinds.")],
    *,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DATASET", help="Dataset that runs and bundles predict (default: the challenger's)."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "test",
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write comparison.json, comparison.html and flips.parquet there.")
    ] = None,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(metavar="X", help="Accepted loss, such as 0.01, or METRIC=X for one metric (default: 0.01)."),
    ] = None,
    require: Annotated[
        str,
        typer.Option(help="no-regression: no cell is shown to be worse; non-inferiority: every cell is shown not to be worse."),
    ] = "no-regression",
    metrics: Annotated[str | None, typer.Option(metavar="A,B", help="Metrics (default: see docs/compare.md).")] = None,
    slices: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Columns to slice by, in addition to presence (default: the recipe's)."),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of the units that are resampled together (default: author, if present)."),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Largest probability that a challenger that is nowhere worse fails.")] = 0.05,
    confidence: Annotated[float | None, typer.Option(help="Confidence of each interval (default: 0.95).")] = None,
    replicates: Annotated[int | None, typer.Option(help="Bootstrap replicates (default: 1000).")] = None,
    enough: Annotated[
        int | None, typer.Option(help="Fewest known positives, and negatives, of a compared cell (default: 5).")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="YAML with the keys of a recipe's `evaluation` block.")
    ] = None,
    common: Annotated[bool, typer.Option("--common", help="Compare the common items, if the items differ.")] = False,
    champion_threshold: Annotated[
        list[str] | None, typer.Option(metavar="LABEL=P", help="Threshold of a label in the champion's table (default: 0.5).")
    ] = None,
    challenger_threshold: Annotated[
        list[str] | None, typer.Option(metavar="LABEL=P", help="Threshold of a label in the challenger's table (default: 0.5).")
    ] = None,
    champion_calibrate_on: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The champion's scores of other, labelled items, to calibrate its table and choose thresholds on.",
        ),
    ] = None,
    challenger_calibrate_on: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The challenger's scores of such items, for its table.")
    ] = None,
) -> None:
    """Compare two models on the same items, in every metric, label and slice; exit with 1 if the challenger is a regression.

    Differences are tested with a correction for the number of comparisons; see docs/compare.md.
    """
    from vigil.cli.evaluate import evaluation_settings, parse_thresholds

    gate = _gate(tolerance or [], require, metrics, slices, alpha)
    cuts = tuple(parse_thresholds(given or []) for given in (champion_threshold, challenger_threshold))

    from vigil.workflows.release_gate import compare_sources, raise_on_regression, spec_of, write_comparison
    from vigil_data.progress import Progress
    from vigil_evaluation.predictions import read_predictions

    others = tuple(None if file is None else read_predictions(file) for file in (champion_calibrate_on, challenger_calibrate_on))
    asked: dict[str, Any] = {"cluster": cluster, "confidence": confidence, "replicates": replicates, "enough": enough}
    own = spec_of(challenger, champion) if settings is None else None
    spec = evaluation_settings(own, settings, asked)
    if slices is not None:
        spec = spec.model_copy(update={"slices": (), "crosses": ()})
    with Progress("comparing") as progress:
        found, flips = compare_sources(
            *(champion, challenger, spec, gate),
            data=data,
            split=split,
            common=common,
            thresholds=(cuts[0], cuts[1]),
            calibrate_on=(others[0], others[1]),
            progress=progress,
        )
    if to is not None:
        write_comparison(found, flips, to)
    show(found)
    if to is not None:
        typer.echo(f"report: {to / 'comparison.html'}")
    raise_on_regression(found)


def show(found: "Comparison") -> None:
    """Print the verdict, regressions, improvements, exclusions, and the flipped decisions."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Piped tables are not cut to 80 columns.
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
        moved = ", ".join(f"{change.champion} to {change.challenger} {change.items}" for change in actions.changes[:MAX_ROWS])
        console.print(f"- {actions.changed} items get another action: {moved or 'none'}", markup=False, highlight=False)


def _gate(tolerance: Sequence[str], require: str, metrics: str | None, slices: str | None, alpha: float) -> "ReleaseGate":
    """Return the gate that the options describe."""
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
    """Yield what was compared, and what was excluded."""
    how, missing = found.alignment, found.of("not comparable")
    units = f" in {found.units} units by {found.cluster}, resampled together" if found.cluster else ""
    yield f"{how.items} items{units}; {found.compared} comparisons, {found.tested} with any difference"
    if found.weighted:
        of = f" of the {how.weights_of_one}, which are taken for both" if how.weights_of_one else ""
        yield f"items are weighted by the sampling columns{of}; numbers of items, targets and flips are not weighted"
    tolerances = ", ".join(f"{metric} {value:g}" for metric, value in found.tolerance.items())
    yield f"accepted loss: {tolerances}; a challenger that loses no more anywhere fails with probability <= {found.alpha:.3g}"
    if how.only_champion or how.only_challenger:
        yield f"excluded: {how.only_champion} items of the champion only, {how.only_challenger} of the challenger only"
    for side, labels in (("champion", how.labels_only_champion), ("challenger", how.labels_only_challenger)):
        if labels:
            yield f"excluded: labels of the {side} only: {', '.join(labels)}"
    for label, count in how.targets_of_one.items():
        yield f"excluded: {count} targets of {label} that are known for only one of the two"
    for column, count in how.columns_that_differ.items():
        yield f"{count} items differ in the column {column}; the champion's value is used"
    if found.absent_slices:
        yield f"excluded: no column {', '.join(found.absent_slices)}"

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
    for cell in cells[:MAX_ROWS]:
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
    if len(cells) > MAX_ROWS:
        console.print(f"  … and {len(cells) - MAX_ROWS} more", highlight=False)

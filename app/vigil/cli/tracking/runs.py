"""`vigil runs`: runs as their folders show them: a list, differences, and a page with curves."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

if TYPE_CHECKING:
    from vigil_training.overview.differences import MetricRow, Row, RunDifferences
    from vigil_training.overview.metrics import Metric
    from vigil_training.overview.summary import RunSummary

MAX_VALUE_WIDTH = 60
"""Characters of a value in a table of differences."""

_LIST = "list"


class _ListByDefault(typer.core.TyperGroup):
    """A group whose command `list` runs where no command is named: `vigil runs DIR --sort best`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in {*self.commands, "-h", "--help"}:
            args = [_LIST, *args]
        return super().parse_args(ctx, args)


def register(app: typer.Typer) -> None:
    """Add the command group to ``app``."""
    group = typer.Typer(
        cls=_ListByDefault,
        no_args_is_help=False,
        help="List runs, show how they differ, and draw their curves, from local files alone. Without a command: list.",
    )
    group.command(_LIST)(list_runs)
    group.command("diff")(diff)
    group.command("board")(board)
    app.add_typer(group, name="runs")


Folders = Annotated[
    list[Path] | None, typer.Argument(help="Folders that hold runs, at any depth (default: runs and sweeps).", metavar="DIR")
]
Where = Annotated[
    str | None, typer.Option(metavar="SQL", help="Only runs that meet a condition, such as 'macro_ap > .8 and state = finished'.")
]


def list_runs(
    folders: Folders = None,
    *,
    where: Where = None,
    sort: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Sort by this column, the best or largest first (default: newest first).")
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="Turn the order round.")] = False,
    columns: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Columns to print; +A,B adds to the usual ones; help lists all.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Print the first N runs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List runs with state, step, best value, test metrics, data and code.

    Columns are run, state, reason, step, epoch, loss, monitor, best, best_step, split, macro_ap, macro_auroc, dataset, version,
    digest, commit, dirty, host, run_id, name, group, started and duration (seconds); recipe keys such as optimizer.lr; metrics
    such as train/loss (the last value); and evaluations such as evaluation/test/macro/f1 and evaluation/test/auroc/spam.

    A run is running while its process lives, stale without a sign of life for half an hour on another machine, and new before
    its first start.
    """
    from vigil_training.overview.selection import check_columns, select

    if columns == "help":
        _print_columns(_read(folders))
        return
    runs = _read(folders)
    chosen = select(runs, where=where, sort=sort, reverse=reverse)[:limit]
    named = [] if columns is None else [name.strip() for name in columns.removeprefix("+").split(",") if name.strip()]
    check_columns(runs, named, "--columns")
    if as_json:
        _print_json([_as_json(run, named if columns and not columns.startswith("+") else []) for run in chosen])
        return
    if not runs:
        where_ = " or ".join(map(str, folders)) if folders else "runs or sweeps"
        typer.echo(f"no runs in {where_}; `vigil train RECIPE` makes one")
        return
    if not chosen:
        typer.echo(f"none of {len(runs)} runs meets the condition")
        return
    _print_runs(chosen, named, usual=columns is None or columns.startswith("+"))


def diff(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, two or more.", metavar="RUN RUN…")],
    *,
    labels: Annotated[bool, typer.Option("--labels", help="Also compare the metrics of each label.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Show how runs differ: recipe keys, dataset versions, code, environment, and metrics on the same split.

    Intervals are those of each run alone; whether a difference is more than chance is what `vigil compare` tests.
    """
    from dataclasses import asdict

    from vigil_data.errors import UserError
    from vigil_data.progress import Progress
    from vigil_training.overview.differences import compare_runs
    from vigil_training.overview.summary import read_summary
    from vigil_training.runs.run import Run

    if len(folders) < 2:
        raise UserError("vigil runs diff: name two runs or more")
    runs = [read_summary(Run(folder).path) for folder in folders]
    with Progress("comparing versions of the dataset", unit="columns") as progress:
        found = compare_runs(runs, labels=labels, progress=progress)
    if as_json:
        _print_json(asdict(found))
    else:
        _print_differences(found)


def board(
    folders: Folders = None,
    *,
    to: Annotated[Path, typer.Option(metavar="FILE.html", help="Write the page there.")] = Path("board.html"),
    where: Where = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Also draw these metrics, such as 'validation/ap/*'. Can be repeated."),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Write the page again and again, until Ctrl-C; it reloads itself.")
    ] = False,
    every: Annotated[float, typer.Option(min=1.0, metavar="SECONDS", help="Time between two writings.")] = 10.0,
) -> None:
    """Draw the curves of runs, and a table to sort and filter them by, on one self-contained page.

    With --watch the page follows trainings that run: it reloads itself and keeps its filter, order and scroll position.
    """
    from vigil_data.filesystem import make_folder
    from vigil_data.progress import Progress
    from vigil_training.overview.board import BoardReader, write_board
    from vigil_training.overview.selection import select

    chosen = _folders(folders)
    make_folder(to.parent)
    reader = BoardReader(chosen, metrics or ())

    def write(refresh_seconds: float, progress: Any = None) -> int:
        kept = select(reader.read(progress), where=where)
        title = ", ".join(map(str, folders or chosen))
        write_board(kept, reader.curves(kept), to, title=title, refresh_seconds=refresh_seconds)
        return len(kept)

    with Progress("reading runs", unit="runs") as progress:
        number = write(every if watch else 0.0, progress)
    typer.echo(f"{to}: {number} run{'s' * (number != 1)}")
    if not watch:
        return
    typer.echo(f"writing it every {every:g} s; Ctrl-C ends")
    try:
        while True:
            time.sleep(every)
            write(every)
    except KeyboardInterrupt:
        write(0.0)  # The page stops reloading itself.
        raise


def _folders(folders: Sequence[Path] | None) -> list[Path]:
    """Return the folders to search; of the usual ones those that exist."""
    from vigil_training.overview.summary import DEFAULT_FOLDERS

    return list(folders) if folders else [Path(name) for name in DEFAULT_FOLDERS if Path(name).is_dir()]


def _read(folders: Sequence[Path] | None) -> "list[RunSummary]":
    from vigil_data.progress import Progress
    from vigil_training.overview.summary import read_all

    with Progress("reading runs", unit="runs") as progress:
        return read_all(_folders(folders), progress)


def _print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=2, default=str))


def _as_json(run: "RunSummary", columns: Sequence[str]) -> dict[str, Any]:
    from vigil_training.overview.summary import COLUMNS

    values = {name: run.value(name) for name in columns or COLUMNS}
    if columns:
        return values
    macro = {of.name: {name: metric.value for name, metric in of.macro.items()} for of in run.evaluations}
    return {**values, "metrics": run.last, "evaluations": macro, "recipe": run.recipe}


def _print_columns(runs: "Sequence[RunSummary]") -> None:
    from vigil_data.errors import one_line
    from vigil_training.overview.summary import COLUMNS

    further = sorted({name for run in runs for name in run.names()} - set(COLUMNS))
    typer.echo("\n".join(map(one_line, (*COLUMNS, *further))))


def _print_runs(runs: "Sequence[RunSummary]", further: Sequence[str], *, usual: bool) -> None:
    from vigil_training.overview.board import commit_text, dataset_text, duration_text

    rows = []
    for run in runs:
        own = []
        if usual:
            evaluation = run.evaluation
            own = [
                str(run.path),
                run.state.name,
                _number(run.value("step")),
                _score(run.value("best")),
                _score(run.value("macro_ap")),
                _score(run.value("macro_auroc")),
                "-" if evaluation is None else evaluation.name,
                dataset_text(run),
                commit_text(run),
                "-" if run.state.started is None else f"{run.state.started.astimezone():%Y-%m-%d %H:%M}",
                duration_text(run.state.seconds),
            ]
        rows.append([*own, *(_cell(run.value(name)) for name in further), *([_cut(run.state.reason, 80)] if usual else [])])
    header = [*(_HEADER if usual else ()), *further, *(["reason"] if usual else [])]
    _print_table(header, rows)
    monitors = sorted({run.monitor for run in runs if run.best is not None})
    if usual and monitors:
        typer.echo(f"best: of {', '.join(monitors)}")


_HEADER = ("run", "state", "step", "best", "macro_ap", "macro_auroc", "split", "data", "commit", "started", "duration")


def _print_differences(found: "RunDifferences") -> None:
    sections: list[tuple[str, Sequence[Row], Sequence[str]]] = [
        ("recipe", found.recipe, ()),
        ("data", found.dataset, found.dataset_changes),
        ("code", found.code, found.commits),
        ("environment", found.environment, ()),
        ("training", found.training, ()),
    ]
    names = [str(Path(run)) for run in found.runs]
    same = []
    for title, rows, lines in sections:
        if not rows and not lines:
            same += [title] if title not in found.not_recorded else []
            continue
        _print_table([title, *names], [[row.key, *(_cut(_cell(value), MAX_VALUE_WIDTH) for value in row.values)] for row in rows])
        for line in lines:
            typer.echo(line)
        typer.echo("")
    for split in dict.fromkeys(row.split for row in found.metrics):
        change = ["change"] if len(names) == 2 else []
        rows_ = [
            [row.metric, *([row.label or "mean"] if any(of.label for of in found.metrics) else []), *map(_interval, row.values)]
            + ([_change(row)] if change else [])
            for row in found.metrics
            if row.split == split
        ]
        label = ["label"] if any(of.label for of in found.metrics) else []
        _print_table([f"metrics on {split}", *label, *names, *change], rows_)
        typer.echo("")
    if found.metrics and not found.evaluated_alike:
        typer.echo("The evaluations are of different datasets or versions, so that their metrics are not of the same items.")
    if not found.metrics:
        typer.echo("metrics: no split on which two of them were evaluated; `vigil evaluate RUN` does")
    for what, titles in (("the same", same), ("not recorded", found.not_recorded)):
        if titles:
            typer.echo(f"{what}: {', '.join(titles)}")


def _interval(metric: "Metric | None") -> str:
    if metric is None or metric.value is None:
        return "-"
    if metric.interval is None:
        return f"{metric.value:.3f}"
    return f"{metric.value:.3f} ({metric.interval[0]:.3f} to {metric.interval[1]:.3f})"


def _change(row: "MetricRow") -> str:
    first, second = (None if value is None else value.value for value in row.values)
    return "-" if first is None or second is None else f"{second - first:+.3f}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | dict):
        import json

        return json.dumps(value)
    return str(value)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns at their full width, so that output piped into another command is not cut; numbers are on the right."""
    from vigil_data.errors import one_line

    lines = [[one_line(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numeric = [
        place > 0 and all(not row[place] or row[place][0] in "0123456789+-." for row in lines[1:]) for place in range(len(header))
    ]
    for row in lines:
        cells = [
            cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        typer.echo("  ".join(cells).rstrip())

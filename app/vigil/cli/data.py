"""`vigil data`: bring items into a dataset, look at one, and make the demonstration's."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from vigil_data.dataset.dataset import Dataset, Written
    from vigil_data.items import Item

To = Annotated[Path, typer.Option("--to", metavar="DATASET", help="Folder of the dataset.")]
Append = Annotated[bool, typer.Option("--append", help="Add to the dataset if it exists already.")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    from vigil_data.importers.public_datasets import SETS

    group = typer.Typer(help="Import, show and make datasets.", no_args_is_help=True)
    imports = typer.Typer(help="Bring items into a dataset.", no_args_is_help=True)
    imports.command("manifest")(import_manifest)
    for name, description in SETS.items():
        imports.command(name, help=f"Import {name}: {description.title}.")(_public_import(name))
    group.add_typer(imports, name="import")
    group.command("show")(show)
    group.command("demo")(demo)
    app.add_typer(group, name="data")


def import_manifest(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON Lines, CSV or Parquet.")],
    to: To,
    append: Append = False,
) -> None:
    """Import a manifest: a row for each item, with its texts, paths of its media and what is known of its labels.

    Columns: id; text; image and audio (a path or a list of paths, from the manifest's folder); target.LABEL (a number from 0
    to 1, empty where unknown); created_at, author, content_type, language, source, split; any other to slice by.

    All rows are checked first. Items whose media cannot be decoded go to quarantine.
    """
    from vigil_data.importers import manifest

    with _progress(f"checking {file.name}") as _:
        rows = manifest.check(file)
    _write(to, manifest.read(file), append, rows, {})


def _public_import(name: str) -> Callable[..., None]:
    def import_public(
        path: Annotated[Path, typer.Argument(metavar="PATH", help="The set's file, or the folder that holds its files.")],
        to: To,
        append: Append = False,
    ) -> None:
        from vigil_data.dataset.dataset import Dataset, exists
        from vigil_data.importers import public_datasets

        with _progress(f"reading {name}") as _:
            placed = public_datasets.placed(Dataset(to)) if append and exists(to) else {}
            imported = public_datasets.read(name, path, placed)
        _write(to, imported.items, append, len(imported.items), imported.left_out)

    return import_public


def show(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Folder of the dataset.")],
    version: Annotated[int | None, typer.Option(help="Which version; the newest if not given.")] = None,
) -> None:
    """Show what a dataset holds: splits, labels, modalities, refused items and versions."""
    from rich.console import Console

    from vigil_data.dataset.dataset import Dataset

    opened = Dataset(dataset, version)
    console = Console()
    console.print(f"{dataset} version {opened.version}: {len(opened):,} items", markup=False, highlight=False)
    console.print(f"columns to slice by: {', '.join(opened.columns)}", markup=False, highlight=False)
    _show_contents(opened)
    refused = opened.quarantine()
    if refused.num_rows:
        reasons = refused.group_by(["modality", "reason"]).aggregate([([], "count_all")]).sort_by([("count_all", "descending")])
        _print_table(
            ["quarantine", "reason", "items"], ([row["modality"], row["reason"], row["count_all"]] for row in reasons.to_pylist())
        )
    _print_table(
        ["version", "written", "items"],
        ([v["version"], f"{v['timestamp']:%Y-%m-%d %H:%M:%S}", v["rows"]] for v in opened.versions()),
    )


def demo(
    to: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the dataset to make.")],
    seed: Annotated[int, typer.Option(help="Of all that is random in it.")] = 0,
    items: Annotated[int | None, typer.Option(help="How many items; the demonstration's number if not given.")] = None,
) -> None:
    """Make the demonstration's dataset: posts, pictures and spoken clips about harmless subjects, with nothing downloaded."""
    from vigil_data.dataset.dataset import Dataset
    from vigil_data.demo import generate

    chosen: dict[str, Any] = {} if items is None else {"items": items}
    with _progress("starting") as bar:
        generate(to=to, seed=seed, progress=bar, **chosen)
    _show_contents(Dataset(to))


def _write(to: Path, items: "Iterable[Item]", append: bool, total: int, left_out: Mapping[str, int]) -> None:
    from vigil_data.dataset.dataset import Dataset, write

    with _progress("importing") as bar:
        written: Written = write(to, items, append=append, progress=lambda done: bar("importing", done, total))
    typer.echo(f"{to} version {written.version}: {written.kept} kept, {written.quarantined} quarantined")
    for reason, count in left_out.items():
        typer.echo(f"left out, {reason}: {count}")
    opened = Dataset(to, written.version)
    if written.quarantined:
        refused = opened.quarantine().slice(opened.quarantine().num_rows - written.quarantined).to_pylist()
        _print_table(
            ["quarantined", "medium", "reason"], ([r["id"], f"{r['modality']} {r['index']}", r["reason"]] for r in refused[:20])
        )
        if len(refused) > 20:
            typer.echo(f"… and {len(refused) - 20} more: vigil data show {to}")
    _show_contents(opened)


def _show_contents(dataset: "Dataset") -> None:
    """Print the items of each split, what is known of each label there, and which modalities items have."""
    from collections import Counter

    import numpy as np

    from vigil_data.items import MODALITIES, presence

    counts = dataset.splits()
    usual = [split for split in ("train", "validation", "test") if split in counts]
    splits = {split: counts[split] for split in [*usual, *(split for split in counts if split not in usual)]}
    row_splits = np.array([split or "" for split in dataset.table(["split"])["split"].to_pylist()], dtype=object)
    targets_NL = dataset.targets(dataset.labels)
    known_NL, positive_NL = ~np.isnan(targets_NL), targets_NL >= 0.5
    rows: list[Sequence[Any]] = [["items", *splits.values()]]
    for column, label in enumerate(dataset.labels):
        within = [row_splits == split for split in splits]
        rows.append([label, *(f"{positive_NL[w, column].sum():,} of {known_NL[w, column].sum():,}" for w in within)])
    _print_table(["positive of known", *(split or "(no split)" for split in splits)], rows)
    patterns = Counter(presence(np.array(MODALITIES)[has]) for has in dataset.facts() > 0)
    _print_table(["modalities", "items"], patterns.most_common())


def _print_table(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Print a table whose numbers are at the right; nothing in it is taken for markup, as ids and reasons are others' text."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    lines = [list(row) for row in rows]
    for place, title in enumerate(header):
        numeric = place > 0 and all(isinstance(line[place], int) or " of " in str(line[place]) for line in lines)
        table.add_column(Text(title), justify="right" if numeric else "left")
    for line in lines:
        table.add_row(*(Text(f"{value:,}" if isinstance(value, int) else str(value)) for value in line))
    console = Console()
    console.print()
    console.print(table)


@contextmanager
def _progress(task: str) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on the standard error stream that leaves nothing behind; call the value with task, done and total."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(task, total=None)
        yield lambda name, done, total: progress.update(bar, description=name, completed=done, total=total)

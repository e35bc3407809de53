"""`vigil data`: import items into a dataset, show one, and generate the demonstration's."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vigil_data.progress import Progress

if TYPE_CHECKING:
    from vigil_data.dataset.dataset import Dataset, Written
    from vigil_data.items import Item

To = Annotated[Path, typer.Option("--to", metavar="DATASET", help="The dataset's folder.")]
Append = Annotated[bool, typer.Option("--append", help="Append to the dataset if it exists.")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    from vigil_data.importers.public_datasets import SETS

    group = typer.Typer(help="Import, show and generate datasets.", no_args_is_help=True)
    imports = typer.Typer(help="Import items into a dataset.", no_args_is_help=True)
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
    """Import a manifest: one row per item, with its texts, the paths of its media and its known targets.

    Columns: id; text; image and audio (a path or a list of paths, relative to the manifest); target.LABEL (0 to 1, empty where
    unknown); created_at, author, content_type, language, source, split; and any others to slice by.

    All rows are checked before any is written. Items whose media cannot be decoded go to quarantine.
    """
    from vigil_data.importers import manifest

    with Progress(f"checking {file.name}", unit="rows"):
        rows = manifest.check(file)
    _write(to, manifest.read(file), append, rows, {})


def _public_import(name: str) -> Callable[..., None]:
    def import_public(
        path: Annotated[Path, typer.Argument(metavar="PATH", help="The data set's file, or the folder with its files.")],
        to: To,
        append: Append = False,
    ) -> None:
        from vigil_data.dataset.dataset import Dataset, exists
        from vigil_data.importers import public_datasets

        with Progress(f"reading {name}"):
            placed = public_datasets.placed(Dataset(to)) if append and exists(to) else {}
            imported = public_datasets.read(name, path, placed)
        _write(to, imported.items, append, len(imported.items), imported.skipped)

    return import_public


def show(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="The dataset's folder.")],
    version: Annotated[int | None, typer.Option(help="Version of the dataset (default: the newest).")] = None,
) -> None:
    """Show a dataset: splits, labels, modalities, quarantined items and versions."""
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
    to: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the new dataset.")],
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    items: Annotated[int | None, typer.Option(help="Number of items (default: 5,000).")] = None,
) -> None:
    """Generate the demonstration's dataset: posts, pictures and spoken clips about harmless subjects; nothing is downloaded."""
    from vigil_data.dataset.dataset import Dataset
    from vigil_data.demo import generate

    chosen: dict[str, Any] = {} if items is None else {"items": items}
    with Progress("planning") as progress:
        generate(to=to, seed=seed, progress=progress, **chosen)
    _show_contents(Dataset(to))


def _write(to: Path, items: "Iterable[Item]", append: bool, total: int, left_out: Mapping[str, int]) -> None:
    from vigil_data.dataset.dataset import Dataset, write

    with Progress("importing") as progress:
        written: Written = write(to, items, append=append, progress=lambda done: progress("importing", done, total))
    typer.echo(f"{to} version {written.version}: {written.kept} kept, {written.quarantined} quarantined")
    for reason, count in left_out.items():
        typer.echo(f"excluded, {reason}: {count}")
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
    """Print the items of each split, the known and positive targets of each label, and the modalities of the items."""
    from collections import Counter

    import numpy as np

    from vigil_data.presence import presence_patterns

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
    patterns = Counter(presence_patterns(dataset.facts() > 0))
    _print_table(["modalities", "items"], patterns.most_common())


def _print_table(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Print a table with numbers aligned right; markup is not interpreted, as ids and reasons are untrusted text."""
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

"""`vigil data`: import items into a dataset, show one, and generate those of the demonstration."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import typer.core

from vigil_data.errors import UserError, one_line
from vigil_data.progress import Progress

if TYPE_CHECKING:
    from vigil_data.dataset.dataset import Dataset, Written
    from vigil_data.dataset.leaks import Leaks
    from vigil_data.items import Item
    from vigil_data.loading.packing import Refusal

To = Annotated[Path, typer.Option("--to", metavar="DATASET", help="The dataset's folder.")]
Append = Annotated[bool, typer.Option("--append", help="Append to the dataset if it exists.")]

OnLeak = Literal["warn", "skip", "refuse"]  # as in vigil_data.dataset.leaks, which imports pyarrow
ContentType = Literal["post", "thread", "cover", "episode", "playlist"]  # as in vigil_data.demo, which imports Pillow
LeaksOption = Annotated[
    OnLeak,
    typer.Option(
        "--leaks", help="What to do with items whose content is in another split: warn, skip them, or refuse the import."
    ),
]


class _ImportGroup(typer.core.TyperGroup):
    """The kinds of imports; a file in place of a kind gets a hint."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands and ("/" in args[0] or Path(args[0]).suffix):
            raise UserError(f"name the kind before the file: vigil data import manifest {args[0]} --to DATASET")
        return super().resolve_command(ctx, args)


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    from vigil_data.importers.public_datasets import SETS

    group = typer.Typer(help="Import, show and generate datasets.", no_args_is_help=True)
    imports = typer.Typer(cls=_ImportGroup, help="Import items into a dataset.", no_args_is_help=True)
    imports.command("manifest")(import_manifest)
    for name, description in SETS.items():
        imports.command(name, help=f"Import {name}: {description.title}.")(_public_import(name))
    group.add_typer(imports, name="import")
    group.command("show")(show)
    group.command("cache")(cache)
    group.command("demo")(demo)
    app.add_typer(group, name="data")


def import_manifest(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON Lines, CSV or TSV, also as .gz or .zst, or Parquet.")],
    to: To,
    *,
    append: Append = False,
    leaks: LeaksOption = "warn",
    delimiter: Annotated[
        str | None, typer.Option(metavar="CHAR", help="Between cells of CSV, or tab (default: the one in the header of , ; tab).")
    ] = None,
    media_root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder that media paths are relative to and must not leave (default: FILE's)."),
    ] = None,
    allow_outside: Annotated[bool, typer.Option("--allow-outside", help="Open media outside that folder too.")] = False,
    max_line_mb: Annotated[float, typer.Option(min=0.001, help="Longest line of JSON Lines or record of CSV, in MB.")] = 16,
    max_field_mb: Annotated[float, typer.Option(min=0.001, help="Longest text or other value, in millions of characters.")] = 4,
    max_media_mb: Annotated[float, typer.Option(min=0.001, help="Largest image or audio file, in MB.")] = 256,
) -> None:
    """Import a manifest: one row per item, with its texts, the paths of its media and its known targets.

    Columns: id; text; image and audio (a path or a list of paths, relative to the manifest); target.LABEL (0 to 1, empty where
    unknown); created_at, author, content_type, language, source, split; inclusion_probability and weight if the labelled items
    are not a random sample; and any others to slice by.

    All rows are checked before any is written. Items whose media cannot be decoded, and items without content, go to quarantine.
    """
    from vigil_data.importers.bounded_lines import Limits
    from vigil_data.importers.manifest import Manifest

    manifest = Manifest(
        file,
        media_root=media_root,
        allow_outside=allow_outside,
        delimiter=_delimiter(delimiter),
        limits=Limits(*(round(limit * 1e6) for limit in (max_line_mb, max_field_mb, max_media_mb))),
    )
    with Progress(f"checking {file.name}", unit="rows"):
        rows = manifest.check()
    _write(to, manifest.items(), append=append, leaks=leaks, total=rows, positions=manifest.positions)


def _public_import(name: str) -> Callable[..., None]:
    def import_public(
        path: Annotated[Path, typer.Argument(metavar="PATH", help="The data set's file, or the folder with its files.")],
        to: To,
        *,
        append: Append = False,
        leaks: LeaksOption = "skip",
    ) -> None:
        from vigil_data.importers import public_datasets

        with Progress(f"reading {name}"):
            imported = public_datasets.read(name, path)
        _write(to, imported.items, append=append, leaks=leaks, total=len(imported.items), excluded=imported.skipped)

    return import_public


def _delimiter(given: str | None) -> str | None:
    if given is None or (len(given) == 1 and given not in '"\r\n'):
        return given
    if given in ("tab", "\\t"):
        return "\t"
    raise UserError(f"--delimiter {given!r}: must be one character, or tab")


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


def cache(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="The dataset's folder.")],
    clear: Annotated[bool, typer.Option("--clear", help="Delete the cache; runs that need it compute it again.")] = False,
) -> None:
    """Show the token cache: what runs with training.token_cache keep of their frozen encoders' work, next to the dataset."""
    from vigil_data.dataset.dataset import Dataset
    from vigil_data.dataset.token_cache import clear_token_cache, list_entries

    opened = Dataset(dataset)
    if clear:
        typer.echo(f"{dataset}: deleted {clear_token_cache(dataset) / 1e6:,.1f} MB of tokens")
        return
    entries = list_entries(dataset)
    if not entries:
        typer.echo(f"{dataset} has no token cache")
        return
    written = opened.written()
    _print_table(
        ["token cache", "encoder", "version", "files", "MB"],
        (
            [
                entry.path.name,
                entry.encoder,
                f"{version}" if written.get(version) == entry.key.get("written") else f"{version}, which no longer exists",
                len(entry.files),
                f"{entry.bytes / 1e6:,.1f}",
            ]
            for entry in entries
            for version in [entry.key.get("version", 0)]
        ),
    )


def demo(
    to: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the new dataset.")],
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    items: Annotated[
        int | None,
        typer.Option(
            min=10, help="Number of items (default: 5,000 posts, 4,000 threads or covers, 2,000 playlists, 400 episodes)."
        ),
    ] = None,
    content_type: Annotated[
        ContentType, typer.Option("--content-type", help="What the items are; docs/demo.md describes each.")
    ] = "post",
) -> None:
    """Generate a dataset about harmless subjects: texts, drawn pictures and spoken sentences; nothing is downloaded.

    post: short posts with pictures and spoken clips. thread: messages with the message that they answer, which decides half of
    them. cover: pictures with titles. episode: recordings with a transcript, a title and a cover. playlist: titles and a cover.
    """
    from vigil_data.dataset.dataset import Dataset
    from vigil_data.demo import generate

    with Progress("planning") as progress:
        generate(to=to, seed=seed, items=items, progress=progress, content_type=content_type)
    _show_contents(Dataset(to))


def _write(
    to: Path,
    items: "Iterable[Item | Refusal]",
    *,
    append: bool,
    leaks: OnLeak,
    total: int,
    excluded: Mapping[str, int] | None = None,
    positions: Callable[[Collection[str]], Mapping[str, str]] = lambda _: {},
) -> None:
    """Store items and print what was stored; ``positions`` finds the rows of ids in the imported file."""
    from vigil_data.dataset.dataset import Dataset, write
    from vigil_data.dataset.leaks import LeakError

    try:
        with Progress("importing") as progress:
            written: Written = write(
                to, items, append=append, on_leak=leaks, progress=lambda done: progress("importing", done, total)
            )
    except LeakError as error:
        hint = "nothing is imported; leave such items out with --leaks skip, or import them with --leaks warn"
        raise UserError(*_leak_lines(error.leaks, positions), hint) from None
    typer.echo(f"{to} version {written.version}: {written.kept} kept, {written.quarantined} quarantined")
    for reason, count in (excluded or {}).items():
        typer.echo(f"excluded, {reason}: {count}")
    if written.skipped:
        typer.echo(f"excluded, the same content is in another split: {written.skipped}")
    if written.released:
        typer.echo(f"removed from quarantine, as they are stored now: {written.released}")
    _warn(written, leaks, positions)
    opened = Dataset(to, written.version)
    if written.quarantined:
        refused = opened.quarantine().slice(opened.quarantine().num_rows - written.quarantined).to_pylist()
        _print_table(
            ["quarantined", "medium", "reason"], ([r["id"], f"{r['modality']} {r['index']}", r["reason"]] for r in refused[:20])
        )
        if len(refused) > 20:
            typer.echo(f"… and {len(refused) - 20} more: vigil data show {to}")
    _show_contents(opened)


def _warn(written: "Written", on_leak: OnLeak, positions: Callable[[Collection[str]], Mapping[str, str]]) -> None:
    """Print what was stored otherwise than it was given, and leaks."""
    lines = []
    if count := len(written.replaced):
        shown = written.replaced[:5]
        places = positions(shown)
        named = ", ".join(f"{id_} ({places[id_]})" if id_ in places else id_ for id_ in shown)
        what = f"{count:,} {'item' if count == 1 else 'items'} with half a character (a lone surrogate), stored as U+FFFD"
        lines.append(f"{what}: {named}{', …' if count > len(shown) else ''}")
    # Of content that was left out, only opposite labels are news; what items share in part is in the dataset.
    left_out = on_leak == "skip" and not written.leaks.opposite
    lines += _leak_lines(replace(written.leaks, contents=0, items=0, examples=()) if left_out else written.leaks, positions)
    if written.leaks.contents and on_leak == "warn":
        lines.append("leave such items out with --leaks skip")
    for line in lines:
        typer.echo(f"warning: {one_line(line)}", err=True)


def _leak_lines(leaks: "Leaks", positions: Callable[[Collection[str]], Mapping[str, str]]) -> list[str]:
    from vigil_data.dataset.leaks import leak_lines

    return leak_lines(leaks, positions({id_ for example in leaks.examples for id_, _ in (example.kept, example.other)}))


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
        table.add_row(*(Text(f"{value:,}" if isinstance(value, int) else one_line(str(value))) for value in line))
    console = Console() if Console().is_terminal else Console(width=160)  # piped tables are not cut to 80 columns
    console.print()
    console.print(table)

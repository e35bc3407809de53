"""`vigil data import` and `sources`: manifests, and public datasets as pages of YAML describe them."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import typer.core

from vigil.cli.data.ray_option import Ray, cluster_at
from vigil.cli.data.show import show_contents
from vigil.cli.data.tables import print_table
from vigil_data.errors import UserError, one_line
from vigil_data.progress import Progress

if TYPE_CHECKING:
    from vigil_data.dataset.dataset import Written
    from vigil_data.dataset.leaks import Leaks
    from vigil_data.importers.source_reader import SourceReader
    from vigil_data.importers.threads import Threads
    from vigil_data.items import Item
    from vigil_data.loading.packing import Refusal
    from vigil_data.quality.origin import Places

To = Annotated[Path, typer.Option("--to", metavar="DATASET", help="The dataset's folder.")]
Append = Annotated[bool, typer.Option("--append", help="Append to the dataset if it exists.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for `vigil data log`.")]

BadRows = Literal["fail", "quarantine"]  # as in vigil_data.dataset.ingest
OnLeak = Literal["warn", "skip", "refuse"]  # as in vigil_data.dataset.leaks, which imports pyarrow
LeaksOption = Annotated[
    OnLeak,
    typer.Option(
        "--leaks", help="What to do with items whose content is in another split: warn, skip them, or refuse the import."
    ),
]
MatchOption = Annotated[
    Path | None,
    typer.Option(
        "--match",
        metavar="FILE",
        help="List of known hashes (vigil data match): items on it are quarantined or flagged as it says.",
    ),
]
AllowErased = Annotated[
    bool, typer.Option("--allow-erased", help="Store items that were erased from the dataset, too (default: refuse them).")
]


class _ImportGroup(typer.core.TyperGroup):
    """Kinds of imports: ``manifest``, or else the name of a source; a file in place of a kind gets a hint."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        kind = args[0]
        if kind in self.commands:
            return super().resolve_command(ctx, args)
        if not kind.endswith((".yaml", ".yml")) and ("/" in kind or Path(kind).suffix):
            raise UserError(
                f"name the kind before the file: vigil data import manifest {one_line(kind)} --to DATASET (or a source, as in "
                "vigil data sources, in place of manifest)"
            )
        return SOURCE, self.commands[SOURCE], args

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        if not ctx.resilient_parsing:  # not a completion: the help has one line for all sources
            return names
        from vigil_data.importers.source_schema import shipped_sources

        return [name for name in names if name != SOURCE] + shipped_sources()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, cmd_name) or (self.commands[SOURCE] if ctx.resilient_parsing else None)


SOURCE = "SOURCE"
"""Name of the command of all sources in the help."""


def register(group: typer.Typer) -> None:
    """Add the commands to ``group``."""
    imports = typer.Typer(
        cls=_ImportGroup,
        help="Import items into a dataset: from a manifest, or from a public dataset by the name of its source.",
        no_args_is_help=True,
    )
    imports.command("manifest")(import_manifest)
    imports.command(SOURCE)(import_source)
    group.add_typer(imports, name="import")
    group.command("sources")(sources)


def import_manifest(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON Lines, CSV or TSV, also as .gz or .zst, or Parquet.")],
    to: To,
    *,
    append: Append = False,
    reason: Reason = "",
    allow_erased: AllowErased = False,
    leaks: LeaksOption = "warn",
    match: MatchOption = None,
    ray: Ray = None,
    bad_rows: Annotated[
        BadRows,
        typer.Option(
            "--bad-rows", help="What to do with rows that have errors: fail with all of them, or put them in quarantine."
        ),
    ] = "fail",
    delimiter: Annotated[
        str | None, typer.Option(metavar="CHAR", help="Between cells of CSV, or tab (default: the one in the header of , ; tab).")
    ] = None,
    media_root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder that media paths are relative to and must not leave (default: FILE's)."),
    ] = None,
    allow_outside: Annotated[bool, typer.Option("--allow-outside", help="Open media outside that folder too.")] = False,
    context: Annotated[int, typer.Option(min=0, help="Ancestors of a reply (column parent_id) that become its context.")] = 3,
    context_characters: Annotated[int, typer.Option(min=1, help="Length to which the text of an ancestor is cut.")] = 2000,
    max_segment_seconds: Annotated[
        float, typer.Option(min=0, help="Merge the cues of a transcript up to this length; 0 keeps each.")
    ] = 30.0,
    speakers: Annotated[bool, typer.Option("--speakers", help="Write a transcript's speakers before what they say.")] = False,
    max_line_mb: Annotated[float, typer.Option(min=0.001, help="Longest line of JSON Lines or record of CSV, in MB.")] = 16,
    max_field_mb: Annotated[float, typer.Option(min=0.001, help="Longest text or other value, in millions of characters.")] = 4,
    max_media_mb: Annotated[float, typer.Option(min=0.001, help="Largest image or audio file, in MB.")] = 256,
) -> None:
    """Import a manifest: one row per item, with its texts, the paths of its media and its known targets.

    Columns: id; text; image, audio and transcript (a path or a list of paths, relative to the manifest); target.LABEL (0 to 1,
    empty where unknown); parent_id (the item that this one answers); created_at, author, content_type, language, source, split;
    inclusion_probability and weight if the labelled items are not a random sample; and any others to slice by.

    All rows are checked before any is written. Items whose media cannot be decoded, and items without content, go to quarantine;
    with --bad-rows quarantine so do rows with errors, each with its line, for `vigil data quarantine retry`.
    """
    from vigil_data.dataset.dataset import Dataset, exists
    from vigil_data.importers.bounded_lines import Limits
    from vigil_data.importers.manifest import DerivedTexts, Manifest

    manifest = Manifest(
        file,
        media_root=media_root,
        allow_outside=allow_outside,
        delimiter=delimiter_character(delimiter),
        limits=Limits(*(round(limit * 1e6) for limit in (max_line_mb, max_field_mb, max_media_mb))),
        bad_rows=bad_rows,
        derived=DerivedTexts(max_segment_seconds, speakers, context, context_characters),
        stored=Dataset(to) if append and exists(to) else None,
    )
    with Progress(f"checking {file.name}", unit="rows"):
        rows = manifest.check()
    _write(
        to,
        manifest.items(unread=True),
        append=append,
        reason=reason,
        allow_erased=allow_erased,
        leaks=leaks,
        total=rows,
        positions=manifest.positions,
        places=manifest.places,
        ray=ray,
        match=match,
        bad_rows=bad_rows,
    )
    if manifest.threads.replies:
        typer.echo(_thread_counts(manifest.threads))


def _thread_counts(threads: "Threads") -> str:
    """Return what is known of the replies of an import, as one line."""
    parts = [f"{threads.replies:,} {'reply' if threads.replies == 1 else 'replies'}"]
    if threads.missing:
        parts.append(f"{threads.missing:,} to a parent that is not there")
    if threads.cut:
        parts.append(f"{threads.cut:,} with a context that was cut")
    if threads.answered:
        parts.append(f"{threads.answered:,} stored earlier than the parent that they answer, with the context that they had")
    return "; ".join(parts)


def import_source(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="Name of a source (vigil data sources), or YAML file of a source or a collection."),
    ],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The dataset's file, or the folder with its files.")],
    to: To,
    *,
    append: Append = False,
    reason: Reason = "",
    allow_erased: AllowErased = False,
    leaks: LeaksOption = "skip",
    match: MatchOption = None,
    ray: Ray = None,
    taxonomy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Map the labels onto a taxonomy: safety, toxic_comments, or a file (default: the source's own labels).",
        ),
    ] = None,
    split_by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE:SPLIT",
            help="Put rows with this value into a split, such as fold=1:test; may be repeated; all others are train "
            "(default: the source's splits).",
        ),
    ] = None,
) -> None:
    """Import a public dataset as its authors publish it, or all datasets of a collection.

    PATH may also be a dataset of the library datasets: a folder of save_to_disk, or Parquet files.
    """
    from vigil.workflows.shipped_recipes import taxonomy_file
    from vigil_data.importers.collection import open_import

    readers = open_import(source, path, taxonomy_file, taxonomy=taxonomy, split_by=split_by or ())
    for reader in readers:
        if reader.has_media:  # media are opened only when all rows are known to be right
            with Progress(f"checking {reader.name}", unit="rows"):
                reader.check()
    _write(
        to,
        chain.from_iterable(reader.items(unread=True) for reader in readers),
        append=append,
        reason=reason,
        allow_erased=allow_erased,
        leaks=leaks,
        total=None,
        positions=lambda ids: dict(chain.from_iterable(reader.positions(ids).items() for reader in readers)),
        places=lambda ids: dict(chain.from_iterable(reader.places(ids).items() for reader in readers)),
        ray=ray,
        match=match,
        readers=readers,
    )


def sources(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print the page of this source.")] = None,
) -> None:
    """List the sources that come with Vigil, with their labels and licences; or print the page of one."""
    from vigil_data.importers.source_schema import load_source, shipped_sources, source_file

    if name is not None:
        typer.echo(source_file(name).read_text(encoding="utf-8"), nl=False)
        return
    for each in shipped_sources():
        page = load_source(each)
        typer.echo(f"{each}: {page.title}")
        typer.echo(f"    labels: {_labels(page.labels)}; licence: {page.licence}")
        typer.echo(f"    download: {page.download}; from {page.url}")


def _labels(labels: Sequence[str]) -> str:
    return ", ".join(labels) if len(labels) <= 6 else f"{', '.join(labels[:4])}, … ({len(labels)})"


def delimiter_character(given: str | None) -> str | None:
    """Return the delimiter that an option names."""
    if given is None or (len(given) == 1 and given not in '"\r\n'):
        return given
    if given in ("tab", "\\t"):
        return "\t"
    raise UserError(f"--delimiter {given!r}: must be one character, or tab")


def _write(
    to: Path,
    items: "Iterable[Item | Refusal]",
    *,
    append: bool,
    reason: str,
    allow_erased: bool,
    leaks: OnLeak,
    total: int | None,
    places: "Places",
    ray: str | None,
    match: Path | None = None,
    bad_rows: BadRows = "fail",
    readers: "Sequence[SourceReader]" = (),
    positions: Callable[[Collection[str]], Mapping[str, str]] = lambda _: {},
) -> None:
    """Store items and print what was stored; ``positions`` finds the rows of ids in the imported file."""
    from vigil_data.dataset.dataset import Dataset, write
    from vigil_data.dataset.history import Change
    from vigil_data.dataset.leaks import LeakError

    screen = None
    if match is not None:
        from vigil_data.quality.hash_lists import Screen, read_list

        screen = Screen(read_list(match))
    try:
        with cluster_at(ray) as cluster, Progress("importing") as progress:
            written: Written = write(
                to,
                items,
                append=append,
                change=Change("import", reason),
                allow_erased=allow_erased,
                on_leak=leaks,
                bad_rows=bad_rows,
                places=places,
                screen=screen,
                cluster=cluster,
                progress=lambda done: progress("importing", done, total),
            )
    except LeakError as error:
        hint = "nothing is imported; leave such items out with --leaks skip, or import them with --leaks warn"
        raise UserError(*_leak_lines(error.leaks, positions), hint) from None
    typer.echo(f"{to} version {written.version}: {written.kept} kept, {written.quarantined} quarantined")
    if match is not None:
        found = " and ".join(f"{written.screened.get(action, 0):,} {done}" for action, done in _MATCHED.items())
        typer.echo(f"on the list {match.name}: {found}")
    for reader in readers:
        for why, count in reader.excluded.items():
            typer.echo(f"excluded, {one_line(why)}: {count}" + (f" ({reader.name})" if len(readers) > 1 else ""))
    if written.skipped:
        typer.echo(f"excluded, the same content is in another split: {written.skipped}")
    for when, count in written.erased.items():
        typer.echo(f"refused, erased on {when}: {count} (for a lawful return: --allow-erased)")
    if written.released:
        typer.echo(f"removed from quarantine, as they are stored now: {written.released}")
    _warn(written, leaks, positions)
    opened = Dataset(to, written.version)
    if written.quarantined:
        refused = opened.quarantine().slice(opened.quarantine().num_rows - written.quarantined).to_pylist()
        print_table(
            ["quarantined", "medium", "reason"], ([r["id"], f"{r['modality']} {r['index']}", r["reason"]] for r in refused[:20])
        )
        if len(refused) > 20:
            typer.echo(f"… and {len(refused) - 20} more: vigil data quarantine list {to}")
    show_contents(opened)


_MATCHED = {"quarantine": "quarantined", "flag": "flagged (column matched_lists)"}


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

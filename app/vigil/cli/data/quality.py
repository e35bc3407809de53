"""`vigil data check`, and `vigil data quarantine`: what imports and checks refused, and what becomes of it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vigil.cli.data.importing import delimiter_character
from vigil.cli.data.ray_option import Ray, cluster_at
from vigil.cli.data.tables import print_table
from vigil_data.errors import UserError, one_line
from vigil_data.progress import Progress

if TYPE_CHECKING:
    from vigil_data.quality.checks.check import Report
    from vigil_data.quality.checks.media_pool import MediaLimits
    from vigil_data.settings import TextSettings

DatasetFolder = Annotated[Path, typer.Argument(metavar="DATASET", help="The dataset's folder.")]
Ids = Annotated[list[str] | None, typer.Option("--id", metavar="ID", help="Only this item; may be repeated.")]
OfModality = Annotated[
    str | None,
    typer.Option("--modality", metavar="NAME", help="Only text, image, audio, or row: rows that are wrong themselves."),
]
OfReason = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Only reasons that contain TEXT, in any case.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

MAX_PRINTED = 50
"""Rows of a table on the terminal; JSON has them all."""


Workers = Annotated[int | None, typer.Option(min=1, help="Processes that decode (default: one for each core).")]
MaxMedia = Annotated[float, typer.Option("--max-media-mb", min=0.001, help="Largest image or audio file, in MB.")]
MaxPixels = Annotated[float, typer.Option("--max-megapixels", min=0.001, help="Most pixels of an image, in millions.")]
MaxFrames = Annotated[int, typer.Option("--max-frames", min=1, help="Most frames of an animation.")]
MaxSeconds = Annotated[float, typer.Option("--max-seconds", min=0.001, help="Longest sound, in seconds.")]
MaxDecoding = Annotated[
    float, typer.Option("--max-decoding-seconds", min=0.1, help="Longest time that decoding a file may take.")
]
MaxMemory = Annotated[float, typer.Option("--max-decoding-mb", min=16, help="Most memory that decoding a file may take, in MB.")]


def register(group: typer.Typer) -> None:
    """Add the commands to ``group``."""
    group.command("check")(check)
    refused = typer.Typer(help="List, retry and drop quarantined items.", no_args_is_help=True)
    refused.command("list")(list_quarantine)
    refused.command("retry")(retry)
    refused.command("drop")(drop)
    group.add_typer(refused, name="quarantine")


def check(
    source: Annotated[Path, typer.Argument(metavar="DATASET|MANIFEST", help="A dataset's folder, or a manifest.")],
    *,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="FILE", help="Count the tokens that this recipe's tokenizer does not know.")
    ] = None,
    version: Annotated[int | None, typer.Option(help="Version of the dataset (default: the newest).")] = None,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Move the dataset's items with errors into quarantine, as a new version.")
    ] = False,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="With --quarantine: why; kept with the version.")] = "",
    as_json: AsJson = False,
    workers: Workers = None,
    ray: Ray = None,
    max_media_mb: MaxMedia = 256,
    max_megapixels: MaxPixels = 89.478485,
    max_frames: MaxFrames = 1000,
    max_seconds: MaxSeconds = 14_400,
    max_decoding_seconds: MaxDecoding = 10,
    max_decoding_mb: MaxMemory = 2048,
    media_root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Of a manifest: folder of its media (default: the manifest's).")
    ] = None,
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Of a manifest: open media outside that folder too.")
    ] = False,
    delimiter: Annotated[
        str | None, typer.Option(metavar="CHAR", help="Of a manifest: between cells of CSV, or tab (default: as in the header).")
    ] = None,
    max_line_mb: Annotated[float, typer.Option(min=0.001, help="Of a manifest: longest line or record, in MB.")] = 16,
    max_field_mb: Annotated[float, typer.Option(min=0.001, help="Of a manifest: longest value, in millions of characters.")] = 4,
) -> None:
    """Check a dataset or manifest: rows, ids, targets, labels, texts, and every image and sound, decoded completely.

    Errors are what an import refuses, and media that cannot be decoded within the limits; a file that makes the decoder crash or
    hang is one, and the check continues. Exit status 1 if there are errors; warnings do not count.
    """
    from vigil_data.dataset.dataset import Dataset, exists
    from vigil_data.importers.bounded_lines import Limits
    from vigil_data.importers.manifest import Manifest
    from vigil_data.quality.checks.check import check_dataset, check_manifest

    limits = _limits(
        media_mb=max_media_mb,
        megapixels=max_megapixels,
        decoding_mb=max_decoding_mb,
        frames=max_frames,
        seconds=max_seconds,
        decoding_seconds=max_decoding_seconds,
    )
    text = None if recipe is None else _text_input(recipe)
    is_dataset = exists(source) or source.is_dir()
    if quarantine and (not is_dataset or version is not None):
        raise UserError("--quarantine: only the newest version of a dataset has items to move")
    if ray is not None and workers is not None:
        raise UserError("--workers: processes of this machine; with --ray, the cluster's CPUs decode")
    with cluster_at(ray) as cluster, Progress("checking", unit="rows", enabled=not as_json) as progress:
        options: dict[str, Any] = {"limits": limits, "workers": workers, "cluster": cluster, "text": text, "progress": progress}
        if is_dataset:
            report = check_dataset(Dataset(source, version), **options)
        else:
            manifest = Manifest(
                source,
                media_root=media_root,
                allow_outside=allow_outside,
                delimiter=delimiter_character(delimiter),
                limits=Limits(round(max_line_mb * 1e6), round(max_field_mb * 1e6), limits.bytes),
                bad_rows="quarantine",
            )
            report = check_manifest(manifest, **options)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
    else:
        _print_report(report)
    left = report.findings.errors
    if quarantine and report.bad:
        from vigil_data.quality.checks.removal import move_to_quarantine

        moved = move_to_quarantine(source, report, reason=reason)
        typer.echo(f"{source} version {moved}: {len(report.bad):,} items moved into quarantine", err=as_json)
        left = 0
    if left:
        raise typer.Exit(1)


def _limits(*, media_mb: float, megapixels: float, decoding_mb: float, **others: Any) -> "MediaLimits":
    from vigil_data.quality.checks.media_pool import MediaLimits

    return MediaLimits(bytes=round(media_mb * 1e6), pixels=round(megapixels * 1e6), memory=round(decoding_mb * 1e6), **others)


def _text_input(recipe: Path) -> "TextSettings":
    from vigil_training.recipe.resolve import resolve_recipe

    text = resolve_recipe(recipe).recipe.inputs.text
    if text is None:
        raise UserError(f"--recipe {recipe}: its model reads no text, so it has no tokenizer")
    return text


def _print_report(report: "Report") -> None:
    from vigil_data.quality.checks.labels import split_name

    errors, warnings = report.findings.errors, report.findings.warnings
    version = "" if report.version is None else f" version {report.version}"
    typer.echo(f"{report.path}{version}: {report.rows:,} rows, {report.media:,} images and sounds decoded")
    if report.tokens:
        normalization = {"none": "none", "recipe": "the recipe's", "default": "default (not in the recipe)"}
        print_table(
            ["split", "normalization", "tokens", "unknown", "share", "texts", "commonest"],
            (
                [
                    split_name(share.split),
                    normalization[share.normalization],
                    share.tokens,
                    share.unknown,
                    f"{share.share:.2%}",
                    share.texts,
                    " ".join(f"{piece} {count:,}" for piece, count in share.commonest[:6]),
                ]
                for share in report.tokens
            ),
        )
    findings = list(report.findings)
    if findings:
        print_table(
            ["", "count", "kind", "what", "for example"],
            (
                [found.severity, found.count, found.kind, found.reason, "; ".join(found.places[:2])]
                for found in findings[:MAX_PRINTED]
            ),
        )
    if len(findings) > MAX_PRINTED:
        typer.echo(f"… and {len(findings) - MAX_PRINTED:,} more; --json prints them all")
    typer.echo(f"{errors:,} {'error' if errors == 1 else 'errors'}, {warnings:,} {'warning' if warnings == 1 else 'warnings'}")


def list_quarantine(
    dataset: DatasetFolder,
    *,
    ids: Ids = None,
    modality: OfModality = None,
    reason: OfReason = None,
    as_json: AsJson = False,
) -> None:
    """List the quarantined items: id, medium, reason, where they came from, and when."""
    table = _selected(dataset, ids, modality, reason)
    if as_json:
        typer.echo(json.dumps(table.to_pylist(), default=lambda moment: moment.isoformat(), indent=2))
        return
    if not table.num_rows:
        typer.echo(f"{dataset}: nothing is in quarantine" + (" that meets these conditions" if ids or modality or reason else ""))
        return
    print_table(["id", "medium", "reason", "source", "quarantined"], map(_cells, table.slice(0, MAX_PRINTED).to_pylist()))
    if table.num_rows > MAX_PRINTED:
        typer.echo(f"… and {table.num_rows - MAX_PRINTED:,} more; --json prints them all")


def retry(
    dataset: DatasetFolder,
    *,
    ids: Ids = None,
    modality: OfModality = None,
    reason: OfReason = None,
    max_media_mb: MaxMedia = 256,
    max_megapixels: MaxPixels = 89.478485,
    max_frames: MaxFrames = 1000,
    max_seconds: MaxSeconds = 14_400,
    max_decoding_seconds: MaxDecoding = 10,
    max_decoding_mb: MaxMemory = 2048,
) -> None:
    """Read the sources of quarantined items again, and store what is good now as one version.

    A row that was wrong itself is read at its line: correct it in place. Other items are found by their id. Items that a check
    took out of the dataset are read from their version and decoded again; the limits are for them. What is refused again has its
    new reason; what its source no longer has stays in quarantine.
    """
    from vigil_data.dataset.leaks import leak_lines
    from vigil_data.quality.retry import retry as read_again

    table = _selected(dataset, ids, modality, reason)
    if not table.num_rows:
        raise UserError(f"{dataset}: no quarantined item to retry; see `vigil data quarantine list {dataset}`")
    limits = _limits(
        media_mb=max_media_mb,
        megapixels=max_megapixels,
        decoding_mb=max_decoding_mb,
        frames=max_frames,
        seconds=max_seconds,
        decoding_seconds=max_decoding_seconds,
    )
    with Progress("reading again") as progress:
        result = read_again(dataset, table, limits=limits, progress=lambda done: progress("reading again", done, table.num_rows))
    typer.echo(
        f"{dataset} version {result.version}: {result.stored:,} of {table.num_rows:,} stored, {result.refused:,} refused again, "
        f"{len(result.absent):,} no longer in their source"
    )
    warnings = [f"{line}; nothing of it was retried" for line in result.unreadable]
    warnings += [f"no longer in its source: {name}" for name in result.absent[:20]]
    warnings += leak_lines(result.leaks)
    for line in warnings:
        typer.echo(f"warning: {one_line(line)}", err=True)


def drop(
    dataset: DatasetFolder,
    *,
    ids: Ids = None,
    modality: OfModality = None,
    reason: OfReason = None,
    everything: Annotated[bool, typer.Option("--all", help="Drop all quarantined items.")] = False,
) -> None:
    """Remove items from the quarantine; the dataset's items are not changed.

    Their rows can still be read in old versions of the quarantine table; `vigil data erase` removes those, too.
    """
    from vigil_data.quality import quarantine

    if not everything and not (ids or modality or reason):
        raise UserError("name what to drop: --id, --modality or --reason, or --all")
    opened = _opened(dataset)
    mask = quarantine.matching(opened, ids=ids or (), modality=modality, reason=reason)
    with Progress("removing"):
        removed = quarantine.remove(dataset, opened, mask)
    typer.echo(f"{dataset}: {removed:,} removed from quarantine, {opened.num_rows - removed:,} left")


def _opened(dataset: Path) -> Any:
    from vigil_data.dataset.dataset import Dataset

    return Dataset(dataset).quarantine()


def _selected(dataset: Path, ids: list[str] | None, modality: str | None, reason: str | None) -> Any:
    from vigil_data.quality import quarantine

    if modality is not None and modality not in ("text", "image", "audio", "row"):
        raise UserError(f"--modality {modality}: must be text, image, audio or row")
    table = _opened(dataset)
    return table.filter(quarantine.matching(table, ids=ids or (), modality=modality, reason=reason))


def _cells(row: dict[str, Any]) -> list[Any]:
    medium = row["modality"] if row["modality"] == "row" else f"{row['modality']} {row['index']}"
    source = Path(row["file"] or "").name + ("" if row["row"] is None else f":{row['row']}")  # JSON has the whole path
    return [row["id"], medium, row["reason"], source, f"{row['quarantined_at']:%Y-%m-%d %H:%M}"]

"""`vigil data duplicates`, `match`, `hashes`, `split` and `leaks`: content that is in a dataset more than once, or in another."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vigil.cli.data.tables import print_table
from vigil_data.errors import Failure, UserError, one_line
from vigil_data.items import MODALITIES, Modality
from vigil_data.progress import Progress

if TYPE_CHECKING:
    from vigil_data.quality.near.fingerprints import Thresholds

ImageHash = Literal["pdq", "phash"]  # as in vigil_data.quality.near.images, which imports numpy

DatasetFolder = Annotated[Path, typer.Argument(metavar="DATASET", help="The dataset's folder.")]
Modalities = Annotated[
    str, typer.Option("--modality", metavar="NAMES", help="Those that are compared, joined by commas: text, image, audio.")
]
TextThreshold = Annotated[
    float, typer.Option("--text-threshold", min=0.3, max=1, help="Least Jaccard index of two near-duplicate texts' shingles.")
]
ImageThreshold = Annotated[
    int | None,
    typer.Option(
        "--image-threshold", min=0, max=63, help="Most differing bits of two near-duplicate images (default: 47 of pdq, 8 of phash)."
    ),
]
AudioThreshold = Annotated[
    float, typer.Option("--audio-threshold", min=0, max=0.4, help="Largest share of differing bits of near-duplicate audio files.")
]
Hash = Annotated[
    ImageHash | None,
    typer.Option("--image-hash", help="Perceptual hash of images (default: pdq if the package pdqhash is installed, else phash)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(group: typer.Typer) -> None:
    """Add the commands to ``group``."""
    group.command("duplicates")(duplicates)


def duplicates(
    dataset: DatasetFolder,
    *,
    modality: Modalities = "text,image,audio",
    text_threshold: TextThreshold = 0.6,
    image_threshold: ImageThreshold = None,
    audio_threshold: AudioThreshold = 0.25,
    image_hash: Hash = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the report; do not write the column.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find near-duplicates, and write each item's cluster into the column `cluster` as a new version.

    Items are in one cluster if their texts, an image or an audio file of theirs are nearly equal, directly or through other items.
    Texts, images and audio with the role `context` do not count. Items that are like no other have no cluster.
    """
    from vigil_data.dataset.dataset import Dataset
    from vigil_data.quality import duplicates as near_duplicates

    opened = Dataset(dataset)
    limits = _thresholds(text_threshold, image_threshold, audio_threshold, image_hash)
    with Progress("fingerprints") as progress:
        found = near_duplicates.find_clusters(opened, _modalities(modality), limits, progress)
    version = opened.version if dry_run else near_duplicates.store(opened, found)
    described = near_duplicates.largest(opened, found)
    opposite = near_duplicates.opposite_labels(opened, found)
    if as_json:
        report = {
            "dataset": str(dataset),
            "version": version,
            "items": len(opened),
            "clusters": found.clusters,
            "in_clusters": found.items,
            "opposite_labels": len(opposite),
            "linked": dict(found.linked),
            "image_hash": limits.image_hash,
            "thresholds": {m: limits.of(m) for m in MODALITIES},
            "largest": described,
        }
        typer.echo(json.dumps(report, indent=2))
        return
    typer.echo(f"{found.items:,} of {len(opened):,} items are in {found.clusters:,} clusters of near-duplicates")
    linked = ", ".join(f"{m} {count:,}" for m, count in found.linked.items())
    hash_used = f" (images by {limits.image_hash})" if "image" in found.linked else ""
    typer.echo(f"items in clusters because of: {linked}{hash_used}")
    if opposite:
        typer.echo(f"OPPOSITE LABELS: a label is positive and negative within {len(opposite):,} clusters")
    if described:
        print_table(["items", "splits", "opposite labels", "for example"], map(_cluster_cells, described))
    typer.echo("nothing is written" if dry_run else f"{dataset} version {version}: column cluster")


def _cluster_cells(cluster: dict[str, Any]) -> list[str]:
    splits = ", ".join(f"{split or '(none)'} {count:,}" for split, count in cluster["splits"].items())
    shown = ", ".join(cluster["ids"][:3]) + (", …" if cluster["items"] > 3 else "")
    return [f"{cluster['items']:,}", splits, ", ".join(cluster["opposite"]), shown]


def _modalities(names: str) -> list[Modality]:
    chosen = [name.strip() for name in names.split(",")]
    if unknown := [name for name in chosen if name not in MODALITIES]:
        raise UserError(f"--modality {names}: {unknown[0]!r} must be one of {', '.join(MODALITIES)}")
    return [m for m in MODALITIES if m in chosen]


def _thresholds(text: float, image: int | None, audio: float, image_hash: ImageHash | None) -> "Thresholds":
    from vigil_data.quality.near.fingerprints import Thresholds

    return Thresholds.default(text, image, audio, image_hash)

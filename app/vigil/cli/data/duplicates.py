"""`vigil data duplicates`, `match`, `hashes`, `split` and `leaks`: content that is in a dataset more than once, or in another."""

import csv
import io
import json
import re
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vigil.cli.data.ray_option import Ray, cluster_at
from vigil.cli.data.tables import print_table
from vigil_data.errors import Failure, UserError, one_line
from vigil_data.items import MODALITIES, Modality
from vigil_data.progress import Progress
from vigil_data.quality.near import AUDIO_BIT_ERRORS, TEXT_JACCARD

if TYPE_CHECKING:
    from vigil_data.dataset.dataset import Dataset
    from vigil_data.quality.hash_lists import HashList
    from vigil_data.quality.near.fingerprints import Thresholds
    from vigil_data.quality.overlap import Overlap, Side
    from vigil_data.quality.split import Plan

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
        "--image-threshold",
        min=0,
        max=63,
        help="Most differing bits of near-duplicate images (default: 47 of pdq, 8 of phash).",
    ),
]
AudioThreshold = Annotated[
    float,
    typer.Option("--audio-threshold", min=0, max=0.4, help="Largest share of differing bits of near-duplicate audio files."),
]
Hash = Annotated[
    ImageHash | None,
    typer.Option(
        "--image-hash", help="Perceptual hash of images (default: pdq if the package pdqhash is installed, else phash)."
    ),
]
PdqDistance = Annotated[int, typer.Option("--pdq-distance", min=0, max=63, help="Most differing bits of a PDQ hash.")]
PhashDistance = Annotated[int, typer.Option("--phash-distance", min=0, max=15, help="Most differing bits of a pHash.")]
TextSimilarity = Annotated[
    float, typer.Option("--text-similarity", min=0.3, max=1, help="Least estimated Jaccard index of a text and a minhash.")
]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; kept with the new version.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

MAX_PRINTED = 50
"""Rows of a table on the terminal; JSON has them all."""


def register(group: typer.Typer) -> None:
    """Add the commands to ``group``."""
    group.command("duplicates")(duplicates)
    group.command("match")(match)
    group.command("hashes")(hashes)
    group.command("split")(split)
    group.command("leaks")(leaks)


def duplicates(
    dataset: DatasetFolder,
    *,
    modality: Modalities = "text,image,audio",
    text_threshold: TextThreshold = TEXT_JACCARD,
    image_threshold: ImageThreshold = None,
    audio_threshold: AudioThreshold = AUDIO_BIT_ERRORS,
    image_hash: Hash = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the report; do not write the column.")] = False,
    ray: Ray = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Find near-duplicates, and write each item's cluster into the column `cluster` as a new version.

    Items are in one cluster if their texts, an image or an audio file of theirs are nearly equal, directly or through other
    items. Texts, images and audio with the role `context` do not count. Items that are like no other have no cluster.
    """
    from vigil_data.dataset.dataset import Dataset
    from vigil_data.quality import duplicates as near_duplicates

    opened = Dataset(dataset)
    limits = _thresholds(text_threshold, image_threshold, audio_threshold, image_hash)
    modalities = _modalities(modality)
    with cluster_at(ray) as cluster, Progress("fingerprints") as progress:
        found = near_duplicates.find_clusters(opened, modalities, limits, cluster, progress)
    version = opened.version if dry_run else near_duplicates.store(opened, found, reason)
    opposite = near_duplicates.opposite_labels(opened, found)
    described = near_duplicates.largest(opened, found, opposite)
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


def match(
    dataset: DatasetFolder,
    hash_list: Annotated[Path, typer.Option("--list", metavar="FILE", help="CSV of known hashes: kind,value,list,action.")],
    *,
    pdq_distance: PdqDistance = 31,
    phash_distance: PhashDistance = 6,
    text_similarity: TextSimilarity = 0.7,
    apply: Annotated[
        bool,
        typer.Option("--apply", help="Quarantine and flag (column matched_lists) the items, as the list says; a new version."),
    ] = False,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Find items whose texts, images or audio files are on a list of known hashes; content is never printed.

    `vigil data import … --match FILE` quarantines or flags new items as the list says, and --apply does so with stored ones.
    """
    from vigil_data.dataset.dataset import Dataset
    from vigil_data.quality import hash_lists

    opened = Dataset(dataset)
    known = read_hash_list(hash_list, pdq_distance, phash_distance, text_similarity)
    with Progress("matching") as progress:
        found = hash_lists.match_dataset(opened, known, lambda done: progress("matching", done, len(opened)))
    version = hash_lists.apply_matches(opened, found, reason) if apply and found else opened.version
    if as_json:
        listed = [{"id": id_, **one._asdict()} for id_, of in found.items() for one in of]
        typer.echo(json.dumps({"dataset": str(dataset), "version": version, "items": len(found), "matches": listed}, indent=2))
        return
    typer.echo(f"{len(found):,} of {len(opened):,} items match {len(known):,} known hashes")
    if found:
        rows = [[id_, f"{one.modality} {one.place}", one.reason, one.action] for id_, of in found.items() for one in of]
        print_table(["id", "medium", "match", "the list's action"], rows[:MAX_PRINTED])
        if len(rows) > MAX_PRINTED:
            typer.echo(f"… and {len(rows) - MAX_PRINTED:,} more; --json prints them all")
    if apply and found:
        moved = sum(of[0].action == "quarantine" for of in found.values())
        typer.echo(
            f"{dataset} version {version}: {moved:,} moved into quarantine, {len(found) - moved:,} flagged (matched_lists)"
        )


def hashes(
    dataset: DatasetFolder,
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="The list, a CSV file: kind,value,list,action.")],
    *,
    kinds: Annotated[
        str | None,
        typer.Option(
            "--kind",
            metavar="NAMES",
            help="Joined by commas: md5, sha256, text, minhash, pdq, phash (default: sha256, text, minhash, and pdq or phash).",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Name of the list (default: the dataset's).")] = None,
    action: Annotated[Literal["quarantine", "flag"], typer.Option("--action", help="What to do where they are found.")] = "flag",
    where: Annotated[str | None, typer.Option("--where", metavar="SQL", help="Only the items that meet the condition.")] = None,
) -> None:
    """Write the hashes of a dataset's texts, images and audio files, without any content, as a list for `vigil data match`."""
    from vigil_data.dataset.dataset import Dataset
    from vigil_data.filesystem import write_file
    from vigil_data.quality import hash_lists
    from vigil_data.quality.near.images import installed_hash

    opened = Dataset(dataset)
    named = _names(kinds) if kinds is not None else ["sha256", "text", "minhash", installed_hash()]
    if unknown := [kind for kind in named if kind not in hash_lists.DIGITS]:
        raise UserError(f"--kind {kinds}: {unknown[0]!r} must be one of {', '.join(hash_lists.DIGITS)}")
    chosen = [kind for kind in hash_lists.DIGITS if kind in named]
    of = name or dataset.resolve().name
    if "," in of:
        raise UserError(f"--name {of}: a list needs a name without commas")
    rows = opened.rows(where=where) if where else None
    with Progress("hashing"):
        lines = list(hash_lists.hashes(opened, chosen, of, action, rows))
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([hash_lists.HEADER, *lines])
    write_file(to, buffer.getvalue().encode())
    counts = Counter(kind for kind, *_ in lines)
    typer.echo(f"{to}: " + (", ".join(f"{count:,} {kind}" for kind, count in counts.items()) or "no hashes"))


def split(
    dataset: DatasetFolder,
    *,
    by: Annotated[
        Literal["random", "time", "author", "source", "thread", "cluster"],
        typer.Option("--by", help="random: items at random; time: cut by created_at; others: whole authors, sources, …"),
    ] = "random",
    fractions: Annotated[
        str,
        typer.Option("--fractions", metavar="SPLIT=SHARE,…", help="Shares that add up to 1; by time, the earliest split first."),
    ] = "train=.8,validation=.1,test=.1",
    group: Annotated[
        str | None,
        typer.Option(
            "--group",
            metavar="COLUMNS",
            help="No two splits share a value of these, joined by commas; or none (default: those of author, thread and cluster "
            "that have values).",
        ),
    ] = None,
    stratify: Annotated[
        str | None,
        typer.Option("--stratify", metavar="LABELS", help="Labels to keep in proportion, joined by commas (default: all)."),
    ] = None,
    no_stratify: Annotated[bool, typer.Option("--no-stratify", help="Keep no labels in proportion.")] = False,
    keep: Annotated[
        str | None,
        typer.Option("--keep", metavar="SPLITS", help="Splits that stay as they are; other items of their groups are left out."),
    ] = None,
    crossing: Annotated[
        Literal["later", "earlier", "drop"],
        typer.Option("--crossing", help="By time: the split of groups on both sides of a cut, or leave them out."),
    ] = "later",
    gap: Annotated[
        str | None,
        typer.Option("--gap", metavar="TIME", help="By time: leave out items of this time before a cut: 7d, 12h."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the splits; do not write them.")] = False,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Split a dataset, and write the column `split` as a new version.

    Items with one author, thread or cluster of near-duplicates are in one split. Labels are in proportion: known positives and
    known negatives are spread over the splits (iterative stratification); unknown targets count as neither.
    """
    from vigil_data.dataset.dataset import Dataset
    from vigil_data.quality import split as splits

    if no_stratify and stratify:
        raise UserError("--stratify and --no-stratify exclude each other")
    if by == "time" and stratify:
        raise UserError("--by time cuts at times and keeps no labels in proportion; leave out --stratify")
    opened = Dataset(dataset)
    with Progress("splitting"):
        plan = splits.plan_split(
            opened,
            _fractions(fractions),
            by=by,
            groups=_names(group) if group is not None else None,
            labels=[] if no_stratify else _names(stratify) if stratify is not None else None,
            keep=_names(keep) if keep is not None else (),
            crossing=crossing,
            gap=_duration(gap),
            seed=seed,
        )
        version = opened.version if dry_run else splits.store(opened, plan, reason)
        described = splits.describe(opened, plan)
    if as_json:
        report = {
            "dataset": str(dataset),
            "version": version,
            "groups": list(plan.groups),
            "largest_group": plan.largest,
            "stratified": list(plan.stratified),
            "left_out": dict(plan.left_out),
            "cuts": list(plan.cuts),
            "groups_shared_by_kept_splits": plan.shared_by_kept,
            "splits": described,
        }
        typer.echo(json.dumps(report, indent=2))
        return
    _print_split(opened, plan, described)
    typer.echo("nothing is written" if dry_run else f"{dataset} version {version}: column split")


def _print_split(dataset: "Dataset", plan: "Plan", described: list[dict[str, Any]]) -> None:
    rows = [["items", *(f"{part['items']:,} ({part['share']:.1%})" for part in described)]]
    for label in dataset.labels:
        cells = []
        for part in described:
            known, positive = part["labels"][label]["known"], part["labels"][label]["positive"]
            cells.append(f"{positive:,} of {known:,}" + (f" ({positive / known:.1%})" if known else ""))
        rows.append([label, *cells])
    print_table(["positive of known", *(part["split"] for part in described)], rows)
    typer.echo(
        f"no two splits share a value of {one_line(', '.join(plan.groups))}; the largest group has {plan.largest:,} items"
        if plan.groups
        else "items are split one by one; no column keeps any of them together"
    )
    if plan.cuts:
        typer.echo(f"cut at {', '.join(plan.cuts)}")
    for why, count in plan.left_out.items():
        typer.echo(f"left out, {why}: {count:,}")
    if plan.shared_by_kept:
        typer.echo(f"warning: {plan.shared_by_kept:,} groups are in more than one of the kept splits, as they were", err=True)


def leaks(
    first: Annotated[Path, typer.Argument(metavar="A", help="A dataset, such as the one to train on.")],
    second: Annotated[
        Path | None, typer.Argument(metavar="B", help="Another one, such as a test set (default: splits of A).")
    ] = None,
    *,
    between: Annotated[
        str,
        typer.Option("--between", metavar="SPLIT,SPLIT", help="The splits of A that are compared if B is left out."),
    ] = "train,test",
    modality: Modalities = "text,image,audio",
    text_threshold: TextThreshold = TEXT_JACCARD,
    image_threshold: ImageThreshold = None,
    audio_threshold: AudioThreshold = AUDIO_BIT_ERRORS,
    image_hash: Hash = None,
    fail_over: Annotated[
        float | None,
        typer.Option("--fail-over", metavar="SHARE", min=0, max=1, help="Exit with status 1 if a larger share of B is shared."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Report what dataset B shares with A, or one split with another: equal and nearly equal texts, images and audio files.

    The same picture with another caption counts; context does not.
    """
    from vigil_data.quality.overlap import overlap

    limits = _thresholds(text_threshold, image_threshold, audio_threshold, image_hash)
    with Progress("fingerprints") as progress:
        report = overlap(*_sides(first, second, between), _modalities(modality), limits, progress)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
    else:
        _print_overlap(report)
    if fail_over is not None and report.share > fail_over:
        raise Failure(f"{report.share:.2%} of {report.second[0]} is shared with {report.first[0]}, more than {fail_over:.2%}")


def _sides(first: Path, second: Path | None, between: str) -> "tuple[Side, Side]":
    from vigil_data.dataset.dataset import Dataset
    from vigil_data.quality.overlap import Side

    one = Dataset(first)
    if second is not None:
        return Side(one, str(first)), Side(Dataset(second), str(second))
    names = _names(between)
    if len(names) != 2 or names[0] == names[1]:
        raise UserError(f"--between {between}: must be two splits, such as train,test")
    sides = [Side(one, name, one.rows(name)) for name in names]
    return sides[0], sides[1]


def _print_overlap(report: "Overlap") -> None:
    (first, _), (second, size) = report.first, report.second
    typer.echo(one_line(f"{report.items:,} of {size:,} items of {second} ({report.share:.2%}) share content with {first}"))
    whole = report.whole
    typer.echo(f"all content equal: {whole.items:,} items of {one_line(second)}; opposite labels: {whole.opposite:,} contents")
    print_table(
        ["modality", "items with it", "equal", "near", "opposite labels"],
        ([m, shared.with_content, shared.equal, shared.near, shared.opposite] for m, shared in report.modalities.items()),
    )
    rows = [
        [one, other, m, f"{score:.2f}" if m != "image" else f"{score:.0f} bits", label or ""]
        for m, shared in report.modalities.items()
        for one, other, score, label in shared.examples
    ]
    if rows:
        print_table([f"in {first}", f"in {second}", "modality", "score", "opposite label"], rows)


def read_hash_list(file: Path, pdq_distance: int, phash_distance: int, text_similarity: float) -> "HashList":
    """Read a list of known hashes with the limits of near matches."""
    from vigil_data.quality.hash_lists import Limits, read_list

    return read_list(file, Limits(pdq_distance, phash_distance, text_similarity))


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    return [] if names == ["none"] else names


def _fractions(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        try:
            value = float(share)
        except ValueError:
            raise UserError(f"--fractions {text}: {part!r} must be SPLIT=SHARE, such as train=0.8") from None
        if not name.strip() or name.strip() in found:
            raise UserError(f"--fractions {text}: each split needs a name of its own")
        found[name.strip()] = value
    return found


def _duration(text: str | None) -> timedelta | None:
    if text is None:
        return None
    units = {"d": "days", "h": "hours", "m": "minutes"}
    if not (found := re.fullmatch(r"(\d+)([dhm])", text)):
        raise UserError(f"--gap {text}: must be a number of days, hours or minutes, such as 7d, 12h or 30m")
    return timedelta(**{units[found[2]]: int(found[1])})

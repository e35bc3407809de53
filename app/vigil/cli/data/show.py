"""`vigil data show`, `cache` and `demo`: the contents of a dataset, its token cache, and generated items."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vigil.cli.data.tables import print_table
from vigil_data.progress import Progress

if TYPE_CHECKING:
    from vigil_data.dataset.dataset import Dataset

ContentType = Literal["post", "thread", "cover", "episode", "playlist"]  # as in vigil_data.demo, which imports Pillow


def register(group: typer.Typer) -> None:
    """Add the commands to ``group``."""
    group.command("show")(show)
    group.command("cache")(cache)
    group.command("demo")(demo)


def show(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="The dataset's folder.")],
    version: Annotated[int | None, typer.Option(help="Version of the dataset (default: the newest).")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print all facts of the dataset's card as JSON.")] = False,
) -> None:
    """Show a dataset: splits, labels, modalities, quarantined items and versions."""
    from rich.console import Console

    from vigil_data.card.collect import dataset_facts
    from vigil_data.card.facts import facts_to_json
    from vigil_data.dataset.dataset import Dataset
    from vigil_data.filesystem import json_bytes

    opened = Dataset(dataset, version)
    if as_json:
        with Progress("collecting facts", unit="steps") as progress:
            facts = dataset_facts(opened, progress=progress)
        typer.echo(json_bytes(facts_to_json(facts)), nl=False)
        return
    console = Console()
    console.print(f"{dataset} version {opened.version}: {len(opened):,} items", markup=False, highlight=False)
    console.print(f"columns to slice by: {', '.join(opened.columns)}", markup=False, highlight=False)
    show_contents(opened)
    refused = opened.quarantine()
    if refused.num_rows:
        reasons = refused.group_by(["modality", "reason"]).aggregate([([], "count_all")]).sort_by([("count_all", "descending")])
        print_table(
            ["quarantine", "reason", "items"], ([row["modality"], row["reason"], row["count_all"]] for row in reasons.to_pylist())
        )
    print_table(
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
    print_table(
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
    show_contents(Dataset(to))


def show_contents(dataset: "Dataset") -> None:
    """Print the items of each split, the known and positive targets of each label, and the modalities of the items."""
    from vigil_data.card.collect import usual_order
    from vigil_data.card.counting import count_presence, count_targets

    splits = usual_order(dataset.splits())
    counts = count_targets(dataset, dataset.labels, [split or None for split in splits], [])
    rows: list[Sequence[Any]] = [["items", *splits.values()]]
    for label, known_GS, positive_GS in zip(dataset.labels, counts.known_LGS, counts.positive_LGS, strict=True):
        pairs = zip(positive_GS.sum(axis=1).tolist(), known_GS.sum(axis=1).tolist(), strict=True)
        rows.append([label, *(f"{positive:,} of {known:,}" for positive, known in list(pairs)[: len(splits)])])
    print_table(["positive of known", *(split or "(no split)" for split in splits)], rows)
    print_table(["modalities", "items"], count_presence(dataset)[0].items())

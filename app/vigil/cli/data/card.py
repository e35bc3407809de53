"""`vigil data card`: the card of a dataset as Markdown, as an HTML page and as Croissant metadata."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from vigil_data.settings import TextSettings
    from vigil_data.taxonomy import Taxonomy


def register(group: typer.Typer) -> None:
    """Add the command to ``group``."""
    group.command("card")(card)


def card(  # noqa: PLR0917 (the options of the command)
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="The dataset's folder.")],
    to: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where to write (default: the dataset's folder).")] = None,
    version: Annotated[int | None, typer.Option(help="Version of the dataset (default: the newest).")] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE.yaml", help="A recipe: its taxonomy describes the labels, its tokenizer counts tokens."),
    ] = None,
    taxonomy: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="A taxonomy that describes the labels (default: the recipe's).")
    ] = None,
    export: Annotated[
        Literal["parquet"] | None,
        typer.Option(help="Write a copy of all columns but images and audio, which readers of Croissant can load; needs --to."),
    ] = None,
) -> None:
    """Write the card of a dataset: README.md, card.html and croissant.json.

    The card has numbers and no content of the items. What only people know (intended use, limits, annotators, licence) is read
    from card.yaml in the dataset's folder.
    """
    from vigil_data.card.cautions import cautions
    from vigil_data.card.collect import dataset_facts
    from vigil_data.card.croissant import croissant, croissant_json, export_parquet
    from vigil_data.card.markdown import markdown_card
    from vigil_data.card.statements import read_statements
    from vigil_data.dataset.dataset import Dataset
    from vigil_data.errors import UserError, one_line
    from vigil_data.filesystem import make_folder, write_file
    from vigil_data.progress import Progress
    from vigil_evaluation.report.dataset_card_page import render_dataset_card

    opened = Dataset(dataset, version)
    folder = dataset if to is None else to
    if export is not None and folder.resolve().is_relative_to(dataset.resolve()):
        raise UserError(
            "--export writes a copy that an erasure does not reach; name a folder outside the dataset with --to FOLDER"
        )
    statements = read_statements(dataset)
    text, described = _recipe(recipe, taxonomy)
    with Progress("collecting facts", unit="steps") as progress:
        facts = dataset_facts(opened, statements=statements, taxonomy=described, text=text, progress=progress)
        make_folder(folder)
        files = None if export is None else export_parquet(opened, facts.splits, folder, progress)
    readme, page, metadata = (folder / name for name in ("README.md", "card.html", "croissant.json"))
    write_file(readme, markdown_card(facts, statements, files))
    render_dataset_card(facts, statements, page)
    write_file(metadata, croissant_json(croissant(opened, facts, statements, folder, files)))
    for one in cautions(facts):
        typer.echo(f"warning: {one_line(one.topic)}: {one_line(one.text)}", err=True)
    for file in (readme, page, metadata, *(folder / name for name in (files or {}).values())):
        typer.echo(str(file))


def _recipe(recipe: Path | None, taxonomy: Path | None) -> "tuple[TextSettings | None, Taxonomy | None]":
    """Return how a recipe tokenizes text, and the taxonomy that describes the labels."""
    text, described = None, None
    if recipe is not None:
        from vigil_training.recipe.resolve import resolve_recipe

        resolved = resolve_recipe(recipe).recipe
        text, described = resolved.inputs.text, resolved.taxonomy
    if taxonomy is not None:
        from vigil_data.importers.collection import load_taxonomy

        described = load_taxonomy(taxonomy)
    return text, described

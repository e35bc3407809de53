"""`vigil guard prompt`: the prompt as a guard reads it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vigil_data.items import Item


def register(group: typer.Typer) -> None:
    """Add the command to ``group``."""
    group.command("prompt")(prompt)


def prompt(
    recipe: Annotated[Path, typer.Argument(help="The recipe of a guard, a YAML file.", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values that replace the recipe's.", metavar="KEY.PATH=VALUE")
    ] = None,
    *,
    label: Annotated[str | None, typer.Option(help="Label that is asked about (default: the first).")] = None,
    text: Annotated[str | None, typer.Option(help="Content: one text (default: an item without content).")] = None,
    dataset: Annotated[Path | None, typer.Option(metavar="DATASET", help="Dataset with the content.")] = None,
    id: Annotated[str | None, typer.Option("--id", metavar="ID", help="Item of --dataset.")] = None,  # noqa: A002
) -> None:
    """Print the prompt of a label and an item as the guard reads it, part by part, with the number of tokens of each.

    No weights are loaded, so a picture or a window of audio is shown as one token, however many the model makes of it.
    """
    from dataclasses import replace

    import numpy as np

    from vigil_data.decode import Decoder, Undecodable
    from vigil_data.errors import UserError, one_line
    from vigil_data.items import Item, Modality
    from vigil_data.loading.packing import pack
    from vigil_data.prompts.assemble import SegmentTokens, soft_tokens, text_tokens
    from vigil_data.prompts.build import find_template, pieces_of, prompt_tokenizer
    from vigil_data.prompts.clauses import clauses_of
    from vigil_data.prompts.describe import describe, policy_lines
    from vigil_modeling.specs import GuardSpec
    from vigil_training.recipe.resolve import resolve_recipe

    resolved = resolve_recipe(recipe, overrides or []).recipe
    inputs, labels = resolved.inputs, resolved.taxonomy.labels
    if not isinstance(resolved.model, GuardSpec) or inputs.text is None:
        raise UserError(f"{recipe}: its model is not a guard (model.kind: guard), so it reads no prompt")
    if label is not None and label not in labels:
        raise UserError(f"--label {label}: not a label of the taxonomy; its labels are {', '.join(labels)}")
    if (dataset is None) != (id is None) or (text is not None and dataset is not None):
        raise UserError("give the content as --text TEXT, or as --dataset DATASET --id ID")
    item = Item("", text=() if text is None else (text,)) if dataset is None or id is None else _item(dataset, id)
    spec, tokenizer = resolved.model.prompt, prompt_tokenizer(inputs.text.tokenizer)
    pieces = pieces_of(spec, tokenizer, find_template(spec, inputs.text.tokenizer))
    clauses = clauses_of(resolved.taxonomy, tokenizer.text, spec.sections)
    segments: dict[Modality, SegmentTokens] = {}
    try:
        decoded = Decoder(inputs, ()).decode(item)
    except Undecodable as error:
        raise UserError(f"item {item.id}: {error.modality} {error.index} cannot be decoded: {error.reason}") from None
    for modality, packed in pack([decoded]).segments.items():
        if modality == "text":
            ids_ST, mask_ST = (packed.inputs[name].astype(np.int64) for name in ("input_ids", "attention_mask"))
            segments[modality] = text_tokens(packed.item, packed.role, ids_ST, mask_ST)
        else:
            segments[modality] = soft_tokens(packed.item, packed.role, 1)
    shown = replace(pieces, order="policy_first") if pieces.order == "auto" else pieces
    described = describe(shown, clauses, 0 if label is None else labels.index(label), segments, tokenizer)
    for part in described.parts:
        _heading(f"{part.name}: {part.tokens} tokens")
        typer.echo("\n".join(map(one_line, part.text.split("\n"))))
    answers = [f"{answer} (token {number})" for answer, number in zip(pieces.answers, pieces.answer_ids, strict=True)]
    _heading(f"answer: {' or '.join(answers)}")
    order = (
        "the policy first, but training may decide otherwise (order: auto)" if pieces.order == "auto" else f"order: {spec.order}"
    )
    typer.echo(f"\n{described.tokens} tokens of {pieces.max_tokens}; {order}")
    for cut in described.cut:
        typer.echo(f"{cut.modality} {cut.segment} of the item is cut: {cut.tokens} of its tokens are left out")
    for line in policy_lines(pieces, clauses):
        typer.echo(line)


def _heading(text: str) -> None:
    typer.secho(f"── {text}", fg="cyan")


def _item(dataset: Path, id_: str) -> "Item":
    from vigil_data.dataset.dataset import Dataset
    from vigil_data.dataset.table_schema import sql_literal
    from vigil_data.errors import UserError

    opened = Dataset(dataset)
    rows = opened.rows(where=f"id = {sql_literal(id_)}")
    if not len(rows):
        raise UserError(f"{dataset}: has no item {id_}")
    return opened.take(rows)[0]

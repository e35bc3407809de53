"""`vigil guard run` and `formats`: published guards in their own prompt formats, on one's own items."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Turn = Literal["prompt", "response"]  # as in vigil_data.guard_formats.page
Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "float32", "bfloat16", "float16"]


def register(group: typer.Typer) -> None:
    """Add the commands to ``group``."""
    group.command("run")(run)
    group.command("formats")(formats)


def run(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="The dataset's folder.")],
    *,
    model: Annotated[
        str,
        typer.Option(metavar="MODEL", help="A folder in Hugging Face's layout, a .gguf file, or owner/name on the hub."),
    ],
    guard_format: Annotated[
        str, typer.Option("--format", metavar="NAME", help="A format (vigil guard formats), or the YAML page of your own.")
    ],
    to: Annotated[Path, typer.Option(metavar="FILE.parquet", help="The table of scores.")],
    turn: Annotated[
        Turn,
        typer.Option(help="Judge all texts as a user's prompt, or texts as the response to those of role context."),
    ] = "prompt",
    taxonomy: Annotated[
        str, typer.Option(metavar="NAME", help="Taxonomy whose labels the format maps: a shipped one, or its file.")
    ] = "safety",
    labels: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Labels to score (default: those of the dataset; all that are mapped if it has none)."),
    ] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="LABEL=A,B",
            help="The guard's categories that make up a label, or any for its verdict; may be repeated (default: the format's).",
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Score only this split.")] = None,
    where: Annotated[str | None, typer.Option(metavar="SQL", help="Score only the rows of this condition.")] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="A,B", help="Columns of the dataset to copy, in addition to the standard ones.")
    ] = None,
    device: Annotated[Device, typer.Option(help="auto: the GPU if there is one.")] = "auto",
    dtype: Annotated[DType, typer.Option(help="Type of the weights; auto: bfloat16 on the GPU, float32 on the CPU.")] = "auto",
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest prompt; longer texts are cut (default: the model's limit, at most 8192).")
    ] = None,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a batch, padding included.")] = 8192,
    restart: Annotated[bool, typer.Option("--restart", help="Discard the shards of an interrupted run.")] = False,
) -> None:
    """Score a dataset's texts with a published guard: the table that vigil evaluate, compare and suite read.

    Probabilities come from the logits of the answers that the guard may give; nothing is generated. Items without text are
    counted and have no scores. An interrupted run resumes. See docs/guards.md, Other guards.
    """
    from vigil.workflows.guard.published_guards import GuardOptions, score_with_guard
    from vigil_data.progress import Progress

    options = GuardOptions(
        turn=turn,
        taxonomy=taxonomy,
        labels=_names(labels),
        mapping=_parse_mapping(mapping or []),
        split=split,
        where=where,
        columns=_names(columns),
        device=device,
        dtype=dtype,
        max_tokens=max_tokens,
        batch_tokens=batch_tokens,
        restart=restart,
    )
    with Progress("opening the dataset") as progress:
        summary = score_with_guard(model, guard_format, dataset, to, options, progress)
    resumed = f", {summary.resumed:,} of them before this run" if summary.resumed else ""
    typer.echo(f"{to}: {summary.items:,} items{resumed}; labels {', '.join(summary.labels)}")
    for reason, count in summary.unscored.items():
        typer.echo(f"not scored, {reason}: {count:,}")
    if summary.cut:
        typer.echo(f"cut to fit, column cut: {summary.cut:,}")
    if summary.unmapped:
        typer.echo(f"not scored, unknown to the format: {', '.join(summary.unmapped)}")


def formats(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print the page of this format.")] = None,
) -> None:
    """List the formats that come with Vigil, with their labels and licences; or print the page of one."""
    from vigil_data.guard_formats.page import format_file, load_format, shipped_formats

    if name is not None:
        load_format(name)
        typer.echo(format_file(name).read_text(encoding="utf-8"), nl=False)
        return
    for each in shipped_formats():
        page = load_format(each)
        typer.echo(f"{each}: {page.title}")
        mapped = "; ".join(f"{taxonomy}: {', '.join(labels)}" for taxonomy, labels in page.taxonomies.items())
        typer.echo(f"    labels of {mapped or 'no taxonomy'}; turns: {'prompt, response' if page.response else 'prompt'}")
        typer.echo(f"    licence: {page.licence}" + (f"; card: {page.url}" if page.url else ""))
        if page.notes:
            typer.echo(f"    {page.notes}")


def _names(given: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in given.split(",") if name.strip()) if given else ()


def _parse_mapping(given: list[str]) -> dict[str, tuple[str, ...]]:
    """Parse LABEL=A,B options.

    Raises:
        UserError: for the first that is malformed.
    """
    from vigil_data.errors import UserError

    mapping = {}
    for text in given:
        label, _, keys = text.partition("=")
        if not label or not _names(keys):
            raise UserError(f"--map {text}: write LABEL=CATEGORY, such as hate=S10")
        mapping[label] = _names(keys)
    return mapping

"""`vigil data enrich`: words in pictures, the language of texts, transcripts of recordings."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vigil.cli.data.ray_option import Ray, cluster_at
from vigil.cli.data.tables import print_table
from vigil_data.errors import UserError, one_line
from vigil_data.progress import Progress

if TYPE_CHECKING:
    from vigil_data.enrichment.engines import Engine

Kind = Literal["ocr", "language", "transcript"]  # as in vigil_data.enrichment.engines

_OPTIONS: dict[Kind, tuple[str, ...]] = {
    "ocr": ("min_confidence",),
    "language": ("min_confidence", "languages"),
    "transcript": ("model", "command", "languages", "max_segment_seconds", "timeout"),
}
"""Options of the engines of each kind."""

_WHAT: dict[Kind, str] = {"ocr": "with words in their pictures", "language": "with a language", "transcript": "with speech"}
_GIVEN: dict[Kind, str] = {"ocr": "ocr texts", "language": "a language", "transcript": "transcripts"}

MAX_PRINTED = 20


def register(group: typer.Typer) -> None:
    """Add the command to ``group``."""
    group.command("enrich")(enrich)


def enrich(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="The dataset's folder.")],
    kind: Annotated[Kind, typer.Argument(metavar="ocr|language|transcript", help="What is found.")],
    *,
    where: Annotated[str | None, typer.Option(metavar="SQL", help="Condition that selects items (default: all).")] = None,
    min_confidence: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="ocr, language: probability below which words are left out, or the language is und."),
    ] = None,
    languages: Annotated[
        str | None,
        typer.Option(metavar="CODES", help="language: those that occur, such as en,de,es. transcript: the one that is spoken."),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="transcript: folder of a Whisper model, for faster-whisper.")
    ] = None,
    command: Annotated[
        str | None,
        typer.Option(metavar="PROGRAM", help="transcript: program that reads a WAV file, {}, and prints WebVTT, SRT or JSON."),
    ] = None,
    max_segment_seconds: Annotated[
        float | None, typer.Option(min=0, help="transcript: merge what is said up to this length (default: 30).")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.001, help="transcript --command: seconds a recording may take (default: 3600).")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also read items again that this engine has read, in place of what it found.")
    ] = False,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Skip items that the engine fails on.")] = False,
    ray: Ray = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for the dataset's log.")] = "",
) -> None:
    """Find words in pictures (ocr), the language of texts, or what is said in recordings (transcript), as one new version.

    Words and speech become texts of the role ocr or transcript. Items that have such texts, or a language, from elsewhere are
    left as they are, and so are items that were read before: run it again after each import. A run that was stopped goes on where
    it was. The column KIND_engine names the engine that has read an item, with its version and a hash of its model.
    """
    from vigil_data.dataset.history import Change
    from vigil_data.enrichment.enrich import enrich as run

    options = {
        "min_confidence": min_confidence,
        "languages": languages,
        "model": model,
        "command": command,
        "max_segment_seconds": max_segment_seconds,
        "timeout": timeout,
    }
    given: dict[str, object] = {name: value for name, value in options.items() if value is not None}
    if foreign := [f"--{name.replace('_', '-')}" for name in given if name not in _OPTIONS[kind]]:
        raise UserError(f"{', '.join(foreign)}: not an option of {kind}")
    engine = _engine(dataset, kind, given)
    with cluster_at(ray) as cluster, Progress(f"reading {kind}") as progress:
        result = run(
            dataset,
            engine,
            where=where,
            force=force,
            keep_going=keep_going,
            change=Change(f"enrich {kind}", reason=reason),
            cluster=cluster,
            progress=lambda done, total: progress(f"reading {kind}", done, total),
        )
    typer.echo(f"{dataset} version {result.version}: {result.read:,} items read by {engine.identity}")
    typer.echo(f"{result.found:,} {_WHAT[kind]}")
    if result.given:
        typer.echo(f"{result.given:,} left as they are: they have {_GIVEN[kind]} from elsewhere")
    if result.failed:
        rows = [[one_line(id_), one_line(why)] for id_, why in list(result.failed.items())[:MAX_PRINTED]]
        print_table(["not read", "reason"], rows)
        if len(result.failed) > MAX_PRINTED:
            typer.echo(f"… and {len(result.failed) - MAX_PRINTED:,} more")


def _engine(dataset: Path, kind: Kind, given: dict[str, object]) -> "Engine":
    if kind == "ocr":
        from vigil_data.enrichment.ocr import RapidOcr

        return RapidOcr(**given)  # type: ignore[arg-type]
    languages = str(given.pop("languages", "")).replace(" ", "")
    if kind == "language":
        from vigil_data.enrichment.language import Langid

        return Langid(languages=tuple(filter(None, languages.split(","))), **given)  # type: ignore[arg-type]
    from vigil_data.enrichment.transcription import FasterWhisper, TranscriptionCommand

    if ("model" in given) == ("command" in given):
        raise UserError("name an engine: --model DIR for faster-whisper, or --command PROGRAM for any program")
    if "max_segment_seconds" in given:
        given["max_seconds"] = given.pop("max_segment_seconds")
    if "command" in given:
        if languages:
            raise UserError("--languages: not an option of --command; write it into the command")
        return TranscriptionCommand(scratch=dataset, **given)  # type: ignore[arg-type]
    if "timeout" in given:
        raise UserError("--timeout: an option of --command")
    if "," in languages:
        raise UserError(f"--languages {languages}: a recording has one language; leave it out to have it recognized")
    return FasterWhisper(language=languages or None, **given)  # type: ignore[arg-type]

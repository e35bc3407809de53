"""`vigil monitor review`, `queue` and `reviews`: the local review page, queues for other tools, and decisions from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

FormatName = Literal["jsonl", "csv", "label-studio", "coop"]  # as in vigil_monitoring.reviews.formats, which imports Lance

QueueFile = Annotated[Path, typer.Argument(metavar="QUEUE", help="The queue, queue.jsonl, with its record.")]
DatasetFolder = Annotated[Path, typer.Option("--dataset", metavar="DATASET", help="Dataset with the content of the items.")]
TaxonomyFile = Annotated[
    Path | None,
    typer.Option("--taxonomy", metavar="FILE", help="Taxonomy (.yaml) with the policy text of the labels."),
]
PolicyVersion = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="Policy version of the answers (default: the taxonomy's name and version)."),
]


def register(group: typer.Typer) -> None:
    """Add the commands to ``group``."""
    group.command("review")(review)
    group.command("queue")(queue)
    group.command("reviews")(reviews)


def review(
    queue: QueueFile,
    dataset: DatasetFolder,
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="Answers (.jsonl); those that it has are kept and shown.")],
    *,
    taxonomy: TaxonomyFile = None,
    policy_version: PolicyVersion = None,
    reviewer: Annotated[
        str | None, typer.Option(metavar="NAME", help="The only reviewer (default: each enters a name on the page).")
    ] = None,
    scores: Annotated[
        bool, typer.Option("--scores", help="Show the model's probabilities, which draw answers towards them.")
    ] = False,
    adjudicate: Annotated[
        bool,
        typer.Option(
            "--adjudicate", help="Answers settle disagreements, and items are in the order of the queue (default: random)."
        ),
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 is any free one.")] = 8030,
) -> None:
    """Review a queue on a local page, by keyboard; each answer is stored when it is given.

    The page is open on this machine only, under the address that is printed. Several reviewers may use it at once, each with an
    order of their own. Stop with Ctrl+C; the same command continues.
    """
    from vigil_data.dataset.dataset import Dataset
    from vigil_data.errors import UserError
    from vigil_monitoring.queues.lineage import record_answers
    from vigil_monitoring.queues.queue import read_queue
    from vigil_monitoring.reviews.answer_file import open_answers
    from vigil_monitoring.reviews.content import QueueContent
    from vigil_monitoring.reviews.page_server import serve
    from vigil_monitoring.reviews.page_session import ReviewSession, name_problem
    from vigil_monitoring.reviews.policy import load_policy

    if reviewer is not None and (problem := name_problem(reviewer)):
        raise UserError(f"--reviewer: {problem}")
    rows = read_queue(queue)
    content = QueueContent(rows, Dataset(dataset))
    policy = load_policy(taxonomy, policy_version, content.asked)
    print_warnings(content.warnings())
    with open_answers(to, rows) as answers:
        session = ReviewSession(rows, content, answers, policy, reviewer=reviewer, show_scores=scores, adjudicates=adjudicate)
        asked = sum(map(len, content.labels.values()))
        typer.echo(f"{len(content):,} items with {asked:,} questions; {to} has {len(answers):,} answers")
        serve(session, port, lambda address: typer.echo(f"open {address}"))
        record_answers(to, queue, len(answers))
        typer.echo(f"{to} has {len(answers):,} answers")


def queue(
    file: QueueFile,
    dataset: DatasetFolder,
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="File to write.")],
    *,
    format_: Annotated[FormatName, typer.Option("--format", help="jsonl, csv, label-studio or coop.")],
    taxonomy: TaxonomyFile = None,
    policy_version: PolicyVersion = None,
    media: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write pictures and audio into this folder (default: within FILE, as data URLs)."),
    ] = None,
    media_url: Annotated[
        str | None,
        typer.Option(
            metavar="PREFIX", help="What is put before the names of these files (default: the folder's path from FILE)."
        ),
    ] = None,
    item_type: Annotated[str | None, typer.Option(metavar="ID", help="Id of an item type of Coop, for --format coop.")] = None,
) -> None:
    """Write a queue with the content of its items for another review tool.

    label-studio: tasks, and next to them the labelling configuration (.xml). csv: one question a row. coop: bodies of requests to
    its Submit Items API. jsonl: one item a line. The content is that of this moment; delete the files when the review is done.
    """
    from vigil_data.dataset.dataset import Dataset
    from vigil_data.progress import Progress
    from vigil_monitoring.queues.queue import read_queue
    from vigil_monitoring.reviews.content import QueueContent
    from vigil_monitoring.reviews.formats import Export, export_queue
    from vigil_monitoring.reviews.media_links import MediaLinks
    from vigil_monitoring.reviews.policy import load_policy

    content = QueueContent(read_queue(file), Dataset(dataset))
    policy = load_policy(taxonomy, policy_version, content.asked)
    print_warnings(content.warnings())
    with Progress("writing the queue"):
        written = export_queue(format_, content, to, Export(policy, MediaLinks(media, media_url, to), item_type))
    asked = sum(map(len, content.labels.values()))
    typer.echo(f"{len(content):,} items with {asked:,} questions in {', '.join(map(str, written))}")


def reviews(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Decisions from the tool.")],
    of: Annotated[Path, typer.Option("--queue", metavar="QUEUE", help="The queue that was reviewed.")],
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="Decisions (.jsonl); those that it has are kept.")],
    *,
    format_: Annotated[FormatName, typer.Option("--format", help="jsonl (also .parquet), csv, label-studio or coop.")],
    policy_version: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Refuse decisions under another policy version; that of decisions without one."),
    ] = None,
    reviewer: Annotated[str | None, typer.Option(metavar="NAME", help="Reviewer of decisions without one.")] = None,
    time: Annotated[
        str | None, typer.Option(metavar="TIME", help="Time of decisions without one, such as 2026-11-24T18:30:00Z.")
    ] = None,
    adjudicated: Annotated[bool, typer.Option("--adjudicated", help="The decisions settle disagreements.")] = False,
    mapping: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What actions and policies of Coop mean (.yaml), for --format coop.")
    ] = None,
) -> None:
    """Read decisions from another review tool, check them against the queue, and add them to a file of decisions.

    The file is the one that `vigil data merge-labels` and the other commands of `vigil monitor` read. Nothing is written if any
    decision is about an item that the queue does not have, contradicts one of the same reviewer, or has values that are none.
    """
    from vigil_monitoring.queues.lineage import record_answers
    from vigil_monitoring.queues.queue import read_queue
    from vigil_monitoring.reviews.answer_file import open_answers
    from vigil_monitoring.reviews.answers import review_warnings
    from vigil_monitoring.reviews.formats import ImportOptions, import_reviews

    rows = read_queue(of)
    with open_answers(to, rows) as answers:
        before = len(answers)
        options = ImportOptions(policy_version, reviewer, time, mapping, adjudicated)
        decisions, skipped = import_reviews(format_, file, rows, options, answers.by_key)
        answers.add(decisions)
        record_answers(to, of, len(answers))
        print_warnings(
            [*(f"left out: {line}" for line in skipped.lines()), *review_warnings(rows, list(answers.by_key.values()))]
        )
        typer.echo(f"{len(decisions):,} decisions in {file}, {len(answers) - before:,} of them new; {to} has {len(answers):,}")


def print_warnings(lines: Sequence[str]) -> None:
    """Print warnings on standard error."""
    for line in lines:
        typer.echo(f"warning: {line}", err=True)

"""`vigil monitor review`, `queue` and `reviews`: the local review page, queues for other tools, and decisions from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

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
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 is any free one.")] = 8030,
) -> None:
    """Review a queue on a local page, by keyboard; each answer is stored when it is given.

    The page is open on this machine only, under the address that is printed. Several reviewers may use it at once, each with an
    order of their own. Stop with Ctrl+C; the same command continues.
    """
    from vigil_data.dataset.dataset import Dataset
    from vigil_data.errors import UserError
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
        session = ReviewSession(rows, content, answers, policy, reviewer, scores)
        asked = sum(map(len, content.labels.values()))
        typer.echo(f"{len(content):,} items with {asked:,} questions; {to} has {len(answers):,} answers")
        serve(session, port, lambda address: typer.echo(f"open {address}"))
        typer.echo(f"{to} has {len(answers):,} answers")


def print_warnings(lines: Sequence[str]) -> None:
    """Print warnings on standard error."""
    for line in lines:
        typer.echo(f"warning: {line}", err=True)

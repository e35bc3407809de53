"""`vigil monitor mine`: what to label next, drawn with known inclusion probabilities."""

from pathlib import Path
from typing import Annotated

import typer

from vigil.cli.monitor.options import ExposureFile, From, TrafficPath, Until

DEFAULT = "balanced"


def register(group: typer.Typer) -> None:
    """Add the command to ``group``."""
    group.command("mine")(mine)


def mine(
    traffic: TrafficPath,
    *,
    budget: Annotated[int, typer.Option(min=1, help="Number of decisions to review.")] = 200,
    to: Annotated[Path, typer.Option(metavar="FILE.jsonl", help="The queue; its record is written next to it.")],
    strategy: Annotated[
        str, typer.Option("--strategy", metavar="NAME", help="balanced, or a YAML file of yours with the share of each strategy.")
    ] = DEFAULT,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw.")] = 0,
    start: From = None,
    end: Until = None,
    exposure: ExposureFile = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="TRAFFIC", help="Another model's decisions, for disagreement (default: the traffic's shadow)."),
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Parquet of id and embedding (default: the traffic's column embedding).")
    ] = None,
    known: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Parquet of id and embedding of content that the model knows, for new clusters."),
    ] = None,
    not_in: Annotated[
        list[Path] | None,
        typer.Option("--not-in", metavar="QUEUE", help="Earlier queue whose decisions are reviewed already; repeatable."),
    ] = None,
    reviews: Annotated[
        list[Path] | None,
        typer.Option("--reviews", metavar="FILE", help="Decisions about each --not-in, in their order: errors and minutes."),
    ] = None,
) -> None:
    """Draw the decisions whose labels are expected to teach the model most, and a random audit share.

    Every decision has a chance, and its inclusion probability is in the queue, so that the same reviews serve training and
    estimates. See docs/monitor-mining.md.
    """
    from vigil.cli.data.tables import print_table
    from vigil.workflows.shipped_recipes import RECIPES
    from vigil_data.errors import UserError
    from vigil_data.progress import Progress
    from vigil_data.yaml_files.shipped_files import named_file
    from vigil_monitoring.mining.embeddings import read_embeddings
    from vigil_monitoring.mining.scores import Evidence, reviewed_evidence, score_traffic
    from vigil_monitoring.queues.lineage import file_input
    from vigil_monitoring.queues.queue import read_queue, record_file, write_queue
    from vigil_monitoring.reviews.answers import read_reviews
    from vigil_monitoring.sampling.design import read_design
    from vigil_monitoring.sampling.draw import draw
    from vigil_monitoring.sampling.pairs import Challenger
    from vigil_monitoring.traffic.reader import open_traffic

    earlier, answered = not_in or [], reviews or []
    if len(answered) > len(earlier):
        raise UserError(f"--reviews {answered[len(earlier)]}: give the queue that was reviewed with --not-in")
    design = read_design(named_file(strategy, RECIPES / "mining", "strategy", "vigil monitor mine --help"))
    if not design.mined:
        raise UserError(f"--strategy {strategy}: no purpose of the kind mined; `vigil monitor sample` draws such a design")
    first, last = (None if moment is None else moment.date() for moment in (start, end))
    live = open_traffic(traffic, first, last, exposure=exposure)
    other = None
    if against is not None:
        other = open_traffic(against, first, last)
    elif "role" in live.columns:
        try:
            other = open_traffic(traffic, first, last, role="shadow")
        except UserError:
            other = None  # no shadow was logged; the strategy is left out, and the command says so
    queues = [read_queue(file) for file in earlier]
    errors, minutes = reviewed_evidence([
        (queue, read_reviews(file, queue)) for queue, file in zip(queues, answered, strict=False)
    ])  # fmt: skip
    evidence = Evidence(
        embeddings=None if embeddings is None else read_embeddings(embeddings),
        known=None if known is None else read_embeddings(known).vector_KD.astype("float64"),
        errors=errors,
        minutes=minutes,
        challenger=None if other is None else Challenger(other),
    )
    design, scores, missing = score_traffic(live, design, evidence, seed)
    for name, why in missing.items():
        typer.echo(f"- {name} is left out: {why}")
    with Progress("mining", unit="decisions") as progress:
        challenger = other if design.compares else None
        drawn = draw(live, design, budget, seed, challenger=challenger, earlier=earlier, scores=scores, report=progress)
    write_queue(to, drawn.queue, [file_input("reviews", file, "evidence") for file in answered])
    lines = [
        [purpose.strategy if purpose.kind == "mined" else purpose.kind, f"{share / (sum(design.shares) + design.audit):.0%}"]
        for purpose, share in zip(design.purposes, design.shares, strict=True)
    ]
    print_table(["drawn by", "share"], [*lines, ["audit", f"{design.audit / (sum(design.shares) + design.audit):.0%}"]])
    strata = [[of.name, of.items, of.sampled, of.certain] for of in drawn.queue.record.strata]
    print_table(["stratum", "decisions", "drawn", "certain"], strata)
    typer.echo(f"queue: {to}\nrecord: {record_file(to)}")

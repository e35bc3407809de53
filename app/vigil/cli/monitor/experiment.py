"""`vigil monitor experiment`: champion against challenger on the same traffic, with a verdict that is valid at every look."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vigil.cli.data.tables import print_table
from vigil.cli.monitor.options import ExposureFile, PolicyVersion, ResultFile, TrafficPath

if TYPE_CHECKING:
    from vigil_data.reviews.decisions import Decision
    from vigil_monitoring.experiments.results import ExperimentResult, MetricResult
    from vigil_monitoring.queues.queue import Queue


def register(group: typer.Typer) -> None:
    """Add the command to ``group``."""
    group.command("experiment")(experiment)


def experiment(
    file: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml", help="Arms, metrics, margins and guardrails.")],
    traffic: TrafficPath,
    *,
    queue: Annotated[
        list[Path] | None, typer.Option(metavar="QUEUE", help="Queue of `vigil monitor sample`; repeatable, each with --reviews.")
    ] = None,
    reviews: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Reviewers' decisions about the queue; in the order of --queue.")
    ] = None,
    challenger: Annotated[
        Path | None,
        typer.Option(metavar="TRAFFIC", help="The challenger's decisions, if they are not in TRAFFIC with role shadow."),
    ] = None,
    exposure: ExposureFile = None,
    policy_version: PolicyVersion = None,
    to: ResultFile = None,
) -> None:
    """Compare champion and challenger on the same traffic: promote, continue or reject, valid at every look.

    The verdict may be read every day: intervals and error rates hold at all looks at once. See docs/experiments.md.
    """
    from dataclasses import asdict

    from vigil_data.progress import Progress
    from vigil_monitoring.experiments.experiment import evaluate_experiment
    from vigil_monitoring.experiments.spec import read_experiment
    from vigil_monitoring.results import write_result

    spec = read_experiment(file)
    read = _queues(queue or [], reviews or [], policy_version)
    with Progress("experiment") as progress:
        result, period = evaluate_experiment(
            spec, traffic, read, challenger=challenger, exposure=exposure, file=str(file), progress=progress
        )
    if to is not None:
        write_result(to, "experiment", period, asdict(result.with_digest()))
    _show(result)
    if to is not None:
        typer.echo(f"\nresult: {to}")


def _queues(
    queues: Sequence[Path], reviews: Sequence[Path], policy_version: str | None
) -> "list[tuple[str, Queue, list[Decision]]]":
    from vigil_data.errors import UserError
    from vigil_monitoring.queues.queue import read_queue
    from vigil_monitoring.reviews.answers import read_reviews, review_warnings

    if len(queues) != len(reviews):
        raise UserError(
            f"--queue is given {len(queues)} times and --reviews {len(reviews)}; each queue has a file of its reviews"
        )
    read = []
    for file, answers in zip(queues, reviews, strict=True):
        queue = read_queue(file)
        decisions = read_reviews(answers, queue, policy_version)
        for line in review_warnings(queue, decisions):
            typer.echo(f"warning: {answers}: {line}", err=True)
        read.append((str(file), queue, decisions))
    return read


def _show(result: "ExperimentResult") -> None:
    """Print the verdict, the arms, and a line for each metric and guardrail."""
    typer.secho(result.verdict, bold=True, fg={"promote": "green", "reject": "red"}.get(result.verdict), nl=False)
    typer.echo(f"  {result.name}: {result.reason}")
    rows = []
    for name, arm in (("champion", result.champion), ("challenger", result.challenger)):
        rows.append([name, "-" if arm.bundle is None else arm.bundle[:12], arm.policy or "-", arm.decisions, arm.reviewed])
    print_table(["arm", "bundle", "policy", "decisions", "reviewed"], rows)
    header = ["metric", "champion", "challenger", "difference", "interval", "goal", "met", "failed"]
    print_table(header, [_line(of) for of in result.metrics])
    if result.guardrails:
        print_table(["guardrail", *header[1:5], "margin", "corrected p", "failed"], [_guardrail(of) for of in result.guardrails])
    if result.ratio is not None:
        units = result.ratio.champion + result.ratio.challenger
        share = result.ratio.challenger / max(units, 1)
        typer.echo(
            f"\n{units:,} units, {share:.2%} of the challenger (assigned {result.ratio.share:.2%}, p {result.ratio.p_value:.2g})"
        )
    for of in (*result.metrics, *result.guardrails):
        if of.bounds is not None:
            low, high = of.bounds
            missing = f"{of.without_answers or 0:.1%} of the reviewed weight has no answer"
            typer.echo(f"note: {of.title}: {missing}; were they all no, or all yes, it would be {low:+.4f} to {high:+.4f}")
    for note in result.notes:
        typer.echo(f"note: {note}")


def _line(of: "MetricResult") -> list[object]:
    goal = f"better by > {of.margin:g}" if of.goal == "superior" else f"worse by <= {of.margin:g}"
    return [of.title, *_values(of), goal, of.met or "-", of.failed or "-"]


def _guardrail(of: "MetricResult") -> list[object]:
    return [of.title, *_values(of), f"{of.margin:g}", f"{of.p_failed:.2g}", of.failed or "-"]


def _values(of: "MetricResult") -> list[str]:
    numbers = ["-" if value is None else f"{value:.4f}" for value in (of.champion, of.challenger)]
    difference = "-" if of.difference is None else f"{of.difference:+.4f}"
    interval = "-" if of.interval is None else f"{of.interval.low:+.4f} to {of.interval.high:+.4f}"
    return [*numbers, difference, interval]

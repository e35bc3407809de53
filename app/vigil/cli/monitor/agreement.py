"""`vigil monitor agreement` and `vigil monitor label-errors`: how far reviewers and labels can be trusted."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vigil.cli.data.tables import print_table
from vigil.cli.monitor.options import PolicyVersion

if TYPE_CHECKING:
    from vigil_evaluation.stats.intervals import Interval
    from vigil_monitoring.agreement.accuracy import AnswerAccuracy
    from vigil_monitoring.agreement.adjudication import Doubtful
    from vigil_monitoring.agreement.summary import AgreementResult

MAX_ROWS = 20
"""Most rows of a printed table."""


def register(group: typer.Typer) -> None:
    """Add the commands to ``group``."""
    group.command("agreement")(agreement)
    group.command("label-errors")(label_errors)


def agreement(
    queue: Annotated[Path, typer.Argument(metavar="QUEUE", help="The queue that was reviewed, queue.jsonl.")],
    reviews: Annotated[Path, typer.Argument(metavar="REVIEWS", help="Reviewers' decisions: JSON Lines, CSV or Parquet.")],
    *,
    gold: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Items with known truth: columns id, label and value (0 or 1).")
    ] = None,
    to: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write all numbers there.")] = None,
    adjudicate: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Write the items to adjudicate there, as a queue.")
    ] = None,
    between: Annotated[
        str, typer.Option(metavar="LOW,HIGH", help="Adjudicate where the probability of the truth is between these.")
    ] = "0.05,0.95",
    by: Annotated[str, typer.Option(metavar="A,B", help="Columns of the queue to slice by.")] = "language,content_type,market",
    level: Annotated[
        Literal["nominal", "ordinal", "interval"] | None,
        typer.Option(help="Differences of answers in alpha (default: nominal for answers of 0 and 1, interval for others)."),
    ] = None,
    weighted: Annotated[
        bool, typer.Option("--weighted", help="Estimate the truth with each item counted one over its inclusion probability.")
    ] = False,
    policy_version: PolicyVersion = None,
    replicates: Annotated[int, typer.Option(min=0, help="Bootstrap replicates of alpha and kappa.")] = 1000,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999, help="Confidence of each interval.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Random seed of the bootstraps.")] = 0,
) -> None:
    """Measure how far reviewers agree, who is right how often, and which items need an adjudicator.

    Krippendorff's alpha by label and slice, Cohen's kappa by pair, and sensitivity and specificity by reviewer: from the answers
    alone (Dawid-Skene), and from gold items. See docs/monitor-agreement.md.
    """
    from dataclasses import asdict

    from vigil_data.errors import UserError
    from vigil_data.progress import Progress
    from vigil_monitoring.agreement.accuracy import read_gold
    from vigil_monitoring.agreement.adjudication import adjudication_queue
    from vigil_monitoring.agreement.summary import AgreementOptions, measure_agreement
    from vigil_monitoring.queues.lineage import file_input
    from vigil_monitoring.queues.queue import read_queue, write_queue
    from vigil_monitoring.queues.queue_period import queue_period
    from vigil_monitoring.results import write_result
    from vigil_monitoring.reviews.answers import read_reviews, review_warnings

    columns = tuple(name.strip() for name in by.split(",") if name.strip())
    bounds = _bounds(between)
    asked = read_queue(queue)
    if unknown := [name for name in columns if name not in asked.table.column_names]:
        raise UserError(f"--by {unknown[0]}: a queue has no such column; it has {', '.join(asked.table.column_names)}")
    decisions = read_reviews(reviews, asked, policy_version)
    truth = None if gold is None else read_gold(gold, asked.record.labels)
    for line in review_warnings(asked, decisions):
        typer.echo(f"warning: {line}", err=True)
    if truth is not None and not any((of.id, of.label) in truth for of in decisions):
        raise UserError(f"{gold}: nobody answered any of its {len(truth):,} gold items; is it of another queue?")
    options = AgreementOptions(level, columns, weighted, bounds, replicates, confidence, seed)
    with Progress("measuring agreement"):
        found, doubtful = measure_agreement(asked, decisions, truth, options, str(queue))
    _show(found, doubtful)
    if adjudicate is not None and doubtful:
        inputs = [file_input("queue", queue, "reviewed"), file_input("reviews", reviews, "disagreements")]
        write_queue(adjudicate, adjudication_queue(asked, doubtful), inputs)
        typer.echo(f"{len({of.id for of in doubtful}):,} items to adjudicate in {adjudicate}")
    elif adjudicate is not None:
        typer.echo("nothing to adjudicate")
    if to is not None:
        write_result(to, "agreement", queue_period(asked), asdict(found))
        typer.echo(f"result: {to}")


def _bounds(text: str) -> tuple[float, float]:
    from vigil_data.errors import UserError

    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low <= high <= 1:
        raise UserError(f"--between {text}: give two probabilities, such as 0.05,0.95")
    return low, high


def _show(found: "AgreementResult", doubtful: "Sequence[Doubtful]") -> None:
    rows = [
        [
            *(of.label, of.items, of.answers, f"{of.cannot_tell:.1%}"),
            *(_with_interval(of.alpha.value, of.alpha.interval), of.alpha.items),
            *(_with_interval(of.positive, of.positive_interval, percent=True), of.doubtful),
        ]
        for of in found.labels
    ]
    print_table(["label", "items", "answers", "cannot tell", "alpha", "with two answers", "positive", "to adjudicate"], rows)
    for of in found.labels:
        if of.enough < of.items / 2:
            typer.echo(
                f"{of.label}: {of.items - of.enough:,} of {of.items:,} items have fewer than three answers; there, who is right "
                "depends mostly on what is assumed before anybody answers (see docs/monitor-agreement.md)"
            )
    slices = [
        [of.label, part.column, part.value, part.alpha.items, _with_interval(part.alpha.value, part.alpha.interval)]
        for of in found.labels
        for part in of.slices
    ]
    if slices:
        print_table(["label", "column", "value", "items with two answers", "alpha"], slices)
    print_table(
        ["reviewer", "items", "answers", "cannot tell", "agrees with others", "pairs", "minutes", "minutes per item"],
        (
            [
                *(of.reviewer, of.items, of.answers, f"{of.cannot_tell:.1%}", _percent(of.agreement), of.pairs),
                *("-" if of.minutes is None else f"{of.minutes:.1f}", _number(of.minutes_per_item)),
            ]
            for of in found.reviewers
        ),
    )
    print_table(
        ["label", "reviewer", "truth", "sensitivity", "specificity", "positives", "negatives"],
        map(_accuracy_row, found.accuracy),
    )
    worst = sorted((of for of in found.pairs if of.kappa is not None), key=lambda of: (of.kappa or 0.0, of.label, of.first))
    print_table(
        ["label", "reviewers", "items", "agreement", "kappa"],
        (
            [
                *(of.label, f"{of.first}, {of.second}", of.items, _percent(of.agreement)),
                _with_interval(of.kappa, of.kappa_interval),
            ]
            for of in worst[:MAX_ROWS]
        ),
    )
    if len(worst) > MAX_ROWS:
        typer.echo(f"… and {len(worst) - MAX_ROWS:,} more pairs with a higher kappa; --to FILE.json writes all of them")
    if doubtful:
        print_table(
            ["to adjudicate", "label", "no", "yes", "cannot tell", "probability", "expected gain"],
            (
                [of.id, of.label, of.no, of.yes, of.cannot_tell, f"{of.posterior:.3f}", f"{of.gain:.3g}"]
                for of in doubtful[:MAX_ROWS]
            ),
        )
        if len(doubtful) > MAX_ROWS:
            typer.echo(f"… and {len(doubtful) - MAX_ROWS:,} more; --adjudicate FILE.jsonl writes all of them")


def _accuracy_row(of: "AnswerAccuracy") -> list[object]:
    return [
        *(of.label, of.reviewer or "(decided target)", "answers alone" if of.source == "latent" else of.source),
        _with_interval(of.sensitivity, of.sensitivity_interval, percent=True),
        _with_interval(of.specificity, of.specificity_interval, percent=True),
        *(f"{of.positives:.0f}", f"{of.negatives:.0f}"),
    ]


def _with_interval(value: float | None, limits: "Interval | None", *, percent: bool = False) -> str:
    if value is None:
        return "-"
    form = ".1%" if percent else ".3f"
    return f"{value:{form}}" + (f" [{limits.low:{form}}, {limits.high:{form}}]" if limits else "")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def label_errors(
    predictions: Annotated[
        Path,
        typer.Argument(
            metavar="PREDICTIONS",
            help="Parquet table with id, probability.LABEL and target.LABEL; or a run or bundle.",
        ),
    ],
    *,
    data: Annotated[
        Path | None, typer.Option(metavar="DATASET", help="Dataset that a run or bundle predicts (default: its own).")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split (default: test of a run or bundle, all rows of a table).")] = None,
    labels: Annotated[str | None, typer.Option(metavar="A,B", help="Labels (default: all with known targets).")] = None,
    most: Annotated[int, typer.Option(min=1, help="Most suspected targets in the queue.")] = 200,
    to: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Write the items there, as a queue that asks about these labels.")
    ] = None,
) -> None:
    """List targets that a model contradicts, most suspicious first (confident learning).

    The model must not have been trained on the items: its probabilities agree with the targets that it learnt, wrong ones
    included. Unknown targets count nowhere. See docs/monitor-agreement.md.
    """
    from vigil.workflows.model_source import source_kind
    from vigil.workflows.prediction_sources import load_predictions
    from vigil_data.errors import UserError
    from vigil_data.lineage import Input, identify
    from vigil_data.progress import Progress
    from vigil_evaluation.predictions import labelled, scored_items
    from vigil_monitoring.agreement.label_errors import held_out, suspected_targets, suspects_queue
    from vigil_monitoring.queues.queue import write_queue

    kind = source_kind(predictions)
    with Progress("predicting") as progress:
        loaded = load_predictions(predictions, data=data, split=split if kind == "table" else split or "test", progress=progress)
    table = scored_items(loaded.table, str(predictions))[0]
    if "id" not in table.column_names:
        raise UserError(f"{predictions}: has no column id, by which reviewers find an item")
    known = labelled(table, loaded.labels)
    wanted = known if labels is None else tuple(name.strip() for name in labels.split(",") if name.strip())
    if unknown := [label for label in wanted if label not in known]:
        raise UserError(f"--labels {unknown[0]}: has no known target; labels with known targets are {', '.join(known) or 'none'}")
    if not wanted:
        raise UserError(f"{predictions}: has no known target.LABEL to check")
    found, suspects = suspected_targets(table, wanted)
    if kind == "table":
        state, why = held_out(table)
    else:
        state, why = ("no" if split == "train" else "yes"), f"the split is {split or 'test'}"
    if state == "yes":
        typer.echo(f"- the probabilities are held out: {why}")
    else:
        typer.echo(
            f"warning: {why}; a model agrees with the targets that it learnt, so that errors among them stay hidden. Predict "
            "each item with a model that was trained without it (docs/monitor-agreement.md)",
            err=True,
        )
    print_table(
        ["label", "known", "suspected", "wrong positives", "wrong negatives"],
        (
            [
                *(label, one.known, sum(of.label == label for of in suspects)),
                *(_percent(one.wrong_positives), _percent(one.wrong_negatives)),
            ]
            for label, one in found.items()
        ),
    )
    if suspects:
        print_table(
            ["suspected", "label", "target", "probability"],
            ([of.id, of.label, f"{of.target:g}", f"{of.probability:.3f}"] for of in suspects[:MAX_ROWS]),
        )
        if len(suspects) > MAX_ROWS:
            typer.echo(f"… and {len(suspects) - MAX_ROWS:,} more; --to FILE.jsonl writes the first {min(most, len(suspects)):,}")
    if to is not None and suspects:
        queue = suspects_queue(table, wanted, suspects[:most])
        scored = identify(predictions) or identify(predictions.parent)
        made_of = [] if scored is None else [Input(*scored, "predictions", path=str(predictions.resolve()))]
        write_queue(to, queue, made_of)
        typer.echo(f"{len(queue.table):,} items to review in {to}")

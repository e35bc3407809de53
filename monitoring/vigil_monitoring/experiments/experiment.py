"""Evaluation of an experiment from traffic, queues and reviews.

Nothing is stored between looks: the same traffic and reviews give the same result, whenever they are read, and looking every day
is reading traffic that has grown.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vigil_data.errors import UserError
from vigil_data.progress import ProgressCallback
from vigil_data.reviews.decisions import Decision
from vigil_monitoring.experiments.decisions import CHALLENGER, CHAMPION, Clusters, Floats, clusters_of, needed_columns
from vigil_monitoring.experiments.reading import Counts, SampledArms, TrafficReader
from vigil_monitoring.experiments.results import Arm, ExperimentResult
from vigil_monitoring.experiments.reviewed import ReviewedSample, reviewed_sample
from vigil_monitoring.experiments.sample_ratio import SampleRatio, sample_ratio
from vigil_monitoring.experiments.spec import TRAFFIC_METRICS, ColumnSplit, Experiment, HashSplit, Shadow
from vigil_monitoring.experiments.tallies import MAX_WITHOUT_ANSWERS, Tallies, Tally, new_tally
from vigil_monitoring.experiments.verdict import Goal, decide, evidence, metric_result
from vigil_monitoring.queues.queue import Queue
from vigil_monitoring.results import Period
from vigil_monitoring.traffic import Traffic, open_traffic

MIN_SHADOWED = 0.95
"""Smallest share of the champion's decisions that the shadow must have decided too."""

MAX_MISROUTED = 0.01
"""Largest share of an arm's decisions that another bundle may have made."""

ARMS = ("champion", "challenger")


def evaluate_experiment(
    spec: Experiment,
    path: Path,
    queues: Sequence[tuple[str, Queue, Sequence[Decision]]] = (),
    *,
    challenger: Path | None = None,
    exposure: Path | None = None,
    file: str = "experiment",
    progress: ProgressCallback | None = None,
) -> tuple[ExperimentResult, Period]:
    """Evaluate an experiment.

    Args:
        spec: the experiment.
        path: the traffic.
        queues: name of the file, queue, and reviewers' decisions about its items.
        challenger: traffic of the challenger's decisions on the same items, if it is not in ``path`` with role shadow.
        exposure: Parquet or CSV file of exposures; see :func:`vigil_monitoring.traffic.open_traffic`.
        file: the experiment's file, for messages.
        progress: called with a task, the decisions done and their number.

    Returns:
        The result, and the days that it is about.

    Raises:
        UserError: if traffic, queues or reviews do not fit the experiment.
    """
    if challenger is not None and not isinstance(spec.split, Shadow):
        raise UserError(f"{file}: split.kind: a second traffic is for shadow only, not for {spec.split.kind}")
    sources = _open(spec, path, challenger, exposure)
    days = sorted({day for traffic, _ in sources for day in traffic.days})
    clusters = clusters_of(spec, days)
    labels = spec.labels or sources[0][0].labels
    _check(spec, sources, labels, queues, file)
    sample = reviewed_sample(queues, labels) if queues and spec.needs_reviews else None
    reader = TrafficReader(spec, sources, clusters, progress)
    tallies = Tallies([new_tally(of, clusters) for of in spec.metrics], reader.guardrails())
    counts, found = reader.read(tallies, sample)
    notes: list[str] = []
    sampled = SampledArms(0, 0, 0)
    if sample is not None:
        sampled = reader.add_sample(tallies, sample, found)
        notes += _left_out(spec, sample, sampled)
    bundles = [_bundle(spec, counts, arm, file) for arm in (CHAMPION, CHALLENGER)]
    if bundles[0] is not None and bundles[0] == bundles[1]:
        raise UserError(f"{file}: both arms are of bundle {bundles[0][:12]}; nothing is compared")
    ratio = _ratio(spec, counts)
    problems = _problems(spec, counts, ratio, notes)
    metrics, guardrails = ([_goal(of, spec, clusters) for of in some] for some in (tallies.metrics, tallies.guardrails))
    decided = decide(metrics, guardrails, clusters.days, alpha=spec.alpha, horizon_days=spec.horizon_days, problems=problems)
    arms = [
        Arm(bundle, _most(counts.policies[arm]), sum(counts.bundles[arm].values()), sampled[arm])
        for arm, bundle in enumerate(bundles)
    ]
    result = ExperimentResult(
        name=spec.name,
        verdict=decided.verdict,
        reason=decided.reason,
        decided=decided.day,
        split=spec.split.kind,
        days=len(days),
        horizon_days=spec.horizon_days,
        alpha=spec.alpha,
        champion=arms[0],
        challenger=arms[1],
        ratio=ratio,
        problems=problems,
        notes=tuple(notes),
        metrics=decided.metrics,
        guardrails=decided.guardrails,
    )
    return result, Period(days[0], days[-1])


def _open(spec: Experiment, path: Path, challenger: Path | None, exposure: Path | None) -> list[tuple[Traffic, bool]]:
    """Return the traffics, each with whether it is the shadow's."""
    live = open_traffic(path, spec.start, spec.end, exposure=exposure)
    if not isinstance(spec.split, Shadow):
        return [(live, False)]
    if challenger is not None:
        return [(live, False), (open_traffic(challenger, spec.start, spec.end, exposure=exposure), True)]
    try:
        return [(live, False), (open_traffic(path, spec.start, spec.end, role="shadow", exposure=exposure), True)]
    except UserError as error:
        hint = "log the shadow (`vigil serve --shadow BUNDLE --log DIR`), give --challenger TRAFFIC, or set split"
        raise UserError(f"{error}; {hint}") from None


def _check(
    spec: Experiment,
    sources: Sequence[tuple[Traffic, bool]],
    labels: Sequence[str],
    queues: Sequence[tuple[str, Queue, Sequence[Decision]]],
    file: str,
) -> None:
    """Raise for metrics that the traffic and the queues cannot give."""
    problems = []
    known = sources[0][0].labels
    named = dict.fromkeys([*spec.labels, *(of.label for of in (*spec.metrics, *spec.guardrails) if of.label is not None)])
    problems += [f"labels: the traffic has no label {name}; it has {', '.join(known)}" for name in named if name not in known]
    outside = [name for name in named if name in known and name not in labels]
    problems += [f"labels: {name} is used by a metric, but is not among the labels of the experiment" for name in outside]
    if spec.needs_reviews and not queues:
        names = [of.name for of in (*spec.metrics, *spec.guardrails) if of.metric not in TRAFFIC_METRICS]
        problems.append(f"metrics: {names[0]} needs reviews: give --queue and --reviews")
    wanted = needed_columns(spec, [of.by for of in spec.guardrails if of.by is not None])
    problems += [
        f"the traffic has no column {name}; it has {', '.join(sources[0][0].columns)}"
        for name in wanted
        if name not in sources[0][0].columns
    ]
    if problems:
        raise UserError(*(f"{file}: {problem}" for problem in problems))


def _left_out(spec: Experiment, sample: ReviewedSample, sampled: SampledArms) -> list[str]:
    """Return which sampled rows are left out.

    Raises:
        UserError: if all are.
    """
    notes, rows = [], len(sample.ids_N)
    where = "of both models" if isinstance(spec.split, Shadow) else "in the traffic"
    if sampled.absent == rows:
        raise UserError(f"none of the {rows:,} rows of the queues has a decision {where} in the period of the experiment")
    if sampled.absent:
        notes.append(f"{sampled.absent:,} of {rows:,} sampled rows have no decision {where} in the period, and are left out")
    if sample.picked:
        notes.append(f"{sample.picked:,} rows of the queues belong to no probability sample, and are left out")
    return notes


def _bundle(spec: Experiment, counts: Counts, arm: int, file: str) -> str | None:
    """Return the hash of an arm's bundle.

    Raises:
        UserError: if the arm has no decisions, or several bundles.
    """
    name, bundles = ARMS[arm], counts.bundles[arm]
    if not bundles:
        wanted = (spec.champion, spec.challenger)[arm]
        of = f" of bundle {wanted}" if wanted is not None else ""
        raise UserError(f"{file}: the {name} has no decisions{of} in the period")
    hashes = [bundle for bundle in bundles if bundle is not None]
    if len(hashes) > 1:
        shown = ", ".join(f"{bundle[:12]} ({bundles[bundle]:,} decisions)" for bundle in hashes[:5])
        raise UserError(f"{file}: the {name} ran {len(hashes)} bundles: {shown}; name the one under test as {name}: HASH")
    return hashes[0] if hashes else None


def _ratio(spec: Experiment, counts: Counts) -> SampleRatio | None:
    """Return the test of the arms' sizes; ``None`` where no units are assigned."""
    if not isinstance(spec.split, HashSplit | ColumnSplit):
        return None
    units: list[list[int]] = [[], []]
    times = sorted({time for of in counts.places for time in of})
    for arm, of in enumerate(counts.places):
        seen: Floats = np.empty(0)
        for time in times:
            seen = np.unique(np.concatenate([seen, *of.get(time, [])]))
            units[arm].append(len(seen))
    return sample_ratio(units[0], units[1], spec.split.share) if times else None


def _problems(spec: Experiment, counts: Counts, ratio: SampleRatio | None, notes: list[str]) -> tuple[str, ...]:
    """Return what makes the arms not comparable; what is only left out is added to ``notes``."""
    problems = []
    if ratio is not None and ratio.mismatch:
        got = ratio.challenger / max(ratio.challenger + ratio.champion, 1)
        problems.append(
            f"sample ratio mismatch: the challenger has {got:.2%} of {ratio.challenger + ratio.champion:,} units, not "
            f"{ratio.share:.2%} (p {ratio.p_value:.1g}); decisions of one arm are lost or misrouted"
        )
    sizes = [sum(of.values()) for of in counts.bundles]
    if isinstance(spec.split, Shadow):
        if sizes[1] < MIN_SHADOWED * sizes[0]:
            problems.append(f"the shadow decided only {sizes[1] / max(sizes[0], 1):.1%} of the champion's {sizes[0]:,} decisions")
        return tuple(problems)
    for arm, other in enumerate(counts.other_bundles):
        if other:
            share = other / (other + sizes[arm])
            what = f"{other:,} decisions ({share:.2%}) of the {ARMS[arm]}'s arm were made by another bundle"
            (problems if share > MAX_MISROUTED else notes).append(what)
    return tuple(problems)


def _goal(tally: Tally, spec: Experiment, clusters: Clusters) -> Goal:
    looks = tally.sums.looks(clusters.last_time_K)
    found = evidence(
        looks,
        lower=tally.spec.lower,
        threshold=tally.spec.threshold,
        alpha=spec.alpha / 2,
        horizon_clusters=spec.horizon_days * clusters.per_day,
        enough=spec.enough,
    )
    bounds = None
    if tally.extremes is not None and (tally.without_answers or 0) > MAX_WITHOUT_ANSWERS:
        ends = [float(sums.looks(clusters.last_time_K).difference_K[-1]) for sums in tally.extremes]
        bounds = (min(ends), max(ends)) if np.isfinite(ends).all() else None
    result = metric_result(
        tally.spec,
        looks,
        found,
        clusters.days,
        column=tally.column,
        value=tally.value,
        without_answers=tally.without_answers,
        bounds=bounds,
    )
    return Goal(result, found)


def _most(counter: Counter[Any]) -> str | None:
    return counter.most_common(1)[0][0] if counter else None

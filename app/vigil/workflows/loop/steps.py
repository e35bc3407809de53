"""Steps of an iteration, as `vigil` commands."""

import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Literal, NamedTuple

from vigil.workflows.loop.specs import Loop

Kind = Literal["command", "reviews", "training", "gate"]


class Queue(NamedTuple):
    """Items to review: their queue, and the file of answers that ends the wait."""

    queue: Path
    reviews: Path


class Step(NamedTuple):
    """A step of an iteration.

    Attributes:
        name: name of the step.
        command: arguments of `vigil`; empty for the wait for reviews.
        kind: ``reviews`` waits for answers, ``training`` may be a job, ``gate`` may reject the challenger.
        needs: queue without answers for which the command is left out.
    """

    name: str
    command: Sequence[str] = ()
    kind: Kind = "command"
    needs: Path | None = None


def queues(loop: Loop, folder: Path) -> list[Queue]:
    """Return the queues of an iteration."""
    names = [name for name, block in (("sample", loop.sample), ("mined", loop.mine)) if block is not None]
    return [Queue(folder / f"{name}.jsonl", folder / f"{name}-reviews.jsonl") for name in names]


def plan_steps(loop: Loop, folder: Path, start: date, end: date) -> list[Step]:
    """Return the steps of an iteration in order.

    Args:
        loop: the loop.
        folder: folder of the iteration.
        start: first day of its traffic.
        end: last day.
    """
    period = ["--from", start.isoformat(), "--until", end.isoformat()]
    return [*_collecting(loop, folder, period), *_measuring(loop, folder, period), *_improving(loop, folder)]


def _collecting(loop: Loop, folder: Path, period: Sequence[str]) -> list[Step]:
    steps, seed = [], ["--seed", str(int(folder.name))]
    if loop.sample is not None:
        chosen = ["--design", loop.sample.design, "--budget", str(loop.sample.budget), "--to", str(folder / "sample.jsonl")]
        steps.append(Step("sample", ["monitor", "sample", loop.traffic, *chosen, *seed, *period]))
    if loop.mine is not None:
        chosen = [] if loop.mine.strategy is None else ["--strategy", loop.mine.strategy]
        chosen += ["--budget", str(loop.mine.budget), "--to", str(folder / "mined.jsonl")]
        chosen += [] if loop.sample is None else ["--not-in", str(folder / "sample.jsonl")]
        steps.append(Step("mine", ["monitor", "mine", loop.traffic, *chosen, *seed, *period]))
    return [*steps, Step("reviews", kind="reviews")]


def _measuring(loop: Loop, folder: Path, period: Sequence[str]) -> list[Step]:
    results, steps = Path(loop.folder, "results"), []
    slices = [] if loop.by is None else ["--by", loop.by]
    if loop.sample is not None:
        files = [loop.traffic, *(str(folder / name) for name in ("sample.jsonl", "sample-reviews.jsonl"))]
        units = [] if loop.cluster is None else ["--cluster", loop.cluster]
        for name in ("prevalence", "metrics"):
            to = ["--to", str(results / f"{folder.name}-{name}.json")]
            steps.append(Step(name, ["monitor", name, *files, *slices, *units, *to]))
    for queue in queues(loop, folder):
        name = queue.queue.stem
        to = ["--to", str(results / f"{folder.name}-agreement-{name}.json")]
        steps.append(Step(f"agreement of {name}", ["monitor", "agreement", str(queue.queue), str(queue.reviews), *to]))
    if loop.reference is not None and not _within_reference(loop.reference, period[3]):
        to = ["--to", str(results / f"{folder.name}-drift.json")]
        if loop.sample is not None:
            to += ["--queue", str(folder / "sample.jsonl"), "--reviews", str(folder / "sample-reviews.jsonl")]
        command = ["monitor", "drift", loop.traffic, "--reference", loop.reference, *slices, "--until", period[3], *to]
        steps.append(Step("drift", command))
    return steps


def _within_reference(reference: str, end: str) -> bool:
    """Return whether a period that ends on ``end`` has no day after a reference of days, ``FIRST..LAST``."""
    last = reference.partition("..")[2]
    return re.fullmatch(r"\d{4}-\d\d-\d\d", last) is not None and end <= last


def _improving(loop: Loop, folder: Path) -> list[Step]:
    run, bundle, champion = folder / "run", folder / "bundle", Path(loop.models, "champion")
    steps = []
    for queue in queues(loop, folder):
        rules = [part for rule in loop.merge.rules for part in ("--rule", rule)]
        options = ["--on-conflict", loop.merge.on_conflict, *rules, *(["--soft"] if loop.merge.soft else [])]
        reason = f"loop {loop.name}, iteration {folder.name}: {queue.queue.stem}"
        command = ["data", "merge-labels", loop.dataset, str(queue.reviews), *options, "--reason", reason]
        steps.append(Step(f"merge {queue.queue.stem}", command, needs=queue.reviews))
    if loop.retrain is not None:
        values = [f"data.dataset={loop.dataset}", *([f"init_from={champion}"] if loop.retrain.warm_start else [])]
        train = [loop.retrain.recipe, "--run", str(run), *values, *loop.retrain.overrides]
        steps.append(Step("train", [*_launcher(loop), *train], kind="training"))
        if loop.policy is not None:
            steps.append(Step("policy", ["policy", "compile", loop.policy, str(run)]))
        steps.append(Step("evaluate", ["evaluate", str(run)]))
        steps.append(Step("export", ["export", str(run), "--to", str(bundle)]))
        compare = [str(champion), str(bundle), "--data", loop.dataset, "--to", str(folder / "comparison")]
        compare += ["--split", loop.compare.split, "--require", loop.compare.require]
        compare += [part for loss in loop.compare.tolerance for part in ("--tolerance", loss)]
        compare += [] if loop.compare.metrics is None else ["--metrics", loop.compare.metrics]
        steps.append(Step("compare", ["compare", *compare], kind="gate"))
        if loop.promote.automatic:
            steps.append(Step("promote", promotion(loop, folder), kind="gate"))
    report = ["monitor", "report", str(Path(loop.folder, "results")), "--traffic", loop.traffic]
    return [*steps, Step("report", [*report, "--to", str(Path(loop.folder, "report.html"))])]


def promotion(loop: Loop, folder: Path) -> list[str]:
    """Return the command that makes the challenger of an iteration the champion."""
    evidence = ["--comparison", str(folder / "comparison")]
    experiment = loop.promote.experiment
    evidence += ["--without-experiment"] if experiment is None else ["--experiment", experiment]
    return ["promote", str(folder / "bundle"), "--to", "champion", "--models", loop.models, *evidence]


def _launcher(loop: Loop) -> list[str]:
    if loop.slurm is None:
        return ["train"]
    given = {
        "--profile": loop.slurm.profile,
        "--time": loop.slurm.time,
        "--nodes": loop.slurm.nodes,
        "--gpus-per-node": loop.slurm.gpus_per_node,
    }
    return ["submit", *(part for option, value in given.items() if value is not None for part in (option, str(value)))]

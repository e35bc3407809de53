"""Iterations of a loop: their steps run in order, are recorded, and resume where they stopped."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal

from vigil.workflows.loop.specs import Loop
from vigil.workflows.loop.steps import Queue, Step, plan_steps, queues
from vigil.workflows.release_gate import RegressionError
from vigil_data import json_fields
from vigil_data.errors import UserError
from vigil_data.filesystem import locked, write_json

STATE = "state.json"

Outcome = Literal["measured", "accepted", "promoted", "rejected"]
"""How an iteration ended: without retraining; with a challenger that passed and waits for its promotion; and so on."""


@dataclass(frozen=True, slots=True)
class Iteration:
    """State of an iteration, as its ``state.json`` has it.

    Attributes:
        number: number of the iteration, from 1.
        start: first day of its traffic.
        end: last day.
        loop: the loop's keys when the iteration began; its steps follow them, also if the file is changed meanwhile.
        champion: digest of the champion when the iteration began; ``None`` without a champion.
        seconds: finished step to its duration.
        job: job that trains the challenger, if one was submitted.
        rejected: why the challenger was rejected; empty if it was not.
        outcome: how it ended; ``None`` while it goes on.
    """

    number: int
    start: str
    end: str
    loop: Mapping[str, Any]
    champion: str | None
    seconds: Mapping[str, float] = field(default_factory=dict)
    job: str | None = None
    rejected: str = ""
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class LoopSurroundings:
    """What a loop asks of the outside; the command line and tests have their own.

    Attributes:
        run: runs a step's command; raises if it fails.
        answered: queue to (questions, questions with an answer).
        newest_day: newest complete day of the traffic; ``None`` without one.
        champion: digest of the champion; ``None`` without one.
        job_of: job of a run folder that is queued or running; ``None`` without one.
        trained: whether a run has finished.
        continue_after: lets a job continue the loop after the one that trains a run, if none does yet.
    """

    run: Callable[[Step, int, int], None]
    answered: Callable[[Queue], tuple[int, int]]
    newest_day: Callable[[], date | None]
    champion: Callable[[], str | None]
    job_of: Callable[[Path], str | None]
    trained: Callable[[Path], bool]
    continue_after: Callable[[Path, str], None]


def read_iterations(loop: Loop) -> list[Iteration]:
    """Return the iterations of a loop, the oldest first.

    Raises:
        UserError: if a state file is malformed.
    """
    found = []
    for file in sorted(Path(loop.folder).glob(f"[0-9][0-9][0-9][0-9]/{STATE}")):
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{file}: not JSON ({error})") from None
        iteration: Iteration = json_fields.structure(Iteration, value, str(file))
        found.append(iteration)
    return found


def iteration_folder(loop: Loop, iteration: Iteration) -> Path:
    """Return the folder of an iteration."""
    return Path(loop.folder, f"{iteration.number:04d}")


def run_loop(loop: Loop, outside: LoopSurroundings) -> tuple[Iteration | None, str | None]:
    """Continue the unfinished iteration, or begin one if there are enough new days of traffic.

    Args:
        loop: the loop.
        outside: commands, answers, jobs.

    Returns:
        The iteration, ``None`` if there is none; and what the loop waits for, one line for each, ``None`` once an iteration
        has ended.

    Raises:
        UserError: if another process runs the loop.
        Failure: if a step fails; the next call repeats that step.
    """
    folder = Path(loop.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock", f"{loop.folder}: another process runs this loop"):
        iterations = read_iterations(loop)
        iteration = iterations[-1] if iterations else None
        if iteration is None or iteration.outcome is not None:
            new = _begin(loop, iteration, outside)
            if isinstance(new, str):
                return iteration, new
            iteration = new
        return _continue(_loop_of(iteration), iteration, outside)


def _begin(loop: Loop, last: Iteration | None, outside: LoopSurroundings) -> Iteration | str:
    newest = outside.newest_day()
    if newest is None:
        return f"{loop.traffic} has no complete day of traffic yet"
    length = timedelta(days=loop.days - 1)
    first = date.fromisoformat(last.end) + timedelta(days=1) if last else loop.first or newest - length
    if newest < first + length:
        return f"the next iteration begins when the traffic of {first + length} is complete"
    number = 1 if last is None else last.number + 1
    keys = loop.model_dump(mode="json")
    iteration = Iteration(number, first.isoformat(), (first + length).isoformat(), keys, outside.champion())
    if loop.retrain is not None and iteration.champion is None:
        alias = Path(loop.models, "champion")
        raise UserError(
            f"{alias}: no such bundle; make one with `vigil promote BUNDLE --without-comparison --models {loop.models}`"
        )
    _record(loop, iteration)
    return iteration


def _continue(loop: Loop, iteration: Iteration, outside: LoopSurroundings) -> tuple[Iteration, str | None]:
    folder = iteration_folder(loop, iteration)
    Path(loop.folder, "results").mkdir(exist_ok=True)
    steps = plan_steps(loop, folder, date.fromisoformat(iteration.start), date.fromisoformat(iteration.end))
    for number, step in enumerate(steps, 1):
        if step.name in iteration.seconds or (iteration.rejected and step.kind == "gate"):
            continue
        began = time.perf_counter()
        if step.kind == "reviews":
            if (waiting := _waits_for_reviews(loop, folder, outside)) is not None:
                return iteration, waiting
        elif step.kind == "training" and loop.slurm is not None:
            iteration, waiting = _submitted(loop, iteration, (step, number, len(steps)), outside)
            if waiting is not None:
                return iteration, waiting
        elif step.needs is None or step.needs.exists():
            try:
                outside.run(step, number, len(steps))
            except RegressionError as error:
                iteration = replace(iteration, rejected=str(error).splitlines()[0])
        iteration = replace(iteration, seconds={**iteration.seconds, step.name: round(time.perf_counter() - began, 1)})
        _record(loop, iteration)
    iteration = replace(iteration, outcome=_outcome(loop, iteration))
    _record(loop, iteration)
    return iteration, None


def _outcome(loop: Loop, iteration: Iteration) -> Outcome:
    if loop.retrain is None:
        return "measured"
    if iteration.rejected:
        return "rejected"
    return "promoted" if loop.promote.automatic else "accepted"


def _waits_for_reviews(loop: Loop, folder: Path, outside: LoopSurroundings) -> str | None:
    open_queues = []
    for queue in queues(loop, folder):
        asked, answered = outside.answered(queue)
        if answered < loop.answered * asked:
            open_queues.append(f"{queue.reviews}: {answered} of {asked} questions of {queue.queue.name} are answered")
    return "\n".join(open_queues) or None


def _submitted(
    loop: Loop, iteration: Iteration, numbered: tuple[Step, int, int], outside: LoopSurroundings
) -> tuple[Iteration, str | None]:
    """Submit the training once, and wait for its job; a job that ended without a finished run is submitted again."""
    run = iteration_folder(loop, iteration) / "run"
    if outside.trained(run):
        return iteration, None
    job = outside.job_of(run)
    if job is None:
        outside.run(*numbered)
        job = outside.job_of(run)
        iteration = replace(iteration, job=job)
        _record(loop, iteration)
    if job is None:
        return iteration, f"the job of {run} has ended already; call this again"
    outside.continue_after(run, job)
    return iteration, f"job {job} trains {run}"


def _record(loop: Loop, iteration: Iteration) -> None:
    folder = iteration_folder(loop, iteration)
    folder.mkdir(exist_ok=True)
    write_json(folder / STATE, asdict(iteration))


def _loop_of(iteration: Iteration) -> Loop:
    return Loop.model_validate(iteration.loop)

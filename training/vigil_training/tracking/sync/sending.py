"""`vigil track sync`: send what a run has written offline, its parts first and then its lineage, once.

What was sent is appended to ``wandb/sent.jsonl`` in the run folder after the server has it, and what the server has is asked for
before anything is sent. A sync that is repeated, killed, or made from a copy of the folder thus ends with the same graph.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from vigil_data.errors import Failure, UserError
from vigil_data.filesystem import locked, write_failure
from vigil_data.lineage import Graph, read_ledger
from vigil_data.progress import ProgressCallback
from vigil_training.overview import find_runs, read_state
from vigil_training.runs.run import Run
from vigil_training.tracking import artifacts, upload
from vigil_training.tracking.artifacts import Target
from vigil_training.tracking.content import ContentRule
from vigil_training.tracking.parts import repair_parts, unsent_parts
from vigil_training.tracking.sync.replay import MODELS, REGISTRY, Step, files_of, metadata_of, note_of, reference_of, steps_of

SENT = "sent.jsonl"
"""What of the lineage was sent, in ``wandb/`` of a run folder: a line for each artifact."""


@dataclass(frozen=True, slots=True)
class Unsent:
    """What of a run has not been sent.

    Attributes:
        parts: its parts of W&B's log, the oldest first.
        steps: edges of its lineage.
        running: why the run counts as running; empty if it does not. Its last part and its lineage are sent when it has ended.
        unknown: whether the ledger has no record of the run.
    """

    parts: Sequence[Path]
    steps: Sequence[Step]
    running: str = ""
    unknown: bool = False

    def __bool__(self) -> bool:
        return bool(self.parts or self.steps)


@dataclass(slots=True)
class Sent:
    """What a sync has sent.

    Attributes:
        parts: number of parts.
        artifacts: the edges that the server did not have.
        known: the edges that the server had.
        uses: uses of bundles that were noted or linked.
        waiting: why edges were not sent.
        running: as of :class:`Unsent`, as is ``unknown``.
        page: address of the run.
    """

    parts: int = 0
    artifacts: list[Step] = field(default_factory=list)
    known: list[Step] = field(default_factory=list)
    uses: list[Step] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    running: str = ""
    unknown: bool = False
    page: str = ""


def find_unsent(run: Run, graph: Graph, *, project: str | None = None, lineage: bool = True) -> Unsent:
    """Return what of a run has not been sent, from local records alone.

    Args:
        run: the run.
        graph: the ledger.
        project: ``[ENTITY/]PROJECT`` (default: where the run was sent before, else its recipe's).
        lineage: whether the lineage is sent too.
    """
    parts, state = unsent_parts(_folder(run)), read_state(run.path)
    if state.name == "running":
        return Unsent(parts[:-1], (), state.reason or "it is being trained")
    if not lineage:
        return Unsent(parts, ())
    if (node := graph.get("run", run.run_id)) is None:
        return Unsent(parts, (), unknown=True)
    entity, name = _project_of(run, project)
    done = {
        (line["verb"], line["kind"], line["digest"])
        for line in _read_sent(run)
        if line["url"] == artifacts.server_url() and line["project"] == name and entity in (None, line["entity"])
    }
    return Unsent(parts, [step for step in steps_of(graph, node) if (step.verb, *step.node.key) not in done])


def sync_run(
    run: Run,
    *,
    project: str | None = None,
    lineage: bool = True,
    weights: bool = False,
    graph: Graph | None = None,
    progress: ProgressCallback | None = None,
) -> Sent:
    """Send what of a run has not been sent: the parts of its log, the oldest first, then its lineage as artifacts.

    Args:
        run: the run.
        project: ``[ENTITY/]PROJECT`` (default: where the run was sent before, else its recipe's).
        lineage: whether to send the lineage.
        weights: send the files of checkpoints, not only references to them.
        graph: the ledger (default: that of the workspace).
        progress: called with what is sent, how many are done and how many there are.

    Raises:
        UserError: if the run was not tracked, or another process is sending it.
        Failure: if the server cannot be reached, refuses or fails; what was sent until then is recorded.
    """
    folder, report = _folder(run), progress or _ignore
    if not folder.is_dir():
        raise UserError(f"{run.path}: was not tracked (tracking.mode is disabled), so there is nothing to send")
    graph = read_ledger() if graph is None else graph
    with locked(folder / upload.LOCK, f"{run.path}: {{owner}} is sending it; try again when it is done"), _named(run):
        unsent = find_unsent(run, graph, project=project, lineage=lineage)
        sent = Sent(running=unsent.running, unknown=unsent.unknown)
        if not unsent:
            return sent
        entity, name = _project_of(run, project)
        with artifacts.files_of_wandb_in(folder) as place:
            target = artifacts.open_target(entity, name)
            if project is None and _was_sent(run):
                _check_is_there(run, target)
            if not unsent.running:
                repair_parts(folder)
            for number, part in enumerate(unsent.parts):
                report("sending parts", number, len(unsent.parts))
                if not part.exists():  # It had no whole record.
                    continue
                if problem := upload.send_part(part, target.entity, target.project):
                    raise Failure(f"{target.url}: {problem}")
                sent.parts += 1
            if unsent.steps:
                _send_steps(run, target, unsent.steps, sent, place=place, graph=graph, weights=weights, report=report)
        sent.page = f"{target.url}/{target.entity}/{target.project}/runs/{run.run_id}"
        return sent


def tracked_runs(folder: Path) -> list[Run]:
    """Return the tracked runs in a folder and those below it, by path.

    Raises:
        UserError: if there is no such folder.
    """
    found = (path for path in find_runs(folder) if (path / "wandb").is_dir() and (path / "resolved.yaml").is_file())
    return [Run(path) for path in found]


def in_order(runs: Sequence[Run], graph: Graph) -> list[Run]:
    """Return runs so that each comes after those whose checkpoints it used, and otherwise as they are given."""
    by_id = {run.run_id: run for run in runs}
    before: dict[str, set[str]] = {}
    for run_id in by_id:
        node = graph.get("run", run_id)
        walked = () if node is None else graph.walk(node, "up", MODELS)
        before[run_id] = {each.digest for each in walked if each.kind == "run"} & by_id.keys() - {run_id}
    return [by_id[run_id] for run_id in TopologicalSorter(before).static_order()]


def last_target(run: Run) -> tuple[str | None, str] | None:
    """Return entity and project that a run's lineage was sent to last; ``None`` if it was not."""
    lines = [line for line in _read_sent(run) if line["url"] == artifacts.server_url()]
    return (lines[-1]["entity"], lines[-1]["project"]) if lines else None


def _send_steps(
    run: Run,
    target: Target,
    steps: Sequence[Step],
    sent: Sent,
    *,
    place: Path,
    graph: Graph,
    weights: bool,
    report: ProgressCallback,
) -> None:
    """Send edges of the lineage, in one session that is opened only if the server lacks one of them, then uses of bundles."""
    rule = ContentRule(run.recipe.tracking.content)
    missing: list[tuple[Step, Any]] = []
    edges = [step for step in steps if step.bundle is None]
    for number, step in enumerate(edges):
        report("looking up artifacts", number, len(edges))
        found = artifacts.find_version(target, step.collection, step.node.digest)
        if found is not None and step.verb == "logged":
            record_sent(run, target, step, f"{step.collection}:{found.version}")
            sent.known.append(step)
        elif found is None and step.verb == "used" and (maker := _tracked_maker(graph, step)) is not None:
            sent.waiting.append(
                f"{run.path}: {step.collection}, which it used, is of the run {maker}, which has not been sent; send both "
                f"with `vigil track sync {maker} {run.path}`"
            )
        else:
            missing.append((step, found))
    if missing:
        with artifacts.open_run_at_server(target, place, id=run.run_id, resume="must") as session:
            for number, (step, found) in enumerate(missing):
                report("sending artifacts", number, len(missing))
                artifact = found or artifacts.make_artifact(
                    step.collection,
                    step.node.kind,
                    step.node.digest,
                    reference=reference_of(step.node),
                    metadata=metadata_of(graph, step),
                    files=files_of(graph, step.node, rule, weights=weights),
                    place=place,
                )
                name = artifacts.send_artifact(session, artifact, used=step.verb == "used")
                record_sent(run, target, step, name)
                sent.artifacts.append(step)
    for step in steps:
        if step.bundle is not None:
            _send_use(run, target, step, sent, graph)


def _send_use(run: Run, target: Target, step: Step, sent: Sent, graph: Graph) -> None:
    """Note a use of a bundle at its artifact, or link the bundle in a registry."""
    assert step.bundle is not None
    if step.verb == "linked":
        registry = step.node.facts[REGISTRY]
        name = artifacts.link_to_registry(target, step.collection, step.bundle.digest, registry, step.node.name)
    else:
        key = f"{step.node.kind}:{step.node.digest}"
        name = artifacts.add_metadata(target, step.collection, step.bundle.digest, "used_by", {key: note_of(graph, step)})
    if name is None:
        sent.waiting.append(f"{run.path}: {target} has no artifact {step.collection} of the bundle {step.bundle.digest[:12]}")
    else:
        record_sent(run, target, step, name)
        sent.uses.append(step)


def _tracked_maker(graph: Graph, step: Step) -> Path | None:
    """Return the folder of the tracked run that made a step's artifact, which is to log it first."""
    if step.owner is None:
        return None
    return next((Path(path) for path in graph.paths(step.owner) if (Path(path) / "wandb").is_dir()), None)


def _check_is_there(run: Run, target: Target) -> None:
    """Check that the server still has a run, parts of it having been sent: W&B would make a second one."""
    if not target.has_run(run.run_id):
        raise Failure(
            f"{target.url}: {target.entity}/{target.project} has no run {run.run_id}, to which earlier parts were sent: the "
            "project was renamed, or the run deleted; name the project with --project [ENTITY/]PROJECT"
        )


def _was_sent(run: Run) -> bool:
    return next(_folder(run).glob("offline-run-*/*.synced"), None) is not None


def _project_of(run: Run, given: str | None) -> tuple[str | None, str]:
    if given is None:
        spec = run.recipe.tracking
        return last_target(run) or (spec.entity, spec.project)
    entity, slash, project = given.rpartition("/")
    if not project or "/" in entity or (slash and not entity):
        raise UserError(f"--project {given}: must be PROJECT or ENTITY/PROJECT")
    return entity or None, project


@contextmanager
def _named(run: Run) -> Iterator[None]:
    """Name the run in a failure, and what to do about it."""
    try:
        yield
    except Failure as failure:
        raise Failure(f"{run.path}: {failure}; nothing is lost: repeat `vigil track sync {run.path}`") from failure


def _read_sent(run: Run) -> list[dict[str, Any]]:
    """Return the lines of ``sent.jsonl``, without one that a kill cut off."""
    found = []
    file = _folder(run) / SENT
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def record_sent(run: Run, target: Target, step: Step, artifact: str) -> None:
    """Append to :data:`SENT` that the server has a step.

    Raises:
        Failure: if the file cannot be written.
    """
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "url": target.url,
        "entity": target.entity,
        "project": target.project,
        "verb": step.verb,
        "kind": step.node.kind,
        "digest": step.node.digest,
        "artifact": artifact,
    }
    file = _folder(run) / SENT
    try:
        with file.open("a", encoding="utf-8") as out:
            out.write(("" if _ends_whole(file) else "\n") + json.dumps(line) + "\n")
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        raise write_failure(file, error) from error


def _ends_whole(file: Path) -> bool:
    """Return whether a file ends with a line break, or is empty."""
    content = file.read_bytes()
    return not content or content.endswith(b"\n")


def _folder(run: Run) -> Path:
    return run.path / "wandb"


_ignore: Callable[..., None] = lambda *_: None  # noqa: E731

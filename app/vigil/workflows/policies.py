"""Policies of runs, bundles and files: compile them on predictions, read them, and replay two over the same traffic."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vigil.workflows.prediction_sources import Predictions, load_predictions
from vigil_data.errors import Failure, UserError
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_evaluation.policy.infeasibility import InfeasiblePolicy
from vigil_evaluation.policy.specs import Policy
from vigil_training.recipe.resolve import read_spec

if TYPE_CHECKING:
    import pyarrow as pa

    from vigil_evaluation.policy.replay import Replay, ReplaySide

REPLAY = "replay.json"
CHANGES = "changes.parquet"

Progress = Callable[[int, int], None]


class InfeasibleError(Failure):
    """A policy that cannot be shown to be kept; nothing was written."""


@dataclass(frozen=True, slots=True)
class CompiledPolicyFile:
    """A compiled policy, where it was written, and what it was compiled on."""

    policy: CompiledPolicy
    file: Path
    predictions: Predictions


def read_policy(file: Path) -> Policy:
    """Read a policy's YAML.

    Raises:
        UserError: one line ``FILE:LINE: key.path: what`` for each mistake found.
    """
    return read_spec(Policy, file, "policy", "name: my-policy")


def compile_policy(
    file: Path,
    source: Path,
    *,
    data: Path | None = None,
    split: str = "validation",
    cluster: str | None = None,
    to: Path | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> CompiledPolicyFile:
    """Compile a policy on the predictions of a source, and write it.

    Args:
        file: the policy's YAML.
        source: a table of predictions, a run or a bundle.
        data: see :func:`vigil.workflows.prediction_sources.load_predictions`.
        split: likewise.
        cluster: column of the items that belong together; a run's own if not given.
        to: the file to write; ``policy.json`` of a run if not given.
        progress: told the items done and their number.
        say: told what is being done.

    Raises:
        UserError: a mistake in the policy, a source that does not fit it, or no place to write to.
        InfeasibleError: what cannot be shown, and the nearest that can.
    """
    from vigil_evaluation.policy.compile import compile_policy as find

    policy = read_policy(file)
    target = to or _place(source)
    unit = cluster or _cluster(source)
    columns = [*policy.columns, *([unit] if unit is not None else [])]
    predictions = load_predictions(source, data=data, split=split, columns=columns, progress=progress)
    if cluster is None and unit not in predictions.table.column_names:
        unit = None
    facts = {"policy": str(file), **predictions.facts}
    if (calibration := _calibration(source)) is not None:
        facts["calibration"] = calibration
    found = find(
        policy,
        predictions.table,
        predictions.labels,
        severities=_severities(predictions),
        cluster=unit,
        facts=facts,
        progress=say,
    )
    if isinstance(found, InfeasiblePolicy):
        old = f"{target} is left as it was" if target.exists() else "nothing is written"
        raise InfeasibleError("\n".join([*found.lines, old]))
    target.parent.mkdir(parents=True, exist_ok=True)
    found.write(target)
    return CompiledPolicyFile(found, target, predictions)


def read_compiled_policy(path: Path) -> CompiledPolicy:
    """The compiled policy of a file, a run or a bundle.

    Raises:
        UserError: if there is none.
    """
    found = _carried(path)
    if found is None:
        raise UserError(f"{path} has no compiled policy; compile one: vigil policy compile POLICY.yaml {path}")
    return found


def replay_sources(
    first: Path,
    second: Path,
    *,
    on: Path | None = None,
    policy: Path | None = None,
    data: Path | None = None,
    split: str = "test",
    columns: Sequence[str] = (),
    cluster: str | None = None,
    progress: Progress | None = None,
) -> "tuple[Replay, pa.Table]":
    """Replay two policies over one source's predictions, or two models over the same items.

    Args:
        first: a compiled policy, a run, a bundle or a table of predictions.
        second: likewise.
        on: whose predictions are decided on; each side's own if not given.
        policy: a compiled policy for the sides that carry none.
        data: see :func:`vigil.workflows.prediction_sources.load_predictions`.
        split: likewise.
        columns: by which those affected are told apart, beside presence, market and what the policies speak of.
        cluster: column of the items that belong together.
        progress: told the items done and their number.

    Raises:
        UserError: if a side has no policy or no predictions, or the two have no items in common.
    """
    from vigil_evaluation.policy.replay import ReplaySide, replay

    spare = None if policy is None else read_compiled_policy(policy)
    policies = [_policy_of(side, spare) for side in (first, second)]
    ruled = [shown.rule.column for one in policies for shown in one.constraints if shown.rule.column is not None]
    wanted = list(dict.fromkeys(["market", *ruled, *columns, *([cluster] if cluster is not None else [])]))
    if on is not None:
        shared = load_predictions(on, data=data, split=split, columns=wanted, progress=progress)
        sides = [ReplaySide(str(side), one, shared.table) for side, one in zip((first, second), policies, strict=True)]
    else:
        sides = [
            _side(side, one, data, split, columns=wanted, progress=progress)
            for side, one in zip((first, second), policies, strict=True)
        ]
    return replay(sides[0], sides[1], columns=columns, cluster=cluster)


def write_replay(found: "Replay", changes: "pa.Table", to: Path) -> None:
    """Write what a replay found: :data:`REPLAY` and :data:`CHANGES`."""
    import pyarrow.parquet as pq

    to.mkdir(parents=True, exist_ok=True)
    (to / REPLAY).write_text(json.dumps(found.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    pq.write_table(changes, to / CHANGES)


def _side(
    path: Path, policy: CompiledPolicy, data: Path | None, split: str, *, columns: Sequence[str], progress: Progress | None
) -> "ReplaySide":
    from vigil_evaluation.policy.replay import ReplaySide

    if _is_policy(path):
        raise UserError(f"{path} is a policy alone; name the predictions that it is to decide on with --on")
    predictions = load_predictions(path, data=data, split=split, columns=columns, progress=progress)
    return ReplaySide(str(path), policy, predictions.table)


def _policy_of(path: Path, spare: CompiledPolicy | None) -> CompiledPolicy:
    if path.is_file() and not _is_policy(path):
        if spare is None:
            raise UserError(f"{path} carries no policy; name a compiled one with --policy")
        return spare
    return spare if spare is not None and _carried(path) is None else read_compiled_policy(path)


def _is_policy(path: Path) -> bool:
    return path.suffix == ".json"


def _carried(path: Path) -> CompiledPolicy | None:
    if _is_policy(path) or not path.exists():
        return CompiledPolicy.read(path)
    if path.is_file():
        raise UserError(f"{path}: a compiled policy is a .json file, which vigil policy compile writes")
    file = path / "policy.json"
    return CompiledPolicy.read(file) if file.is_file() else None


def _place(source: Path) -> Path:
    """Where a policy belongs that is compiled on a source."""
    if (source / "resolved.yaml").is_file() and not (source / "bundle.json").is_file():
        from vigil_training.runs.run import Run

        return Run(source).policy
    raise UserError(f"say with --to where the compiled policy is to be written; {source} is no run")


def _cluster(source: Path) -> str | None:
    """The column by which a run's evaluation takes items together."""
    if not (source / "resolved.yaml").is_file() or (source / "bundle.json").is_file():
        return None
    from vigil_training.runs.run import Run

    return Run(source).recipe.evaluation.cluster


def _calibration(source: Path) -> str | None:
    """A digest of the calibration that made the probabilities, where there is one."""
    file = source / "calibration.json"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _severities(predictions: Predictions) -> dict[str, float]:
    if predictions.taxonomy is None:
        return {}
    return {name: label.severity for head in predictions.taxonomy.heads.values() for name, label in head.labels.items()}

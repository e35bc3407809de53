"""Policies of runs, bundles and files: compile them on predictions, apply them to scores, and replay two on the same traffic."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vigil.workflows.model_source import find_source_kind
from vigil.workflows.prediction_sources import Predictions, load_predictions
from vigil_data.errors import Failure, UserError
from vigil_data.filesystem import StrPath, replaced_file, sha256_file, write_json
from vigil_data.lineage import Input, Node, identify, record
from vigil_data.presence import PRESENCE
from vigil_data.progress import ProgressCallback
from vigil_data.yaml_files.read_spec import read_spec
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_evaluation.policy.infeasibility import InfeasiblePolicy
from vigil_evaluation.policy.specs import Policy, labels_of
from vigil_evaluation.predictions import labelled

if TYPE_CHECKING:
    import pyarrow as pa

    from vigil_evaluation.policy.impact import PolicyImpact
    from vigil_evaluation.policy.replay import Replay, ReplaySide
    from vigil_training.runs.run import Run

REPLAY_FILE = "replay.json"
CHANGES_FILE = "changes.parquet"
MARKET = "market"


class InfeasibleError(Failure):
    """A policy is infeasible on the given predictions; nothing was written."""


@dataclass(frozen=True, slots=True)
class CompiledPolicyFile:
    """A compiled policy, the file that it was written to, and the predictions that it was compiled on."""

    policy: CompiledPolicy
    file: Path
    predictions: Predictions


@dataclass(frozen=True, slots=True)
class AppliedPolicy:
    """Decisions of a compiled policy on a table of scores.

    Attributes:
        policy: the policy.
        decisions: one row per item; see :func:`vigil_evaluation.policy.impact.decisions_table`.
        impact: volumes, and the constraints measured on these items.
        notes: what the table lacks, for readers.
    """

    policy: CompiledPolicy
    decisions: "pa.Table"
    impact: "PolicyImpact"
    notes: list[str]


def read_policy(file: StrPath) -> Policy:
    """Read a policy's YAML.

    Raises:
        UserError: one line ``FILE:LINE: key.path: problem`` for each mistake found.
    """
    return read_spec(Policy, Path(file), "policy", "name: my-policy")


def compile_policy(
    policy: StrPath,
    source: StrPath,
    *,
    data: StrPath | None = None,
    split: str = "validation",
    cluster: str | None = None,
    assume_random: bool = False,
    to: StrPath | None = None,
    progress: ProgressCallback | None = None,
) -> CompiledPolicyFile:
    """Compile a policy on the predictions of a source, and write it.

    Args:
        policy: the policy's YAML.
        source: a table of predictions, a run or a bundle.
        data: the dataset to predict (default: the one that the run or bundle was trained on).
        split: split of the dataset.
        cluster: column of the items that belong together (default: the run's).
        assume_random: compile although the labelled items are shown not to be a random sample; the policy records it.
        to: the file to write (default: ``policy.json`` of the run).
        progress: called with (task, done, total).

    Raises:
        UserError: for a mistake in the policy, a source that does not fit it, labelled items that are not a random sample
            and have no inclusion probabilities, or no file to write to.
        InfeasibleError: if a constraint cannot be shown to hold; with the closest feasible bounds.
    """
    from vigil_evaluation.policy import compile as compiler

    spec, run = read_policy(policy), _run(source)
    if to is None and run is None:
        raise UserError(f"name the output file with --to; {source} is not a run")
    file = run.policy if to is None and run is not None else Path(to or "")
    unit = cluster or (None if run is None else run.recipe.evaluation.cluster)
    columns = [*spec.columns, *([unit] if unit is not None else [])]
    predictions = load_predictions(source, data=data, split=split, columns=columns, progress=progress)
    if cluster is None and unit not in predictions.table.column_names:
        unit = None
    given = [label for label in labels_of(spec) if label in predictions.labels]
    if given and not labelled(predictions.table, given):
        raise UserError(f"{source}: no target (column target.LABEL) is known; a policy is compiled on labelled items")
    facts = {"policy": str(policy), **predictions.facts}
    if (calibration := Path(source) / "calibration.json").is_file():
        facts["calibration"] = sha256_file(calibration)
    compiled = compiler.compile_policy(
        spec,
        predictions.table,
        predictions.labels,
        severities=_severities(predictions),
        cluster=unit,
        assume_random=assume_random,
        facts=facts,
        progress=progress,
    )
    if isinstance(compiled, InfeasiblePolicy):
        raise InfeasibleError("\n".join([*compiled.lines, f"{file} is unchanged" if file.exists() else "nothing was written"]))
    file.parent.mkdir(parents=True, exist_ok=True)
    compiled.write(file)
    made_of = identify(source) or identify(Path(source).parent)
    inputs = [] if made_of is None else [Input(*made_of, "predictions", path=str(Path(source).resolve()))]
    record(Node("policy", sha256_file(file), compiled.title, str(file.resolve()), {"policy": str(policy)}), inputs)
    return CompiledPolicyFile(compiled, file, predictions)


def read_compiled_policy(path: StrPath) -> CompiledPolicy:
    """Read the compiled policy of a file, a run or a bundle.

    Raises:
        UserError: if there is none.
    """
    policy = _find_policy(Path(path))
    if policy is None:
        raise UserError(f"{path} has no compiled policy; compile one: vigil policy compile POLICY.yaml {path}")
    return policy


def apply_policy(
    policy: "CompiledPolicy | StrPath",
    scores: "pa.Table | StrPath",
    *,
    cluster: str | None = None,
    to: StrPath | None = None,
    progress: ProgressCallback | None = None,
) -> AppliedPolicy:
    """Decide on each item of a table of scores with a compiled policy, and write the decisions.

    Args:
        policy: a compiled policy, its file, or a run or bundle that has one.
        scores: a table of scores, such as that of `vigil score`, with or without targets.
        cluster: column of the items that belong together.
        to: the Parquet file to write (default: none).
        progress: called with (task, done, total).

    Raises:
        UserError: if there is no such policy or table, or the table lacks a label of the policy.
    """
    import pyarrow.parquet as pq

    from vigil_evaluation.policy.impact import decisions_table, policy_impact
    from vigil_evaluation.predictions import check_predictions, read_predictions, scored_items

    compiled = policy if isinstance(policy, CompiledPolicy) else read_compiled_policy(policy)
    name = str(scores) if isinstance(scores, str | os.PathLike) else "scores"
    read = read_predictions(Path(scores)) if isinstance(scores, str | os.PathLike) else scores
    check_predictions(read, name)
    table, failed = scored_items(read, name)
    if absent := [label for label in compiled.labels if f"probability.{label}" not in table.column_names]:
        columns = ", ".join(f"probability.{label}" for label in absent)
        raise UserError(f"{name}: has no column {columns}, and policy {compiled.name} acts on {', '.join(absent)}")
    if cluster is not None and cluster not in table.column_names:
        raise UserError(f"{name}: column {cluster} is absent")
    decisions = decisions_table(compiled, table, progress)
    impact = policy_impact(compiled, table, cluster=cluster)
    notes = [f"{failed:,} items have an error and no probabilities, so there is no decision on them"] if failed else []
    for column, cells in zip((MARKET, PRESENCE), zip(*compiled.cells, strict=True), strict=True):
        if column not in table.column_names and (named := sorted(set(cells) - {None})):
            notes.append(f"the table has no column {column}; thresholds for {', '.join(named)} are not used")
    if not any(label.positives or label.negatives for label in impact.labels):
        notes.append("no target is known, so only shares of traffic are measured")
    if to is not None:
        file = Path(to)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(file) as partial:
            pq.write_table(decisions, partial)
    return AppliedPolicy(compiled, decisions, impact, notes)


def replay_sources(
    first: StrPath,
    second: StrPath,
    *,
    on: StrPath | None = None,
    policy: StrPath | None = None,
    data: StrPath | None = None,
    split: str = "test",
    columns: Sequence[str] = (),
    cluster: str | None = None,
    progress: ProgressCallback | None = None,
) -> "tuple[Replay, pa.Table]":
    """Replay two policies on one source's predictions, or two models on the same items.

    Args:
        first: current policy: a compiled policy, a run, a bundle or a table of predictions.
        second: candidate policy, of the same kinds.
        on: source whose predictions both policies decide on (default: each side's own).
        policy: a compiled policy for the sides that have none.
        data: the dataset to predict (default: the one that the run or bundle was trained on).
        split: split of the dataset.
        columns: columns to group affected items by, in addition to presence, market and the policies' columns.
        cluster: column of the items that belong together.
        progress: called with (task, done, total).

    Raises:
        UserError: if a side has no policy or no predictions, or the two have no items in common.
    """
    from vigil_evaluation.policy.replay import ReplaySide, replay

    paths = (Path(first), Path(second))
    spare = None if policy is None else read_compiled_policy(policy)
    policies = [_policy_of(path, spare) for path in paths]
    constrained = [result.rule.column for one in policies for result in one.constraints if result.rule.column is not None]
    wanted = list(dict.fromkeys(["market", *constrained, *columns, *([cluster] if cluster is not None else [])]))
    if on is not None:
        shared = load_predictions(on, data=data, split=split, columns=wanted, progress=progress)
        sides = [ReplaySide(str(path), one, shared.table) for path, one in zip(paths, policies, strict=True)]
    else:
        sides = [
            _side(path, one, data, split, columns=wanted, progress=progress) for path, one in zip(paths, policies, strict=True)
        ]
    return replay(sides[0], sides[1], columns=columns, cluster=cluster)


def write_replay(results: "Replay", changes: "pa.Table", to: StrPath) -> None:
    """Write the results of a replay into a folder: :data:`REPLAY_FILE` and :data:`CHANGES_FILE`."""
    import pyarrow.parquet as pq

    folder = Path(to)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / REPLAY_FILE, results.to_dict())
    with replaced_file(folder / CHANGES_FILE) as partial:
        pq.write_table(changes, partial)


def _side(
    path: Path,
    policy: CompiledPolicy,
    data: StrPath | None,
    split: str,
    *,
    columns: Sequence[str],
    progress: ProgressCallback | None,
) -> "ReplaySide":
    from vigil_evaluation.policy.replay import ReplaySide

    if _is_policy(path):
        raise UserError(f"{path} is a policy without predictions; name the predictions with --on")
    predictions = load_predictions(path, data=data, split=split, columns=columns, progress=progress)
    return ReplaySide(str(path), policy, predictions.table)


def _policy_of(path: Path, spare: CompiledPolicy | None) -> CompiledPolicy:
    if find_source_kind(path) == "table" and not _is_policy(path):
        if spare is None:
            raise UserError(f"{path} has no policy; name a compiled one with --policy")
        return spare
    return spare if spare is not None and _find_policy(path) is None else read_compiled_policy(path)


def _is_policy(path: Path) -> bool:
    return path.suffix == ".json"


def _find_policy(path: Path) -> CompiledPolicy | None:
    if _is_policy(path) or not path.exists():
        return CompiledPolicy.read(path)
    if find_source_kind(path) == "table":
        raise UserError(f"{path}: not a compiled policy; name a .json file that `vigil policy compile` wrote")
    file = path / "policy.json"
    return CompiledPolicy.read(file) if file.is_file() else None


def _run(source: StrPath) -> "Run | None":
    if find_source_kind(source) != "run":
        return None
    from vigil_training.runs.run import Run

    return Run(source)


def _severities(predictions: Predictions) -> dict[str, float]:
    if predictions.taxonomy is None:
        return {}
    return {name: label.severity for head in predictions.taxonomy.heads.values() for name, label in head.labels.items()}

"""The Python interface; ``import vigil`` re-exports it. Each function does what the command of the same name does.

Paths are ``str`` or :class:`os.PathLike`. A mistake of the caller raises :class:`vigil.UserError` with one line for each
problem; a failure while running raises :class:`vigil_data.errors.Failure`. ``progress`` is called with (task, done, total), as
:class:`vigil_data.progress.Progress` is.
"""

import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vigil_data.errors import Failure, UserError
from vigil_data.filesystem import StrPath
from vigil_data.progress import ProgressCallback

if TYPE_CHECKING:
    import pyarrow as pa

    from vigil.workflows.evaluate import Evaluation
    from vigil.workflows.policies import AppliedPolicy, CompiledPolicyFile
    from vigil_data.dataset.dataset import Dataset
    from vigil_data.items import Modality
    from vigil_evaluation.comparison.results import Comparison, ReleaseGate
    from vigil_evaluation.policy.compiled_policy import CompiledPolicy
    from vigil_evaluation.specs import EvaluationSpec
    from vigil_serving.bundle.load import Bundle
    from vigil_serving.parity.verify import Verification
    from vigil_training.recipe.recipe import Recipe
    from vigil_training.recipe.resolve import ResolvedRecipe
    from vigil_training.runs.run import Run


class TrainingFailed(Failure):
    """The ranks of a run ended with an error; the exit status is that of the worst."""


def load_recipe(recipe: StrPath, *, overrides: Sequence[str] = (), **values: Any) -> "Recipe":
    """Load and validate a recipe.

    Args:
        recipe: the YAML file.
        overrides: ``"key.path=value"`` with the value in YAML, as on the command line.
        values: the same as keyword arguments, with ``__`` for the dots; a mapping replaces several keys of a block.

    Raises:
        UserError: one line ``FILE:LINE: key.path: problem`` for each mistake found.

    Example:
        >>> import vigil
        >>> recipe = vigil.load_recipe("recipe.yaml", optimizer__lr=1e-3, training={"epochs": 2})
        >>> recipe.optimizer.lr, recipe.training.epochs
        (0.001, 2)
        >>> vigil.load_recipe("recipe.yaml", optimiser__lr=1e-3)
        Traceback (most recent call last):
        vigil_data.errors.UserError: override: optimiser: is not a key of a recipe (did you mean optimizer?)
    """
    return _resolve(recipe, overrides, values).recipe


def train(recipe: "StrPath | Recipe", run: StrPath | None = None, *, overrides: Sequence[str] = (), **values: Any) -> "Run":
    """Train a recipe into a run folder; the same call resumes an interrupted run and returns a finished one at once.

    Ranks of a ``ddp``, ``deepspeed`` or ``fsdp2`` strategy are started as processes of this machine, unless torchrun or srun did.

    Args:
        recipe: the YAML file, or a recipe from :func:`load_recipe`.
        run: the run folder (default: ``runs/NAME`` with the recipe's name).
        overrides: as for :func:`load_recipe`.
        values: as for :func:`load_recipe`.

    Raises:
        UserError: for a mistake in the recipe or the folder.
        Failure: if training cannot continue; with ``status`` 85 if it was preempted, and the same call resumes.

    Example:
        >>> run = vigil.train("recipe.yaml", run="runs/tiny", optimizer__lr=3e-3)
        >>> run.finished, sorted(run.read_thresholds())
        (True, ['bright', 'cat'])
    """
    from vigil_training.distributed.preemption import Preemption
    from vigil_training.distributed.world import World, find_world
    from vigil_training.recipe.resolve import dump_recipe
    from vigil_training.recipe.specs import Ranks

    resolved = _resolve(recipe, overrides, values)
    folder = Path("runs") / resolved.recipe.name if run is None else Path(run)
    strategy, world = resolved.recipe.strategy, find_world()
    if world is None and isinstance(strategy, Ranks) and strategy.world > 1:
        return _launch_ranks(resolved, folder, strategy)
    # Signals are handled from here, as the imports take seconds in which a job may be preempted.
    with Preemption() as preemption:
        from vigil_training.trainer.fit import fit_recipe

        return fit_recipe(resolved.recipe, dump_recipe(resolved), folder, world or World(), preemption)


def evaluate(
    source: "StrPath | Run | pa.Table",
    dataset: "StrPath | Dataset | None" = None,
    split: str = "test",
    *,
    checkpoint: str = "best",
    only: "Sequence[Modality]" = (),
    to: StrPath | None = None,
    calibrate_on: "StrPath | pa.Table | None" = None,
    thresholds: Mapping[str, float] | None = None,
    policy: "StrPath | CompiledPolicy | None" = None,
    progress: ProgressCallback | None = None,
    **settings: Any,
) -> "Evaluation":
    """Evaluate a run on a split, or any model's table of scores; write predictions, metrics and a report.

    Args:
        source: a run, or a table of scores with the columns ``id``, ``probability.LABEL`` and ``target.LABEL`` (a Parquet file
            or a :class:`pyarrow.Table`). Without targets there are volumes, actions and drift instead of metrics.
        dataset: of a run: the dataset (default: the run's own, in the version it was trained on).
        split: of a run: which rows.
        checkpoint: of a run: ``best``, ``last`` or a path.
        only: of a run: the modalities that the model sees (default: all).
        to: the folder to write (default, of a run: ``RUN/evaluation/SPLIT``).
        calibrate_on: of a table: scores of other, labelled items, on which calibration and thresholds are chosen, and with
            which the items are compared for drift.
        thresholds: of a table: label to threshold (default: chosen on ``calibrate_on``, or else 0.5).
        policy: compiled policy, or its file, or a run or bundle that has one; its actions, and its constraints measured again
            (default: the run's).
        progress: called with (task, done, total).
        settings: keys of a recipe's ``evaluation`` block, such as ``slices``, ``cluster`` or ``replicates``.

    Returns:
        The folder, the results and the table. ``results.label_selection.lines`` warns of labels whose labelled items are not a
        random sample; ``results.labelled`` is false if there are no metrics.

    Raises:
        UserError: if the run is unfinished, the split is empty, or a table or setting is malformed.

    Example:
        >>> evaluation = vigil.evaluate("runs/tiny", split="test", replicates=100)
        >>> evaluation.results.overall.items
        40
        >>> sorted(path.name for path in evaluation.folder.iterdir())
        ['metrics.json', 'predictions.parquet', 'report.html']
        >>> table = vigil.evaluate(evaluation.folder / "predictions.parquet", to="reports/tiny", replicates=0)
        >>> table.results.overall.items, table.results.labelled
        (40, True)
    """
    from vigil.workflows import evaluate as workflow
    from vigil_data.dataset.dataset import Dataset
    from vigil_training.runs.run import Run

    if isinstance(source, Run) or (isinstance(source, str | os.PathLike) and Path(source).is_dir()):
        given = {"calibrate_on": calibrate_on, "thresholds": thresholds}
        if wrong := [name for name, value in given.items() if value is not None]:
            raise UserError(f"{', '.join(wrong)}: only for a table of scores; a run has its own calibration and thresholds")
        run = source if isinstance(source, Run) else Run(source)
        opened = Dataset(dataset) if isinstance(dataset, str | os.PathLike) else dataset
        spec = _settings(run.recipe.evaluation, settings)
        return workflow.evaluate(
            run, opened, split, checkpoint=checkpoint, only=only, spec=spec, to=to, policy=_policy(policy), progress=progress
        )
    if to is None:
        raise UserError("a table of scores: name the folder of the report with to=")
    table, name = _table(source), str(source) if isinstance(source, str | os.PathLike) else "table"
    return workflow.evaluate_table(
        table,
        name,
        _settings(None, settings),
        to=Path(to),
        calibrate_on=_optional_table(calibrate_on),
        thresholds=thresholds,
        policy=_policy(policy),
        progress=progress,
    )


def compile_policy(
    policy: StrPath,
    source: "StrPath | Run",
    *,
    data: StrPath | None = None,
    split: str = "validation",
    cluster: str | None = None,
    assume_random: bool = False,
    to: StrPath | None = None,
    progress: ProgressCallback | None = None,
) -> "CompiledPolicyFile":
    """Compile a policy's constraints into thresholds, and write them.

    Args:
        policy: the YAML file.
        source: a run, a bundle or a Parquet table of scores, on whose predictions the constraints are shown to hold.
        data: the dataset that a run or bundle predicts (default: its own).
        split: which rows; none that the model was trained on.
        cluster: column of the items that belong together (default: the run's).
        assume_random: compile although the labelled items are shown not to be a random sample; the policy records it.
        to: the file to write (default: ``RUN/policy.json``).
        progress: called with (task, done, total).

    Raises:
        UserError: for a mistake in the policy, a source that does not fit it, or labelled items that are not a random sample and
            have no column ``inclusion_probability``.
        InfeasibleError: if a constraint cannot be shown to hold; nothing is written.

    Example:
        >>> compiled = vigil.compile_policy("policy.yaml", "runs/tiny")
        >>> compiled.file.name, compiled.policy.actions
        ('policy.json', ('allow', 'review'))
    """
    from vigil.workflows.policies import compile_policy as compile_

    return compile_(
        policy,
        _folder(source),
        data=data,
        split=split,
        cluster=cluster,
        assume_random=assume_random,
        to=to,
        progress=progress,
    )


def apply_policy(
    policy: "StrPath | CompiledPolicy",
    scores: "StrPath | pa.Table",
    *,
    cluster: str | None = None,
    to: StrPath | None = None,
    progress: ProgressCallback | None = None,
) -> "AppliedPolicy":
    """Decide on each item of a table of scores with a compiled policy.

    Args:
        policy: a compiled policy, its file, or a run or bundle that has one.
        scores: a table with the columns ``id`` and ``probability.LABEL``; ``presence``, ``market`` and ``target.LABEL`` are
            optional.
        cluster: column of the items that belong together, for intervals.
        to: the Parquet file to write (default: none).
        progress: called with (task, done, total).

    Returns:
        The decisions, one row per item, and their volumes; with targets, also the constraints measured on these items.

    Raises:
        UserError: if there is no such policy or table, or the table lacks a label of the policy.

    Example:
        >>> applied = vigil.apply_policy("runs/tiny", "runs/tiny/evaluation/test/predictions.parquet")
        >>> print(*applied.decisions.column_names[-6:])
        review label threshold reasons presence policy
        >>> sum(action.items for action in applied.impact.actions)
        40
    """
    from vigil.workflows.policies import apply_policy as apply_

    return apply_(policy, scores, cluster=cluster, to=to, progress=progress)


def compare(
    champion: "StrPath | Run",
    challenger: "StrPath | Run",
    *,
    data: StrPath | None = None,
    split: str | None = "test",
    common: bool = False,
    thresholds: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {}),
    calibrate_on: "tuple[StrPath | pa.Table | None, StrPath | pa.Table | None]" = (None, None),
    gate: "ReleaseGate | None" = None,
    to: StrPath | None = None,
    progress: ProgressCallback | None = None,
    **settings: Any,
) -> "Comparison":
    """Compare two models on the same items, in every metric, label and slice.

    Args:
        champion: the model in use: a run, a bundle or a Parquet table of scores.
        challenger: the model that is to replace it.
        data: the dataset that runs and bundles predict (default: the challenger's).
        split: which rows.
        common: compare the items that both have, rather than refuse predictions of different ones.
        thresholds: of the champion's and the challenger's table: label to threshold (default: chosen on ``calibrate_on``, or
            else 0.5).
        calibrate_on: of the champion's and the challenger's table: each model's own scores of other, labelled items, on which
            its calibration and thresholds are chosen.
        gate: what must hold for the challenger to pass (default: no regression by more than 0.01).
        to: folder for comparison.json, comparison.html and flips.parquet.
        progress: called with (task, done, total).
        settings: keys of a recipe's ``evaluation`` block, such as ``slices`` or ``replicates``.

    Returns:
        The comparison; ``passed`` and ``failures`` give the verdict.

    Raises:
        UserError: if the two cannot be compared.

    Example:
        >>> vigil.compare("runs/tiny", "runs/tiny", replicates=200).passed
        True
    """
    from vigil.workflows.release_gate import compare_sources, spec_of, write_comparison

    first, second = _folder(champion), _folder(challenger)
    comparison, flips = compare_sources(
        first,
        second,
        _settings(spec_of(second, first), settings),
        gate,
        data=data,
        split=split,
        common=common,
        thresholds=thresholds,
        calibrate_on=(_optional_table(calibrate_on[0]), _optional_table(calibrate_on[1])),
        progress=progress,
    )
    if to is not None:
        write_comparison(comparison, flips, to)
    return comparison


def export(
    run: "StrPath | Run",
    to: StrPath,
    *,
    formats: Sequence[str] | None = None,
    opset: int | None = None,
    examples: int | None = None,
    checkpoint: str = "best",
    restart: bool = False,
    sign: StrPath | None = None,
    promote: "StrPath | Run | None" = None,
    data: StrPath | None = None,
    split: str = "test",
    progress: ProgressCallback | None = None,
) -> "Bundle":
    """Export a run as a bundle whose formats all make the decisions of the trained model, or fail.

    Args:
        run: a finished run.
        to: the bundle's folder; an older bundle there is replaced.
        formats: of ``onnx``, ``onnx-single``, ``torchscript``, ``torch-export``, ``fp16``, ``bf16`` and ``int8`` (default: the
            recipe's).
        opset: of the ONNX graphs (default: the recipe's).
        examples: validation items on which the formats are compared (default: the recipe's).
        checkpoint: ``best``, ``last`` or a path.
        restart: discard what an interrupted export left.
        sign: PEM file of the ed25519 private key that signs the bundle.
        promote: run, bundle or table of scores that this run replaces; the run must not be a regression from it.
        data: dataset of that comparison (default: the run's).
        split: split of that comparison.
        progress: called with (task, done, total).

    Raises:
        UserError: if the run is unfinished, or ``to`` holds something else.
        ParityError: if a format decides differently from the trained model.
        RegressionError: if the run is a regression from ``promote``.

    Example:
        >>> bundle = vigil.export("runs/tiny", "bundles/tiny", formats=["onnx"])
        >>> bundle.metadata.labels
        ('cat', 'bright')
    """
    from vigil.workflows.export_run import export_run
    from vigil_training.runs.run import Run

    opened = run if isinstance(run, Run) else Run(run)
    return export_run(
        opened,
        to,
        formats=formats,
        opset=opset,
        examples=examples,
        checkpoint=checkpoint,
        restart=restart,
        sign=sign,
        promote=None if promote is None else _folder(promote),
        data=data,
        split=split,
        progress=progress,
    )


def verify(
    bundle: "StrPath | Bundle", *, public_key: StrPath | None = None, progress: ProgressCallback | None = None
) -> "Verification":
    """Verify that a bundle is unaltered and decides on this machine as the trained model did.

    Args:
        bundle: the bundle's folder.
        public_key: PEM file; the bundle must be signed by the holder of this key.
        progress: called with (task, done, total).

    Raises:
        UserError: for files changed, missing or added, a wrong signature, or a format that disagrees with the golden outputs.

    Example:
        >>> vigil.verify("bundles/tiny").digest == bundle.digest
        True
        >>> decision = vigil.Scorer("bundles/tiny").score([{"id": "1", "text": ["cat sun rain"]}])[0]
        >>> sorted(decision.probabilities)
        ['bright', 'cat']
    """
    from vigil_serving.bundle.load import Bundle
    from vigil_serving.parity.verify import verify_bundle

    return verify_bundle(bundle.path if isinstance(bundle, Bundle) else bundle, progress, public_key)


def _resolve(recipe: "StrPath | Recipe", overrides: Sequence[str], values: Mapping[str, Any]) -> "ResolvedRecipe":
    from vigil_training.recipe.resolve import resolve_recipe

    given = [f"{key.replace('__', '.')}={json.dumps(value, default=os.fspath)}" for key, value in values.items()]
    return resolve_recipe(recipe, [*overrides, *given], "override")


def _launch_ranks(resolved: "ResolvedRecipe", folder: Path, strategy: Any) -> "Run":
    """Run `vigil train` once for each rank of this machine.

    Raises:
        UserError: if the recipe names several machines.
        TrainingFailed: if a rank fails.
    """
    from vigil_training.distributed.launch import launch
    from vigil_training.recipe.resolve import dump_recipe
    from vigil_training.runs.run import open_run

    if strategy.nodes > 1:
        raise UserError(
            f"strategy.nodes: {strategy.nodes} machines are started by `vigil submit`, or by torchrun on each of them"
        )
    run = open_run(resolved.recipe, dump_recipe(resolved), folder)
    command = [sys.executable, "-m", "vigil", "train", str(run.resolved), "--run", str(run.path)]
    with warnings.catch_warnings():
        # The forked process executes the command at once and does not use Lance.
        warnings.filterwarnings("ignore", "lance is not fork-safe")
        status = launch(strategy.devices, command)
    if status:
        failed = TrainingFailed(f"{run.path}: a rank ended with exit status {status}; see {run.log}")
        failed.status = status
        raise failed
    return run


def _settings(own: "EvaluationSpec | None", settings: Mapping[str, Any]) -> "EvaluationSpec":
    from vigil_data.yaml_files.read_spec import read_spec
    from vigil_evaluation.specs import EvaluationSpec

    base = {} if own is None else own.model_dump(mode="json")
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    return read_spec(
        EvaluationSpec, None, "evaluation settings", "slices: [language]", {**base, **given}, source="evaluation settings"
    )


def _table(source: "StrPath | pa.Table") -> "pa.Table":
    from vigil_evaluation.predictions import read_predictions

    return read_predictions(Path(source)) if isinstance(source, str | os.PathLike) else source


def _optional_table(source: "StrPath | pa.Table | None") -> "pa.Table | None":
    return None if source is None else _table(source)


def _policy(policy: "StrPath | CompiledPolicy | None") -> "CompiledPolicy | None":
    from vigil.workflows.policies import read_compiled_policy

    return read_compiled_policy(policy) if isinstance(policy, str | os.PathLike) else policy


def _folder(source: "StrPath | Run") -> StrPath:
    return source if isinstance(source, str | os.PathLike) else source.path

"""Evaluate a run on a split, or somebody's table of scores: predictions, numbers and a report in one folder."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vigil_data.dataset.dataset import Dataset
from vigil_data.errors import UserError
from vigil_data.items import Modality
from vigil_evaluation.specs import EvaluationSpec

if TYPE_CHECKING:
    import pyarrow as pa

    from vigil_data.loading.packing import Refusal
    from vigil_evaluation.calibration.calibrators import Calibrated
    from vigil_evaluation.policy.compiled_policy import CompiledPolicy
    from vigil_evaluation.report.evidence import Example
    from vigil_evaluation.results import Findings
    from vigil_training.runs.run import Run

Say = Callable[[str], None]


class Evaluation(NamedTuple):
    """What an evaluation left: its folder, the findings, the predictions table and the items that could not be decoded."""

    folder: Path
    findings: "Findings"
    table: "pa.Table"
    refused: "Sequence[Refusal]"


def evaluate(
    run: "Run",
    dataset: Dataset | None = None,
    split: str = "test",
    *,
    checkpoint: str = "best",
    only: Sequence[Modality] = (),
    spec: EvaluationSpec | None = None,
    progress: Callable[[int, int], None] | None = None,
    say: Say | None = None,
) -> Evaluation:
    """Predict a split and write predictions.parquet, metrics.json and report.html.

    Args:
        run: a finished run.
        dataset: where the split is; the run's own, in the version it was trained on, if not given.
        split: which rows.
        checkpoint: ``best``, ``last`` or the path of one.
        only: modalities that the model may see; all of its own if empty.
        spec: what is measured; as the recipe says if not given.
        progress: told the items done and their number.
        say: told what is done once the items are predicted.

    Returns:
        What was found and where it lies: ``RUN/evaluation/SPLIT``, with what differs from the default in the folder's name.

    Raises:
        UserError: if the split is empty, the run unfinished, or a modality not the model's.
    """
    from vigil.workflows.evidence import examples_of
    from vigil.workflows.prediction_sources import MADE_OF, made_of_what
    from vigil_training.runs.predict import predict_rows, table_of

    recipe, thresholds, spec = run.recipe, run.read_thresholds(), spec or run.recipe.evaluation
    policy = run.current_policy()
    dataset = dataset or run.dataset()
    own = dataset.path.resolve() == Path(run.read_environment()["dataset"]["path"])
    name = split if own else f"{dataset.path.name}-{split}"
    rows = dataset.rows(split)
    predicted = predict_rows(run, dataset, rows, checkpoint=checkpoint, only=only, progress=progress)
    if not predicted.ids:
        raise UserError(f"{dataset.path}: no item of split {split} can be decoded; the first: {predicted.refused[0].reason}")
    table = table_of(predicted, run, dataset, rows, spec.columns)
    facts: dict[str, str] = {
        "run": run.path.name,
        "dataset": f"{dataset.path} version {dataset.version}",
        "split": split,
        "checkpoint": checkpoint,
        "items": str(len(predicted.ids)),
        "undecodable": str(len(predicted.refused)),
        "modalities": "+".join(only) if only else "all",
    }
    if own and checkpoint == "best" and not only:
        table = table.replace_schema_metadata({MADE_OF: made_of_what(run, dataset, split)})
    folder = run.evaluation(name + _suffix(checkpoint, only))
    findings = write(
        table,
        recipe.taxonomy.labels,
        thresholds,
        spec,
        facts,
        to=folder,
        calibrated=run.read_calibrated(),
        policy=policy,
        examples=lambda ids: examples_of(run, dataset, ids, checkpoint=checkpoint, only=only),
        say=say,
    )
    return Evaluation(folder, findings, table, predicted.refused)


def write(
    table: "pa.Table",
    labels: Sequence[str],
    thresholds: Mapping[str, float],
    spec: EvaluationSpec,
    facts: Mapping[str, str],
    *,
    to: Path,
    calibrated: "Calibrated | None" = None,
    policy: "CompiledPolicy | None" = None,
    examples: "Callable[[Sequence[str]], Mapping[str, Example]] | None" = None,
    say: Say | None = None,
) -> "Findings":
    """Find all numbers of a predictions table, and write it, metrics.json and report.html.

    Args:
        table: of calibrated probabilities.
        labels: in the taxonomy's order.
        thresholds: label to the lowest probability that is flagged.
        spec: what is measured.
        facts: what the table is of, for its reader.
        to: the folder.
        calibrated: what made the probabilities, if it is known.
        policy: what follows from them, if it is known.
        examples: makes of ids what the report shows of those items beside their columns.
        say: told what is done.
    """
    import pyarrow.parquet as pq

    from vigil_evaluation.evaluate import evaluate as find
    from vigil_evaluation.report.evaluation_page import render
    from vigil_evaluation.report.summary import hardest

    say = say or (lambda _: None)
    findings = find(table, labels, thresholds, spec, facts, calibrated=calibrated, policy=policy, progress=say)
    shown: Mapping[str, Example] = {}
    if examples is not None:
        say("evidence of the hardest errors")
        shown = examples(hardest(findings, table))
    say("report")
    to.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, to / "predictions.parquet")
    (to / "metrics.json").write_text(findings.to_json())
    render(findings, table, to / "report.html", shown)
    return findings


def evaluate_table(
    table: "pa.Table",
    name: str,
    spec: EvaluationSpec,
    *,
    to: Path,
    calibrate_on: "pa.Table | None" = None,
    thresholds: Mapping[str, float] | None = None,
    say: Say | None = None,
) -> Evaluation:
    """Evaluate scores that any model made.

    Args:
        table: see :mod:`vigil_evaluation.predictions`.
        name: what to call it.
        spec: what is measured.
        to: the folder.
        calibrate_on: predictions of the same model for other items, by which probabilities are calibrated and thresholds chosen.
        thresholds: label to the lowest probability that is flagged; chosen on ``calibrate_on`` or else 0.5 if not given.
        say: told what is done.

    Raises:
        UserError: if a table or threshold is wrong.
    """
    from vigil_evaluation import predictions

    labels = predictions.labels_of(table)
    facts = {"predictions": name, "items": str(table.num_rows)}
    calibrated = None
    if calibrate_on is not None:
        if missing := [label for label in labels if label not in predictions.labels_of(calibrate_on)]:
            raise UserError(f"--calibrate-on: has no columns target and probability of {', '.join(missing)}")
        (say or (lambda _: None))("calibration")
        calibrated, chosen = calibrate_table(calibrate_on, labels, spec)
        table = calibrated_table(table, labels, calibrated)
        thresholds = thresholds or chosen
        facts["calibrated on"] = f"{calibrate_on.num_rows} other items"
    if thresholds is not None and (unknown := sorted(set(thresholds) - set(labels))):
        raise UserError(f"thresholds: {', '.join(unknown)} are no labels of the table, which has {', '.join(labels)}")
    cuts = {label: (thresholds or {}).get(label, 0.5) for label in labels}
    findings = write(table, labels, cuts, spec, facts, to=to, calibrated=calibrated, say=say)
    return Evaluation(to, findings, table, ())


def calibrate_table(table: "pa.Table", labels: Sequence[str], spec: EvaluationSpec) -> "tuple[Calibrated, dict[str, float]]":
    """Fit a calibration on a predictions table, and choose thresholds on the calibrated probabilities."""
    import numpy as np

    from vigil_evaluation import predictions
    from vigil_evaluation.calibration.fit import fit_all
    from vigil_evaluation.metrics.thresholds import choose

    targets_NL, raw_NL = predictions.arrays(table, labels)
    groups, presence = (_column(table, name) for name in (spec.calibration.by, "presence"))
    calibrated = fit_all(targets_NL, raw_NL, labels, spec, groups, presence)
    chosen = choose(targets_NL, calibrated.calibration.apply(raw_NL, groups).astype(np.float32))
    return calibrated, dict(zip(labels, chosen, strict=True))


def calibrated_table(table: "pa.Table", labels: Sequence[str], calibrated: "Calibrated") -> "pa.Table":
    """The table with its probabilities calibrated."""
    import numpy as np
    import pyarrow as pa

    from vigil_evaluation import predictions

    _, raw_NL = predictions.arrays(table, labels)
    probabilities_NL = calibrated.calibration.apply(raw_NL, _column(table, calibrated.calibration.by)).astype(np.float32)
    for i, label in enumerate(labels):
        name = f"probability.{label}"
        table = table.set_column(table.column_names.index(name), name, pa.array(probabilities_NL[:, i]))
    return table


def _column(table: "pa.Table", name: str | None) -> list[str | None] | None:
    if name is None or name not in table.column_names:
        return None
    return [None if value is None else str(value) for value in table.column(name).to_pylist()]


def _suffix(checkpoint: str, only: Sequence[Modality]) -> str:
    checkpoint_part = "" if checkpoint == "best" else f"-{Path(checkpoint).stem}"
    return checkpoint_part + (f"-only-{'+'.join(only)}" if only else "")

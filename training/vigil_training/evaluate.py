"""Evaluate a run on a split: predictions, numbers and a report, in the run's folder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vigil_data.dataset import Dataset
from vigil_data.errors import UserError
from vigil_data.items import Modality
from vigil_data.pack import Refusal
from vigil_training.predict import predict_rows, table_of
from vigil_training.run import Run

if TYPE_CHECKING:
    import pyarrow as pa

    from vigil_evaluation.findings import Findings


class Evaluation(NamedTuple):
    """What an evaluation left: its folder, the findings, the predictions table and the items that could not be decoded."""

    folder: Path
    findings: "Findings"
    table: "pa.Table"
    refused: list[Refusal]


def evaluate(
    run: Run,
    dataset: Dataset | None = None,
    split: str = "test",
    *,
    checkpoint: str = "best",
    only: Sequence[Modality] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Predict a split and write predictions.parquet, metrics.json and report.html.

    Args:
        run: a finished run.
        dataset: where the split is; the run's own, in the version it was trained on, if not given.
        split: which rows.
        checkpoint: ``best``, ``last`` or the path of one.
        only: modalities that the model may see; all of its own if empty.
        progress: told the items done and their number.

    Returns:
        What was found and where it lies: ``RUN/evaluation/SPLIT``, with what differs from the default in the folder's name.

    Raises:
        UserError: if the split is empty, the run unfinished, or a modality not the model's.
    """
    import pyarrow.parquet as pq

    from vigil_evaluation.findings import evaluate as find
    from vigil_evaluation.report import render

    recipe, thresholds = run.recipe, run.read_thresholds()
    began = run.read_environment()["dataset"]
    if dataset is None:
        dataset = Dataset(Path(began["path"]), began["version"])
    own = dataset.path.resolve() == Path(began["path"])
    name = split if own else f"{dataset.path.name}-{split}"
    rows = dataset.rows(split)
    done = 0

    def advance(items: int) -> None:
        nonlocal done
        done += items
        if progress is not None:
            progress(done, len(rows))

    predicted = predict_rows(run, dataset, rows, checkpoint=checkpoint, only=only, progress=advance)
    if not predicted.ids:
        raise UserError(f"{dataset.path}: no item of split {split} can be decoded; the first: {predicted.refused[0].reason}")
    table = table_of(predicted, run, dataset, rows)
    facts: dict[str, str] = {
        "run": run.path.name,
        "dataset": f"{dataset.path} version {dataset.version}",
        "split": split,
        "checkpoint": checkpoint,
        "items": str(len(predicted.ids)),
        "undecodable": str(len(predicted.refused)),
        "modalities": "+".join(only) if only else "all",
    }
    findings = find(table, recipe.taxonomy.labels, thresholds, recipe.evaluation, facts)
    folder = run.evaluation(name + _suffix(checkpoint, only))
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "predictions.parquet")
    (folder / "metrics.json").write_text(findings.to_json())
    render(findings, table, folder / "report.html")
    return Evaluation(folder, findings, table, predicted.refused)


def _suffix(checkpoint: str, only: Sequence[Modality]) -> str:
    checkpoint_part = "" if checkpoint == "best" else f"-{Path(checkpoint).stem}"
    return checkpoint_part + (f"-only-{'+'.join(only)}" if only else "")

"""What a model says of items: logits of batches, and the predictions table that evaluation reads."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vigil_data.dataset.dataset import Dataset
from vigil_data.errors import UserError
from vigil_data.items import MODALITIES, Modality, presence
from vigil_data.loading.batch import Batch
from vigil_data.loading.loader import Reader, evaluation_loader
from vigil_data.loading.packing import Refusal
from vigil_data.loading.sampler import Rows, costs
from vigil_data.specs import Inputs
from vigil_modeling.safety_model import SafetyModel
from vigil_training.runs.calibrate import raw_probabilities
from vigil_training.runs.prediction_table import groups_of, predictions_table
from vigil_training.runs.run import Run

if TYPE_CHECKING:
    import pyarrow as pa


class Predicted(NamedTuple):
    """What a model said, in the order of the batches.

    Attributes:
        ids: of the N items.
        logits_NL: float32.
        targets_NL: float32, NaN for unknown.
        presence: for each item the modalities that it has a segment of, such as ``text+image``.
        refused: items that could not be decoded and are in none of the above.
    """

    ids: list[str]
    logits_NL: NDArray[np.float32]
    targets_NL: NDArray[np.float32]
    presence: list[str]
    refused: list[Refusal]


def predict(model: SafetyModel, batches: Iterable[Batch], progress: Callable[[int], None] | None = None) -> Predicted:
    """Run a model over batches, without gradients and in evaluation mode.

    Args:
        model: it is left in the mode in which it was.
        batches: on any device.
        progress: told the number of items after each batch, refused ones included.
    """
    device = next(model.parameters()).device
    ids: list[str] = []
    logits: list[NDArray[np.float32]] = []
    targets: list[NDArray[np.float32]] = []
    present: list[str] = []
    refused: list[Refusal] = []
    mode = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in batches:
                refused += batch.refused
                if len(batch):
                    ids += batch.ids
                    logits.append(model(batch.to(device)).logits_NL.float().cpu().numpy())
                    targets.append(batch.targets.cpu().numpy())
                    present += _presence(batch)
                if progress is not None:
                    progress(len(batch) + len(batch.refused))
    finally:
        model.train(mode)
    if not logits:
        return Predicted([], np.empty((0, 0), np.float32), np.empty((0, 0), np.float32), [], refused)
    return Predicted(ids, np.concatenate(logits), np.concatenate(targets), present, refused)


def join(parts: Sequence[Predicted]) -> Predicted:
    """What several ranks, or several calls, predicted, as one; none of the parts may be empty."""
    return Predicted(
        [id_ for part in parts for id_ in part.ids],
        np.concatenate([part.logits_NL for part in parts]),
        np.concatenate([part.targets_NL for part in parts]),
        [present for part in parts for present in part.presence],
        [refusal for part in parts for refusal in part.refused],
    )


def predict_rows(
    run: Run,
    dataset: Dataset,
    rows: Rows,
    *,
    checkpoint: str = "best",
    only: Sequence[Modality] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Predicted:
    """Run a run's model over rows of a dataset.

    Args:
        run: a run with the checkpoint.
        dataset: where the rows are.
        rows: row numbers, int64 ``[N]``.
        checkpoint: ``best``, ``last`` or a path.
        only: modalities that the model may see; all of its own if empty.
        progress: told the items done and their number.

    Returns:
        The items in the order of ``rows``.

    Raises:
        UserError: if ``only`` names a modality that the model does not have.
    """
    recipe = run.recipe
    reader = Reader(dataset.path, dataset.version, restrict(recipe.inputs, only), recipe.taxonomy.labels)
    prices = costs(dataset.facts(rows), recipe.data.batch.cost)
    loader = evaluation_loader(
        reader, rows, prices, recipe.data.batch, workers=recipe.data.workers, worker_start=recipe.data.worker_start
    )
    done = 0

    def advance(items: int) -> None:
        nonlocal done
        done += items
        if progress is not None:
            progress(done, len(rows))

    predicted = predict(run.model(checkpoint), loader, advance)
    place = {id_: i for i, id_ in enumerate(dataset.table(["id"], rows).column("id").to_pylist())}
    order = np.argsort([place[id_] for id_ in predicted.ids]).astype(np.int64)
    return Predicted(
        [predicted.ids[i] for i in order],
        predicted.logits_NL[order],
        predicted.targets_NL[order],
        [predicted.presence[i] for i in order],
        predicted.refused,
    )


def table_of(predicted: Predicted, run: Run, dataset: Dataset, rows: Rows, columns: Sequence[str] = ()) -> "pa.Table":
    """The predictions table: id, ``target.LABEL``, calibrated ``probability.LABEL``, presence, and the columns to slice by.

    Args:
        predicted: what the run's model said of ``rows``.
        run: names the labels and columns, and how it is calibrated; a column that the dataset does not have is left out.
        dataset: where the columns are.
        rows: the row numbers that were predicted; refused ones are not in the table.
        columns: of the dataset, beside those that the recipe's evaluation names.
    """
    evaluation, labels, calibrated = run.recipe.evaluation, run.recipe.taxonomy.labels, run.read_calibrated()
    groups = groups_of(calibrated.calibration.by, predicted.ids, predicted.presence, dataset)
    probabilities_NL = raw_probabilities(predicted.logits_NL)
    if predicted.ids:
        probabilities_NL = calibrated.calibration.apply(probabilities_NL, groups)
    wanted = [*evaluation.columns, *columns]
    return predictions_table(
        predicted.ids,
        labels,
        predicted.targets_NL,
        probabilities_NL,
        predicted.presence,
        dataset=dataset,
        rows=rows,
        columns=wanted,
    )


def restrict(inputs: Inputs, only: Sequence[Modality]) -> Inputs:
    """The inputs of ``only`` these modalities; all if empty.

    Raises:
        UserError: if one of them is not an input.
    """
    has = [m for m in MODALITIES if getattr(inputs, m) is not None]
    if wrong := [m for m in only if m not in has]:
        raise UserError(f"--only {','.join(only)}: the model has no {' and no '.join(wrong)}; it takes {', '.join(has)}")
    return inputs.model_copy(update={m: None for m in has if only and m not in only})


def _presence(batch: Batch) -> list[str]:
    has: list[list[str]] = [[] for _ in batch.ids]
    for modality, segments in batch.segments.items():
        for row in set(segments.item.tolist()):
            has[row].append(modality)
    return [presence(modalities) for modalities in has]

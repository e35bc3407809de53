"""Prediction with a run's model: logits of batches and of dataset rows, and the predictions table that evaluation reads."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vigil_data.dataset.dataset import Dataset
from vigil_data.errors import UserError
from vigil_data.items import MODALITIES, Modality, hash_place
from vigil_data.loading.batch import Batch
from vigil_data.loading.loader import Reader, evaluation_loader
from vigil_data.loading.packing import Refusal
from vigil_data.loading.sampler import Rows
from vigil_data.presence import presence_of_segments
from vigil_data.progress import ProgressCallback
from vigil_data.specs import Inputs
from vigil_modeling.guards.guard_model import GuardModel
from vigil_modeling.multimodal_model import MultimodalModel
from vigil_training.runs.prediction_table import calibration_groups, predictions_table
from vigil_training.runs.prompt_order import item_costs
from vigil_training.runs.run import Run

if TYPE_CHECKING:
    import pyarrow as pa


class ModelOutputs(NamedTuple):
    """What a model computed for N items.

    Attributes:
        ids: ids of the items.
        logits_NL: float32 ``[N, L]``.
        targets_NL: float32 ``[N, L]``, NaN where unknown.
        presence: modalities that each item has a segment of, such as ``text+image``.
        refused: items that could not be decoded; they are in none of the above.
        unknown_share: share of the items, chosen at random, whose labels of unknown target have logits, too; those of the
            others are NaN.
    """

    ids: list[str]
    logits_NL: NDArray[np.float32]
    targets_NL: NDArray[np.float32]
    presence: list[str]
    refused: list[Refusal]
    unknown_share: float = 1.0


def predict_batches(
    model: MultimodalModel,
    batches: Iterable[Batch],
    progress: ProgressCallback | None = None,
    total: int | None = None,
    *,
    unknown_share: float = 1.0,
) -> ModelOutputs:
    """Run a model over batches, in evaluation mode and without gradients.

    Args:
        model: the model; its mode is restored.
        batches: on any device.
        progress: called after each batch with ``predicting``, the items done and ``total``.
        total: items in all, if known.
        unknown_share: share of the items, chosen by a hash of their ids, that a guard is also asked about labels of unknown
            target; other models compute all labels at once.

    Returns:
        The outputs, in the order of the batches.
    """
    share = unknown_share if isinstance(model, GuardModel) else 1.0
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
                    targets.append(batch.targets.cpu().numpy())
                    logits.append(_logits(model, batch.to(device), targets[-1], share))
                    present += presence_of_segments(len(batch), {m: s.item for m, s in batch.segments.items()})
                if progress is not None:
                    progress("predicting", len(ids) + len(refused), total)
    finally:
        model.train(mode)
    if not logits:
        return ModelOutputs([], np.empty((0, 0), np.float32), np.empty((0, 0), np.float32), [], refused, share)
    return ModelOutputs(ids, np.concatenate(logits), np.concatenate(targets), present, refused, share)


def _logits(model: MultimodalModel, batch: Batch, targets_NL: NDArray[np.float32], unknown_share: float) -> NDArray[np.float32]:
    """Return the logits of a batch; see :func:`predict_batches`."""
    if unknown_share >= 1:
        return np.asarray(model(batch).logits_NL.float().cpu().numpy(), np.float32)
    complete_N = np.array([hash_place(f"asked about every label:{id_}") < unknown_share for id_ in batch.ids])
    logits_NL = model(model.for_known_targets(batch, complete_N)).logits_NL.float().cpu().numpy()
    return np.where(np.isnan(targets_NL) & ~complete_N[:, None], np.float32(np.nan), logits_NL)


def concatenate_outputs(parts: Sequence[ModelOutputs]) -> ModelOutputs:
    """Concatenate the outputs of several ranks; each part has at least one item."""
    return ModelOutputs(
        [id_ for part in parts for id_ in part.ids],
        np.concatenate([part.logits_NL for part in parts]),
        np.concatenate([part.targets_NL for part in parts]),
        [present for part in parts for present in part.presence],
        [refusal for part in parts for refusal in part.refused],
        parts[0].unknown_share,
    )


def predict_rows(
    run: Run,
    dataset: Dataset,
    rows: Rows,
    *,
    checkpoint: str = "best",
    only: Sequence[Modality] = (),
    device: torch.device | str = "cpu",
    progress: ProgressCallback | None = None,
    unknown_share: float = 1.0,
) -> ModelOutputs:
    """Run a run's model over rows of a dataset.

    Args:
        run: a run with the checkpoint.
        dataset: the dataset.
        rows: row numbers, int64 ``[N]``.
        checkpoint: ``best``, ``last`` or a path.
        only: modalities that the model may see (default: all that it takes).
        device: where the model runs.
        progress: called after each batch with ``predicting``, the items done and their number.
        unknown_share: see :func:`predict_batches`.

    Returns:
        The outputs, in the order of ``rows``.

    Raises:
        UserError: if ``only`` names a modality that the model does not take.
    """
    recipe = run.recipe
    inputs = restrict_inputs(recipe.inputs, only)
    reader = Reader(dataset.path, dataset.version, inputs, recipe.taxonomy.labels)
    (costs,) = item_costs(recipe, dataset, inputs, rows)
    loader = evaluation_loader(
        reader, rows, costs, recipe.data.batch, workers=recipe.data.workers, worker_start=recipe.data.worker_start
    )
    outputs = predict_batches(run.model(checkpoint).to(device), loader, progress, len(rows), unknown_share=unknown_share)
    place = {id_: i for i, id_ in enumerate(dataset.table(["id"], rows).column("id").to_pylist())}
    order = np.argsort([place[id_] for id_ in outputs.ids]).astype(np.int64)
    return ModelOutputs(
        [outputs.ids[i] for i in order],
        outputs.logits_NL[order],
        outputs.targets_NL[order],
        [outputs.presence[i] for i in order],
        outputs.refused,
        outputs.unknown_share,
    )


def raw_probabilities(logits_NL: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the model's probabilities before calibration, float64 ``[N, L]``."""
    probabilities: NDArray[np.float64] = 1 / (1 + np.exp(-logits_NL.astype(np.float64)))
    return probabilities


def outputs_to_table(outputs: ModelOutputs, run: Run, dataset: Dataset, rows: Rows, columns: Sequence[str] = ()) -> "pa.Table":
    """Make the predictions table: id, ``target.LABEL``, calibrated ``probability.LABEL``, presence, and columns for slices.

    Args:
        outputs: outputs of the run's model for ``rows``.
        run: gives labels, calibration, and the columns that its recipe's evaluation names.
        dataset: has the columns; those that it lacks are left out.
        rows: row numbers that were predicted; undecodable items are not in the table.
        columns: further columns of the dataset.
    """
    evaluation, labels, calibrated = run.recipe.evaluation, run.recipe.taxonomy.labels, run.read_calibrated()
    groups = calibration_groups(calibrated.calibration.by, outputs.ids, outputs.presence, dataset)
    probabilities_NL = raw_probabilities(outputs.logits_NL)
    if outputs.ids:
        probabilities_NL = calibrated.calibration.apply(probabilities_NL, groups)
    return predictions_table(
        outputs.ids,
        labels,
        outputs.targets_NL,
        probabilities_NL,
        outputs.presence,
        dataset=dataset,
        rows=rows,
        columns=[*evaluation.columns, *columns],
    )


def restrict_inputs(inputs: Inputs, only: Sequence[Modality]) -> Inputs:
    """Return the inputs with the modalities of ``only``; all if it is empty.

    Raises:
        UserError: if one of them is not an input.
    """
    has = [m for m in MODALITIES if getattr(inputs, m) is not None]
    if wrong := [m for m in only if m not in has]:
        raise UserError(f"--only {','.join(only)}: the model has no {' and no '.join(wrong)}; it takes {', '.join(has)}")
    return inputs.model_copy(update={m: None for m in has if only and m not in only})

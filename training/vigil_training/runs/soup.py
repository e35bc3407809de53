"""Model soup of a run: a new run whose only checkpoint is an average of the run's best ones."""

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from vigil_data.errors import UserError
from vigil_data.filesystem import write_file, write_json
from vigil_data.progress import ProgressCallback
from vigil_modeling.losses import MaskedLoss
from vigil_modeling.multimodal_model import MultimodalModel
from vigil_modeling.safety_model import build_model
from vigil_training.checkpoint.manifest import read_manifest
from vigil_training.checkpoint.reader import list_checkpoints
from vigil_training.checkpoint.shards import Fragment, inventory
from vigil_training.checkpoint.soup import Ingredient, average_weights, cook_soup
from vigil_training.checkpoint.writer import CheckpointMetadata, CheckpointWriter
from vigil_training.distributed.device import choose_device
from vigil_training.distributed.world import World
from vigil_training.runs.calibrate import fit_calibration_and_thresholds, unknown_share
from vigil_training.runs.lineage import record_run
from vigil_training.runs.predict import predict_rows
from vigil_training.runs.run import Run, identify, recipe_digest
from vigil_training.trainer.data_module import DataModule
from vigil_training.trainer.lightning_module import ranking_metrics


@dataclass(frozen=True, slots=True)
class Soup:
    """A soup of a run.

    Attributes:
        run: the new run.
        monitor: name of the metric that decided.
        value: its value for the soup.
        ingredients: all checkpoints that were considered, the best first.
    """

    run: Run
    monitor: str
    value: float
    ingredients: tuple[Ingredient, ...]


def make_soup(
    run: Run,
    folder: Path,
    method: Literal["greedy", "uniform"] = "greedy",
    count: int | None = None,
    progress: ProgressCallback | None = None,
) -> Soup:
    """Average a run's best checkpoints by the validation monitor, calibrate the result, and write it as a finished run.

    Args:
        run: a finished run.
        folder: the new run; absent or empty.
        method: see :func:`vigil_training.checkpoint.soup.cook_soup`.
        count: number of best checkpoints to consider (default: all that have a validation).
        progress: called after each validation with ``soup``, the checkpoints done and their number.

    Raises:
        UserError: if the run has not finished or has fewer than two checkpoints with a validation, or the folder is not empty.
    """
    run.read_thresholds()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: not an empty folder; name another with --to")
    recipe = run.recipe
    paths = _best_checkpoints(run, count)
    dataset = run.dataset()
    data = DataModule(recipe, dataset.version)
    device = choose_device(recipe, World())
    model = build_model(recipe.model, recipe.inputs, recipe.taxonomy, load_weights=False).to(device).eval()
    loss = MaskedLoss(recipe.loss, recipe.taxonomy, data.target_counts, model.structure).to(device)
    validations = 0

    def score(chosen: Sequence[Path]) -> float:
        nonlocal validations
        model.load_state_dict(average_weights(chosen))
        value = _validate(model, loss, data, recipe.taxonomy.labels).get(recipe.training.monitor)
        validations += 1
        if progress is not None:
            progress("soup", validations, None)
        if value is None or not math.isfinite(value):
            names = ", ".join(path.name for path in chosen)
            raise UserError(f"{run.path}: {recipe.training.monitor} has no value for {names}, so no soup can be chosen by it")
        return value

    ingredients = cook_soup(paths, method, recipe.training.mode, score)
    included = [each for each in ingredients if each.included]
    model.load_state_dict(average_weights([each.path for each in included]))
    soup = Soup(Run(_begin_run(run, folder, method, ingredients)), recipe.training.monitor, included[-1].soup, tuple(ingredients))
    _save(soup, model)
    outputs = predict_rows(soup.run, dataset, data.validation_rows, unknown_share=unknown_share(len(data.validation_rows)))
    fit_calibration_and_thresholds(soup.run, outputs, dataset)
    record_run(soup.run)
    return soup


def _best_checkpoints(run: Run, count: int | None) -> list[Path]:
    """Return the best checkpoints of a run that have a validation."""
    values = {path: read_manifest(path).value for path in list_checkpoints(run.checkpoints)}
    valued = {path: value for path, value in values.items() if value is not None}
    paths = sorted(valued, key=lambda path: valued[path], reverse=run.recipe.training.mode == "max")[:count]
    if len(paths) < 2:
        raise UserError(
            f"{run.path}: a soup needs two checkpoints with a validation, and there is {len(paths)}; "
            "set checkpoint.keep_best to the number to average, and train for as many epochs at least"
        )
    return paths


@torch.inference_mode()
def _validate(model: MultimodalModel, loss: MaskedLoss, data: DataModule, labels: tuple[str, ...]) -> dict[str, float]:
    """Return the validation metrics of a model, as in training."""
    logits, targets, total, weight = [], [], 0.0, 0.0
    device = next(model.parameters()).device
    for batch in (each.to(device) for each in data.val_dataloader() if len(each)):
        prediction = model(batch)
        total += float(loss(prediction.raw_NL, batch.targets))
        weight += float(loss.weight(batch.targets))
        logits.append(prediction.logits_NL.float().cpu().numpy())
        targets.append(batch.targets.cpu().numpy())
    metrics = ranking_metrics(np.concatenate(logits), np.concatenate(targets), labels) if logits else {}
    return metrics | ({"validation/loss": total / weight} if weight else {})


def _begin_run(run: Run, folder: Path, method: str, ingredients: Sequence[Ingredient]) -> Path:
    """Write what the new run shares with the run, and what it is made of; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "resolved.yaml", run.resolved.read_text(encoding="utf-8"))
    identify(folder)
    names = [each.path.name for each in ingredients if each.included]
    soup = {"run": str(run.path), "method": method, "checkpoints": names}
    write_json(Run(folder).environment, {**run.read_environment(), "soup": soup})
    return folder


def _save(soup: Soup, model: MultimodalModel) -> None:
    """Write the model as the only checkpoint of the soup's run."""
    recipe = soup.run.recipe
    manifest = read_manifest(soup.ingredients[0].path)
    metadata = CheckpointMetadata(
        step=manifest.step,
        epoch=manifest.epoch,
        finished=True,
        recipe=recipe_digest(recipe),
        strategy="single",
        monitor=soup.monitor,
        value=soup.value,
    )
    entries = inventory(model)
    state = model.state_dict()
    fragments = [
        Fragment("weight", name, entry.shape, 0, state[name].reshape(-1)) for name, entry in entries.items() if not entry.tied_to
    ]
    spec = recipe.checkpoint.model_copy(update={"background": False})
    CheckpointWriter(soup.run.checkpoints, World(), spec, recipe.training.mode, token=uuid.uuid4().hex[:8]).save(
        metadata, {}, fragments, entries
    )

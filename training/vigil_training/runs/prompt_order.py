"""Order and cost of a guard's prompts in a run: the order is decided once, before training, and batches are planned by tokens."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vigil_data.dataset.dataset import Dataset
from vigil_data.items import Modality
from vigil_data.loading.sampler import Rows
from vigil_data.loading.text_tokens import row_costs
from vigil_data.prompts.build import build_prompt
from vigil_data.prompts.costs import prompt_costs
from vigil_data.prompts.order import cheaper_order
from vigil_data.prompts.pieces import Order
from vigil_data.specs import Cost, Inputs
from vigil_modeling.encoders import build_encoder, tokens_per_segment
from vigil_modeling.specs import GuardSpec
from vigil_training.recipe.recipe import Recipe

log = logging.getLogger("vigil.train")

CHARACTERS_PER_TOKEN = 4


def decide_prompt_order(recipe: Recipe) -> Recipe:
    """Return a guard's recipe with ``model.prompt.order: auto`` replaced by the order that costs fewer tokens; others unchanged.

    It is decided on training items of all lengths, as many as a batch holds, and on their known targets. A text counts with its
    tokens if ``data.batch.cost`` counts tokens, else with a quarter of its characters, a picture and a window of audio with its
    soft tokens.

    Raises:
        UserError: if the dataset does not exist, or the prompt cannot be built.
    """
    if not isinstance(recipe.model, GuardSpec) or recipe.model.prompt.order != "auto" or recipe.inputs.text is None:
        return recipe
    data, labels = recipe.data, recipe.taxonomy.labels
    dataset = Dataset(Path(data.dataset), data.version)
    rows = dataset.rows(data.train, data.where)
    targets_NL = dataset.targets(labels, rows)
    asked_NL = ~np.isnan(targets_NL)
    rows, asked_NL = rows[asked_NL.any(axis=1)], asked_NL[asked_NL.any(axis=1)]
    pieces, clauses = build_prompt(recipe.model.prompt, recipe.inputs.text.tokenizer, recipe.taxonomy)
    counted = data.batch.cost.token > 0
    tokens = Cost(token=float(counted), character=0 if counted else 1 / CHARACTERS_PER_TOKEN, **_soft_tokens(recipe))
    costs_N, tokens_N = (
        row_costs(dataset, data.batch.cost, recipe.inputs, rows)[0],
        row_costs(dataset, tokens, recipe.inputs, rows)[0],
    )
    batch = min(data.batch.max_items, max(1, int(data.batch.budget / max(costs_N.mean(), 1)))) if len(rows) else 1
    typical = np.unique(np.linspace(0, len(rows) - 1, batch).astype(np.int64)) if len(rows) else np.empty(0, np.int64)
    chosen = np.argsort(tokens_N, kind="stable")[typical]
    order = cheaper_order(pieces, clauses, tokens_N[chosen], asked_NL[chosen]) if len(chosen) else "policy_first"
    log.info("prompts: %s, which costs fewer tokens in a typical batch of %d items", order.replace("_", " "), len(chosen))
    return with_order(recipe, order)


def _soft_tokens(recipe: Recipe) -> dict[str, float]:
    """Return the soft tokens of a picture and of a second of audio, as keys of :class:`.Cost`."""
    per_segment: dict[Modality, int] = {"image": 0, "audio": 0}
    for modality in per_segment:
        if (spec := getattr(recipe.model.encoders, modality)) is not None:
            per_segment[modality] = tokens_per_segment(build_encoder(modality, spec, recipe.inputs, load_weights=False))
    audio = recipe.inputs.audio
    hop_seconds = 1.0 if audio is None else audio.hop_samples / audio.rate
    return {"image": per_segment["image"], "second": per_segment["audio"] / hop_seconds}


def with_order(recipe: Recipe, order: Order) -> Recipe:
    """Return a guard's recipe with another ``model.prompt.order``."""
    assert isinstance(recipe.model, GuardSpec)
    prompt = recipe.model.prompt.model_copy(update={"order": order})
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"prompt": prompt})})


def item_costs(
    recipe: Recipe, dataset: Dataset, inputs: Inputs, *parts: Rows, asked: Sequence[NDArray[np.bool_] | None] = ()
) -> list[NDArray[np.float64]]:
    """Return the costs of rows of a dataset, by which batches are planned, float64 ``[n]`` for each part.

    A guard's prompts cost what their tokens cost: ``data.batch.cost.token``, or four characters.

    Args:
        recipe: model and costs.
        dataset: the dataset.
        inputs: modalities that are read; the others cost nothing.
        parts: row numbers, each ``[n]``.
        asked: labels that a guard is asked about each row of each part, ``[n, L]`` (default: all).

    Raises:
        UserError: if the tokenizer cannot be loaded, or the prompt cannot be built.
    """
    cost, model = recipe.data.batch.cost, recipe.model
    costs = row_costs(dataset, cost, inputs, *parts)
    if not isinstance(model, GuardSpec) or recipe.inputs.text is None:
        return costs
    pieces, clauses = build_prompt(model.prompt, recipe.inputs.text.tokenizer, recipe.taxonomy)
    price = cost.token + CHARACTERS_PER_TOKEN * cost.character
    asked = asked or [None] * len(parts)
    return [
        cost.item
        + prompt_costs(
            pieces, clauses, costs_n - cost.item, asked_nL, price, policies=None if asked_nL is None else model.policies
        )
        for costs_n, asked_nL in zip(costs, asked, strict=True)
    ]

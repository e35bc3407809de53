"""Size and latency of the models of runs, measured in turns on the same items."""

import statistics
import time
from collections.abc import Mapping

import numpy as np
import torch

from vigil_data.dataset.dataset import Dataset
from vigil_data.decode import Decoder, Undecodable
from vigil_data.loading.batch import Batch, collate
from vigil_data.loading.packing import pack
from vigil_modeling.multimodal_model import MultimodalModel
from vigil_training.runs.run import Run

TIMED_ITEMS, TURNS = 32, 8
"""Items of the split on which latency is measured, one at a time, and how often."""


def measure_size_and_latency(sides: Mapping[str, Run], dataset: Dataset, split: str) -> dict[str, dict[str, float]]:
    """Return number of weights, and the median milliseconds of one item in PyTorch on the CPU, of several runs in turns.

    Every run gets the same items of a split, as its recipe decodes them, one at a time.
    """
    rows = dataset.rows(split)
    items = dataset.take(rows[np.unique(np.linspace(0, len(rows) - 1, TIMED_ITEMS).astype(np.int64))])
    models: dict[str, MultimodalModel] = {}
    batches: dict[str, list[Batch]] = {}
    for side, run in sides.items():
        decoder, models[side], batches[side] = Decoder(run.recipe.inputs, ()), run.model("best"), []
        for item in items:
            try:
                batches[side].append(collate(pack([decoder.decode(item)])))
            except Undecodable:
                continue
    taken: dict[str, list[float]] = {side: [] for side in sides}
    with torch.inference_mode():
        for turn in range(TURNS + 1):
            for side in list(sides) if turn % 2 == 0 else list(sides)[::-1]:
                for batch in batches[side]:
                    start = time.perf_counter()
                    models[side](batch)
                    if turn:  # the first turn warms up
                        taken[side].append(time.perf_counter() - start)
    return {
        side: {
            "weights": sum(parameter.numel() for parameter in model.parameters()),
            "milliseconds": 1000 * statistics.median(taken[side]),
        }
        for side, model in models.items()
    }

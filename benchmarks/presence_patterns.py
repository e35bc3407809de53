"""The demonstration's fused model against its best single modality, under every pattern of modalities.

usage: python benchmarks/presence_patterns.py [--to runs/presence-patterns] [--seed 0] [--split test] [--set KEY=VALUE …]

Trains the fused recipe as it is (`plain`), the same with modality dropout and auxiliary heads (`balanced`), and the recipe of
each modality. Then every item of the split is shown to the models with each subset of its modalities, and macro average
precision is compared with that of the best single modality of the pattern, which is chosen on the validation split. Intervals
are of the paired bootstrap of `vigil compare` (95 %, not corrected for the number of patterns). The goal is no interval below
-.01.

Each run and each table of predictions is kept under `--to`: the same command continues where it was stopped. `--set` changes the
recipe of the balanced model, for a choice on `--split validation`.

Last table (AMD EPYC, 2 virtual cores, shared; one seed of dataset and training, the full recipes, nothing tuned):

    seed 0, split test: macro average precision, difference to the best single modality
    pattern            items  single                                   plain                        balanced
    text                 801  text 0.606       0.597 -0.009 [-0.039, +0.016]   0.634 +0.029 [+0.001, +0.056]
    image                475  image 0.532      0.567 +0.035 [+0.001, +0.072]   0.591 +0.059 [+0.028, +0.096]
    audio                506  audio 0.427      0.553 +0.127 [+0.091, +0.172]   0.539 +0.112 [+0.074, +0.150]
    text+image           363  text 0.603       0.880 +0.278 [+0.224, +0.337]   0.881 +0.279 [+0.227, +0.337]
    text+audio           359  text 0.543       0.828 +0.285 [+0.237, +0.351]   0.798 +0.255 [+0.204, +0.311]
    image+audio          205  image 0.497      0.721 +0.224 [+0.158, +0.302]   0.727 +0.230 [+0.164, +0.314]
    text+image+audio     145  image 0.503      0.910 +0.407 [+0.328, +0.501]   0.895 +0.393 [+0.318, +0.485]
    interval below -0.01: plain on text
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vigil_data.dataset.dataset import Dataset
from vigil_data.items import MODALITIES, Modality
from vigil_data.presence import presence_pattern
from vigil_evaluation.comparison import ComparisonCell, ReleaseGate, ScoredModel
from vigil_evaluation.comparison.compare import compare
from vigil_evaluation.metrics import average_precision
from vigil_evaluation.specs import EvaluationSpec
from vigil_training.runs.predict import outputs_to_table, predict_rows
from vigil_training.runs.run import Run

RECIPES = Path(__file__).parents[1] / "recipes"
BALANCE = ("training.modality_dropout={text: 0.2, image: 0.2, audio: 0.2}", "model.auxiliary_heads={weight: 0.5}")
PATTERNS = [subset for size in range(1, len(MODALITIES) + 1) for subset in combinations(MODALITIES, size)]
METRIC, WORST = "average_precision", -0.01


def main() -> None:
    """Train what is not trained yet, predict, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--to", type=Path, default=Path("runs/presence-patterns"), help="folder of runs and predictions")
    parser.add_argument("--seed", type=int, default=0, help="of dataset and training")
    parser.add_argument("--split", default="test")
    parser.add_argument(
        "--set", action="append", default=[], help="recipe key of the balanced model, in addition to the defaults"
    )
    options = parser.parse_args()
    folder = options.to / f"seed-{options.seed}"
    if not (folder / "dataset" / "items.lance").exists():
        vigil("data", "demo", folder / "dataset", "--seed", options.seed)
    runs = {m: train(folder, m, f"demo-{m}.yaml", options.seed) for m in MODALITIES}
    runs["balanced"] = train(folder, "balanced", "demo.yaml", options.seed, [*BALANCE, *options.set])
    runs["plain"] = train(folder, "plain", "demo.yaml", options.seed)
    print(f"seed {options.seed}, split {options.split}: macro average precision, difference to the best single modality")
    print(f"{'pattern':18}{'items':>6}  {'single':14}" + "".join(f"{name:>32}" for name in ("plain", "balanced")))
    failed = []
    for pattern in PATTERNS:
        best = max(pattern, key=lambda m: macro(runs[m], "validation", pattern, (m,)))
        single = predictions(runs[best], options.split, pattern, (best,))
        line = f"{presence_pattern(pattern):18}{len(single):>6}"
        for name in ("plain", "balanced"):
            cell = difference(single, predictions(runs[name], options.split, pattern, pattern), best, name)
            assert cell.delta is not None
            assert cell.interval is not None
            low, high = cell.interval
            if name == "plain":
                line += f"  {best} {cell.champion:.3f}".ljust(16)
            line += f"{cell.challenger:.3f} {cell.delta:+.3f} [{low:+.3f}, {high:+.3f}]".rjust(32)
            failed += [f"{name} on {presence_pattern(pattern)}"] * (low < WORST)
        print(line, flush=True)
    print(f"interval below {WORST}: {', '.join(failed) or 'none'}")


def vigil(*arguments: object) -> None:
    """Run a command of vigil."""
    subprocess.run([sys.executable, "-m", "vigil", *map(str, arguments)], check=True)


def train(folder: Path, name: str, recipe: str, seed: int, values: Sequence[str] = ()) -> Run:
    """Train, resume, or find finished the run of a recipe."""
    vigil("train", RECIPES / recipe, "--run", folder / name, f"data.dataset={folder / 'dataset'}", f"seed={seed}", *values)
    return Run(folder / name)


def predictions(run: Run, split: str, pattern: Sequence[Modality], only: Sequence[Modality]) -> pa.Table:
    """Return the predictions for the items that have all modalities of a pattern, from those of ``only``."""
    dataset = run.dataset()
    file = run.path / "predictions" / f"{split}-{presence_pattern(only)}.parquet"
    if not file.exists():
        rows = dataset.rows(split)
        table = outputs_to_table(predict_rows(run, dataset, rows, only=only), run, dataset, rows)
        file.parent.mkdir(exist_ok=True)
        pq.write_table(table, file)
    table = pq.read_table(file)
    return table.filter(pc.is_in(table.column("id"), pa.array(items_with(dataset, split, pattern))))


def items_with(dataset: Dataset, split: str, pattern: Sequence[Modality]) -> list[str]:
    """Return the ids of the items of a split that have all modalities of a pattern."""
    rows = dataset.rows(split)
    has_N = (dataset.facts(rows)[:, [MODALITIES.index(m) for m in pattern]] > 0).all(1)
    ids: list[str] = dataset.table(["id"], rows[has_N]).column("id").to_pylist()
    return ids


def macro(run: Run, split: str, pattern: Sequence[Modality], only: Sequence[Modality]) -> float:
    """Return the macro average precision of a run on the items of a pattern."""
    table, labels = predictions(run, split, pattern, only), run.recipe.taxonomy.labels
    columns = ([np.asarray(table.column(f"{kind}.{label}")) for kind in ("target", "probability")] for label in labels)
    values = [average_precision(targets, scores) for targets, scores in columns]
    return float(np.mean([value for value in values if value is not None]))


def difference(single: pa.Table, fused: pa.Table, best: str, name: str) -> ComparisonCell:
    """Return the comparison of the fused model with the single modality in macro average precision."""
    labels = tuple(c.removeprefix("target.") for c in single.column_names if c.startswith("target."))
    cuts = dict.fromkeys(labels, 0.5)
    sides = (ScoredModel(best, single, labels, cuts), ScoredModel(name, fused, labels, cuts))
    comparison, _ = compare(*sides, EvaluationSpec(slices=()), ReleaseGate(metrics=(METRIC,)))
    return next(cell for cell in comparison.cells if cell.label is None and cell.column is None)


if __name__ == "__main__":
    main()

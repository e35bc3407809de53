"""What pictures and sound are worth to a guard: recipes/demo-guard.yaml against the same guard trained on text alone.

usage: python benchmarks/guard_modalities.py --guard runs/guard --fused runs/demo/fused [--to FOLDER] [--split test]

--guard is a run of recipes/guard.yaml, from which both start. --fused is a run of recipes/demo.yaml: the first one reads its
encoders of pictures and sound, and both are trained on its dataset. Then the split is shown to the first one with all
modalities, without pictures, and without sound. Average precision of each label and its mean, as differences to the guard that
reads everything, with the intervals of the paired bootstrap of `vigil compare` (95 %, not corrected for the number of rows).
Goals: the means are lower by intervals that exclude 0.

The runs are kept under --to: the same command continues where it was stopped.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import pyarrow as pa

from vigil_data.items import Modality
from vigil_evaluation.comparison import ReleaseGate, ScoredModel
from vigil_evaluation.comparison.compare import compare
from vigil_evaluation.specs import EvaluationSpec
from vigil_training.runs.predict import outputs_to_table, predict_rows
from vigil_training.runs.run import Run

RECIPE = Path(__file__).parents[1] / "recipes" / "demo-guard.yaml"
TEXT_ALONE = tuple(f"{key}.{m}=null" for key in ("inputs", "model.encoders") for m in ("image", "audio"))
SEEN: dict[str, tuple[Modality, ...]] = {
    "without pictures": ("text", "audio"),
    "without sound": ("text", "image"),
}
METRIC = "average_precision"


def main() -> None:
    """Train what is not trained yet, predict, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guard", type=Path, required=True, help="run of recipes/guard.yaml")
    parser.add_argument("--fused", type=Path, required=True, help="run of recipes/demo.yaml")
    parser.add_argument("--to", type=Path, default=Path("runs/guard-modalities"), help="folder of the runs")
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    encoders = f"{{path: {options.fused}, parts: [encoders.image, encoders.audio]}}"
    starts = {"guard": (f"init_from=[{options.guard}, {encoders}]",), "text-guard": (f"init_from={options.guard}", *TEXT_ALONE)}
    dataset = Run(options.fused).recipe.data.dataset
    runs = {}
    for name, values in starts.items():
        runs[name] = Run(options.to / name)
        command = ["train", RECIPE, "--run", runs[name].path, f"data.dataset={dataset}", *values]
        subprocess.run([sys.executable, "-m", "vigil", *map(str, command)], check=True)
    everything = predictions(runs["guard"], options.split)
    others = {f"guard, {name}": predictions(runs["guard"], options.split, seen) for name, seen in SEEN.items()}
    others["guard trained on text alone"] = predictions(runs["text-guard"], options.split)
    labels = runs["guard"].recipe.taxonomy.labels
    print(f"{len(everything)} items of split {options.split}: average precision, and difference to the complete guard")
    for name, table in others.items():
        sides = (scored("guard", everything, labels), scored(name, table, labels))
        comparison, _ = compare(*sides, EvaluationSpec(slices=()), ReleaseGate(metrics=(METRIC,)))
        for cell in sorted((c for c in comparison.cells if c.column is None), key=lambda c: c.label or ""):
            assert cell.champion is not None
            assert cell.challenger is not None
            assert cell.interval is not None
            low, high = cell.interval
            values = f"{cell.champion:.3f} {cell.challenger:.3f} {cell.challenger - cell.champion:+.3f} [{low:+.3f}, {high:+.3f}]"
            goal = "" if cell.label else "  met" if high < 0 else "  not met"
            print(f"{name:30}{cell.label or 'mean over labels':18}{values}{goal}", flush=True)


def predictions(run: Run, split: str, seen: tuple[Modality, ...] = ()) -> pa.Table:
    """Return a run's predictions for a split from some modalities (default: all that it takes)."""
    dataset = run.dataset()
    rows = dataset.rows(split)
    return outputs_to_table(predict_rows(run, dataset, rows, only=seen), run, dataset, rows)


def scored(name: str, table: pa.Table, labels: tuple[str, ...]) -> ScoredModel:
    """Return one side of a comparison; thresholds play no part in average precision."""
    return ScoredModel(name, table, labels, dict.fromkeys(labels, 0.5))


if __name__ == "__main__":
    main()

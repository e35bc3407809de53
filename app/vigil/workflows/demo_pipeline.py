"""The demonstration: the commands from an empty folder to a verified bundle, and a summary of their results.

Each stage is a `vigil` command. Finished stages are not repeated, so the same call resumes an interrupted demonstration.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from vigil_data.errors import UserError
from vigil_data.filesystem import write_json
from vigil_data.items import MODALITIES

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
"""The checkout's recipes, which are in none of the packages."""


class Stage(NamedTuple):
    """A command, and the file whose existence shows that it has finished."""

    name: str
    command: Sequence[str]
    product: Path


class Summary(NamedTuple):
    """Results of a demonstration, also written to ``summary.json``.

    Attributes:
        fused_macro_ap: macro average precision of the fused model on the test split.
        single_macro_ap: the same for each modality, of a model trained on that modality alone.
        seconds: duration of each stage.
        report: evaluation report of the fused model.
        comparison: comparison of the text model with the fused model.
        suite: results of the bundle in each functional test.
        bundle: the verified bundle.
    """

    fused_macro_ap: float
    single_macro_ap: dict[str, float]
    seconds: dict[str, float]
    report: str
    comparison: str
    suite: str
    bundle: str


def stages(folder: Path, seed: int) -> list[Stage]:
    """Return the demonstration's commands in order.

    Args:
        folder: the folder to write.
        seed: random seed of the dataset and of training.
    """
    dataset, bundle, scores = folder / "dataset", folder / "bundle", folder / "scores.parquet"
    planned = [Stage("dataset", ["data", "demo", str(dataset), "--seed", str(seed)], dataset / "items.lance")]
    for name in ("fused", *MODALITIES):
        recipe = _shown(RECIPES / ("demo.yaml" if name == "fused" else f"demo-{name}.yaml"))
        values = [f"data.dataset={dataset}", f"seed={seed}"]
        planned.append(
            Stage(f"train {name}", ["train", recipe, "--run", str(folder / name), *values], folder / name / "thresholds.json")
        )
        if name == "fused":
            policy = _shown(RECIPES / "policies" / "demo.yaml")
            planned.append(Stage("policy", ["policy", "compile", policy, str(folder / name)], folder / name / "policy.json"))
        planned.append(Stage(f"evaluate {name}", ["evaluate", str(folder / name)], _metrics_file(folder, name)))
    comparison, suite = folder / "comparison", folder / "suite"
    return [
        *planned,
        Stage(
            "compare",
            ["compare", str(folder / "text"), str(folder / "fused"), "--to", str(comparison)],
            comparison / "comparison.json",
        ),
        Stage("export", ["export", str(folder / "fused"), "--to", str(bundle)], bundle / "manifest.json"),
        Stage("verify", ["verify", str(bundle)], bundle / "manifest.json"),
        Stage("suite", ["suite", "run", str(bundle), "demo", "--to", str(suite)], suite / "suite.json"),
        Stage("score", ["score", str(bundle), str(dataset), "--to", str(scores), "--split", "test"], scores),
    ]


def run_demo(folder: Path, seed: int, run: Callable[[Stage, int, int], None]) -> Summary:
    """Run the stages that have not finished yet, and summarise the results.

    Args:
        folder: the folder to write; it may hold an interrupted or finished demonstration with the same seed.
        seed: random seed of the dataset and of training.
        run: called with a stage, its number from 1, and the number of stages; raises if the stage fails.

    Raises:
        UserError: if the recipes are absent, or the folder holds a demonstration with another seed, or something else.
    """
    if not (RECIPES / "demo.yaml").is_file():
        raise UserError(
            f"{RECIPES}: the demonstration's recipes are absent; install Vigil from a checkout with `pip install -e '.[demo]'`"
        )
    record = folder / "stages.json"
    done = _read_record(folder, record, seed)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record, {"seed": seed, "seconds": done})
    planned = stages(folder, seed)
    for number, stage in enumerate(planned, start=1):
        if stage.name in done and stage.product.exists():
            continue
        start = time.perf_counter()
        run(stage, number, len(planned))
        done[stage.name] = round(time.perf_counter() - start, 1)
        write_json(record, {"seed": seed, "seconds": done})
    summary = Summary(
        _macro_ap(folder, "fused"),
        {modality: _macro_ap(folder, modality) for modality in MODALITIES},
        done,
        str(_metrics_file(folder, "fused").with_name("report.html")),
        str(folder / "comparison" / "comparison.html"),
        str(folder / "suite" / "suite.html"),
        str(folder / "bundle"),
    )
    write_json(folder / "summary.json", summary._asdict())
    return summary


def _read_record(folder: Path, record: Path, seed: int) -> dict[str, float]:
    """Return the finished stages with their durations in seconds."""
    if not record.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder}: neither a demonstration nor an empty folder; name another one with --dir")
        return {}
    known = json.loads(record.read_text())
    if known["seed"] != seed:
        raise UserError(f"{folder}: holds a demonstration with seed {known['seed']}; name another folder with --dir")
    return dict(known["seconds"])


def _metrics_file(folder: Path, name: str) -> Path:
    return folder / name / "evaluation" / "test" / "metrics.json"


def _macro_ap(folder: Path, name: str) -> float:
    return float(json.loads(_metrics_file(folder, name).read_text())["overall"]["macro"]["average_precision"]["value"])


def _shown(path: Path) -> str:
    """Return a path relative to the working folder where it is inside."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)

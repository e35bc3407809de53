"""The demonstration: the commands that a user would type, from an empty folder to a verified bundle, and what they found.

Each stage is a `vigil` command, printed before it runs. A stage that was done already is not done again, so an interrupted
demonstration goes on where it stopped.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vigil_data.errors import UserError
from vigil_data.items import MODALITIES

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
"""The checkout's recipes; they are data of the project and lie in none of its packages."""


class Stage(NamedTuple):
    """One command, and the file by which its work is known to be done."""

    name: str
    command: Sequence[str]
    product: Path


class Summary(NamedTuple):
    """What a demonstration found; ``summary.json`` holds the same.

    Attributes:
        fused_macro_ap: macro average precision of the fused model on the test split.
        single_macro_ap: the same by modality, of a model that was trained on that modality alone.
        seconds: how long each stage took.
        report: the fused model's report.
        comparison: of the model of text alone with the fused one.
        suite: what the bundle does in each functional test.
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
    """The demonstration's commands, in order.

    Args:
        folder: where everything goes.
        seed: of the dataset and of the trainings.
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
        planned.append(Stage(f"evaluate {name}", ["evaluate", str(folder / name)], _findings(folder, name)))
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


def demonstrate(folder: Path, seed: int, run: Callable[[Stage], None]) -> Summary:
    """Run the stages that were not done yet, and sum up.

    Args:
        folder: where everything goes; it may hold an interrupted or finished demonstration of the same seed.
        seed: of the dataset and of the trainings.
        run: runs a stage's command, and raises if it fails.

    Raises:
        UserError: if the recipes are absent, or the folder holds a demonstration of another seed, or something else.
    """
    if not (RECIPES / "demo.yaml").is_file():
        raise UserError(
            f"{RECIPES}: the demonstration's recipes are not there; install Vigil from a checkout with `pip install -e .`"
        )
    record = folder / "stages.json"
    done = _read_record(folder, record, seed)
    folder.mkdir(parents=True, exist_ok=True)
    _write(record, {"seed": seed, "seconds": done})
    for stage in stages(folder, seed):
        if stage.name in done and stage.product.exists():
            continue
        start = time.perf_counter()
        run(stage)
        done[stage.name] = round(time.perf_counter() - start, 1)
        _write(record, {"seed": seed, "seconds": done})
    summary = Summary(
        _macro_ap(folder, "fused"),
        {modality: _macro_ap(folder, modality) for modality in MODALITIES},
        done,
        str(_findings(folder, "fused").with_name("report.html")),
        str(folder / "comparison" / "comparison.html"),
        str(folder / "suite" / "suite.html"),
        str(folder / "bundle"),
    )
    _write(folder / "summary.json", summary._asdict())
    return summary


def _read_record(folder: Path, record: Path, seed: int) -> dict[str, float]:
    """The stages done so far, with their seconds."""
    if not record.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder}: neither a demonstration nor an empty folder; give another with --dir")
        return {}
    known = json.loads(record.read_text())
    if known["seed"] != seed:
        raise UserError(f"{folder}: holds a demonstration of seed {known['seed']}; give another folder with --dir")
    return dict(known["seconds"])


def _findings(folder: Path, name: str) -> Path:
    return folder / name / "evaluation" / "test" / "metrics.json"


def _macro_ap(folder: Path, name: str) -> float:
    return float(json.loads(_findings(folder, name).read_text())["overall"]["macro"]["average_precision"]["value"])


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


def _shown(path: Path) -> str:
    """A path as short as it can be from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)

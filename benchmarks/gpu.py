"""What only a GPU can show: precision, compilation and sharding on one GPU against the CPU, memory against the plan, decisions.

usage: python benchmarks/gpu.py [--device cuda] [--steps 40] [--items 600] [--to runs/gpu]       (or: make gpu)

It trains the demonstration's model (recipes/demo.yaml: text, images, sound) for a few steps on the same batches on the CPU and,
on the GPU, in fp32, in bf16, compiled, and under ZeRO-2 and FSDP2 with one rank over NCCL; then it exports the fp32 run and
scores the test split on the GPU. A stage is a process with a time limit of its own, so that one that fails costs no other; all
limits together are 8 minutes. It needs this checkout and the packages of constraints.txt, and downloads nothing. It prints a
Markdown table and writes ``gpu.json`` and the runs into ``--to``.

Columns: loss, the largest relative difference from the CPU's loss in any step; items/s, over the last two thirds of the steps;
memory, the most that torch allocated, and the same as a share of what `vigil plan` predicts. Fails (status 1) if a stage fails, a
loss differs by more than its tolerance, or a decision flips.

No GPU has been available yet; tests/benchmarks/test_gpu.py runs it on the CPU with a tiny model.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
for root in ("app", "training", "slurm", "monitoring", "serving", "evaluation", "modeling", "data"):
    sys.path.insert(0, str(REPOSITORY / root))  # Vigil itself need not be installed.
ONE_RANK = "strategy.nodes=1 strategy.devices=1"
TRAINING: dict[str, tuple[str, float]] = {
    "cpu": ("", 0.0),
    "fp32": ("", 0.01),
    "bf16": ("training.precision=bf16", 0.1),
    "compiled": ("training.compile=true", 0.01),
    "zero2": (f"strategy.kind=deepspeed strategy.stage=2 {ONE_RANK}", 0.01),
    "fsdp2": (f"strategy.kind=fsdp2 {ONE_RANK}", 0.01),
}
"""Stage to its overrides of the recipe, and the tolerance of a loss relative to the CPU's; convolutions in fp32 use TF32."""
LIMITS = {"data": 40, "cpu": 70, "fp32": 35, "bf16": 35, "compiled": 150, "zero2": 45, "fsdp2": 35, "score": 70}
"""Seconds of each stage."""


def make_data(options: argparse.Namespace) -> dict[str, Any]:
    """Generate the demonstration's posts, unless they are there."""
    from vigil_data.dataset.dataset import exists
    from vigil_data.demo import generate

    if not exists(options.data):
        generate(options.data, items=options.items)
    return {}


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Train one stage, and return its losses, rate, and memory as measured and as planned."""
    import torch

    from vigil_training.planning.plan import plan_run
    from vigil_training.recipe.resolve import dump_recipe, resolve_recipe
    from vigil_training.trainer.callbacks import RankSync, metrics
    from vigil_training.trainer.fit import fit_recipe

    device = "cpu" if options.stage == "cpu" else options.device
    overrides = [
        f"data.dataset={options.data}",
        f"training.accelerator={device}",
        f"training.max_steps={options.steps}",
        "training.epochs=1000",
        "training.patience=null",
        "training.token_cache=false",  # the encoders are what is measured
        "tracking.mode=disabled",
        *TRAINING[options.stage][0].split(),
    ]
    resolved = resolve_recipe(options.recipe, overrides)
    planned = next(row.total for row in plan_run(resolved.recipe).rows if row.chosen)
    ends: list[tuple[float, int]] = []
    peaks: list[int] = []
    exchange = RankSync.on_train_batch_end

    def on_train_batch_end(self: Any, *arguments: Any) -> None:
        exchange(self, *arguments)
        ends.append((time.perf_counter(), self.items))
        if device == "cuda":
            peaks.append(torch.cuda.max_memory_allocated())

    logged_every = metrics.LOG_EVERY_N_STEPS
    RankSync.on_train_batch_end, metrics.LOG_EVERY_N_STEPS = on_train_batch_end, 1  # type: ignore[method-assign]
    try:
        run = fit_recipe(resolved.recipe, dump_recipe(resolved), options.to / options.stage)
    finally:
        RankSync.on_train_batch_end, metrics.LOG_EVERY_N_STEPS = exchange, logged_every  # type: ignore[method-assign]
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    last = max((line.get("train/mfu", math.nan) for line in lines if "train/loss" in line), default=math.nan)
    first = len(ends) // 3
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "losses": [line["train/loss"] for line in lines if "train/loss" in line],
        "items_per_second": sum(items for _, items in ends[first + 1 :]) / (ends[-1][0] - ends[first][0]),
        "mfu": None if math.isnan(last) else last,
        "peak_bytes": max(peaks, default=None),
        "planned_bytes": planned,
    }


def score(options: argparse.Namespace) -> dict[str, Any]:
    """Export the fp32 run, and count decisions on the test split that differ between the GPU and the CPU."""
    import onnxruntime

    from vigil.workflows.export_run import export_run
    from vigil_data.dataset.dataset import Dataset
    from vigil_serving.runtime.scorer import Scorer
    from vigil_training.runs.run import Run

    run, dataset = Run(options.to / "fp32"), Dataset(options.data)
    rows = dataset.rows("test")
    if options.device == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return score_with_torch(run, dataset, rows, options.device)
    bundle = export_run(run, options.to / "bundle", formats=["onnx"], restart=True)
    items = list(dataset.take(rows))
    on_device = [f"{options.device.upper()}ExecutionProvider"]
    started = time.perf_counter()
    found = Scorer(bundle, providers=list(dict.fromkeys([*on_device, "CPUExecutionProvider"]))).score(items)
    seconds = time.perf_counter() - started
    expected = Scorer(bundle).score(items)
    flips = sum(one.labels != other.labels for one, other in zip(expected, found, strict=True))
    return {"by": f"ONNX Runtime, {on_device[0]}", "items": len(items), "flips": flips, "items_per_second": len(items) / seconds}


def score_with_torch(run: Any, dataset: Any, rows: Any, device: str) -> dict[str, Any]:
    """Count flips of the run's model on the device."""
    import numpy as np

    from vigil_data.loading.loader import Reader, Request
    from vigil_training.runs.predict import predict_batches, raw_probabilities

    recipe = run.recipe
    reader = Reader(dataset.path, dataset.version, recipe.inputs, recipe.taxonomy.labels)
    batches = [reader[Request(rows[at : at + 32])] for at in range(0, len(rows), 32)]
    calibration, thresholds = run.read_calibrated().calibration, run.read_thresholds()
    thresholds_L = np.array([thresholds[label] for label in recipe.taxonomy.labels])
    decided = []
    for where in ("cpu", device):
        model = run.model("best").to(where)
        started = time.perf_counter()
        logits_NL = predict_batches(model, batches).logits_NL
        seconds = time.perf_counter() - started
        decided.append(calibration.apply(raw_probabilities(logits_NL)) >= thresholds_L)
    flips = int(np.any(decided[0] != decided[1], axis=1).sum())
    return {"by": f"torch, {device}", "items": len(rows), "flips": flips, "items_per_second": len(rows) / seconds}


STAGES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "data": make_data,
    **dict.fromkeys(TRAINING, train),
    "score": score,
}


def run_stage(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run a stage, as a process unless ``--in-process``; return its result, or what failed."""
    started = time.perf_counter()
    if options.in_process:
        try:
            result = STAGES[name](argparse.Namespace(**{**vars(options), "stage": name}))
        except Exception as error:  # the others still run
            result = {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    else:
        file, log = options.to / f"{name}.json", options.to / f"{name}.log"
        file.unlink(missing_ok=True)
        command = [sys.executable, __file__, *options.given, "--stage", name]
        try:
            with log.open("w") as output:
                status = subprocess.run(command, stdout=output, stderr=output, timeout=LIMITS[name], check=False).returncode
            reason = f"status {status}: {(log.read_text().strip().splitlines() or ['no output'])[-1]}"
        except subprocess.TimeoutExpired:
            reason = f"not done after {LIMITS[name]} s; see {log}"
        result = json.loads(file.read_text()) if file.is_file() else {"error": reason}
    result["seconds"] = round(time.perf_counter() - started, 1)
    return result


def difference(losses: list[float], expected: list[float]) -> float:
    """Return the largest relative difference of the losses."""
    return max((abs(a - b) / max(abs(b), 1e-9) for a, b in zip(losses, expected, strict=True)), default=math.nan)


def find_problems(results: dict[str, dict[str, Any]]) -> list[str]:
    """Return a line for each stage that failed, differs too much, or flips a decision."""
    problems = [f"{name}: {result['error']}" for name, result in results.items() if "error" in result]
    for name, (_, tolerance) in TRAINING.items():
        off = results[name].get("loss_difference")
        if off is not None and not off <= tolerance:
            problems.append(f"{name}: a loss differs from the CPU's by {off:.2g}, more than {tolerance:g}")
    if flips := results["score"].get("flips"):
        problems.append(f"score: {flips} decisions flip")
    return problems


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the Markdown table."""
    lines = ["| stage | loss | items/s | MFU | memory, GB | of plan | s |", "|---|---|---|---|---|---|---|"]
    for name in TRAINING:
        r = results[name]
        if "error" in r:
            lines.append(f"| {name} | failed: {r['error'][:80]} | | | | | {r['seconds']:g} |")
            continue
        off, peak, mfu = r.get("loss_difference"), r["peak_bytes"], r["mfu"]
        cells = [
            f"{name} ({r['device']})",
            "reference" if name == "cpu" else "" if off is None else f"{off:.1g}",
            f"{r['items_per_second']:.1f}",
            "" if mfu is None else f"{mfu:.1%}",
            "" if peak is None else f"{peak / 1e9:.2f}",
            "" if peak is None else f"{peak / r['planned_bytes']:.0%}",
            f"{r['seconds']:g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    scored = results["score"]
    found = f"failed: {scored['error'][:80]}" if "error" in scored else f"{scored['flips']} of {scored['items']} decisions flip"
    rate = "" if "error" in scored else f"{scored['items_per_second']:.1f}"
    lines.append(f"| score ({scored.get('by', '')}) | {found} | {rate} | | | | {scored['seconds']:g} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run all stages and print the table, or one stage."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of each stage (default: 40)")
    parser.add_argument("--items", type=int, default=600, help="posts to generate (default: 600)")
    parser.add_argument("--recipe", type=Path, default=REPOSITORY / "recipes" / "demo.yaml")
    parser.add_argument("--data", type=Path, help="dataset (default: TO/dataset, generated)")
    parser.add_argument("--to", type=Path, default=Path("runs/gpu"), help="folder that is filled (default: runs/gpu)")
    parser.add_argument("--in-process", action="store_true", help="run stages in this process, without time limits")
    parser.add_argument("--stage", choices=list(STAGES), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.given = sys.argv[1:] if arguments is None else arguments
    options.data = options.data or options.to / "dataset"
    if options.stage:
        (options.to / f"{options.stage}.json").write_text(json.dumps(STAGES[options.stage](options)))
        return 0
    if any((options.to / name).exists() for name in TRAINING):
        parser.error(f"{options.to} holds runs already; remove it, or name another folder with --to")
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("torch finds no GPU here; --device cpu runs the same stages on the CPU")
    options.to.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    for name in STAGES:
        results[name] = run_stage(name, options)
        print(f"{name}: {results[name].get('error', 'done')} ({results[name]['seconds']:g} s)", file=sys.stderr, flush=True)
    for name in TRAINING:
        if name != "cpu" and "losses" in results[name] and "losses" in results["cpu"]:
            results[name]["loss_difference"] = difference(results[name]["losses"], results["cpu"]["losses"])
    problems = find_problems(results)
    (options.to / "gpu.json").write_text(json.dumps({"stages": results, "problems": problems}, indent=1))
    print(table(results))
    print("\n".join(problems), file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())

"""benchmarks/gpu.py as far as a CPU can: every stage on a tiny model, and what it makes of failures."""

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vigil_modeling import multimodal_model
from vigil_training.distributed.session import LAUNCH_VARIABLES
from vigil_training.recipe.recipe import Recipe

FILE = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    """The benchmark as a module."""
    spec = importlib.util.spec_from_file_location("gpu_benchmark", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def recipe_file(make_recipe: Callable[..., Recipe], tmp_path: Path) -> Path:
    text = make_recipe().model.encoders.text
    assert text is not None
    still = {**text.config, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    recipe = make_recipe(model__dropout=0.0, model__encoders__text__config=still, export={"examples": 4})
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.model_dump_json())
    return file


def test_gpu_benchmark_runs_every_stage(
    gpu: ModuleType,
    recipe_file: Path,
    material: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(multimodal_model, "COMPILER_BACKEND", "eager")
    monkeypatch.setattr("vigil_training.trainer.compilation.shutil.which", lambda name: f"/usr/bin/{name}")
    arguments = ["--device", "cpu", "--steps", "3", "--in-process", "--recipe", recipe_file, "--data", material / "dataset"]
    status = gpu.main([*map(str, arguments), "--to", str(tmp_path / "gpu")])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert [name for name in LAUNCH_VARIABLES if name in os.environ] == []  # DeepSpeed's strategy sets them
    written = json.loads((tmp_path / "gpu" / "gpu.json").read_text())
    assert written["problems"] == []
    assert list(written["stages"]) == ["data", "cpu", "fp32", "bf16", "compiled", "zero2", "fsdp2", "score"]
    for name in gpu.TRAINING:
        stage = written["stages"][name]
        assert len(stage["losses"]) == 3
        assert stage["items_per_second"] > 0
        assert stage["planned_bytes"] > 0
        assert f"\n| {name} (CPU) | " in printed.out
    assert written["stages"]["fp32"]["losses"] == written["stages"]["cpu"]["losses"]
    assert 0 < written["stages"]["bf16"]["loss_difference"] < 0.1
    assert written["stages"]["score"]["flips"] == 0
    assert "| 0 of 40 decisions flip |" in printed.out


def result(**changes: Any) -> dict[str, Any]:
    made = {"device": "X", "losses": [1.0], "items_per_second": 2.0, "mfu": 0.4, "peak_bytes": 3 * 10**9}
    return {**made, "planned_bytes": 4 * 10**9, "seconds": 5.0, "loss_difference": 0.001, **changes}


def test_gpu_benchmark_reports_what_failed_and_keeps_the_rest(gpu: ModuleType) -> None:
    results = {name: result() for name in gpu.TRAINING}
    results |= {"score": {"by": "torch, cuda", "items": 40, "flips": 2, "items_per_second": 9.0, "seconds": 1.0}}
    results["cpu"] = result(loss_difference=None)
    results["bf16"] = result(loss_difference=0.2)
    results["zero2"] = {"error": "not done after 45 s; see zero2.log", "seconds": 45.0}
    assert gpu.find_problems(results) == [
        "zero2: not done after 45 s; see zero2.log",
        "bf16: a loss differs from the CPU's by 0.2, more than 0.1",
        "score: 2 decisions flip",
    ]
    lines = gpu.table(results).splitlines()
    assert "| fsdp2 (X) | 0.001 | 2.0 | 40.0% | 3.00 | 75% | 5 |" in lines
    assert "| zero2 | failed: not done after 45 s; see zero2.log | | | | | 45 |" in lines


def test_gpu_benchmark_stage_ends_at_its_limit(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(gpu, "__file__", str(script))
    monkeypatch.setitem(gpu.LIMITS, "fp32", 0.2)
    options = type("Options", (), {"in_process": False, "to": tmp_path, "given": []})()
    assert gpu.run_stage("fp32", options)["error"].startswith("not done after 0.2 s")
    script.write_text("raise SystemExit('no room')")
    monkeypatch.setitem(gpu.LIMITS, "fp32", 30)
    assert gpu.run_stage("fp32", options)["error"] == "status 1: no room"


def test_gpu_benchmark_limits_are_eight_minutes(gpu: ModuleType) -> None:
    assert sum(gpu.LIMITS.values()) <= 480
    assert gpu.LIMITS.keys() == gpu.STAGES.keys()


def test_gpu_benchmark_refuses_a_machine_without_a_gpu(
    gpu: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(["--to", str(tmp_path / "gpu")])
    assert "torch finds no GPU here; --device cpu runs the same stages on the CPU" in capsys.readouterr().err

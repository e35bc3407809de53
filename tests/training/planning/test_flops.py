"""Operations of batches against torch's counter on the real model, and the log of a run on a device whose peak is known."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vigil_data.dataset.dataset import Dataset
from vigil_data.loading.loader import Request
from vigil_modeling.safety_model import build_model
from vigil_training.planning.flops import PEAK_TFLOPS, estimate_flops, peak_flops
from vigil_training.recipe.recipe import Recipe
from vigil_training.runs.prompt_order import decide_prompt_order
from vigil_training.runs.run import Run
from vigil_training.trainer import fit
from vigil_training.trainer.callbacks import MetricsCallback
from vigil_training.trainer.data_module import DataModule


@pytest.mark.parametrize("frozen", [False, True])
def test_flop_estimate_is_what_torch_counts_on_batches(make_recipe: Callable[..., Recipe], frozen: bool) -> None:
    recipe = make_recipe(model__encoders__text__frozen=frozen)
    estimate = estimate_flops(recipe)
    assert estimate is not None
    data = DataModule(recipe, Dataset(recipe.data.dataset).version)
    model = build_model(recipe.model, recipe.inputs, recipe.taxonomy)
    plan = data.plan(0)
    for step in range(4):
        batch = data.reader[Request(data.train_rows[plan.rows(step, 0)])]
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(batch).raw_NL.sum().backward()
        assert estimate.of(batch) == pytest.approx(counter.get_total_flops(), rel=0.03)


@pytest.mark.parametrize("changes", [{}, {"frozen": 1}, {"frozen": True}, {"lora": {"rank": 2}}])
def test_flop_estimate_of_a_guard_is_what_torch_counts_on_batches(
    make_guard_recipe: Callable[..., Recipe], changes: dict[str, Any]
) -> None:
    text = {f"model__encoders__text__{key}": value for key, value in changes.items()}
    recipe = decide_prompt_order(make_guard_recipe(**text))
    estimate = estimate_flops(recipe)
    assert estimate is not None
    data = DataModule(recipe, Dataset(recipe.data.dataset).version)
    model = build_model(recipe.model, recipe.inputs, recipe.taxonomy).train()
    plan, rows = data.plan(0), set()
    for step in range(4):
        batch = data.reader[Request(data.train_rows[plan.rows(step, 0)])]
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(batch).raw_NL.sum().backward()
        rows.add(model.prompt_rows)
        assert estimate.of(batch, model.prompt_rows) == pytest.approx(counter.get_total_flops(), rel=0.03)
    assert len(rows) > 1


def test_metrics_have_tflops_and_mfu_where_the_peak_is_known(
    make_recipe: Callable[..., Recipe], train: Callable[[Recipe, Path], Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = make_recipe(training__max_steps=12)
    build = fit.TrainingModule

    def with_flops(*args: object, **named: object) -> object:
        module = build(*args, **named)  # type: ignore[arg-type]
        module.flop_estimate = estimate_flops(recipe)
        return module

    create = MetricsCallback.__init__
    monkeypatch.setattr(fit, "TrainingModule", with_flops)
    monkeypatch.setattr(
        MetricsCallback, "__init__", lambda self, ranks, sync, _, *others: create(self, ranks, sync, 2e12, *others)
    )
    lines = (train(recipe, tmp_path / "run").path / "metrics.jsonl").read_text().splitlines()
    found = [line for line in map(json.loads, lines) if "train/tflops" in line]
    assert [line["step"] for line in found] == [10]
    assert 0 < found[0]["train/tflops"] < 1
    assert found[0]["train/mfu"] == pytest.approx(found[0]["train/tflops"] / 2)


def test_metrics_on_a_cpu_have_neither(trained: Run) -> None:
    assert "tflops" not in trained.metrics.read_text()
    assert "mfu" not in trained.metrics.read_text()


@pytest.mark.parametrize(
    ("gpu", "fp32", "bf16"),
    [
        ("NVIDIA H100 80GB HBM3", 67, 989),
        ("NVIDIA H100 PCIe", 51, 756),
        ("NVIDIA H200", 67, 989),
        ("NVIDIA A100-SXM4-80GB", 19.5, 312),
        ("NVIDIA A10", 31.2, 125),
        ("NVIDIA A10G", None, None),
        ("NVIDIA L4", 30.3, 121),
        ("NVIDIA L40S", 91.6, 362),
        ("Tesla T4", 8.1, None),
        ("Tesla V100-SXM2-16GB", 15.7, None),
        ("NVIDIA GeForce GTX 1080", None, None),
    ],
)
def test_peak_flops_are_found_by_the_name_of_the_gpu(gpu: str, fp32: float | None, bf16: float | None) -> None:
    for precision, expected in (("fp32", fp32), ("bf16", bf16)):
        peak = peak_flops(gpu, precision)
        assert peak == (None if expected is None else pytest.approx(1e12 * expected))
    assert all(peak is None or peak > single for single, peak in PEAK_TFLOPS.values())


def test_estimate_flops_of_a_model_that_depends_on_values_is_none(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from vigil_modeling.encoders.transformers_text import TransformersTextEncoder

    def forward(self: object, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return torch.zeros(int(input_ids.max()))

    monkeypatch.setattr(TransformersTextEncoder, "forward", forward)
    with caplog.at_level("INFO", "vigil.train"):
        assert estimate_flops(make_recipe()) is None
    assert "train/tflops is not logged: the model's operations cannot be counted" in caplog.text

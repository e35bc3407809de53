"""FSDP2 on two ranks, each a process, against DDP and ZeRO on the same ranks; all runs share one start of the processes."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vigil_data.errors import UserError
from vigil_training.checkpoint.reader import CheckpointReader, last_checkpoint
from vigil_training.distributed.strategies.fsdp2 import CheckpointedFullyShardedStrategy, shard_rows, shard_units
from vigil_training.recipe.recipe import Recipe

WORKER = Path(__file__).parents[2] / "support" / "ranks_worker.py"
WORLD = 2
STEPS = 8
STOP = 5
NAN = 3
"""Step whose loss is NaN on the last rank, in all runs."""
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"kind": "ddp"},
    "fsdp2": {"kind": "fsdp2"},
    "zero-3": {"kind": "deepspeed", "stage": 3},
}
CONTINUED = [("ddp-stopped", "fsdp2"), ("resumed", "ddp"), ("resumed", "zero-3"), ("resumed-to-zero-3", "fsdp2")]
"""Stopped run, and the strategy that continues a copy of it. DeepSpeed can be set up once in a process."""


def launch(fits: list[dict[str, Any]], folder: Path) -> None:
    """Run a job on two ranks."""
    for entry in fits:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            entry["port"] = probe.getsockname()[1]
    (folder / "job.json").write_text(json.dumps({"fits": fits}))
    ranks = []
    for rank in range(WORLD):
        env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "OMP_NUM_THREADS": "1"}
        env |= {"LOCAL_WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "GLOO_SOCKET_IFNAME": "lo"}
        with (folder / f"rank{rank}.log").open("w") as log:
            command = [sys.executable, str(WORKER), str(folder / "job.json")]
            ranks.append(subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT))
    try:
        for rank, process in enumerate(ranks):
            assert process.wait(timeout=300) == 0, (folder / f"rank{rank}.log").read_text()[-3000:]
    finally:
        for process in ranks:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def ran(make_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fit with a moving average under each strategy, stop and resume, and continue checkpoints of one strategy under another."""
    folder = tmp_path_factory.mktemp("fsdp2")

    def fit(name: str, strategy: str, **entry: Any) -> dict[str, Any]:
        text = {**make_recipe().model.encoders.text.config, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # type: ignore[union-attr]
        changes = {
            "model__dropout": 0.0,
            "model__encoders__text__config": text,
            # Running statistics, which no gradient keeps equal on the ranks.
            "model__encoders__image": {"weights": {"kind": "random"}, "name": "test_resnet", "pool": "average"},
            "inputs__image": {"size": 64},
            "data__batch": {"budget": 80, "pool": 4, "cost": {"image": 16}},
            "training__max_steps": STEPS,
            "training__epochs": 9,
            "training__accumulate": 2,
            "training__clip": 0.5,
            "training__ema": {"decay": 0.5, "warmup": False},
            "checkpoint": {"every_steps": 1, "keep_last": 9, "background": False},
            **entry.pop("changes", {}),
        }
        recipe = make_recipe(name=name, strategy={**STRATEGIES[strategy], "devices": WORLD}, **changes)
        return {"recipe": recipe.model_dump(mode="json"), "run": str(folder / name), "nan": NAN, **entry}

    fits = [fit("ddp", "ddp"), fit("fsdp2", "fsdp2"), fit("resumed", "fsdp2", stop=STOP), fit("ddp-stopped", "ddp", stop=STOP)]
    for origin, strategy in CONTINUED:
        entry = {"from": str(folder / origin)} | ({"stop": STOP + 1} if strategy == "zero-3" else {})
        fits.append(fit(f"{origin}-to-{strategy}", strategy, **entry))
    fits.append(fit("resumed", "fsdp2"))
    fits.append(fit("bf16", "fsdp2", changes={"training__precision": "bf16", "training__activation_checkpointing": True}))
    launch(fits, folder)
    return folder


def numbers(folder: Path, name: str, key: str = "train/loss") -> list[float]:
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return [line[key] if line[key] is not None else np.nan for line in lines if key in line]


def tensors(folder: Path, name: str) -> dict[tuple[str, str], torch.Tensor]:
    """Read weights and optimizer state of the newest checkpoint."""
    reader = CheckpointReader(last_checkpoint(folder / name / "checkpoints"))
    assert reader.manifest.step == STEPS
    kinds = ("weight", "exp_avg", "exp_avg_sq", "step", "average")
    return {(kind, tensor): reader.read_full(kind, tensor) for kind in kinds for tensor in reader.names(kind)}


def test_fsdp2_has_the_losses_norms_and_weights_of_ddp(ran: Path) -> None:
    # Rounding grows through batch norms over few values; test_strategies.py compares fifty steps of a model without them.
    for key, tolerance in (("train/loss", 1e-4), ("train/gradient_norm", 2e-2), ("validation/loss", 1e-3)):
        assert len(numbers(ran, "fsdp2", key)) == (STEPS if key.startswith("train") else len(numbers(ran, "ddp", key)))
        np.testing.assert_allclose(numbers(ran, "fsdp2", key), numbers(ran, "ddp", key), rtol=tolerance, err_msg=key)
    lines = (ran / "ddp" / "metrics.jsonl").read_text().splitlines()
    norms = {key for line in map(json.loads, lines) for key in line if key.startswith("train/gradient_norm/")}
    assert norms >= {"train/gradient_norm/text", "train/gradient_norm/fusion", "train/gradient_norm/heads"}
    for key in norms:
        np.testing.assert_allclose(numbers(ran, "fsdp2", key), numbers(ran, "ddp", key), rtol=2e-2, err_msg=key)
    expected, found = tensors(ran, "ddp"), tensors(ran, "fsdp2")
    assert expected.keys() == found.keys()
    statistics = [name for kind, name in expected if kind == "weight" and name.endswith("running_var")]
    assert statistics
    for name in statistics:
        assert torch.allclose(found["weight", name], expected["weight", name], rtol=1e-2), name
        assert not torch.equal(found["weight", name], torch.ones_like(found["weight", name]))


def test_fsdp2_shares_weights_and_optimizer_state_between_the_ranks(ran: Path) -> None:
    sizes = [file.stat().st_size for file in sorted(last_checkpoint(ran / "fsdp2" / "checkpoints").glob("rank-*.safetensors"))]
    assert len(sizes) == WORLD
    assert max(sizes) < 1.2 * min(sizes)


def test_fsdp2_resumed_is_bitwise_equal(ran: Path, assert_same_run: Callable[[Path, Path], None]) -> None:
    assert "resuming" in (ran / "resumed" / "train.log").read_text()
    assert_same_run(ran / "fsdp2", ran / "resumed")


@pytest.mark.parametrize(("origin", "strategy"), CONTINUED)
def test_checkpoints_are_loaded_bitwise_under_another_strategy(ran: Path, origin: str, strategy: str) -> None:
    name = f"{origin}-to-{strategy}"
    loaded = [json.loads((ran / f"{name}-loaded-{rank}.json").read_text()) for rank in range(WORLD)]
    assert [each["different"] for each in loaded] == [[], []]
    reader = CheckpointReader(last_checkpoint(ran / "fsdp2" / "checkpoints"))
    for kind in ("weight", "exp_avg", "exp_avg_sq", "step", "average"):
        stored = sum(reader.read_full(kind, tensor).numel() for tensor in reader.names(kind))  # type: ignore[arg-type]
        assert sum(each["elements"][kind] for each in loaded) == stored > 0
    found = numbers(ran, name)
    np.testing.assert_allclose(found[NAN:], numbers(ran, "ddp")[NAN : len(found)], rtol=1e-4)


def test_fsdp2_skips_a_step_with_nan_on_one_rank(ran: Path) -> None:
    assert [step for step, norm in enumerate(numbers(ran, "fsdp2", "train/gradient_norm"), 1) if np.isnan(norm)] == [NAN]
    assert f"step {NAN}: the gradient is not finite, so the step is skipped" in (ran / "fsdp2" / "train.log").read_text()


def test_fsdp2_trains_in_bf16_with_activation_checkpointing(ran: Path) -> None:
    np.testing.assert_allclose(numbers(ran, "bf16"), numbers(ran, "fsdp2"), rtol=0.03)
    assert numbers(ran, "bf16")[0] != numbers(ran, "fsdp2")[0]
    assert {tensor.dtype for tensor in tensors(ran, "bf16").values()} <= {torch.float32, torch.int64}


@given(st.integers(0, 200), st.integers(1, 17))
def test_shard_rows_are_those_of_torch_chunk(rows: int, world: int) -> None:
    expected = [part.tolist() for part in torch.arange(rows).chunk(world)] if rows else []
    found = [list(range(*shard_rows(rows, world, rank))) for rank in range(world)]
    assert [part for part in found if part] == expected


def test_shard_units_are_the_blocks_and_the_encoders(make_recipe: Callable[..., Recipe]) -> None:
    from vigil_modeling.safety_model import build_model

    recipe = make_recipe()
    model = build_model(recipe.model, recipe.inputs, recipe.taxonomy)
    names = {id(module): name for name, module in model.named_modules()}
    assert [names[id(unit)] for unit in shard_units(model)] == [
        "encoders.text.model.encoder.layer.0",
        "encoders.text.model.encoder.layer.1",
        "encoders.text",
        "encoders.image.backbone.model.blocks.0",
        "encoders.image",
    ]


def test_shard_units_of_a_decoder_are_its_blocks(make_recipe: Callable[..., Recipe]) -> None:
    from vigil_modeling.safety_model import build_model

    sizes = {"vocab_size": 14, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    decoder = {"kind": "decoder", "weights": {"kind": "random"}, "config": {"model_type": "llama"} | sizes, "lora": {}}
    recipe = make_recipe(model__encoders__text=decoder)
    model = build_model(recipe.model, recipe.inputs, recipe.taxonomy)
    names = {id(module): name for name, module in model.named_modules()}
    units = [names[id(unit)] for unit in shard_units(model)]
    assert units[:3] == ["encoders.text.model.layers.0", "encoders.text.model.layers.1", "encoders.text"]


def test_shard_refuses_a_weight_without_dimensions(make_recipe: Callable[..., Recipe]) -> None:
    from vigil_modeling.safety_model import build_model

    recipe = make_recipe()
    model = build_model(recipe.model, recipe.inputs, recipe.taxonomy)
    model.fusion.scale = torch.nn.Parameter(torch.ones(()))
    with pytest.raises(UserError, match=r"fusion\.scale has none; take ddp or deepspeed"):
        CheckpointedFullyShardedStrategy(1, 1).shard(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model__encoders__text__unfreeze": {"every": 1}},
            r"model\.encoders\.text\.unfreeze: strategy fsdp2 cannot hold layers",
        ),
        (
            {"model__encoders__text__frozen": True, "model__encoders__text__frozen_dtype": "bf16"},
            r"model\.encoders\.text\.frozen_dtype: strategy fsdp2 shards frozen weights already",
        ),
    ],
)
def test_recipe_refuses_under_fsdp2(make_recipe: Callable[..., Recipe], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_recipe(strategy={"kind": "fsdp2", "devices": 2}, **changes)

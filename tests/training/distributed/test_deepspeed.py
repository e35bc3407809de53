"""ZeRO-1, 2 and 3 on two ranks, each a process, against a training loop without ranks or Lightning."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vigil_data.errors import UserError
from vigil_training.distributed.strategies.deepspeed import check_nvme, merge_configs, zero_config
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.specs import DeepSpeed

WORKER = Path(__file__).parents[2] / "support" / "deepspeed_worker.py"
STAGES = (1, 2, 3)
WORLD = 2
EPOCHS = 8
CLIP = 0.5
NAN = [5, 1, 1]
"""Epoch, batch and rank whose loss is NaN; it is in the first optimizer step of its epoch."""
NAN_STEP = 5 * 3


def load_worker() -> Any:
    """Import the worker's model, batches and reader."""
    spec = importlib.util.spec_from_file_location("zero_worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worker = load_worker()


def launch(job: dict[str, Any], folder: Path) -> None:
    """Run a job on two ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "job.json").write_text(json.dumps(job))
    ranks = []
    for rank in range(WORLD):
        env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "OMP_NUM_THREADS": "1"}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
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


@dataclass
class Truth:
    """Results of the reference loop.

    Attributes:
        losses: of each optimizer step, mean over its rows.
        norms: of its gradients before clipping.
        weights: at the end, by name.
        middle: state after epoch 3 as the fragments of one rank.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    middle: list[tuple[str, str, tuple[int, ...], int, Tensor]] = field(default_factory=list)


@pytest.fixture(scope="module")
def truth() -> Truth:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) in float32, on the rows of all ranks."""
    model = worker.make_model(1)
    groups = worker.parameter_groups(model)
    parameters = [(p, group) for group in groups for p in group["params"]]
    moments = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p, _ in parameters}
    truth, step, taken = Truth(), 0, 0
    for epoch in range(EPOCHS):
        for first in range(0, worker.BATCHES, worker.ACCUMULATE):
            rows, total, is_nan = worker.rows_of(epoch, first, WORLD), 0.0, False
            for p, _ in parameters:
                p.grad = None
            for index in worker.group_of(first):
                for rank in range(WORLD):
                    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
                    batch = worker.make_batch(epoch, index, rank)
                    loss = worker.batch_loss(model(batch), batch) / rows
                    loss.backward()
                    total += float(loss.detach())
                    is_nan = is_nan or [epoch, index, rank] == NAN
                    if rank > 0:  # Running statistics are those of rank 0.
                        for name, buffer in model.named_buffers():
                            buffer.copy_(statistics[name])
            norm = float(torch.cat([p.grad.flatten() for p, _ in parameters]).norm())
            truth.losses.append(total)
            truth.norms.append(float("inf") if is_nan else norm)
            if not is_nan:
                taken += 1
                for p, group in parameters:
                    with torch.no_grad():
                        gradient = p.grad * min(1.0, CLIP / norm)
                        lr = group["lr"] * worker.rate(step)
                        mean, square = moments[p]
                        mean.mul_(0.9).add_(gradient, alpha=0.1)
                        square.mul_(0.99).add_(gradient**2, alpha=0.01)
                        p.mul_(1 - lr * group["weight_decay"])
                        p.sub_(lr * (mean / (1 - 0.9**taken)) / ((square / (1 - 0.99**taken)).sqrt() + 1e-8))
            step += 1
        if epoch == 3:
            truth.middle = full_state(model, moments, taken)
    truth.weights = {name: tensor.detach().flatten() for name, tensor in model.state_dict().items()}
    return truth


def full_state(
    model: Any, moments: dict[Any, tuple[Tensor, Tensor]], taken: int
) -> list[tuple[str, str, tuple[int, ...], int, Tensor]]:
    """Return the fragments of a single rank."""
    tensors = [("weight", name, tensor) for name, tensor in model.state_dict().items() if name != "again.weight"]
    names = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, (mean, square) in moments.items():
        step = torch.tensor(float(taken))
        tensors += [(k, names[parameter], v) for k, v in (("exp_avg", mean), ("exp_avg_sq", square), ("step", step))]
    return [(kind, name, tuple(tensor.shape), 0, tensor.flatten().clone()) for kind, name, tensor in tensors]


@pytest.fixture(scope="module")
def ran(make_recipe: Callable[..., Recipe], truth: Truth, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train each stage, and again from the middle; return the folder of results."""
    folder = tmp_path_factory.mktemp("zero")
    torch.save([truth.middle], folder / "one-rank.pt")
    fits = []
    for stage in STAGES:
        recipe = recipe_of(make_recipe, stage=stage)
        fit = {
            "recipe": recipe,
            "seed": 1,
            "first_epoch": 0,
            "epochs": EPOCHS,
            "load": None,
            "save_after": [3, 7],
            "nan_at": [NAN],
        }
        fits.append({**fit, "name": f"stage{stage}"})
        fits.append({**fit, "name": f"again{stage}", "seed": 2, "first_epoch": 4, "epochs": 4, "load": f"stage{stage}-3"})
    # State of one stage is loaded under another.
    short = {"seed": 3, "first_epoch": 4, "epochs": 1, "save_after": [], "nan_at": []}
    for name, source, stage, changes in (
        ("from1to3", "stage1-3", 3, {}),
        ("from3to2", "stage3-3", 2, {}),
        ("from-one-to2", "one-rank", 2, {}),
        ("from-one-to3", "one-rank", 3, {}),
        ("round-robin", "stage3-3", 2, {"raw": {"zero_optimization": {"round_robin_gradients": True}}}),
        ("sub-groups", "stage2-3", 3, {"raw": {"zero_optimization": {"sub_group_size": 30}}}),
        ("bf16", "stage2-3", 3, {"training__precision": "bf16"}),
        ("offload", "stage3-3", 2, {"offload_optimizer": "cpu"}),
        ("offload3", "stage2-3", 3, {"offload_optimizer": "cpu", "offload_parameters": "cpu"}),
    ):
        fits.append({**short, "name": name, "load": source, "recipe": recipe_of(make_recipe, stage=stage, **changes)})
    launch({"fits": fits}, folder)
    return folder


def recipe_of(make_recipe: Callable[..., Recipe], **changes: Any) -> dict[str, Any]:
    dotted = {key: changes.pop(key) for key in list(changes) if "__" in key}
    strategy = {"kind": "deepspeed", "devices": WORLD, **changes}
    recipe = make_recipe(strategy=strategy, training__clip=CLIP, training__accumulate=worker.ACCUMULATE, **dotted)
    values: dict[str, Any] = recipe.model_dump(mode="json")
    return values


def results(folder: Path, name: str) -> list[dict[str, Any]]:
    """Read the results of each rank."""
    return [json.loads((folder / f"{name}-rank{rank}.json").read_text()) for rank in range(WORLD)]


def pieces(folder: Path, name: str) -> Any:
    """Assemble the fragments of all ranks."""
    return worker.Pieces(torch.load(folder / f"{name}.pt"))


def steps(batches: list[float]) -> list[float]:
    """Sum the losses of batches by optimizer step."""
    count = worker.BATCHES
    epochs = [batches[i : i + count] for i in range(0, len(batches), count)]
    return [sum(e[i] for i in worker.group_of(first)) for e in epochs for first in range(0, count, worker.ACCUMULATE)]


@pytest.mark.parametrize("stage", STAGES)
def test_zero_has_the_losses_and_norms_of_one_process(ran: Path, truth: Truth, stage: int) -> None:
    ranks = results(ran, f"stage{stage}")
    losses = [sum(parts) for parts in zip(*(steps(r["losses"]) for r in ranks), strict=True)]
    assert len(losses) >= 20
    assert losses == pytest.approx(truth.losses, rel=1e-5)
    for rank in ranks:
        assert rank["norms"] == pytest.approx(truth.norms, rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_zero_fragments_assemble_to_the_weights_of_one_process(ran: Path, truth: Truth, stage: int) -> None:
    full = pieces(ran, f"stage{stage}-7")
    for name, tensor in truth.weights.items():
        if name != "again.weight":
            difference = (full.tensors["weight", name] - tensor).abs().max()
            assert difference <= 1e-5 * (1 + tensor.abs().max()), name


@pytest.mark.parametrize("stage", STAGES)
def test_zero_fragments_hold_every_element_once(ran: Path, stage: int) -> None:
    full, model = pieces(ran, f"stage{stage}-7"), worker.make_model(1)
    assert full.wrong == []
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    stored = [name for name in model.state_dict() if name != "again.weight"]
    expected = {("weight", name) for name in stored} | {(k, name) for k in ("exp_avg", "exp_avg_sq", "step") for name in trained}
    assert set(full.tensors) == expected
    for (kind, name), tensor in full.tensors.items():
        assert tensor.numel() == (1 if kind == "step" else model.state_dict()[name].numel())
    assert {float(full.tensors["step", name]) for name in trained} == {EPOCHS * 3 - 1}  # One was skipped.


@pytest.mark.parametrize("stage", STAGES)
def test_inventory_has_full_shapes_and_ties(ran: Path, stage: int) -> None:
    model = worker.make_model(1)
    for rank in results(ran, f"stage{stage}"):
        assert set(rank["inventory"]) == set(model.state_dict())
        for name, (shape, dtype, trained, buffer, tied_to) in rank["inventory"].items():
            tensor = model.state_dict(keep_vars=True)[name]
            assert tuple(shape) == tensor.shape
            assert f"torch.{dtype}" == str(tensor.dtype)
            assert trained == tensor.requires_grad
            assert buffer == ("running" in name or "tracked" in name)
            assert tied_to == ("mix.weight" if name == "again.weight" else None)


@pytest.mark.parametrize("stage", STAGES)
def test_zero_resumed_from_fragments_is_bitwise_equal(ran: Path, stage: int) -> None:
    saved, loaded = pieces(ran, f"stage{stage}-3"), pieces(ran, f"again{stage}-loaded")
    full, again = pieces(ran, f"stage{stage}-7"), pieces(ran, f"again{stage}-7")
    for before, after in ((saved, loaded), (full, again)):
        assert set(before.tensors) == set(after.tensors)
        assert [key for key in before.tensors if not torch.equal(before.tensors[key], after.tensors[key])] == []
    for one, two in zip(results(ran, f"stage{stage}"), results(ran, f"again{stage}"), strict=True):
        assert one["losses"][4 * worker.BATCHES :] == two["losses"]
        assert one["validation"][4:] == two["validation"]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("from1to3", "stage1-3"),
        ("from3to2", "stage3-3"),
        ("from-one-to2", "one-rank"),
        ("from-one-to3", "one-rank"),
        ("round-robin", "stage3-3"),
        ("sub-groups", "stage2-3"),
        ("offload", "stage3-3"),
        ("offload3", "stage2-3"),
        ("bf16", "stage2-3"),
    ],
)
def test_zero_loads_fragments_of_any_strategy_bitwise(ran: Path, truth: Truth, name: str, source: str) -> None:
    saved, loaded = pieces(ran, source), pieces(ran, f"{name}-loaded")
    assert loaded.wrong == []
    assert set(saved.tensors) == set(loaded.tensors)
    assert [key for key in saved.tensors if not torch.equal(saved.tensors[key], loaded.tensors[key])] == []
    losses = [sum(parts) for parts in zip(*(steps(r["losses"]) for r in results(ran, name)), strict=True)]
    assert losses == pytest.approx(truth.losses[12:15], rel=1e-5 if name != "bf16" else 3e-2)


@pytest.mark.parametrize("stage", STAGES)
def test_zero_skips_a_step_with_nan_on_all_ranks(ran: Path, stage: int) -> None:
    for rank in results(ran, f"stage{stage}"):
        assert [step for step, skipped in enumerate(rank["skipped"]) if skipped] == [NAN_STEP]


def test_zero_bf16_keeps_weights_and_targets_in_float32(ran: Path) -> None:
    for rank in results(ran, "bf16"):
        assert rank["dtypes"] == ["torch.bfloat16", "torch.float32", "torch.float32"]
    loaded = pieces(ran, "bf16-loaded").tensors
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("stage", STAGES)
def test_allocated_bytes_are_shared_between_ranks(ran: Path, stage: int) -> None:
    model = worker.make_model(1)
    full = 4 * sum(tensor.numel() for tensor in model.parameters())
    trained = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    for rank in results(ran, f"stage{stage}"):
        held = rank["bytes"]
        # Half of the state, plus padding on the last rank: one element per parameter or group.
        assert trained / WORLD <= held["masters"] <= trained / WORLD * 1.1
        assert held["optimizer"] == pytest.approx(2 * held["masters"], abs=16)
        assert held["weights"] < 0.8 * full if stage == 3 else held["weights"] >= full
        assert held["gradients"] < 0.75 * trained


def test_zero_config_is_updated_with_raw(make_recipe: Callable[..., Recipe]) -> None:
    spec = DeepSpeed(stage=3, devices=2, raw={"zero_optimization": {"reduce_bucket_size": 7}, "steps_per_print": 5})
    config = zero_config(spec, make_recipe(training__clip=None), 10_000_000)
    assert config["zero_optimization"]["reduce_bucket_size"] == 7
    assert config["zero_optimization"]["stage"] == 3
    assert config["steps_per_print"] == 5
    assert config["gradient_clipping"] == 0.0


def test_merge_configs_changes_neither_argument() -> None:
    base, update = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": {"x": 1}}, "e": [1]}
    assert merge_configs(base, update) == {"a": {"b": {"x": 1}, "c": 2}, "d": 3, "e": [1]}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}
    assert update == {"a": {"b": {"x": 1}}, "e": [1]}


def test_check_nvme_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spec(path: Path) -> DeepSpeed:
        return DeepSpeed(stage=3, devices=2, offload_optimizer="nvme", nvme_path=str(path))

    with pytest.raises(UserError, match=r"nvme_path.*not a writable folder"):
        check_nvme(spec(tmp_path / "absent"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"async_io.*libaio-dev, g\+\+ and ninja"):
        check_nvme(spec(tmp_path))

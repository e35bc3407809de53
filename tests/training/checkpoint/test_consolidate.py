"""Consolidation of all ranks' files into one, its report, and `vigil checkpoint`."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import torch
import typer
from safetensors import safe_open
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from vigil_data.errors import Failure, UserError
from vigil_training.checkpoint.consolidate import ConsolidationReport, consolidate
from vigil_training.checkpoint.manifest import DamagedCheckpointError
from vigil_training.checkpoint.reader import load_weights
from vigil_training.checkpoint.shards import Fragment, InventoryEntry
from vigil_training.checkpoint.writer import CheckpointMetadata, CheckpointWriter
from vigil_training.distributed.world import World
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.specs import CheckpointSpec


class Tied(nn.Module):
    """Trained, frozen and tied weights, a buffer, a scalar and a tensor without elements."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.frozen = nn.Linear(4, 4, dtype=torch.bfloat16).requires_grad_(False)
        self.out = nn.Linear(4, 10, bias=False)
        self.out.weight = self.embed.weight
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.register_buffer("seen", torch.arange(6))


@pytest.fixture
def model() -> Tied:
    torch.manual_seed(3)
    return Tied()


def inventory(model: nn.Module) -> dict[str, InventoryEntry]:
    first: dict[int, str] = {}
    entries = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in model.state_dict(keep_vars=True).items():
        stored = first.setdefault(id(tensor), name)
        facts = (tuple(tensor.shape), str(tensor.dtype)[6:], tensor.requires_grad, name not in parameters)
        entries[name] = InventoryEntry(*facts, tied_to=stored if stored != name else None)
    return entries


def shards(model: nn.Module, world: int) -> list[list[Fragment]]:
    """Split every stored tensor into equal parts, with a last part that may be shorter or empty, as in ZeRO."""
    ranks: list[list[Fragment]] = [[] for _ in range(world)]
    tensors = model.state_dict()
    for name, entry in inventory(model).items():
        if entry.tied_to is None:
            flat = tensors[name].reshape(-1)
            share = -(-flat.numel() // world)
            for rank in range(world):
                start = min(rank * share, flat.numel())
                ranks[rank].append(Fragment("weight", name, entry.shape, start, flat[start : start + share]))
    return ranks


def save(
    folder: Path, ranks: list[list[Fragment]], entries: dict[str, InventoryEntry], step: int = 12, value: float | None = 0.25
) -> Path:
    places, spec = [World(n, len(ranks), n, len(ranks)) for n in range(len(ranks))], CheckpointSpec(keep_last=9)
    writers = [CheckpointWriter(folder, place, spec, "max", token="t") for place in places]
    for writer, fragments in zip(writers, ranks, strict=True):
        writer.save(CheckpointMetadata(step, 1, False, "r" * 64, "deepspeed", "f1", value), {}, fragments, entries)
    for writer in reversed(writers):
        writer.wait(60)
    return folder / f"step-{step:08d}"


def account(report: ConsolidationReport) -> dict[str, tuple[int, tuple[int, ...], str | None]]:
    return {entry.name: (entry.elements, entry.ranks, entry.tied_to) for entry in report.entries}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


@pytest.mark.parametrize("world", [1, 3, 4])
def test_consolidate_writes_one_file_of_all_ranks(tmp_path: Path, model: Tied, world: int) -> None:
    path, to = save(tmp_path, shards(model, world), inventory(model)), tmp_path / "made" / "weights.safetensors"
    report = consolidate(path, to)
    every = tuple(range(world))
    assert account(report) == {
        "scale": (1, (0,), None),
        "empty": (0, (), None),
        "seen": (6, every[:3], None),
        "embed.weight": (40, every, None),
        "frozen.weight": (16, every, None),
        "frozen.bias": (4, every if world != 3 else (0, 1), None),
        "out.weight": (40, every, "embed.weight"),
    }
    assert report.elements == 1 + 6 + 40 + 16 + 4
    with safe_open(to, framework="pt") as file:
        metadata, names = file.metadata(), set(file.keys())
    assert (metadata["recipe"], metadata["step"], json.loads(metadata["ties"])) == (
        "r" * 64,
        "12",
        {"out.weight": "embed.weight"},
    )
    assert names == model.state_dict().keys() - {"out.weight"}
    for source in (path, to):
        other = Tied()
        load_weights(other, source)
        assert same(model.state_dict(), other.state_dict())
        assert other.out.weight is other.embed.weight
    assert [entry.name for entry in to.parent.iterdir()] == ["weights.safetensors"]


@pytest.mark.parametrize("how", ["missing", "torn"])
def test_consolidate_names_the_tensors_of_a_missing_rank(tmp_path: Path, model: Tied, how: str) -> None:
    path, to = save(tmp_path, shards(model, 4), inventory(model)), tmp_path / "weights.safetensors"
    to.write_bytes(b"older")
    rank = path / "rank-00001.safetensors"
    rank.unlink() if how == "missing" else rank.write_bytes(rank.read_bytes()[:100])
    with pytest.raises(UserError) as caught:
        consolidate(path, to)
    assert list(caught.value.lines) == [
        f"{rank}: missing or unreadable",
        "seen: elements 2 to 3 of 6 are in no rank's file",
        "embed.weight: elements 10 to 19 of 40 are in no rank's file",
        "frozen.weight: elements 4 to 7 of 16 are in no rank's file",
        "frozen.bias: elements 1 to 1 of 4 are in no rank's file",
        f"{path}: nothing is written",
    ]
    assert to.read_bytes() == b"older"


def test_consolidate_finds_a_missing_fragment_in_an_undamaged_file(tmp_path: Path, model: Tied) -> None:
    ranks = shards(model, 2)
    ranks[1] = [fragment for fragment in ranks[1] if fragment.name != "embed.weight"]
    with pytest.raises(UserError, match=r"embed.weight: elements 20 to 39 of 40 are in no rank's file"):
        consolidate(save(tmp_path, ranks, inventory(model)), tmp_path / "weights.safetensors")
    assert not (tmp_path / "weights.safetensors").exists()


def test_consolidate_names_tensors_that_the_inventory_lacks(tmp_path: Path, model: Tied) -> None:
    ranks, entries = shards(model, 2), inventory(model)
    del entries["seen"]
    entries["lost"] = InventoryEntry((2,), "float32", True, False, tied_to="nowhere")
    with pytest.raises(UserError) as caught:
        consolidate(save(tmp_path, ranks, entries), tmp_path / "weights.safetensors")
    assert "lost: tied to nowhere, which is not stored" in caught.value.lines
    assert "seen: in the files of the ranks, but not in the inventory" in caught.value.lines


@pytest.mark.parametrize("agree", [True, False])
def test_consolidate_compares_overlapping_fragments(tmp_path: Path, model: Tied, agree: bool) -> None:
    model.embed.weight.data[1, 1] = float("nan")
    ranks = shards(model, 2)
    again = model.embed.weight.detach().reshape(-1)[3:30].clone()
    if not agree:
        again[20] += 1
    ranks[1].append(Fragment("weight", "embed.weight", (10, 4), 3, again))
    path, to = save(tmp_path, ranks, inventory(model)), tmp_path / "weights.safetensors"
    if agree:
        assert account(consolidate(path, to))["embed.weight"] == (40, (0, 1), None)
        return
    with pytest.raises(UserError, match=r"embed.weight: rank 1 differs from another rank"):
        consolidate(path, to)
    assert not to.exists()


def test_consolidate_refuses_a_flipped_byte(tmp_path: Path, model: Tied) -> None:
    path = save(tmp_path, shards(model, 2), inventory(model))
    file = path / "rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=re.escape(f"{file}: sha256 differs")):
        consolidate(path, tmp_path / "weights.safetensors")


def test_consolidate_fails_if_the_file_cannot_be_written(tmp_path: Path, model: Tied) -> None:
    path = save(tmp_path, shards(model, 1), inventory(model))
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure, match="cannot be written"):
        consolidate(path, tmp_path / "file" / "weights.safetensors")
    with pytest.raises(UserError, match="a folder; name the file to write"):
        consolidate(path, tmp_path)


def test_load_weights_refuses_other_files(tmp_path: Path, model: Tied) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text").write_text("none")
    with pytest.raises(UserError, match="not written by `vigil checkpoint consolidate`"):
        load_weights(model, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_weights(model, tmp_path / "text")
    with pytest.raises(UserError, match="no such checkpoint"):
        load_weights(model, tmp_path / "absent")


@pytest.fixture
def run(tmp_path: Path, model: Tied, make_recipe: Callable[..., Recipe]) -> Path:
    """A run with three checkpoints; the second has the best value."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "resolved.yaml").write_text(make_recipe().model_dump_json(indent=1))
    for step, value in ((10, 0.5), (20, 0.75), (30, None)):
        model.scale.data.fill_(step)
        save(folder / "checkpoints", shards(model, 2), inventory(model), step, value)
    return folder


def vigil(*arguments: Any, columns: int = 200) -> Result:
    from vigil.cli import checkpoint

    app = typer.Typer()
    app.callback()(lambda: None)
    checkpoint.register(app)
    return CliRunner().invoke(app, ["checkpoint", *map(str, arguments)], env={"COLUMNS": str(columns)})


def row(result: Result, name: str) -> list[str]:
    line = next(line for line in result.output.splitlines() if re.search(rf"\b{re.escape(name)}\b", line))
    return [cell.strip() for cell in re.split("[│┃]", line.strip("│┃"))]


def test_inspect_lists_a_run(run: Path) -> None:
    result = vigil("inspect", run, "--verify")
    assert result.exit_code == 0, result.output
    assert row(result, "step-00000020")[1:5] == ["1", "0.75", "deepspeed", "2"]
    assert [row(result, f"step-000000{step}")[-2:] for step in (20, 30)] == [["best", "ok"], ["last", "ok"]]
    file = run / "checkpoints/step-00000020/rank-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert vigil("inspect", run).exit_code == 0
    result = vigil("inspect", run, "--verify")
    assert isinstance(result.exception, Failure)
    assert f"{file}: sha256 differs" in str(result.exception)
    assert row(result, "step-00000020")[-2:] == ["best", "damaged"]


def test_inspect_lists_a_run_in_eighty_columns(run: Path) -> None:
    (run / "checkpoints/step-00000020/rank-00001.safetensors").unlink()
    result = vigil("inspect", run, columns=80)
    assert row(result, "step-00000020") == ["step-00000020", "1", "0.75", "deepspeed", "2", ANY, "best", "damaged"]


def test_inspect_shows_a_checkpoint(run: Path) -> None:
    path = run / "checkpoints/step-00000020"
    result = vigil("inspect", path)
    assert result.exit_code == 0, result.output
    assert [row(result, name)[1] for name in ("step", "epoch", "strategy", "ranks", "f1")] == [
        "20",
        "1",
        "deepspeed",
        "2",
        "0.75",
    ]
    assert row(result, "weight")[1:] == ["6", "67", f"{(40 * 4 + 20 * 2 + 4 + 6 * 8) / 1e3:.1f} kB"]
    assert row(result, "rank-00001.safetensors")[-1] == "ok"
    (path / "rank-00001.safetensors").unlink()
    (path / "notes").write_text("")
    result = vigil("inspect", path)
    assert isinstance(result.exception, Failure)
    assert row(result, "rank-00001.safetensors")[-1] == "missing"
    assert row(result, "notes")[-1] == "an extra file that the manifest does not list"
    (path / "manifest.json").unlink()
    result = vigil("inspect", path)
    assert isinstance(result.exception, Failure)
    assert "manifest.json: missing" in str(result.exception)


def test_consolidate_command_takes_a_run_or_a_checkpoint(run: Path, tmp_path: Path) -> None:
    to, checkpoints = tmp_path / "weights.safetensors", run / "checkpoints"
    asked = {(run,): 20, (run, "--checkpoint", "last"): 30, (checkpoints / "step-00000010",): 10}
    asked[run, "--checkpoint", "step-00000010"] = 10
    for arguments, step in asked.items():
        result = vigil("consolidate", *arguments, "--to", to)
        assert result.exit_code == 0, result.output
        assert f"7 of 7 tensors found, step {step}" in result.output
        assert row(result, "frozen")[1:] == ["2", "20", "0-1"]
        other = Tied()
        load_weights(other, to)
        assert other.scale.item() == step
    result = vigil("consolidate", run, "--to", to, "--checkpoint", "step-00000011")
    assert isinstance(result.exception, UserError)
    assert "has best, last, step-00000010, step-00000020, step-00000030" in str(result.exception)

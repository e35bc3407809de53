"""CheckpointReader and manifest: bitwise reading from any fragments, and detection of any altered file."""

import json
import logging
import random
import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from vigil_data.errors import UserError
from vigil_training.checkpoint.manifest import MANIFEST, STATE, DamagedCheckpointError, read_manifest, verify_checkpoint
from vigil_training.checkpoint.reader import (
    CheckpointReader,
    best_checkpoint,
    find_resumable,
    last_checkpoint,
    list_checkpoints,
    load_weights,
)
from vigil_training.checkpoint.rng_state import get_rng_state, set_rng_state
from vigil_training.checkpoint.shards import Fragment, InventoryEntry
from vigil_training.checkpoint.writer import CheckpointMetadata, CheckpointWriter
from vigil_training.distributed.world import World
from vigil_training.recipe.specs import CheckpointSpec

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool)
KEEP_ALL = CheckpointSpec(keep_last=100)


def save(folder: Path, ranks: list[list[Fragment]], inventory: dict[str, InventoryEntry], step: int = 1, **about: Any) -> Path:
    """Write a checkpoint on several ranks."""
    facts: dict[str, Any] = {"epoch": 0, "finished": False, "recipe": "r" * 64, "strategy": "deepspeed"}
    writers = [
        CheckpointWriter(folder, World(n, len(ranks), n, len(ranks)), KEEP_ALL, "max", token=f"t{step}")
        for n in range(len(ranks))
    ]
    for writer, fragments in zip(writers, ranks, strict=True):
        writer.save(
            CheckpointMetadata(**{**facts, "step": step, "monitor": "f1", "value": None, **about}),
            {"step": step},
            fragments,
            inventory,
        )
    for writer in reversed(writers):
        writer.wait(60)
    return folder / f"step-{step:08d}"


def cut(name: str, tensor: Tensor, places: list[int], owners: list[int], ranks: list[list[Fragment]]) -> None:
    """Distribute pieces of a tensor over ranks."""
    flat, marks = tensor.reshape(-1), sorted({0, tensor.numel(), *(place % (tensor.numel() + 1) for place in places)})
    for n, (start, stop) in enumerate(pairwise(marks)):
        ranks[owners[n % len(owners)] % len(ranks)].append(Fragment("weight", name, tuple(tensor.shape), start, flat[start:stop]))


def small(folder: Path, step: int = 1, **about: Any) -> Path:
    """A checkpoint of two ranks, with a tied name."""
    weight, moment = torch.arange(12.0).reshape(3, 4) + step, torch.full((12,), float(step))
    ranks: list[list[Fragment]] = [[], []]
    cut("w", weight, [5], [0, 1], ranks)
    ranks[1].append(Fragment("exp_avg", "w", (3, 4), 0, moment))
    ranks[0].append(Fragment("step", "w", (), 0, torch.tensor([float(step)])))
    return save(folder, ranks, {"w": entry(weight), "v": entry(weight, tied_to="w")}, step, **about)


def read_all(path: Path) -> None:
    reader = CheckpointReader(path)
    for read in (lambda: reader.state, reader.weights, lambda: reader.rng_state(0), lambda: reader.rng_state(1)):
        read()


def entry(tensor: Tensor, **facts: Any) -> InventoryEntry:
    values = {"trained": True, "buffer": False, **facts}
    return InventoryEntry(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), **values)


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 6), max_size=3))
    dtype = draw(st.sampled_from(TYPES))
    count = int(np.prod(shape)) * dtype.itemsize if shape else dtype.itemsize
    raw = torch.frombuffer(bytearray(draw(st.binary(min_size=count, max_size=count)) or b"\0"), dtype=torch.uint8)[:count]
    return (raw % 2 if dtype is torch.bool else raw).view(dtype).reshape(shape)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), world=st.integers(1, 4))
def test_reader_is_bitwise_for_any_fragments_on_any_ranks(
    data: st.DataObject, world: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    named = data.draw(st.dictionaries(st.text("abc./", min_size=1, max_size=6), tensors(), max_size=4))
    ranks: list[list[Fragment]] = [[] for _ in range(world)]
    for name, tensor in named.items():
        places, owners = data.draw(st.lists(st.integers(0, 300), max_size=6)), data.draw(st.lists(st.integers(0, 3), min_size=1))
        cut(name, tensor, places, owners, ranks)
        # An empty fragment, and one that another rank holds too.
        start = data.draw(st.integers(0, tensor.numel()))
        stop = data.draw(st.integers(start, tensor.numel()))
        ranks[-1].append(Fragment("weight", name, tuple(tensor.shape), start, tensor.reshape(-1)[start:start]))
        ranks[0].append(Fragment("weight", name, tuple(tensor.shape), start, tensor.reshape(-1)[start:stop]))
    folder = tmp_path_factory.mktemp("trip")
    path = save(folder, ranks, {name: entry(tensor) for name, tensor in named.items()})
    verify_checkpoint(path)
    reader = CheckpointReader(path)
    weights = reader.weights()
    assert weights.keys() == named.keys()
    for name, tensor in named.items():
        assert (weights[name].shape, weights[name].dtype, bits(weights[name])) == (tensor.shape, tensor.dtype, bits(tensor))
        start = data.draw(st.integers(0, tensor.numel()))
        count = data.draw(st.integers(0, tensor.numel() - start))
        assert bits(reader.read_range("weight", name, start, count)) == bits(tensor.reshape(-1)[start : start + count])
    shutil.rmtree(folder)


def test_rank_files_are_valid_safetensors(tmp_path: Path) -> None:
    ranks = [[Fragment("weight", "odd", (3,), 0, torch.tensor([True, False, True]))]]
    ranks[0] += [
        Fragment("weight", "half", (5,), 0, torch.arange(5.0).bfloat16()),
        Fragment("exp_avg", "w", (1,), 0, torch.ones(1)),
    ]
    path = save(tmp_path, ranks, {})
    found = load_file(path / "rank-00000.safetensors")
    assert torch.equal(found["weight/odd@0"], torch.tensor([True, False, True]))
    assert torch.equal(found["weight/half@0"], torch.arange(5.0).bfloat16())
    assert torch.equal(found["random/torch"], torch.get_rng_state())
    content = (path / "rank-00000.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = {name: facts for name, facts in json.loads(content[8 : 8 + length]).items() if name != "__metadata__"}
    # In a memory map every element is aligned to its size.
    assert [n for n, facts in header.items() if (8 + length + facts["data_offsets"][0]) % found[n].element_size()] == []


def test_weights_share_tied_tensors_and_have_the_models_dtype(tmp_path: Path) -> None:
    master = torch.rand(4)
    inventory = {"a": InventoryEntry((4,), "bfloat16", True, False), "b": InventoryEntry((4,), "bfloat16", True, False, "a")}
    reader = CheckpointReader(save(tmp_path, [[Fragment("weight", "a", (4,), 0, master)]], inventory))
    weights = reader.weights()
    assert weights["a"] is weights["b"]
    assert torch.equal(weights["a"], master.bfloat16())
    assert torch.equal(reader.read_full("weight", "a"), master)


def test_reader_names_missing_elements_and_files(tmp_path: Path) -> None:
    path = small(tmp_path)
    (path / "rank-00001.safetensors").unlink()
    reader = CheckpointReader(path)
    assert torch.equal(reader.read_range("weight", "w", 0, 5), torch.arange(1.0, 6.0))
    with pytest.raises(UserError, match=r"weight of w lacks elements 5 to 9; missing or unreadable: rank-00001.safetensors"):
        reader.read_range("weight", "w", 3, 7)
    with pytest.raises(UserError, match=r"no exp_avg of w; missing or unreadable: rank-00001.safetensors"):
        reader.read_full("exp_avg", "w")
    with pytest.raises(UserError, match="no weight of x"):
        CheckpointReader(small(tmp_path, 2)).read_full("weight", "x")
    with pytest.raises(UserError, match="generators of rank 1"):
        reader.rng_state(1)
    assert reader.rng_state(2) is None


@pytest.mark.prove
def test_verify_checkpoint_finds_every_flipped_byte(tmp_path: Path, proofs: Callable[[int, int], int]) -> None:
    path = small(tmp_path)
    draw = np.random.default_rng(0)
    tried = 0
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        count = min(len(content), proofs(200, len(content)))
        for place in draw.choice(len(content), count, replace=False):
            altered = bytearray(content)
            altered[place] ^= 1 << int(draw.integers(8))
            file.write_bytes(altered)
            with pytest.raises(DamagedCheckpointError, match=re.escape(str(file))) as caught:
                verify_checkpoint(path)
            assert len(caught.value.lines) == 1
            tried += 1
        file.write_bytes(content)
    verify_checkpoint(path)
    print(f"{tried} flipped bytes, all found")


@pytest.mark.parametrize("name", [MANIFEST, STATE, "rank-00000.safetensors", "rank-00001.safetensors"])
@pytest.mark.parametrize("how", ["truncated", "empty", "longer", "missing"])
def test_verify_checkpoint_names_a_damaged_file(tmp_path: Path, name: str, how: str) -> None:
    path = small(tmp_path)
    content = (path / name).read_bytes()
    if how == "missing":
        (path / name).unlink()
    else:
        (path / name).write_bytes({"truncated": content[:-1], "empty": b"", "longer": content + b" "}[how])
    problems = {"truncated": f"{len(content) - 1} of {len(content)} bytes", "empty": f"0 of {len(content)} bytes"}
    problems |= {"longer": f"{len(content) + 1} of {len(content)} bytes", "missing": "missing"}
    expected = "unreadable" if name == MANIFEST and how != "missing" else problems[how]
    with pytest.raises(DamagedCheckpointError, match=re.escape(str(path / name)) + f".*{expected}"):
        verify_checkpoint(path)


def test_verify_checkpoint_names_an_extra_file(tmp_path: Path) -> None:
    path = small(tmp_path)
    (path / "rank-00002.safetensors").write_bytes(b"")
    with pytest.raises(DamagedCheckpointError, match=r"rank-00002.safetensors: an extra file"):
        verify_checkpoint(path)


def test_read_manifest_refuses_another_format(tmp_path: Path) -> None:
    import hashlib

    path = small(tmp_path)
    body = (path / MANIFEST).read_bytes().split(b"\n", 1)[1].replace(b'"format": 1', b'"format": 2')
    (path / MANIFEST).write_bytes(f'{{"manifest_sha256": "{hashlib.sha256(body).hexdigest()}",\n'.encode() + body)
    with pytest.raises(UserError, match="of format 2, but this version of Vigil reads format 1"):
        read_manifest(path)


def test_find_resumable_falls_back_from_damaged_checkpoints(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [small(tmp_path, step) for step in (1, 2, 3)]
    assert find_resumable(tmp_path, "r" * 64) == paths[2]
    assert not caplog.records
    (paths[2] / STATE).write_bytes(b"{}")
    (paths[1] / MANIFEST).unlink()
    with caplog.at_level(logging.WARNING, "vigil.checkpoint"):
        assert find_resumable(tmp_path, "r" * 64) == paths[0]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert str(paths[2] / STATE) in messages[0]
    assert str(paths[1] / MANIFEST) in messages[1]
    assert all("using step-00000001 instead" in line for line in messages)
    (paths[0] / "rank-00000.safetensors").unlink()
    with pytest.raises(UserError) as caught:
        find_resumable(tmp_path, "r" * 64)
    assert [path.name in line for path, line in zip(paths[::-1], caught.value.lines, strict=False)] == [True] * 3


def test_find_resumable_without_checkpoints_and_with_another_recipe(tmp_path: Path) -> None:
    assert find_resumable(tmp_path / "absent", "r") is None
    assert find_resumable(tmp_path, "r") is None
    small(tmp_path, recipe="a" * 64)
    with pytest.raises(UserError, match="belongs to another recipe"):
        find_resumable(tmp_path, "b" * 64)


def test_last_and_best_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no complete checkpoint"):
        last_checkpoint(tmp_path)
    small(tmp_path, 1)
    assert best_checkpoint(tmp_path, "max") == last_checkpoint(tmp_path)
    for step, value in ((2, 0.5), (3, 0.7), (4, 0.7), (5, 0.1), (6, None), (7, float("nan"))):
        small(tmp_path, step, value=value)
    (tmp_path / ".step-00000009.x-1.part").mkdir()
    (tmp_path / "step-00000010").mkdir()
    assert (last_checkpoint(tmp_path).name, best_checkpoint(tmp_path, "max").name, best_checkpoint(tmp_path, "min").name) == (
        "step-00000007",
        "step-00000003",
        "step-00000005",
    )
    assert [path.name[-1] for path in list_checkpoints(tmp_path)] == list("1234567")


def test_set_rng_state_continues_the_same_numbers(tmp_path: Path) -> None:
    drawn_from = np.random.mtrand._rand  # the global one, whose state is saved
    random.gauss(0, 1)
    drawn_from.standard_normal()
    torch.rand(3)
    path = save(tmp_path, [[]], {})
    state = get_rng_state()

    def draws() -> list[Any]:
        drawn = [[random.gauss(0, 1), random.random()] for _ in range(700)]
        drawn += [[drawn_from.standard_normal(), drawn_from.random_sample()] for _ in range(700)]
        return [*drawn, torch.rand(700).tolist(), torch.randn(3).tolist()]

    expected = draws()
    saved = CheckpointReader(path).rng_state(0)
    assert saved is not None
    assert saved.keys() == state.keys()
    for given_state in (saved, state):
        set_rng_state(given_state)
        assert draws() == expected


def test_load_weights_fills_a_model_and_refuses_another_models(tmp_path: Path) -> None:
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    ranks = [[Fragment("weight", n, tuple(t.shape), 0, t.detach().reshape(-1)) for n, t in model.state_dict().items()]]
    path = save(tmp_path, ranks, {n: entry(t) for n, t in model.state_dict().items()})
    load_weights(other, path)
    assert all(torch.equal(t, other.state_dict()[n]) for n, t in model.state_dict().items())
    for wrong in (nn.Linear(4, 2), nn.Linear(3, 2, bias=False), nn.Sequential(nn.Linear(3, 2))):
        with pytest.raises(UserError, match="weights of another model"):
            load_weights(wrong, path)
    file = path / "rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="sha256 differs"):
        load_weights(other, path)


def test_checkpoint_package_uses_no_pickle(repository: Path, tmp_path: Path) -> None:
    import ast
    import pickle

    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    for file in (repository / "training/vigil_training/checkpoint").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            imported = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not forbidden & {name.split(".")[0] for name in imported}, file
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in {"torch.load", "np.load", "eval", "exec", "torch.save"}, file

    trace = tmp_path / "executed"

    class Planted:
        def __reduce__(self) -> Any:
            return (Path.touch, (trace,))

    path = small(tmp_path / "run")
    for file in list(path.iterdir()):
        sound = file.read_bytes()
        file.write_bytes(pickle.dumps(Planted()))
        with pytest.raises(DamagedCheckpointError):
            verify_checkpoint(path)
        with pytest.raises(UserError):
            read_all(path)
        file.write_bytes(sound)
    assert not trace.exists()


def test_save_refuses_state_that_is_not_plain_json(tmp_path: Path) -> None:
    path = small(tmp_path)
    assert json.loads((path / STATE).read_text()) == {"step": 1} == CheckpointReader(path).state
    writer = CheckpointWriter(tmp_path, World(), KEEP_ALL, "max", token="x")
    about = CheckpointMetadata(2, 0, False, "r", "single", "f1", None)
    with pytest.raises(TypeError, match=r"state.a.0 has the key 1"):
        writer.save(about, {"a": [{1: 2}]}, [], {})
    with pytest.raises(TypeError, match="Tensor"):
        writer.save(about, {"a": torch.ones(1)}, [], {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]

"""State in addition to weights and moments, under DDP and ZeRO: bitwise resume, and the same numbers under every strategy."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from vigil_training.checkpoint.reader import CheckpointReader, list_checkpoints
from vigil_training.runs.run import Run

WORKER = Path(__file__).parents[2] / "support" / "resume_worker.py"
STRATEGIES = {"ddp": {"kind": "ddp"}, **{f"zero-{n}": {"kind": "deepspeed", "stage": n} for n in (1, 2, 3)}}
LAUNCH = "import sys; from vigil_training.distributed.launch import launch; sys.exit(launch(2, sys.argv[1:], 5.0))"
STOP = 7


@pytest.fixture(scope="module")
def runs(make_recipe, tmp_path_factory):
    """A folder with two runs of each strategy; the second was stopped and resumed."""
    folder = tmp_path_factory.mktemp("resumed")
    jobs = []
    for name, strategy in STRATEGIES.items():
        recipe = make_recipe(
            name=name,
            strategy={**strategy, "devices": 2},
            training__epochs=2,
            optimizer__lr_end=0.1,
            training__ema={"decay": 0.8, "every_steps": 2, "start_step": 1, "warmup": False},
            model__encoders__image__frozen=1,
            model__encoders__image__frozen_dtype="fp32" if name == "zero-3" else "bf16",
            model__encoders__text__unfreeze={"unit": "steps", "start": 2, "every": 3},
            checkpoint={"every_steps": 1, "keep_every": 1},
        )
        for run, stop in (("whole", None), ("resumed", STOP)):
            jobs.append({"recipe": recipe.model_dump(mode="json"), "run": str(folder / f"{name}-{run}"), "stop": stop})
    (folder / "job.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-c", LAUNCH, sys.executable, str(WORKER), str(folder / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.mark.parametrize("name", STRATEGIES)
def test_fit_recipe_resumes_averages_unfreezing_and_frozen_weights_bitwise(name, runs, assert_same_run):
    inventory = CheckpointReader(Run(runs / f"{name}-whole").checkpoint("last")).manifest.inventory
    assert any(entry.dtype == "bfloat16" for entry in inventory.values()) == (name != "zero-3")
    assert f"at step {STOP - 1}" in (runs / f"{name}-resumed" / "train.log").read_text()
    assert_same_run(runs / f"{name}-whole", runs / f"{name}-resumed")


@pytest.mark.parametrize("name", STRATEGIES)
def test_averages_are_the_recurrence_over_saved_weights(name, runs):
    readers = [CheckpointReader(path) for path in list_checkpoints(runs / f"{name}-resumed" / "checkpoints")]
    steps = [reader.manifest.step for reader in readers]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > STOP
    for tensor in readers[-1].names("average"):
        average = readers[0].read_full("weight", tensor).double()
        for reader in readers[2::2]:
            average = 0.8 * average + 0.2 * reader.read_full("weight", tensor).double()
        found = readers[-1].read_full("average", tensor)
        torch.testing.assert_close(found.double(), average, rtol=1e-5, atol=1e-7, msg=lambda m, tensor=tensor: f"{tensor}: {m}")
    assert {n for n, e in readers[-1].manifest.inventory.items() if e.trained} == set(readers[-1].names("average"))


@pytest.mark.parametrize("name", STRATEGIES)
def test_unfreezing_trains_each_layer_from_its_step_on(name, runs):
    readers = [CheckpointReader(path) for path in list_checkpoints(runs / f"{name}-resumed" / "checkpoints")]
    layers = {"embeddings": 8, "layer.0.": 5, "layer.1.": 2}
    for layer, release in layers.items():
        names = [n for n in readers[0].names("weight") if layer in n and n.startswith("encoders.text")]
        weights = [{n: reader.read_full("weight", n) for n in names} for reader in readers]
        pairs = enumerate(pairwise(weights), start=2)
        changed = [step for step, (old, new) in pairs if any(not torch.equal(old[n], new[n]) for n in names)]
        assert changed == list(range(release + 1, len(readers) + 1)), layer
        assert {float(readers[-1].read_full("step", n)) for n in names} == {len(readers) - release}

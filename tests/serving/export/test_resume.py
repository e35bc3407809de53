"""An export that is killed resumes, and ends with the bundle that an uninterrupted export writes."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from vigil_serving.export.step_cache import open_step_cache

PROGRAM = """
import sys, warnings
from dataclasses import replace
from pathlib import Path
warnings.simplefilter("ignore")
import torch
from vigil_data.specs import Inputs, Local, TextInput, ImageInput
from vigil_data.taxonomy import Head, Label, Taxonomy
from vigil_modeling.safety_model import build_model
from vigil_modeling.specs import Encoders, MeanFusion, ModelSpec, Random, TimmImage, TransformersText
from vigil_serving.export import quantization_selection
from vigil_serving.parity.cases import make_item
from vigil_serving.export.pipeline import export_model
from vigil_serving.export.publish import Provenance
from vigil_serving.export.publish import Provenance
from vigil_serving.specs import ExportSpec, Int8Spec

tokenizer, to, stop = sys.argv[1:]
quantization_selection.MAX_TIME_SHARE = 1e9
taxonomy = Taxonomy(name="tiny", heads={"h": Head(labels={"a": Label(), "b": Label()})})
words = TextInput(tokenizer=Local(path=tokenizer), max_tokens=16, overlap=2, max_passages=2)
inputs = Inputs(text=words, image=ImageInput(size=32, max_images=2))
sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
text = {"model_type": "bert", "vocab_size": 100, **sizes}
encoders = Encoders(text=TransformersText(weights=Random(), config=text), image=TimmImage(weights=Random(), name="test_resnet"))
torch.manual_seed(3)
model = build_model(ModelSpec(width=16, encoders=encoders, fusion=MeanFusion()), inputs, taxonomy).eval()
items = [replace(make_item(["text"] if n % 2 else ["image"], n, inputs), targets={"a": float(n % 3 == 0)}) for n in range(18)]
spec = ExportSpec(formats=("onnx-single", "fp16", "int8"), int8=Int8Spec(max_ap_loss=1, max_flips=1, max_difference=1, enough=2))

def report(name, seconds):
    print(f"{name}: {'kept' if seconds is None else 'made'}", flush=True)
    if name == stop:
        sys.stdin.read()  # here the test kills it

real = {"measure": items[8:12], "calibration": items[12:]}
export_model(model, inputs, taxonomy, {}, items[:8], to=Path(to), provenance=Provenance("x"), spec=spec, report=report, **real)
"""


def _start(tokenizer: Path, to: Path, stop: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tokenizer), str(to), stop], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _killed_at(step: str, tokenizer: Path, to: Path) -> list[str]:
    """Kill an export after a step, and return the lines that it printed."""
    lines = []
    with _start(tokenizer, to, step) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.strip())
            if line.startswith(f"{step}:"):
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, lines
    return lines


def _finished(tokenizer: Path, to: Path) -> list[str]:
    with _start(tokenizer, to) as process:
        output, _ = process.communicate()
    assert process.returncode == 0
    return output.splitlines()


def _metadata(bundle: Path) -> dict[str, object]:
    """Return bundle.json without what depends on the clock."""
    metadata = json.loads((bundle / "bundle.json").read_text())
    metadata.pop("created_at")
    for candidate in metadata["candidates"]:
        # Times decide which of two candidates within the tolerance is chosen.
        candidate.pop("milliseconds")
        candidate.pop("chosen")
    return metadata


def test_export_model_killed_twice_ends_with_the_same_bundle(tokenizer: Path, tmp_path: Path) -> None:
    uninterrupted, interrupted = tmp_path / "uninterrupted", tmp_path / "interrupted"
    every = _finished(tokenizer, uninterrupted)
    assert all(line.endswith("made") for line in every)
    first = _killed_at("ONNX image encoder", tokenizer, interrupted)
    assert not interrupted.exists()
    second = _killed_at("int8 text measured", tokenizer, interrupted)
    assert [line for line in second if line.endswith("kept")] == [line.replace("made", "kept") for line in first]
    third = _finished(tokenizer, interrupted)
    transient = {"cases", "ONNX fp32 on the real items"}  # held in memory alone
    kept = [line.replace("made", "kept") for line in second if line.split(":")[0] not in transient]
    assert [line for line in third if line.endswith("kept")] == kept
    assert [line.split(":")[0] for line in third] == [line.split(":")[0] for line in every]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["interrupted", "uninterrupted"]
    files = [sorted(str(f.relative_to(b)) for f in b.rglob("*") if f.is_file()) for b in (uninterrupted, interrupted)]
    assert files[0] == files[1]
    a, b = _metadata(uninterrupted), _metadata(interrupted)
    assert {k: v for k, v in a.items() if k not in ("parity", "graphs", "variants")} == {
        k: v for k, v in b.items() if k not in ("parity", "graphs", "variants")
    }
    for name in ("text", "image", "fusion", "model", "text.fp16", "image.fp16"):
        assert (uninterrupted / f"onnx/{name}.onnx").read_bytes() == (interrupted / f"onnx/{name}.onnx").read_bytes(), name
    with np.load(uninterrupted / "golden/outputs.npz") as x, np.load(interrupted / "golden/outputs.npz") as y:
        assert all(np.array_equal(x[name], y[name]) for name in x.files)


def test_open_step_cache_ignores_the_lock_of_a_killed_export(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from vigil_serving.export.step_cache import open_step_cache
with open_step_cache(Path(sys.argv[1]), {}):
    print("in", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", program, str(tmp_path / "b")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "in\n"
        child.kill()
    with open_step_cache(tmp_path / "b", {}) as cache:
        assert cache.run("step", lambda _: None).folder.is_dir()

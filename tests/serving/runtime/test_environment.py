"""Requirements of serving: the runtime in its own environment without torch, the server with its own packages only."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
MAX_ENVIRONMENT_BYTES = 400_000_000

PROGRAM = """
import json, sys
from importlib.util import find_spec
from pathlib import Path
import numpy as np
from vigil_serving.parity import read_golden, verify_bundle
from vigil_serving.runtime import Scorer

bundle = Path(sys.argv[1])
scorer = Scorer(bundle, threads=1)
golden = read_golden(bundle)
found = [scorer.raw_probabilities(case.items) for case in golden.cases]
worst = max(float(np.abs(a - b).max()) for a, b in zip(found, golden.expected("fp32"), strict=True))
decided = scorer.score([{"id": "1", "text": ["call now"]}])
others = ("torch", "pydantic", "pyarrow", "lance", "ruamel", "onnx", "scipy", "typer")
absent = [name for name in others if find_spec(name) is None]
backends = [parity.backend for parity in verify_bundle(bundle).parity]
print(json.dumps({"worst": worst, "items": sum(len(case.items) for case in golden.cases), "absent": absent, "backends": backends,
                  "labels": len(decided[0].probabilities)}))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
    wanted = ["--constraint", str(REPOSITORY / "constraints.txt"), f"{REPOSITORY}[runtime]"]
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
    done = subprocess.run(pip, check=False, capture_output=True, text=True, timeout=300)
    if done.returncode and os.environ.get("VIGIL_REQUIRE_ALL") != "1":
        pytest.skip(f"pip cannot install vigil[runtime] here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return folder


def test_runtime_reproduces_golden_cases_without_torch(environment: Path, exported, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(environment / "bin" / "python"), "-c", PROGRAM, str(exported.bundle)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["absent"] == ["torch", "pydantic", "pyarrow", "lance", "ruamel", "onnx", "scipy", "typer"]
    assert found["worst"] < 1e-5
    assert found["items"] > 20
    assert found["labels"] == 3
    assert "TorchScript" not in found["backends"]
    assert "runtime, from bytes" in found["backends"]


def test_runtime_environment_is_small(environment: Path) -> None:
    size = sum(path.lstat().st_size for path in environment.rglob("*") if path.is_file())
    assert size < MAX_ENVIRONMENT_BYTES, f"{size / 1e6:.0f} MB"


def test_command_names_the_extra_of_a_missing_package(environment: Path) -> None:
    done = subprocess.run([str(environment / "bin" / "vigil"), "score"], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: the package typer is not installed; install it with `pip install 'vigil[command]'`\n"


SERVER = """
import sys
training = ("torch", "lightning", "deepspeed", "wandb", "transformers", "timm", "onnx", "scipy", "numba", "safetensors", "jinja2")
for name in (*training, "pyarrow", "lance", "ray", "fastapi", "tritonclient"):
    sys.modules[name] = None  # importing it fails
import vigil.cli.serve, vigil_serving.server.main
from vigil_serving.server import ServerSettings, Service, create_app
assert create_app(Service(ServerSettings(sys.argv[1]))).routes
"""


def test_server_needs_nothing_of_training(exported) -> None:
    command = [sys.executable, "-c", SERVER, str(exported.bundle)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")

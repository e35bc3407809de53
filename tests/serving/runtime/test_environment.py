"""What serving asks for: the runtime in an environment of its own, without torch, and a word where a package is absent."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
MOST = 400_000_000

PROGRAM = """
import json, sys
from importlib.util import find_spec
from pathlib import Path
import numpy as np
from vigil_serving.parity import golden
from vigil_serving.runtime.scorer import Scorer
from vigil_serving.parity.verify import verify_bundle

bundle = Path(sys.argv[1])
scorer = Scorer(bundle, threads=1)
cases, expected = golden.read(bundle)
found = [scorer.raw_probabilities(case.items) for case in cases]
worst = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
decided = scorer.score([{"id": "1", "text": ["call now"]}])
asked = ("torch", "pydantic", "pyarrow", "lance", "ruamel", "onnx", "scipy", "typer")
absent = [name for name in asked if find_spec(name) is None]
forms = [parity.form for parity in verify(bundle).parity]
print(json.dumps({"worst": worst, "items": sum(len(case.items) for case in cases), "absent": absent, "forms": forms,
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


def test_golden_cases_come_out_the_same_without_torch(environment: Path, exported, tmp_path: Path) -> None:
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
    assert "TorchScript" not in found["forms"]
    assert "runtime, from bytes" in found["forms"]


def test_the_environment_is_small(environment: Path) -> None:
    size = sum(path.lstat().st_size for path in environment.rglob("*") if path.is_file())
    assert size < MOST, f"{size / 1e6:.0f} MB"


def test_the_command_says_what_it_lacks(environment: Path) -> None:
    done = subprocess.run([str(environment / "bin" / "vigil"), "score"], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: the package typer is not installed; install it with `pip install 'vigil[command]'`\n"

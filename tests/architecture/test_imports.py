"""The import rules of the house hold, and each of them is caught when it is broken."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOTS = ("app", "data", "evaluation", "modeling", "monitoring", "serving", "slurm", "training")


def lint(repository: Path, roots: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter with the repository's contracts on the packages below ``roots``."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(roots / root) for root in ROOTS)}
    command = [str(Path(sys.executable).with_name("lint-imports")), "--config", str(repository / "pyproject.toml"), "--no-cache"]
    return subprocess.run(command, cwd=roots, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def copied_packages(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages in which violations can be planted."""
    copy = tmp_path_factory.mktemp("packages")
    for root in ROOTS:
        shutil.copytree(repository / root, copy / root, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def test_contracts_hold(copied_packages: Path, repository: Path) -> None:
    result = lint(repository, copied_packages)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("file", "planted", "contract"),
    [
        ("data/vigil_data/items.py", "import vigil_modeling.specs", "Imports run one way"),
        ("modeling/vigil_modeling/specs.py", "import vigil_evaluation.specs", "Imports run one way"),
        ("evaluation/vigil_evaluation/specs.py", "import vigil_serving.bundle.load", "Imports run one way"),
        ("serving/vigil_serving/bundle/load.py", "import vigil_monitoring", "Imports run one way"),
        ("monitoring/vigil_monitoring/__init__.py", "import vigil_slurm.job_environment", "Imports run one way"),
        ("slurm/vigil_slurm/job_environment.py", "import vigil_training.recipe.specs", "Imports run one way"),
        ("evaluation/vigil_evaluation/specs.py", "import vigil_modeling.specs", "Evaluation works on arrays"),
        ("evaluation/vigil_evaluation/metrics/__init__.py", "import torch", "Evaluation works on arrays"),
        ("modeling/vigil_modeling/losses/cells.py", "import lightning", "Lightning, DeepSpeed and Weights & Biases"),
        ("slurm/vigil_slurm/job_environment.py", "import wandb", "Lightning, DeepSpeed and Weights & Biases"),
        ("serving/vigil_serving/runtime/scorer.py", "import torch", "without torch"),
        ("monitoring/vigil_monitoring/__init__.py", "import torch", "without torch"),
        ("data/vigil_data/decode/image.py", "import torchvision", "without torch"),
        ("training/vigil_training/recipe/specs.py", "import vigil_data.loading.batch", "without torch"),
    ],
)
def test_a_planted_violation_is_caught(copied_packages: Path, repository: Path, file: str, planted: str, contract: str) -> None:
    module = copied_packages / file
    sound = module.read_text(encoding="utf-8")
    module.write_text(sound + f"\n{planted}  # planted\n", encoding="utf-8")
    try:
        result = lint(repository, copied_packages)
    finally:
        module.write_text(sound, encoding="utf-8")
    broken = [line for line in result.stdout.splitlines() if "BROKEN" in line]
    assert result.returncode == 1, result.stdout
    assert any(contract in line for line in broken), broken

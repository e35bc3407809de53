"""The house stays as it was planned: no drawers without a name, no file that outgrew its idea."""

import subprocess
from pathlib import Path

import pytest

ROOTS = ("app", "data", "evaluation", "modeling", "serving", "slurm", "training")


def modules(repository: Path) -> list[Path]:
    return [file for root in ROOTS for file in (repository / root).rglob("*.py")]


def test_no_file_outgrows_its_idea(repository: Path) -> None:
    lengths = {
        str(file.relative_to(repository)): len(file.read_text(encoding="utf-8").splitlines()) for file in modules(repository)
    }
    assert lengths
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_no_module_is_a_drawer(repository: Path) -> None:
    drawers = {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert [file for file in modules(repository) if file.name in drawers] == []


@pytest.mark.parametrize("folder", [*ROOTS, "recipes", "benchmarks", "docs", "tests"])
def test_a_folder_says_what_lives_there(repository: Path, folder: str) -> None:
    lines = (repository / folder / "README.md").read_text(encoding="utf-8").strip().splitlines()
    assert 3 <= len(lines) <= 30


def test_nothing_that_a_run_makes_is_tracked(repository: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=True).stdout.splitlines()
    heavy = {".pt", ".onnx", ".ckpt", ".safetensors", ".parquet", ".lance", ".wav", ".flac", ".ogg", ".mp3", ".jpg", ".png"}
    assert [name for name in listed if Path(name).suffix in heavy or name.startswith(("runs/", "datasets/", "bundles/"))] == []

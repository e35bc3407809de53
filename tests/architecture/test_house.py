"""The source tree keeps its shape: small folders, no import cycles, libraries' internals in adapters, plain words."""

import re
import subprocess
from pathlib import Path

import house
import pytest

MAX_MODULES_PER_FOLDER = 14
ADAPTER = re.compile(r"/\w+_internals\.py:")
"""Modules that may touch private attributes of libraries; each says why."""

PROSE = ("*.md", "recipes/*.yaml", "recipes/*/*.yaml", "*.jinja", "*.html", "Makefile", ".ci/run", "pyproject.toml")
QUOTED = {"tests/architecture/test_house.py", "tests/support/house.py"}
"""Files that quote the words to avoid."""


def test_folders_hold_at_most_fourteen_modules(repository: Path) -> None:
    counts = house.modules_per_folder(repository)
    assert len(counts) > 30
    assert {folder: count for folder, count in counts.items() if count > MAX_MODULES_PER_FOLDER} == {}


def test_no_two_modules_import_each_other(repository: Path) -> None:
    assert house.cycles(repository) == []


def test_cycles_finds_a_planted_lazy_import(tmp_path: Path) -> None:
    package = tmp_path / "data" / "vigil_data"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from vigil_data import b\n")
    (package / "b.py").write_text("def f():\n    from vigil_data.a import g\n")
    (package / "c.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vigil_data.d import x\n")
    (package / "d.py").write_text("import vigil_data.c\n")
    assert house.cycles(tmp_path) == [("vigil_data.a", "vigil_data.b")]


def test_private_attributes_of_libraries_are_touched_only_in_adapters(repository: Path) -> None:
    places = house.library_internals(repository)
    assert [place for place in places if ADAPTER.search(place)], "the adapters exist"
    assert [place for place in places if not ADAPTER.search(place)] == []


def test_library_internals_finds_a_planted_private_attribute(tmp_path: Path) -> None:
    package = tmp_path / "data" / "vigil_data"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "class A:\n    def f(self, other):\n        self._own = other._own\n        return other._theirs\n"
    )
    assert house.library_internals(tmp_path) == ["data/vigil_data/__init__.py:4: _theirs"]


def test_no_module_has_a_name_without_a_topic(repository: Path) -> None:
    drawers = {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert [name for name, file in house.modules(repository).items() if file.name in drawers] == []


def test_prose_has_none_of_the_words_to_avoid(repository: Path) -> None:
    code = [
        *house.modules(repository).values(),
        *sorted((repository / "tests").rglob("*.py")),
        *(repository / "benchmarks").glob("*.py"),
    ]
    listed = subprocess.run(
        ["git", "ls-files", *PROSE], cwd=repository, capture_output=True, text=True, check=True
    ).stdout.split()
    found = [
        place
        for file in (*code, *(repository / name for name in listed))
        if file.is_file()
        for place in house.avoided_words(file)
    ]
    found = [place.removeprefix(f"{repository}/") for place in found]
    assert [place for place in found if place.split(":")[0] not in QUOTED] == []


def test_avoided_words_finds_docstrings_comments_and_messages(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text('"""Train anew."""\n\nmend = 1  # likewise\nprint(f"a dearer item")\n')
    assert [place.rsplit(" ", 1)[1] for place in house.avoided_words(file)] == ["anew", "likewise", "dearer"]


@pytest.mark.parametrize(
    "folder",
    [
        "app",
        "data",
        "evaluation",
        "modeling",
        "monitoring",
        "serving",
        "slurm",
        "training",
        "deploy",
        "recipes",
        "benchmarks",
        "docs",
        "tests",
    ],
)
def test_folder_has_a_short_readme(repository: Path, folder: str) -> None:
    lines = (repository / folder / "README.md").read_text(encoding="utf-8").strip().splitlines()
    assert 3 <= len(lines) <= 60


def test_nothing_that_a_run_makes_is_tracked(repository: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=True).stdout.splitlines()
    heavy = {".pt", ".onnx", ".ckpt", ".safetensors", ".parquet", ".lance", ".wav", ".flac", ".ogg", ".mp3", ".jpg", ".png"}
    made = [name for name in listed if Path(name).suffix in heavy or name.startswith(("runs/", "datasets/", "bundles/"))]
    assert [name for name in made if not name.startswith("docs/images/")] == []

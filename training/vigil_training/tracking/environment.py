"""``environment.json`` and ``code.diff``: what a run depends on besides its recipe."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from vigil_data.dataset.dataset import Dataset
from vigil_data.loading.location import is_remote, location
from vigil_slurm.job_environment import read_job_environment
from vigil_training.recipe.recipe import Recipe

_LIBRARIES = (
    "vigil",
    "torch",
    "lightning",
    "transformers",
    "timm",
    "emoji",
    "torchaudio",
    "numpy",
    "pylance",
    "soundfile",
    "soxr",
    "pillow",
    "tokenizers",
)

MAX_DIFF_CHARACTERS = 1 << 20
"""Longest difference of the code that a run keeps."""


def describe_environment(recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    """Return command, versions, machine, git state, Slurm job, and the dataset with its version and digest."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "machine": {
            "host": platform.node(),
            "system": platform.platform(),
            "cpus": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "dataset": {"path": _resolved(recipe.data.dataset), "version": dataset.version, "digest": dataset.digest},
        "git": git_state(Path.cwd()),
        "slurm": read_job_environment(),
    }


def _resolved(dataset: str) -> str:
    return location(dataset) if is_remote(dataset) else str(Path(dataset).resolve())


def git_state(folder: Path) -> dict[str, Any]:
    """Return the commit of the checkout around ``folder`` and whether files differ from it; empty without a checkout."""
    commit, status = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain")
    return {} if commit is None else {"commit": commit.strip(), "dirty": bool(status)}


def git_diff(folder: Path) -> str:
    """Return how the checkout around ``folder`` differs from its commit, and names of untracked files; empty if it does not.

    At most :data:`MAX_DIFF_CHARACTERS`, after which the rest is left out.
    """
    changed = _git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff") or ""
    status = _git(folder, "status", "--porcelain") or ""
    untracked = "".join(f"untracked: {line[3:]}\n" for line in status.splitlines() if line.startswith("??"))
    text = changed + untracked
    return text if len(text) <= MAX_DIFF_CHARACTERS else f"{text[:MAX_DIFF_CHARACTERS]}\n[the rest is left out]\n"


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what a git command prints; ``None`` if it fails, as it does outside a checkout."""
    try:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None

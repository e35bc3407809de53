"""What all tests share: where real data lie, and the rule that nothing is skipped in CI."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

pytest_plugins = ["tiny_bundle", "tiny_run"]

REPOSITORY = Path(__file__).resolve().parent.parent

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def skip_or_fail(reason: str) -> NoReturn:
    """Skip for ``reason``, or fail where ``VIGIL_REQUIRE_ALL=1`` says that everything must run."""
    if os.environ.get("VIGIL_REQUIRE_ALL") == "1":
        pytest.fail(f"VIGIL_REQUIRE_ALL=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def proofs() -> Callable[[int, int], int]:
    """How many times a long proof is tried: ``proofs(share, whole)``, the share in the tests, the whole under `make prove`."""
    return lambda share, whole: whole if os.environ.get("VIGIL_PROVE") == "1" else share


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's top folder."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The team's folder of real data, which is not part of the repository."""
    folder = Path(os.environ.get("VIGIL_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        skip_or_fail(f"the folder of real data {folder} is absent")
    return folder


@pytest.fixture(scope="session")
def chromium() -> str:
    """The command of a Chromium in which pages are opened without a window."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    return skip_or_fail("no Chromium is installed")

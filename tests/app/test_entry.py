"""The console script names the extra that installs a missing package."""

import importlib.metadata
import subprocess
import sys

import pytest

from vigil.entry import EXTRAS, install_hint, requirement_name, requirements


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("PIL", "runtime"),
        ("lance", "score"),
        ("starlette", "serve"),
        ("torch", "train"),
        ("ray", "ray"),
        ("cryptography", "sign"),
    ],
)
def test_install_hint_names_the_smallest_extra(module: str, extra: str) -> None:
    assert install_hint(module) == f"install it with `pip install 'vigil[{extra}]'`"


def test_install_hint_of_a_package_that_vigil_does_not_use() -> None:
    assert install_hint("nonsense_of_no_kind") == "install nonsense-of-no-kind"


def test_extras_are_those_of_the_metadata() -> None:
    declared = set(importlib.metadata.metadata("vigil").get_all("Provides-Extra")) - {"dev", "docs"}
    assert declared == set(EXTRAS)
    assert {extra for extra, _ in requirements()} == {"", "dev", "docs", *EXTRAS}


def test_requirement_name_is_normalized() -> None:
    assert requirement_name("Ruamel.YAML[x]>=0.18") == "ruamel-yaml"


def test_main_names_a_missing_package_and_exits_with_2() -> None:
    code = "import sys; sys.modules['typer'] = None; from vigil.entry import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: the package typer is not installed; install it with `pip install 'vigil[command]'`\n"


def test_python_m_vigil_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "vigil", "--version"], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == f"vigil {importlib.metadata.version('vigil')}\n"

"""The `vigil` command as a subprocess."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Vigil = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def vigil(repository: Path) -> Vigil:
    """Run the ``vigil`` command and check its exit status."""

    def run(*arguments: str | Path, status: int = 0, cwd: Path = repository) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("vigil")), *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900, check=False)
        assert result.returncode == status, f"{command}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
        assert "Traceback" not in result.stderr
        return result

    return run

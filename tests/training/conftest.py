"""Fixture: start ranks as the launcher does."""

import subprocess
import sys
import textwrap

import pytest

LAUNCH = """
import sys
from vigil_training.distributed.launch import launch
sys.exit(launch(int(sys.argv[1]), sys.argv[3:], float(sys.argv[2])))
"""


@pytest.fixture
def launched():
    """Start ranks that run a script; kill those that remain at the end."""
    started = []

    def launched(script, processes=2, grace=5.0, **arguments):
        command = [sys.executable, "-c", LAUNCH, str(processes), str(grace), sys.executable, "-c", textwrap.dedent(script)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **arguments))
        return started[-1]

    yield launched
    for process in started:
        process.kill()
        process.communicate()

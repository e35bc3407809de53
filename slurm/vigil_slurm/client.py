"""Slurm's commands, called; what goes wrong with them in one line."""

import re
import subprocess
from collections.abc import Sequence

from vigil_data.errors import Failure

_SECONDS = 60
"""Slurm's own patience with a controller that does not answer is shorter (MessageTimeout, slurm.conf(5))."""


def call(command: str, *arguments: str) -> str:
    """Run one of Slurm's commands.

    Returns:
        What it printed.

    Raises:
        Failure: if the command is not there, fails, or does not end; the first line of what it complained of is told.
    """
    try:
        done = subprocess.run(  # noqa: S603 (no shell)
            [command, *arguments], capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
    except FileNotFoundError:
        raise Failure(f"{command}: no such command; is this a machine of the cluster, and Slurm on its PATH?") from None
    except OSError as error:
        raise Failure(f"{command}: cannot be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise Failure(f"{command}: no answer within {_SECONDS} s; is the controller up? (scontrol ping)") from None
    if done.returncode:
        raise Failure(f"{command}: {_complaint(done.stderr.splitlines()) or f'ended with status {done.returncode}'}")
    return done.stdout


def _complaint(lines: Sequence[str]) -> str:
    """The first line that says something, without ``sbatch: error:`` before it."""
    first = next((line.strip() for line in lines if line.strip()), "")
    return re.sub(r"^(sbatch|squeue|scontrol|scancel): ((error|fatal): )?", "", first)

"""Real Slurm clusters for the tests; each worker has its own folder, ports and namespaces, so that they can run in parallel."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

# Commands that fail, with the reason on stderr, if a container may not make such namespaces.
NAMESPACES = ["unshare", "--mount", "--uts", "true"]
BRIDGE = [
    "unshare",
    "--net",
    "sh",
    "-c",
    "ip link add name vigil0 type bridge && ip link add name vigil1 type veth peer name vigil2",
]
SCRIPT = Path(__file__).resolve().parents[2] / "slurm" / "dev-cluster"


@dataclass(frozen=True)
class Cluster:
    """A cluster that slurm/dev-cluster started in ``folder``; ``env`` is the environment for Slurm's commands."""

    folder: Path
    env: dict[str, str]

    def command(self, *words: str, timeout: float = 60) -> str:
        """Run a command that must succeed, and return its stdout."""
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def manage(self, *words: str) -> str:
        """Run slurm/dev-cluster on this cluster."""
        return self.command(sys.executable, str(SCRIPT), *words, "--dir", str(self.folder), timeout=120)

    def submit(self, script: str, *options: str) -> str:
        """Submit a batch script and return the job's number; its output goes to ``folder``/jobs/NUMBER.out."""
        (self.folder / "jobs").mkdir(exist_ok=True)
        path = self.folder / "jobs" / f"{time.monotonic_ns()}.sh"
        path.write_text(script)
        return self.command("sbatch", "--parsable", f"--output={path.parent}/%j.out", *options, str(path)).strip()

    def job(self, number: str) -> dict[str, str]:
        """Return the fields of `scontrol show job`."""
        words = self.command("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number: str, states: set[str], timeout: float, restarts: int = 0) -> dict[str, str]:
        """Wait until a job is in one of ``states`` after at least ``restarts`` restarts, and return its fields."""
        end = time.monotonic() + timeout
        while True:
            fields = self.job(number)
            if fields["JobState"] in states and int(fields["Restarts"]) >= restarts:
                return fields
            assert time.monotonic() < end, f"job {number} is {fields['JobState']} after {timeout} s, not {states}: {fields}"
            time.sleep(0.5)

    def kill(self, node: str) -> None:
        """Kill all processes of a node at once."""
        self.manage("kill", node)

    def cut(self, node: str) -> None:
        """Disconnect a node."""
        self.manage("cut", node)

    def heal(self, node: str) -> None:
        """Restore a node."""
        self.manage("heal", node)


def _skip_or_fail(reason: str) -> NoReturn:
    if os.environ.get("VIGIL_REQUIRE_ALL") == "1":
        pytest.fail(f"VIGIL_REQUIRE_ALL=1, but {reason}")
    pytest.skip(reason)


def _bring_up(needs: list[str], *options: str) -> Iterator[Cluster]:
    # slurmctld, slurmd and ip are in sbin, which may be missing from PATH.
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "munged", "ip", "nsenter") if not shutil.which(name, path=path)]
    if missing:
        _skip_or_fail(f"not installed: {' '.join(missing)} (apt-get install slurmctld slurmd slurm-client munge iproute2)")
    if os.geteuid():
        _skip_or_fail("a Slurm cluster on one machine needs root")
    tried = subprocess.run(needs, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=30, check=False)
    if tried.returncode:
        _skip_or_fail(f"namespaces are impossible here: {tried.stderr.strip()}")
    # Not pytest's tmp_path: socket paths in it would be too long for the kernel.
    folder = Path(tempfile.mkdtemp(prefix="vigil-slurm-"))
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
    cluster = Cluster(folder, env | {"PATH": path, "SLURM_CONF": str(folder / "slurm.conf")})
    try:
        cluster.manage("up", "--nodes", "3", *options)
        yield cluster
    finally:
        try:
            cluster.manage("down")
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three nodes n1 to n3 at 127.0.0.1; a test that kills one heals it."""
    yield from _bring_up(NAMESPACES)


@pytest.fixture(scope="session")
def cut_cluster() -> Iterator[Cluster]:
    """Three nodes n1 to n3, each in a network namespace with its own address."""
    yield from _bring_up(BRIDGE, "--namespaces")

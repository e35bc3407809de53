"""slurm/dev-cluster against what the kernel and Slurm themselves say."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slurm

# Writes a line whenever it starts, and stays until it is killed or has been restarted.
RESTARTED = """#!/bin/bash
echo "attempt ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST" >> "$1"
[ "${SLURM_RESTART_COUNT:-0}" -ge 1 ] || srun sleep 300
"""


def submit_restarted(cluster, log):
    """A job on two nodes: its number, and the node that its batch script does not run on."""
    number = cluster.submit(RESTARTED.replace("$1", str(log)), "--nodes=2", "--ntasks-per-node=1")
    cluster.wait(number, {"RUNNING"}, 60)
    nodes = cluster.call("scontrol", "show", "hostnames", cluster.job(number)["NodeList"]).split()
    return number, nodes[1]


def attempts(cluster, log):
    """The nodes of each attempt that the log tells of."""
    lists = [line.split(" on ")[1] for line in log.read_text().splitlines()]
    return [cluster.call("scontrol", "show", "hostnames", nodes).split() for nodes in lists]


def processes(folder):
    """The processes whose command line or environment names the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in text and b"pytest" not in text:
            found.append(process.name)
    return found


def test_up_twice_is_one_cluster_and_down_leaves_nothing(repository, cluster, tmp_path_factory):
    before = cluster.manage("status")
    assert "SLURM_CONF=" in cluster.manage("up", "--nodes", "3")
    assert cluster.manage("status") == before
    assert cluster.manage("env") == f"export SLURM_CONF={cluster.folder}/slurm.conf\n"

    folder = tmp_path_factory.mktemp("c")
    command = [sys.executable, str(repository / "slurm" / "dev-cluster")]
    for words in (["up", "--nodes", "1", "--namespaces"], ["down"]):
        subprocess.run([*command, *words, "--dir", str(folder)], check=True, timeout=120, capture_output=True)
    assert not folder.exists()
    assert not processes(folder)
    assert str(folder) not in Path("/proc/mounts").read_text()


def test_two_nodes_answer(cluster):
    names = cluster.call("srun", "--nodes=2", "bash", "-c", "echo $SLURMD_NODENAME").split()
    assert len(set(names)) == 2
    assert set(names) <= {"n1", "n2", "n3"}


def test_job_of_a_killed_node_is_requeued(cluster, tmp_path):
    number, lost = submit_restarted(cluster, tmp_path / "log")
    cluster.kill(lost)
    assert "0 processes" in next(line for line in cluster.manage("status").splitlines() if line.startswith(lost))
    cluster.wait(number, {"COMPLETED"}, 90, restarts=1)
    first, second = attempts(cluster, tmp_path / "log")
    assert lost in first
    assert lost not in second
    cluster.heal(lost)
    assert cluster.call("srun", f"--nodelist={lost}", "bash", "-c", "echo $SLURMD_NODENAME") == f"{lost}\n"


def test_job_of_a_node_that_is_cut_off_is_requeued(cut_cluster, tmp_path):
    address = "scontrol show node \"$SLURMD_NODENAME\" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p'"
    addresses = cut_cluster.call("srun", "--nodes=3", "bash", "-c", address).split()
    assert len(set(addresses)) == 3
    number, lost = submit_restarted(cut_cluster, tmp_path / "log")
    cut_cluster.cut(lost)
    cut_cluster.wait(number, {"COMPLETED"}, 90, restarts=1)
    first, second = attempts(cut_cluster, tmp_path / "log")
    assert lost in first
    assert lost not in second
    cut_cluster.heal(lost)
    assert cut_cluster.call("srun", f"--nodelist={lost}", "bash", "-c", "echo $SLURMD_NODENAME") == f"{lost}\n"

"""slurm/dev-cluster, checked with the kernel and Slurm."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slurm

SCRIPT = Path(__file__).resolve().parents[2] / "slurm" / "dev-cluster"

# Writes a line whenever it starts, and stays until it is killed or has been restarted.
RESTARTED = """#!/bin/bash
echo "attempt ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST" >> "$1"
[ "${SLURM_RESTART_COUNT:-0}" -ge 1 ] || srun sleep 300
"""


def submit_restarted(cluster, log):
    """Submit a job on two nodes; return its number, and the node without its batch script."""
    number = cluster.submit(RESTARTED.replace("$1", str(log)), "--nodes=2", "--ntasks-per-node=1")
    cluster.wait(number, {"RUNNING"}, 60)
    nodes = cluster.command("scontrol", "show", "hostnames", cluster.job(number)["NodeList"]).split()
    return number, nodes[1]


def attempts(cluster, log):
    """Return the nodes of each attempt in the log."""
    lists = [line.split(" on ")[1] for line in log.read_text().splitlines()]
    return [cluster.command("scontrol", "show", "hostnames", nodes).split() for nodes in lists]


def command_lines(folder):
    """Return the command lines of processes whose command line or environment contains the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
            environment = (process / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in line + environment:
            found.append(line.replace(b"\0", b" ").decode().strip())
    return found


def test_up_twice_starts_one_cluster(cluster):
    def daemons():
        return {file.name: file.read_text() for file in (cluster.folder / "run").glob("*.pid")}

    before = daemons()
    assert len(before) == 4
    assert cluster.manage("up", "--nodes", "3") == cluster.manage("env") == f"export SLURM_CONF={cluster.folder}/slurm.conf\n"
    assert daemons() == before


def test_commands_refuse_another_shape_and_an_unknown_node(cluster):
    for words, hint in ((("up", "--nodes", "2"), "down --dir"), (("kill", "n9"), "n1 n2 n3"), (("cut", "n1"), "--namespaces")):
        command = [sys.executable, str(SCRIPT), *words, "--dir", str(cluster.folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2
        assert hint in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.usefixtures("cut_cluster")
def test_up_in_parallel_shares_nothing_and_down_removes_everything(tmp_path_factory):
    folders = [tmp_path_factory.mktemp("c") for _ in range(3)]

    def all_at_once(*words):
        started = [
            subprocess.Popen([sys.executable, str(SCRIPT), *words, "--dir", str(folder)], stdout=subprocess.DEVNULL)
            for folder in folders
        ]
        return [process.wait(timeout=150) for process in started]

    try:
        assert all_at_once("up", "--nodes", "1", "--namespaces") == [0, 0, 0]
        states = [json.loads((folder / "cluster.json").read_text()) for folder in folders]
        assert len({state["subnet"] for state in states}) == len({state["port"] for state in states}) == 3
        # A task that left its parent and its session must be found too.
        for folder in folders:
            submit = ["sbatch", "--output=/dev/null", "--wrap", "setsid --fork sleep 600; sleep 600"]
            subprocess.run(
                submit, env=os.environ | {"SLURM_CONF": f"{folder}/slurm.conf"}, check=True, capture_output=True, timeout=60
            )
        end = time.monotonic() + 60
        while not all(command_lines(folder).count("sleep 600") == 2 for folder in folders):
            assert time.monotonic() < end
            time.sleep(0.2)
    finally:
        assert all_at_once("down") == [0, 0, 0]
    assert not [folder for folder in folders if folder.exists()]
    assert not [line for folder in folders for line in command_lines(folder)]
    kernel = Path("/proc/mounts").read_text() + "".join(
        subprocess.check_output(["ip", what], text=True, timeout=30) for what in ("link", "netns")
    )
    assert not [word for word in (*map(str, folders), *(state["mark"] for state in states)) if word in kernel]


def test_srun_runs_on_two_nodes(cluster):
    names = cluster.command("srun", "--nodes=2", "bash", "-c", "echo $SLURMD_NODENAME").split()
    assert len(set(names)) == 2
    assert set(names) <= {"n1", "n2", "n3"}


def test_kill_requeues_the_job_of_the_node(cluster, tmp_path):
    number, lost = submit_restarted(cluster, tmp_path / "log")
    cluster.kill(lost)
    assert "0 processes" in next(line for line in cluster.manage("status").splitlines() if line.startswith(lost))
    cluster.wait(number, {"COMPLETED"}, 90, restarts=1)
    first, second = attempts(cluster, tmp_path / "log")
    assert lost in first
    assert lost not in second
    cluster.heal(lost)
    assert cluster.command("srun", f"--nodelist={lost}", "bash", "-c", "echo $SLURMD_NODENAME") == f"{lost}\n"


def test_cut_requeues_the_job_of_the_node(cut_cluster, tmp_path):
    address = "scontrol show node \"$SLURMD_NODENAME\" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p'"
    addresses = cut_cluster.command("srun", "--nodes=3", "bash", "-c", address).split()
    assert len(set(addresses)) == 3
    number, lost = submit_restarted(cut_cluster, tmp_path / "log")
    cut_cluster.cut(lost)
    cut_cluster.wait(number, {"COMPLETED"}, 90, restarts=1)
    first, second = attempts(cut_cluster, tmp_path / "log")
    assert lost in first
    assert lost not in second
    cut_cluster.heal(lost)
    assert cut_cluster.command("srun", f"--nodelist={lost}", "bash", "-c", "echo $SLURMD_NODENAME") == f"{lost}\n"

"""Checkpoints are complete or absent, at whatever moment the writing processes are killed."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vigil_training.checkpoint.manifest import read_manifest, verify_checkpoint
from vigil_training.checkpoint.reader import CheckpointReader, list_checkpoints

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from vigil_training.checkpoint.shards import InventoryEntry, Fragment
from vigil_training.checkpoint.reader import CheckpointReader, find_resumable
from vigil_training.checkpoint.writer import CheckpointMetadata, CheckpointWriter, recover_checkpoints
from vigil_training.distributed.world import World
from vigil_training.recipe.specs import CheckpointSpec

def train(folder, rank, attempt, pace):
    # Two ranks in lockstep: rank 0 signals the other when a checkpoint is complete.
    size, elements = 2, 400_000
    path = find_resumable(folder, "r" * 64)
    step = CheckpointReader(path).state["step"] if path else 0
    writer = CheckpointWriter(folder, World(rank, size, rank, size), CheckpointSpec(keep_last=2), "max", token=f"a{attempt}")
    while True:
        step += 1
        values = torch.full((elements // size,), float(step))
        about = CheckpointMetadata(step, 0, False, "r" * 64, "ddp", "f1", None)
        fragments = [Fragment("weight", "w", (elements,), rank * elements // size, values)]
        writer.save(about, {"step": step}, fragments, {"w": InventoryEntry((elements,), "float32", True, False)})
        writer.wait()
        if rank == 0:
            os.write(1, f"{step}\\n".encode())
            os.write(pace[1], b"x")
        else:
            os.read(pace[0], 1)

folder = Path(sys.argv[1])
for line in sys.stdin:
    # Torch is imported once for all attempts; each attempt has its own process group.
    pace = os.pipe()
    recover_checkpoints(folder)
    leader = os.fork()
    if leader == 0:
        os.setpgid(0, 0)
        rank = 0 if os.fork() else 1
        train(folder, rank, line.strip(), pace)
    os.write(1, f"pid {leader}\\n".encode())
    os.close(pace[0]), os.close(pace[1])
    os.waitpid(leader, 0)
    os.write(1, b"dead\\n")
"""


@pytest.mark.prove
def test_killing_two_writing_ranks_leaves_complete_checkpoints(tmp_path: Path, proofs: Callable[[int, int], int]) -> None:
    kills, draw = proofs(5, 60), random.Random(0)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", KILLED, str(tmp_path)]
    saved = partial = 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for attempt in range(kills):
            process.stdin.write(f"{attempt}\n")
            process.stdin.flush()
            # The first save may be reported before the process.
            lines = [process.stdout.readline(), process.stdout.readline()]
            leader = int(next(line for line in lines if line.startswith("pid")).split()[1])
            time.sleep(draw.uniform(0, 0.1))
            os.killpg(leader, signal.SIGKILL)
            while (line := process.stdout.readline()) != "dead\n":
                lines.append(line)
            reported = [int(line) for line in lines if line.strip().isdigit()]
            partial += any(path.name.endswith(".part") for path in tmp_path.iterdir())
            for path in list_checkpoints(tmp_path):
                step = verify_checkpoint(path).step
                reader = CheckpointReader(path)
                assert reader.state == {"step": step}
                assert torch.equal(reader.read_full("weight", "w"), torch.full((400_000,), float(step)))
            newest = read_manifest(list_checkpoints(tmp_path)[-1]).step
            assert newest >= max([saved, *reported])
            saved = newest
        process.stdin.close()
        assert process.wait(60) == 0
    print(f"{kills} kills, {partial} of them in the middle of a checkpoint, none incomplete, {saved} steps saved")


EVERY_OPERATION = """
import os, shutil, sys
from pathlib import Path
import torch
from vigil_training.checkpoint.shards import InventoryEntry, Fragment
from vigil_training.checkpoint.manifest import verify_checkpoint
from vigil_training.checkpoint.reader import CheckpointReader, list_checkpoints
from vigil_training.checkpoint.writer import CheckpointMetadata, CheckpointWriter, recover_checkpoints
from vigil_training.distributed.world import World
from vigil_training.recipe.specs import CheckpointSpec

folder, spec = Path(sys.argv[1]) / "checkpoints", CheckpointSpec(keep_last=1, background=False)
inventory = {"w": InventoryEntry((8,), "float32", True, False)}
left = [None]

def count(event, arguments):
    # The process ends before its next operation on the file system, as by kill -9: nothing is flushed or cleaned up.
    if left[0] is not None and event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.scandir"):
        left[0] -= 1
        if left[0] < 0:
            os._exit(9)

sys.addaudithook(count)

def save(writer, step, content):
    fragment = Fragment("weight", "w", (8,), 0, torch.full((8,), float(content)))
    writer.save(CheckpointMetadata(step, 0, False, "r" * 64, "single", "f1", None), {"content": content}, [fragment], inventory)

def look():
    for path in list_checkpoints(folder):
        verify_checkpoint(path)
        reader = CheckpointReader(path)
        assert torch.equal(reader.read_full("weight", "w"), torch.full((8,), float(reader.state["content"])))
    return [(path.name, CheckpointReader(path).state["content"]) for path in list_checkpoints(folder)]

crashes, seen = 0, set()
while True:
    shutil.rmtree(folder, ignore_errors=True)
    save(CheckpointWriter(folder, World(), spec, "max", token="before"), 1, 1)
    child = os.fork()
    if child == 0:
        writer = CheckpointWriter(folder, World(), spec, "max", token="now")
        left[0] = crashes
        save(writer, 1, 2)
        save(writer, 2, 3)
        left[0] = None
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9), status
    look()
    recover_checkpoints(folder)
    there = look()
    assert there, crashes
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    seen.add(there[-1])
    if status == 0:
        break
    crashes += 1
assert seen == {("step-00000001", 1), ("step-00000001", 2), ("step-00000002", 3)}, seen
print(crashes)
"""


def test_ending_before_any_file_operation_loses_no_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", EVERY_OPERATION, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 30

"""Before training: do all ranks have the same versions and data, room on the disk, one clock, and a network that works?"""

import importlib.metadata
import logging
import platform
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vigil_data.dataset.dataset import Dataset
from vigil_data.errors import Failure
from vigil_training.distributed.rank_group import raised_on_all_ranks
from vigil_training.distributed.session import Session

log = logging.getLogger("vigil.ranks")

LIBRARIES = ("vigil", "torch", "lightning", "deepspeed", "transformers", "timm", "torchaudio", "numpy", "pylance", "tokenizers")
SKEW_WARNED, SKEW_REFUSED = 1.0, 60.0
"""Seconds between the clocks of two ranks."""

REDUCED = 4_000_000
"""Elements of the trial all-reduce: 16 MB."""


def preflight(session: Session, dataset: Path, version: int, run_dir: Path, needed_bytes: int) -> dict[str, Any]:
    """Compare the ranks, and try what they will do together. With one rank only disk and dataset are looked at.

    Args:
        session: the ranks.
        dataset: folder of the dataset.
        version: of the dataset.
        run_dir: where checkpoints go.
        needed_bytes: that must be free there.

    Returns:
        Facts for the record: hosts, skew of the clocks in seconds, and the all-reduce's seconds and bytes a second.

    Raises:
        Failure: ranks differ, or the disk is too full; each line names the machine and its ranks.
    """
    ranks = session.ranks
    ranks.barrier()
    everyone = ranks.gather_objects({"clock": time.time(), **_facts(session, dataset, version, run_dir)})
    problems = _compare(everyone, needed_bytes)
    if problems:
        raise raised_on_all_ranks(Failure("\n".join(problems)))
    clocks = [facts["clock"] for facts in everyone]
    skew = max(clocks) - min(clocks)
    if skew > SKEW_WARNED and session.world.is_main:
        log.warning("the clocks of the ranks differ by %.1f s", skew)
    found: dict[str, Any] = {"hosts": [facts["host"] for facts in everyone], "clock_skew": skew}
    if session.world.size > 1:
        found |= _try_reduce(session)
        log.info(
            "preflight: %d ranks agree, machines: %d; all-reduce of %.0f MB: %.2f GB/s",
            session.world.size,
            len(set(found["hosts"])),
            REDUCED * 4 / 1e6,
            found["all_reduce_bytes_per_second"] / 1e9,
        )
    return found


def _facts(session: Session, dataset: Path, version: int, run_dir: Path) -> dict[str, Any]:
    try:
        opened = Dataset(dataset, version)
        data = f"version {opened.version} with {len(opened.rows())} rows"
    except Exception as error:  # A rank that raises alone leaves the others waiting.
        data = f"cannot be read: {error}"
    try:
        free, folder = shutil.disk_usage(run_dir).free, "there"
    except OSError as error:
        free, folder = 0, f"cannot be read: {error.strerror}"
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    device = torch.cuda.get_device_name(session.device) if session.device.type == "cuda" else platform.machine()
    return {
        "rank": session.world.rank,
        "host": platform.node(),
        "same": {**versions, f"dataset {dataset}": data, f"run folder {run_dir}": folder, "device": device},
        "free": free,
    }


def _compare(everyone: Sequence[Mapping[str, Any]], needed_bytes: int) -> list[str]:
    """A line for each thing in which a machine differs from most, or that no rank has."""
    problems = []
    for name in everyone[0]["same"]:
        values = Counter(facts["same"].get(name) for facts in everyone)
        good = {value: count for value, count in values.items() if not str(value).startswith("cannot be read")}
        usual = max(good, key=good.__getitem__, default=None)
        for value in values:
            if value == usual:
                continue
            others = f", the others {usual}" if usual is not None else ""
            problems.append(f"{_where(everyone, lambda f, n=name, v=value: f['same'].get(n) == v)}: {name}: {value}{others}")
    if any(facts["free"] < needed_bytes for facts in everyone):
        where = _where(everyone, lambda facts: facts["free"] < needed_bytes)
        free = min(facts["free"] for facts in everyone)
        problems.append(
            f"{where}: {free / 2**30:.1f} GiB are free for checkpoints that take {needed_bytes / 2**30:.1f} GiB; "
            "free some space or name another folder with --run"
        )
    middle = statistics.median_low(facts["clock"] for facts in everyone)
    if any(abs(facts["clock"] - middle) > SKEW_REFUSED for facts in everyone):
        where = _where(everyone, lambda facts: abs(facts["clock"] - middle) > SKEW_REFUSED)
        problems.append(f"{where}: the clock differs by over {SKEW_REFUSED:.0f} s from the others'; set the clocks by NTP")
    return problems


def _where(everyone: Sequence[Mapping[str, Any]], concerns: Any) -> str:
    """The machines, with their ranks, that something concerns."""
    ranks: dict[str, list[int]] = {}
    for facts in everyone:
        if concerns(facts):
            ranks.setdefault(facts["host"], []).append(facts["rank"])
    return ", ".join(f"node {host} (rank {', '.join(map(str, of))})" for host, of in ranks.items())


def _try_reduce(session: Session) -> dict[str, float]:
    """An all-reduce over the training's own process group: that its sum is right, and how fast it is.

    Raises:
        Failure: the sum is wrong.
    """
    size = session.world.size
    seconds = []
    for _ in range(3):
        values = torch.full((REDUCED,), float(session.world.rank + 1), device=session.device)
        session.ranks.barrier()
        start = time.perf_counter()
        dist.all_reduce(values)
        if session.device.type == "cuda":
            torch.cuda.synchronize(session.device)
        seconds.append(time.perf_counter() - start)
        right = bool((values == size * (size + 1) / 2).all())
        if wrong := [rank for rank, good in enumerate(session.ranks.gather([float(right)])[:, 0]) if not good]:
            raise raised_on_all_ranks(Failure(f"an all-reduce gives a wrong sum on rank {', '.join(map(str, wrong))}"))
    # "Bus bandwidth" of nccl-tests, doc/PERFORMANCE.md: what a link carries, whatever the number of ranks.
    return {"all_reduce_seconds": min(seconds), "all_reduce_bytes_per_second": 2 * (size - 1) / size * REDUCED * 4 / min(seconds)}

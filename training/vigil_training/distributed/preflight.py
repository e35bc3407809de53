"""Checks before training: same versions and data on all ranks, free disk space, clocks, and a working all-reduce."""

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
CLOCK_SKEW_WARNING_SECONDS = 1.0
MAX_CLOCK_SKEW_SECONDS = 60.0

ALL_REDUCE_ELEMENTS = 4_000_000
"""Float32 elements of the trial all-reduce: 16 MB."""


def preflight(
    session: Session, dataset: Path, version: int, run_dir: Path, needed_bytes: int, *, cache_bytes: int = 0
) -> dict[str, Any]:
    """Compare the ranks and try an all-reduce; with one rank only the disk and the dataset are checked.

    Args:
        session: session of this rank.
        dataset: folder of the dataset.
        version: version of the dataset.
        run_dir: run folder, to which checkpoints are written.
        needed_bytes: free space that it needs.
        cache_bytes: free space that the token cache needs next to the dataset.

    Returns:
        ``hosts``, ``clock_skew`` in seconds, ``all_reduce_seconds`` and ``all_reduce_bytes_per_second``, for
        ``environment.json``.

    Raises:
        Failure: if ranks differ or the disk is too full; each line names the machine and its ranks.
    """
    ranks = session.ranks
    ranks.barrier()
    facts = ranks.gather_objects({"clock": time.time(), **_facts(session, dataset, version, run_dir)})
    problems = find_problems(facts, needed_bytes, cache_bytes)
    if problems:
        raise raised_on_all_ranks(Failure("\n".join(problems)))
    clocks = [rank["clock"] for rank in facts]
    skew = max(clocks) - min(clocks)
    if skew > CLOCK_SKEW_WARNING_SECONDS and session.world.is_main:
        log.warning("the clocks of the ranks differ by %.1f s", skew)
    found: dict[str, Any] = {"hosts": [rank["host"] for rank in facts], "clock_skew": skew}
    if session.world.size > 1:
        found |= _try_all_reduce(session)
        log.info(
            "preflight: %d ranks agree, machines: %d; all-reduce of %.0f MB: %.2f GB/s",
            session.world.size,
            len(set(found["hosts"])),
            ALL_REDUCE_ELEMENTS * 4 / 1e6,
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
    try:
        cache_free = shutil.disk_usage(dataset).free
    except OSError:  # the line about the dataset names the problem
        cache_free = 0
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
        "cache_free": cache_free,
    }


def find_problems(facts: Sequence[Mapping[str, Any]], needed_bytes: int, cache_bytes: int = 0) -> list[str]:
    """Return a line for each value in which a machine differs from most, or that no rank could read."""
    problems = []
    for name in facts[0]["same"]:
        values = Counter(rank["same"].get(name) for rank in facts)
        good = {value: count for value, count in values.items() if not str(value).startswith("cannot be read")}
        usual = max(good, key=good.__getitem__, default=None)
        for value in values:
            if value == usual:
                continue
            others = f", the others {usual}" if usual is not None else ""
            problems.append(f"{_where(facts, lambda rank, n=name, v=value: rank['same'].get(n) == v)}: {name}: {value}{others}")
    if any(rank["free"] < needed_bytes for rank in facts):
        where = _where(facts, lambda rank: rank["free"] < needed_bytes)
        free = min(rank["free"] for rank in facts)
        problems.append(
            f"{where}: {free / 2**30:.1f} GiB are free for checkpoints that take {needed_bytes / 2**30:.1f} GiB; "
            "free some space or name another folder with --run"
        )
    if cache_bytes and (short := [rank for rank in facts if rank["cache_free"] < cache_bytes]):
        where = _where(facts, lambda rank: rank in short)
        free = min(rank["cache_free"] for rank in short)
        problems.append(
            f"{where}: {free / 2**30:.1f} GiB are free next to the dataset for a token cache of about {cache_bytes / 2**30:.1f} "
            "GiB; free some space, or set training.token_cache to false"
        )
    median = statistics.median_low(rank["clock"] for rank in facts)
    if any(abs(rank["clock"] - median) > MAX_CLOCK_SKEW_SECONDS for rank in facts):
        where = _where(facts, lambda rank: abs(rank["clock"] - median) > MAX_CLOCK_SKEW_SECONDS)
        problems.append(
            f"{where}: the clock differs by over {MAX_CLOCK_SKEW_SECONDS:.0f} s from the others'; set the clocks by NTP"
        )
    return problems


def _where(facts: Sequence[Mapping[str, Any]], affected: Any) -> str:
    """Name the affected machines with their ranks."""
    ranks: dict[str, list[int]] = {}
    for rank in facts:
        if affected(rank):
            ranks.setdefault(rank["host"], []).append(rank["rank"])
    return ", ".join(f"node {host} (rank {', '.join(map(str, on_host))})" for host, on_host in ranks.items())


def _try_all_reduce(session: Session) -> dict[str, float]:
    """Check and time an all-reduce over the default process group, which training uses.

    Raises:
        Failure: if the sum is wrong.
    """
    size = session.world.size
    seconds = []
    for _ in range(3):
        values = torch.full((ALL_REDUCE_ELEMENTS,), float(session.world.rank + 1), device=session.device)
        session.ranks.barrier()
        start = time.perf_counter()
        dist.all_reduce(values)
        if session.device.type == "cuda":
            torch.cuda.synchronize(session.device)
        seconds.append(time.perf_counter() - start)
        correct = bool((values == size * (size + 1) / 2).all())
        if wrong := [rank for rank, good in enumerate(session.ranks.gather([float(correct)])[:, 0]) if not good]:
            raise raised_on_all_ranks(Failure(f"an all-reduce gives a wrong sum on rank {', '.join(map(str, wrong))}"))
    # "Bus bandwidth" of nccl-tests (doc/PERFORMANCE.md): the load of a link, independent of the number of ranks.
    bandwidth = 2 * (size - 1) / size * ALL_REDUCE_ELEMENTS * 4 / min(seconds)
    return {"all_reduce_seconds": min(seconds), "all_reduce_bytes_per_second": bandwidth}

"""How busy the machine of a rank is, and how much memory its process takes."""

import math
import os
from pathlib import Path
from typing import NamedTuple

import torch

GIGABYTE = 1e9


class MachineUse(NamedTuple):
    """Use of a machine by a rank; a value that is not known is NaN.

    Attributes:
        cpu: share of the cores that were busy since the last reading, in [0, 1].
        memory_gb: resident memory of the process.
        gpu: share of the last moments in which the GPU was busy, in [0, 1].
        gpu_memory_gb: most memory that the process's tensors have taken.
    """

    cpu: float
    memory_gb: float
    gpu: float
    gpu_memory_gb: float


class MachineMeter:
    """Reads the use of a machine.

    Args:
        device: device of the rank.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._has_nvml = device.type == "cuda"
        self._busy, self._total = _cpu_times()

    def read(self) -> MachineUse:
        """Read the use of the machine; the share of its cores is since the last call."""
        busy, total = _cpu_times()
        passed = total - self._total
        cpu = (busy - self._busy) / passed if passed > 0 else math.nan
        self._busy, self._total = busy, total
        peak = torch.cuda.max_memory_allocated(self._device) / GIGABYTE if self._device.type == "cuda" else math.nan
        return MachineUse(cpu, _resident_bytes() / GIGABYTE, self._gpu(), peak)

    def _gpu(self) -> float:
        if not self._has_nvml:
            return math.nan
        try:
            return torch.cuda.utilization(self._device) / 100
        except (ModuleNotFoundError, RuntimeError):  # NVML's bindings, or its driver, are not installed.
            self._has_nvml = False
            return math.nan


def _cpu_times() -> tuple[float, float]:
    """Return busy and all ticks of the machine's cores since it was started; NaN where the kernel is not Linux."""
    try:
        line = Path("/proc/stat").read_text().partition("\n")[0]
    except OSError:
        return math.nan, math.nan
    user, nice, system, idle, waiting, *rest = (float(ticks) for ticks in line.split()[1:9])
    busy = user + nice + system + sum(rest)
    return busy, busy + idle + waiting


def _resident_bytes() -> float:
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return math.nan
    return float(pages) * os.sysconf("SC_PAGE_SIZE")

"""Checks of this machine and installation for `vigil doctor`; they need no network, and no torch unless asked for."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from vigil.entry import EXTRAS, normalized, requirements
from vigil_data.errors import UserError

Status = Literal["ok", "warn", "missing", "broken"]
"""``missing`` is optional and absent; ``broken`` is needed by every command, and absent or too old."""

NEEDED = ("runtime", "command")
"""Extras that every command needs."""

ENABLES = {
    "runtime": "vigil.Scorer: decisions from Python",
    "command": "vigil verify",
    "score": "vigil score, vigil data",
    "serve": "vigil serve",
    "sign": "signed bundles",
    "card": "vigil data card",
    "dedup": "vigil data duplicates, match, hashes, split, leaks",
    "pdq": "PDQ hashes of images",
    "ocr": "vigil data enrich ocr",
    "language": "vigil data enrich language",
    "transcribe": "vigil data enrich transcript with faster-whisper",
    "ray": "--ray: vigil score, vigil data import, check, duplicates, enrich",
    "triton": "vigil triton",
    "monitor": "vigil monitor, vigil loop",
    "train": "recipes, training, evaluation, policies, export",
    "deepspeed": "the strategy deepspeed (ZeRO-1 to 3)",
    "lora": "low-rank adapters (model.encoders.*.lora)",
    "qlora": "frozen weights in 4 bits (model.encoders.*.frozen_dtype: nf4), on a GPU",
    "gguf": "language models of .gguf files (model.encoders.text.kind: decoder)",
    "sweep": "vigil sweep",
    "tensorboard": "tracking.also: [tensorboard]",
    "mlflow": "tracking.also: [mlflow]",
    "openlineage": "vigil lineage --openlineage",
    "demo": "vigil demo: pretrained weights and speech",
}

SLURM_COMMANDS = ("sbatch", "squeue", "scancel", "srun")
MIN_FREE_DISK_BYTES = 10 * 2**30
MIN_AVAILABLE_MEMORY_BYTES = 4 * 2**30
TIMEOUT_SECONDS = 10
CHECKOUT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, slots=True)
class Check:
    """Result of one check.

    Attributes:
        name: what was checked.
        status: see :data:`Status`.
        detail: what was found.
        fix: what to do about it; empty where there is nothing to do.
    """

    name: str
    status: Status
    detail: str
    fix: str = ""


def run_checks(*, import_torch: bool = False) -> Iterator[Check]:
    """Run all checks, in the order in which they are shown.

    Args:
        import_torch: ask torch which devices it sees, which takes seconds.
    """
    yield check_python()
    installed = installed_versions()
    yield from check_extras(requirements(), installed)
    if (constraints := CHECKOUT / "constraints.txt").is_file():
        yield check_constraints(constraints.read_text(encoding="utf-8"), installed)
    yield check_cpu(_read("/proc/cpuinfo"), usable_cores())
    yield check_memory(_read("/proc/meminfo"), _read("/sys/fs/cgroup/memory.max"))
    yield check_gpu()
    if import_torch:
        yield check_torch()
    if "deepspeed" in installed:
        yield check_compiler()
    yield check_slurm()
    yield check_wandb(installed, os.environ)
    yield from check_disk()


def check_python() -> Check:
    """Compare Python with the metadata's ``Requires-Python``."""
    required = metadata("vigil")["Requires-Python"]
    found = f"{platform.python_version()} ({sys.executable})"
    if SpecifierSet(required).contains(platform.python_version(), prereleases=True):
        return Check("Python", "ok", found)
    return Check("Python", "broken", f"{found}, and Vigil needs {required}", f"install Python {required}")


def installed_versions() -> dict[str, str]:
    """Return the version of each distribution that Vigil's metadata names and that is installed."""
    found = {}
    for _, requirement in requirements():
        name = normalized(Requirement(requirement).name)
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def check_extras(required: list[tuple[str, str]], installed: Mapping[str, str]) -> Iterator[Check]:
    """Check for each extra that its distributions are installed and not older than their lower bounds.

    Args:
        required: extra and requirement, as :func:`vigil.entry.requirements` returns them.
        installed: distribution to version.
    """
    for extra in EXTRAS:
        wanted = [Requirement(line) for name, line in required if name in ("", extra)]
        absent = [r.name for r in wanted if normalized(r.name) not in installed]
        outside = [
            f"{r.name} {installed[normalized(r.name)]} (needs {r.specifier})"
            for r in wanted
            if normalized(r.name) in installed and not r.specifier.contains(installed[normalized(r.name)], prereleases=True)
        ]
        name, needed = f"vigil[{extra}]", extra in NEEDED
        if absent:
            some = ", ".join(absent[:4]) + (f" and {len(absent) - 4} more" if len(absent) > 4 else "")
            detail = f"{ENABLES[extra]}; not installed: {some}"
            yield Check(name, "broken" if needed else "missing", detail, f"pip install '{name}'")
        elif outside:
            detail = f"{ENABLES[extra]}; out of range: {', '.join(outside)}"
            yield Check(name, "broken" if needed else "warn", detail, f"pip install --upgrade '{name}'")
        else:
            yield Check(name, "ok", ENABLES[extra])


def check_constraints(text: str, installed: Mapping[str, str]) -> Check:
    """Compare what is installed with the versions that constraints.txt pins, with which the tests passed."""
    pinned = {normalized(name): pin for name, _, pin in (line.partition("==") for line in text.split()) if pin}
    different = [
        f"{name} {found} (pinned {pinned[name]})" for name, found in installed.items() if pinned.get(name, found) != found
    ]
    if not different:
        return Check("constraints.txt", "ok", "every library that Vigil imports is at its tested version")
    some = ", ".join(different[:4]) + (f" and {len(different) - 4} more" if len(different) > 4 else "")
    return Check("constraints.txt", "warn", f"not the tested versions: {some}", "make setup")


def usable_cores() -> float:
    """Return the CPU cores of this process: its affinity, or less where a control group limits it."""
    cores = float(len(os.sched_getaffinity(0)))
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").strip().partition(" ")
    return min(cores, int(quota) / int(period)) if quota.isdigit() and period.isdigit() else cores


def check_cpu(cpuinfo: str, cores: float) -> Check:
    """Report the processor's vector instructions, on which the speed of training and serving on the CPU depends."""
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    kinds = {
        "AVX2": {"avx2"},
        "AVX-512": {"avx512f"},
        "VNNI": {"avx512_vnni", "avx_vnni", "asimddp", "i8mm"},
        "bf16": {"avx512_bf16", "amx_bf16", "bf16"},
    }
    has = [f"{'' if flags & names else 'no '}{kind}" for kind, names in kinds.items()]
    detail = f"{model[1] if model else platform.machine()}, {cores:g} core{'s' * (cores != 1)}, {', '.join(has)}"
    if platform.machine() == "x86_64" and flags and "avx2" not in flags:
        return Check("CPU", "warn", detail, "use a processor with AVX2; torch and ONNX Runtime are much slower without it")
    return Check("CPU", "ok", detail)


def check_memory(meminfo: str, limit: str) -> Check:
    """Report the memory that this process can have; a control group's limit counts."""
    numbers = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", meminfo, re.MULTILINE)}
    if "MemTotal" not in numbers:
        return Check("memory", "warn", "unknown: /proc/meminfo cannot be read")
    total, available = numbers["MemTotal"], numbers.get("MemAvailable", numbers["MemTotal"])
    if limit.strip().isdigit():
        total, available = min(total, int(limit)), min(available, int(limit))
    detail = f"{available / 2**30:.1f} of {total / 2**30:.1f} GiB available"
    if available < MIN_AVAILABLE_MEMORY_BYTES:
        return Check("memory", "warn", detail, "close other programs, or lower data.batch.budget if training runs out of memory")
    return Check("memory", "ok", detail)


def check_gpu() -> Check:
    """List the GPUs that nvidia-smi sees."""
    lines, problem = _run("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    if lines:
        return Check("GPU", "ok", "; ".join(lines))
    detail = f"none ({problem or 'nvidia-smi lists no device'}); training and serving use the CPU"
    return Check("GPU", "missing", detail, "install NVIDIA's driver if this machine has a GPU")


def check_torch() -> Check:
    """Ask torch which devices it can use."""
    try:
        import torch
    except ImportError as error:
        return Check("torch", "missing", str(error), "pip install 'vigil[train]'")
    if torch.cuda.is_available():
        names = "; ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Check("torch", "ok", f"{torch.__version__}, CUDA {torch.version.cuda}: {names}")
    return Check("torch", "ok", f"{torch.__version__}, CPU only, {torch.get_num_threads()} threads")


def check_compiler() -> Check:
    """Check for the compiler with which DeepSpeed builds operators, and torch.compile kernels."""
    absent = [name for name in ("g++", "ninja") if shutil.which(name) is None]
    if absent:
        return Check(
            "compiler",
            "warn",
            f"not on the PATH: {', '.join(absent)}",
            "install them; DeepSpeed builds operators with both, and training.compile needs g++",
        )
    return Check("compiler", "ok", "g++ and ninja, for DeepSpeed's operators and training.compile")


def check_slurm() -> Check:
    """Check that Slurm's commands are installed and that its controller answers."""
    absent = [name for name in SLURM_COMMANDS if shutil.which(name) is None]
    if len(absent) == len(SLURM_COMMANDS):
        return Check(
            "Slurm", "missing", "no Slurm commands; vigil submit needs a login node", "docs/dev-cluster.md starts a local cluster"
        )
    if absent:
        return Check("Slurm", "warn", f"not on the PATH: {', '.join(absent)}", "install Slurm's client, or load its module")
    lines, problem = _run("sinfo", "--noheader", "--format=%P %D nodes %t")
    if problem:
        return Check("Slurm", "warn", f"the controller does not answer: {problem}", "check that slurmctld runs: scontrol ping")
    return Check("Slurm", "ok", "; ".join(" ".join(line.split()) for line in lines) or "no partitions")


def check_wandb(installed: Mapping[str, str], environment: Mapping[str, str]) -> Check:
    """Check for an API key of Weights & Biases; it is not sent anywhere."""
    if "wandb" not in installed:
        return Check("W&B", "missing", "wandb is not installed", "pip install 'vigil[train]'")
    from vigil_training.tracking.mode import find_api_key, server_host

    try:
        source = find_api_key(environment)
    except UserError as error:
        return Check("W&B", "warn", str(error), "correct the file")
    if source is not None:
        return Check("W&B", "ok", source)
    return Check("W&B", "missing", f"no API key for {server_host(environment)}; runs are tracked offline", "wandb login")


def check_disk() -> Iterator[Check]:
    """Report free space in the working folder, and in the temporary folder if it is on another disk."""
    here, temporary = Path.cwd(), Path(tempfile.gettempdir())
    for folder in [here, *([temporary] if temporary.stat().st_dev != here.stat().st_dev else [])]:
        free = shutil.disk_usage(folder).free
        detail = f"{free / 2**30:.1f} GiB free in {folder}"
        if free < MIN_FREE_DISK_BYTES:
            yield Check("disk", "warn", detail, "free some space: a training environment takes 7 GB, and runs keep checkpoints")
        else:
            yield Check("disk", "ok", detail)


def _run(command: str, *arguments: str) -> tuple[list[str], str]:
    """Run a command; return its non-empty lines and, if it failed, the reason in one line."""
    if shutil.which(command) is None:
        return [], f"{command} is not installed"
    try:
        done = subprocess.run(  # noqa: S603 (no shell)
            [command, *arguments], capture_output=True, text=True, errors="replace", timeout=TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return [], f"{command} did not end within {TIMEOUT_SECONDS} s"
    except OSError as error:
        return [], f"{command}: {error.strerror}"
    lines = [line for line in (done.stdout if done.returncode == 0 else done.stderr or done.stdout).splitlines() if line.strip()]
    return (lines, "") if done.returncode == 0 else ([], lines[0] if lines else f"{command} exits with {done.returncode}")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

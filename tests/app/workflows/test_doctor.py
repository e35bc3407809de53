"""Checks of `vigil doctor`: what counts as ok, warn, missing and broken, and the fix of each."""

import platform
import subprocess
import sys

import pytest

from vigil.workflows import doctor

REQUIRED = [
    ("", "numpy>=2.0"),
    ("runtime", "pillow>=11.0"),
    ("command", "typer>=0.20"),
    ("train", "torch>=2.10"),
    ("train", "ruamel-yaml>=0.18"),
]
INTEL = "model name\t: Some CPU @ 2.50GHz\nflags\t\t: fpu avx2 avx512f avx512_vnni\nmodel name\t: Some CPU @ 2.50GHz\n"


def extras(**installed):
    return {check.name: check for check in doctor.check_extras(REQUIRED, installed)}


def test_check_extras_lists_what_an_installed_extra_enables():
    checks = extras(numpy="2.1", pillow="12.0", typer="0.21", torch="2.14.1+cpu", **{"ruamel-yaml": "0.18.10"})
    assert [check.name for check in checks.values()] == [f"vigil[{extra}]" for extra in doctor.EXTRAS]
    assert {check.status for check in checks.values()} == {"ok"}
    assert checks["vigil[train]"].detail == doctor.ENABLES["train"]


def test_check_extras_reports_an_absent_extra_as_missing_and_a_needed_one_as_broken():
    checks = extras(numpy="2.1", pillow="12.0")
    assert checks["vigil[train]"].status == "missing"
    assert checks["vigil[train]"].detail.endswith("not installed: torch, ruamel-yaml")
    assert checks["vigil[train]"].fix == "pip install 'vigil[train]'"
    assert checks["vigil[command]"].status == "broken"


def test_check_extras_reports_a_version_below_the_bound():
    checks = extras(numpy="2.1", pillow="10.0", typer="0.21", torch="2.9", **{"ruamel-yaml": "0.18.10"})
    assert checks["vigil[train]"].status == "warn"
    assert "torch 2.9 (needs >=2.10)" in checks["vigil[train]"].detail
    assert checks["vigil[train]"].fix == "pip install --upgrade 'vigil[train]'"
    assert checks["vigil[runtime]"].status == "broken"


def test_check_extras_knows_every_extra():
    assert set(doctor.ENABLES) == set(doctor.EXTRAS)


def test_check_constraints_names_versions_that_differ():
    text = "numpy==2.1\nRuamel.YAML==0.18\ntorch==2.14.1\n"
    assert doctor.check_constraints(text, {"numpy": "2.1", "other": "1"}).status == "ok"
    check = doctor.check_constraints(text, {"numpy": "2.0", "ruamel-yaml": "0.19"})
    assert check.status == "warn"
    assert "numpy 2.0 (pinned 2.1), ruamel-yaml 0.19 (pinned 0.18)" in check.detail


def test_check_cpu_names_vector_instructions():
    check = doctor.check_cpu(INTEL, 2.0)
    assert check.detail == "Some CPU @ 2.50GHz, 2 cores, AVX2, AVX-512, VNNI, no bf16"
    assert check.status == "ok"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX2 is an x86 instruction set")
def test_check_cpu_warns_without_avx2():
    assert doctor.check_cpu(INTEL.replace("avx2", ""), 1.0).status == "warn"


@pytest.mark.parametrize(
    ("meminfo", "limit", "status", "detail"),
    [
        ("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n", "max\n", "ok", "8.0 of 16.0 GiB available"),
        ("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n", f"{2**31}\n", "warn", "2.0 of 2.0 GiB available"),
        ("", "", "warn", "unknown: /proc/meminfo cannot be read"),
    ],
    ids=["plenty", "limited", "unknown"],
)
def test_check_memory_takes_the_limit_of_the_control_group(meminfo, limit, status, detail):
    check = doctor.check_memory(meminfo, limit)
    assert (check.status, check.detail) == (status, detail)


def program(folder, name, text):
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_check_gpu_lists_devices(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.check_gpu().status == "missing"
    program(tmp_path, "nvidia-smi", "echo 'NVIDIA H100, 81559 MiB, 570.1'")
    assert doctor.check_gpu() == doctor.Check("GPU", "ok", "NVIDIA H100, 81559 MiB, 570.1")
    program(tmp_path, "nvidia-smi", "echo 'driver mismatch' >&2; exit 9")
    assert "driver mismatch" in doctor.check_gpu().detail


def test_check_slurm_asks_the_controller(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.check_slurm().status == "missing"
    program(tmp_path, "sbatch", "true")
    assert doctor.check_slurm().detail == "not on the PATH: squeue, scancel, srun"
    for name in ("squeue", "scancel", "srun"):
        program(tmp_path, name, "true")
    program(tmp_path, "sinfo", "echo 'gpu* 4 nodes idle'")
    assert doctor.check_slurm() == doctor.Check("Slurm", "ok", "gpu* 4 nodes idle")
    program(tmp_path, "sinfo", "echo 'Unable to contact slurm controller' >&2; exit 1")
    assert doctor.check_slurm().status == "warn"


def test_check_wandb_looks_for_a_key_without_a_request(tmp_path):
    file = tmp_path / "netrc"
    environment = {"NETRC": str(file)}
    assert doctor.check_wandb({}, environment).fix == "pip install 'vigil[train]'"
    assert doctor.check_wandb({"wandb": "1"}, environment).fix == "wandb login"
    assert doctor.check_wandb({"wandb": "1"}, {"WANDB_API_KEY": "x"}).status == "ok"
    file.write_text("machine wandb.example.org login user password x\n")
    own = {**environment, "WANDB_BASE_URL": "https://wandb.example.org:8080/"}
    assert doctor.check_wandb({"wandb": "1"}, own).status == "ok"
    assert doctor.check_wandb({"wandb": "1"}, environment).status == "missing"


def test_check_disk_warns_when_little_is_free(monkeypatch):
    assert all("GiB free in" in check.detail for check in doctor.check_disk())
    monkeypatch.setattr(doctor, "MIN_FREE_DISK_BYTES", 2**80)
    assert {check.status for check in doctor.check_disk()} == {"warn"}


def test_run_checks_imports_neither_torch_nor_numpy():
    code = (
        "import sys; from vigil.workflows.doctor import run_checks; names = [check.name for check in run_checks()]; "
        "assert {'Python', 'vigil[train]', 'CPU', 'memory', 'GPU', 'Slurm', 'W&B', 'disk'} <= set(names), names; "
        "assert not {'torch', 'numpy', 'wandb'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_check_torch_reports_its_devices():
    assert doctor.check_torch().status == "ok"

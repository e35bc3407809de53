"""Site profiles: schema of what jobs request at a cluster and need there to run, and where profiles are found."""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from vigil_data.errors import UserError
from vigil_data.specs import Spec

SITE_VARIABLE = "VIGIL_SITE"
"""Environment variable that names the default profile."""

_TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}|UNLIMITED|INFINITE")


def _one_line(text: str) -> str:
    if not text or any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError("must be one line of text")
    return text


def _time(text: str) -> str:
    if not _TIME.fullmatch(text):
        raise ValueError(f"must be a Slurm time such as '90' (minutes), '12:00:00' or '1-12:00:00', not {text!r}")
    return text


def _option(text: str) -> str:
    if not re.match(r"--[a-z]|-[a-zA-Z]", _one_line(text)):
        raise ValueError(f"must be an option of sbatch such as '--mem=64G', not {text!r}")
    return text


def _variables(variables: Mapping[str, str]) -> Mapping[str, str]:
    for name, value in variables.items():
        if not re.fullmatch(r"NCCL_[A-Z0-9_]+", name):
            raise ValueError(f"{name} is not a variable of NCCL: their names begin with NCCL_ (export others in setup)")
        _one_line(value)
    return variables


def _mount(text: str) -> str:
    if not re.fullmatch(r"[^:,]+(:[^:,]+){0,2}", _one_line(text)):
        raise ValueError(f"must be SOURCE, SOURCE:TARGET or SOURCE:TARGET:OPTIONS, not {text!r}")
    return text


Line = Annotated[str, AfterValidator(_one_line)]
Time = Annotated[str, AfterValidator(_time)]
Option = Annotated[str, AfterValidator(_option)]
Mount = Annotated[str, AfterValidator(_mount)]
Variables = Annotated[Mapping[str, str], AfterValidator(_variables)]


class NoContainer(Spec):
    """Run the ranks directly on the node."""

    kind: Literal["none"] = "none"


class Apptainer(Spec):
    """Run the ranks by ``apptainer exec``; the run folder and the folder of submission are mounted automatically."""

    kind: Literal["apptainer"] = "apptainer"
    image: Line = Field(description=".sif file, or anything else that apptainer opens")
    mounts: tuple[Mount, ...] = Field((), description="SOURCE:TARGET, in addition to the run folder and the folder of submission")


class Pyxis(Spec):
    """Run the ranks by srun's ``--container-image`` (pyxis and enroot); the same two folders are mounted automatically."""

    kind: Literal["pyxis"] = "pyxis"
    image: Line = Field(description="squashfs file, or an image of a registry such as registry.example.org#team/vigil:1")
    mounts: tuple[Mount, ...] = Field((), description="SOURCE:TARGET, in addition to the run folder and the folder of submission")


ContainerSpec = Annotated[NoContainer | Apptainer | Pyxis, Field(discriminator="kind")]


class Network(Spec):
    """Network between the ranks."""

    interface: Line | None = Field(None, description="network interface of gloo and NCCL, such as ib0 (default: they choose one)")
    nccl: Variables = Field(default_factory=dict, description="variables of NCCL, such as NCCL_IB_HCA: mlx5")


class Site(Spec):
    """Profile of a cluster. Every key has a default: the smallest profile is an empty mapping."""

    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    time: Time | None = Field(None, description="time limit (default: the partition's)")
    gpus: bool = Field(True, description="request a GPU for each rank, unless the recipe trains on the CPU")
    cpus_per_task: int | None = Field(None, ge=1, description="CPUs of each rank, for itself and its loader's workers")
    options: tuple[Option, ...] = Field((), description="other options of sbatch, such as --mem=0 or --exclusive")
    modules: tuple[Line, ...] = Field((), description="environment modules to load")
    setup: tuple[str, ...] = Field((), description="shell lines before the ranks start, such as source /opt/venv/bin/activate")
    command: Line | None = Field(
        None, description="the vigil command on the nodes (default: the one that submits; in a container `vigil`)"
    )
    container: ContainerSpec = NoContainer()
    network: Network = Network()
    address: str | None = Field(
        None, description="shell command that prints rank 0's address (default: the name of the job's first node)"
    )
    max_requeues: int = Field(20, ge=0, description="restarts after which a job gives up")
    signal_before: int = Field(
        180, ge=0, le=65535, description="seconds before the time limit at which a checkpoint is saved and the job requeued"
    )


def site_folders(environment: Mapping[str, str] | None = None) -> list[Path]:
    """Return the folders that are searched for a profile by its name, in order."""
    environment = os.environ if environment is None else environment
    home = Path(environment.get("XDG_CONFIG_HOME") or Path(environment.get("HOME") or "~").expanduser() / ".config")
    return [Path("slurm") / "sites", home / "vigil" / "sites"]


def find_site(name: str | None, environment: Mapping[str, str] | None = None) -> Path | None:
    """Return the file of a profile.

    Args:
        name: a name (``dev-cluster``) or a path with a slash or the suffix .yaml (default: the variable VIGIL_SITE).
        environment: environment variables (default: those of this process).

    Returns:
        The file, which need not exist if it was given as a path; ``None`` if no profile is named.

    Raises:
        UserError: if no folder has a profile of that name.
    """
    environment = os.environ if environment is None else environment
    wanted = name or environment.get(SITE_VARIABLE)
    if not wanted:
        return None
    if "/" in wanted or wanted.endswith((".yaml", ".yml")):
        return Path(wanted)
    folders = site_folders(environment)
    for folder in folders:
        if (path := folder / f"{wanted}.yaml").is_file():
            return path
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    near = difflib.get_close_matches(wanted, known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else f"; there are {', '.join(known)}" if known else ""
    source = "--profile" if name else SITE_VARIABLE
    raise UserError(f"{source} {wanted}: no {wanted}.yaml in {' or '.join(map(str, folders))}{hint}")

"""What a site profile can say: how jobs are asked for at one cluster, and what they need there to run."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from vigil_data.specs import Spec

_TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}|UNLIMITED|INFINITE")


def _one_line(text: str) -> str:
    if not text or any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError("must be one line of text")
    return text


def _time(text: str) -> str:
    if not _TIME.fullmatch(text):
        raise ValueError(f"must be a time as Slurm writes it, such as '90' (minutes), '12:00:00' or '1-12:00:00', not {text!r}")
    return text


def _option(text: str) -> str:
    if not re.match(r"--[a-z]|-[a-zA-Z]", _one_line(text)):
        raise ValueError(f"must be options of sbatch, each such as '--mem=64G', not {text!r}")
    return text


def _variables(variables: Mapping[str, str]) -> Mapping[str, str]:
    for name, value in variables.items():
        if not re.fullmatch(r"NCCL_[A-Z0-9_]+", name):
            raise ValueError(f"{name} is not a variable of NCCL's, whose names begin with NCCL_ (export others in setup)")
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
    """Ranks run in the node's own system."""

    kind: Literal["none"] = "none"


class Apptainer(Spec):
    """Ranks run by ``apptainer exec``; the run folder and the folder of submission are mounted by themselves."""

    kind: Literal["apptainer"] = "apptainer"
    image: Line = Field(description="a .sif file, or anything else that apptainer opens")
    mounts: tuple[Mount, ...] = Field((), description="SOURCE:TARGET, on top of the run folder and the folder of submission")


class Pyxis(Spec):
    """Ranks run by srun's ``--container-image`` (pyxis and enroot); the same two folders are mounted by themselves."""

    kind: Literal["pyxis"] = "pyxis"
    image: Line = Field(description="a squashfs file, or a registry's image such as registry.example.org#team/vigil:1")
    mounts: tuple[Mount, ...] = Field((), description="SOURCE:TARGET, on top of the run folder and the folder of submission")


ContainerSpec = Annotated[NoContainer | Apptainer | Pyxis, Field(discriminator="kind")]


class Network(Spec):
    """How ranks reach each other."""

    interface: Line | None = Field(
        None, description="network interface of gloo and NCCL, such as ib0; they look for one if not given"
    )
    nccl: Variables = Field(default_factory=dict, description="variables of NCCL's, such as NCCL_IB_HCA: mlx5")


class Site(Spec):
    """A cluster, or one user's share of it. Everything has a default: the smallest profile is an empty mapping."""

    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    time: Time | None = Field(None, description="time limit; the partition's if not given")
    gpus: bool = Field(True, description="ask for a GPU for each rank, unless the recipe trains on the CPU")
    cpus_per_task: int | None = Field(None, ge=1, description="CPUs of each rank, for itself and its loader's workers")
    options: tuple[Option, ...] = Field((), description="other options of sbatch, such as --mem=0 or --exclusive")
    modules: tuple[Line, ...] = Field((), description="environment modules that are loaded")
    setup: tuple[str, ...] = Field((), description="shell lines before the ranks start, such as source /opt/venv/bin/activate")
    command: Line | None = Field(
        None,
        description="the vigil command on the nodes; the one that submitted if not given, and `vigil` in a container",
    )
    container: ContainerSpec = NoContainer()
    network: Network = Network()
    address: str | None = Field(
        None, description="shell command that prints rank 0's address; the name of the job's first node if not given"
    )
    max_requeues: int = Field(20, ge=0, description="restarts after which a job gives up")
    signal_before: int = Field(
        180, ge=0, le=65535, description="seconds before the time limit at which a checkpoint is asked for, to go on in a new job"
    )

"""Batch script of a run, rendered from ``job.sh.jinja``: its requests, its launch of the ranks, and when it requeues the job.

Every value is quoted: by :func:`shlex.quote` for bash, and by :func:`quote_directive` for sbatch.
"""

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from os import PathLike
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from vigil_data.errors import UserError
from vigil_slurm.client import job_comment
from vigil_slurm.site import Apptainer, NoContainer, Pyxis, Site


@dataclass(frozen=True, slots=True)
class BatchJob:
    """A job to submit.

    Attributes:
        name: name of the recipe.
        run: run folder, absolute; for an array the part before ``-INDEX``.
        directory: working directory of the ranks, absolute; relative paths in a recipe start there.
        nodes: number of nodes.
        devices: number of ranks on each node.
        gpus: whether each rank has a GPU.
        command: the `vigil` command.
        array: task indices as ``--array`` takes them; ``None`` for a single run.
        after: ids of jobs that must succeed before this one starts.
        arguments: arguments of `vigil` in every rank (default: those that train the run).
        shared: folder that holds the run folder and is mounted in its place.
        devices_per_rank: GPUs of each rank, or its multiple of a site's CPUs.
    """

    name: str
    run: str | PathLike[str]
    directory: str | PathLike[str]
    nodes: int = 1
    devices: int = 1
    gpus: bool = False
    command: str = "vigil"
    array: str | None = None
    after: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    shared: str | PathLike[str] | None = None
    devices_per_rank: int = 1


def render_batch_script(job: BatchJob, site: Site) -> str:
    """Return the batch script of a job.

    Raises:
        UserError: if Slurm or a container cannot take a path, or the site's shell lines have a syntax error.
    """
    for path in (job.run, job.directory, *([] if job.shared is None else [job.shared])):
        _check_path(path, site)
    text = _template().render(
        name=job.name,
        options=[*_options(job, site), *site.options],
        run=shlex.quote(str(job.run)),
        array=job.array is not None,
        modules=" ".join(map(shlex.quote, site.modules)),
        setup=[line.rstrip() for line in site.setup],
        variables={name: shlex.quote(value) for name, value in _variables(site).items()},
        address=None if site.address is None else shlex.quote(site.address),
        max_requeues=site.max_requeues,
        srun=_srun(job, site),
        command=_command(job, site),
        arguments=[shlex.quote(argument) for argument in job.arguments] or ["train", "--run", '"$run"', '"$run/resolved.yaml"'],
        purpose=f"runs `{shlex.join(('vigil', *job.arguments))}`" if job.arguments else f"trains {job.name}",
        submit=f"vigil {job.arguments[0]} submit" if job.arguments else "vigil submit",
    )
    _check_syntax(text)
    return text


def render_command_script(job: BatchJob, site: Site, arguments: Sequence[str]) -> str:
    """Return the batch script of a job that runs one `vigil` command in a single process.

    Args:
        job: its ``run`` is any existing folder, whose ``slurm/`` gets the log.
        site: what jobs request here.
        arguments: arguments of `vigil`.

    Raises:
        UserError: see :func:`render_batch_script`.
    """
    for path in (job.run, job.directory):
        _check_path(path, site)
    lines = ["#!/bin/bash", f"# Written by `vigil {arguments[0]}`.", *(f"#SBATCH {option}" for option in _options(job, site))]
    lines += [f"run={shlex.quote(str(job.run))}"]
    lines += [f"module load {' '.join(map(shlex.quote, site.modules))} || exit 2"] if site.modules else []
    lines += [line.rstrip() for line in site.setup]
    srun = ["srun", *_srun(job, site)] if isinstance(site.container, Pyxis) else []
    lines += [" ".join(["exec", *srun, *_command(job, site), *map(shlex.quote, arguments)])]
    text = "\n".join(lines) + "\n"
    _check_syntax(text)
    return text


def quote_directive(value: str) -> str:
    """Quote a value for a line of ``#SBATCH``.

    sbatch parses those lines itself (``_get_argument`` in its opt.c): a backslash escapes in every kind of quotes, and outside
    quotes a number sign starts a comment.
    """
    plain = value and all(character.isalnum() or character in "-_./:,=@%+" for character in value)
    return value if plain else '"' + value.replace("\\", r"\\").replace('"', r"\"") + '"'


def _options(job: BatchJob, site: Site) -> list[str]:
    """Return the options of sbatch, quoted."""
    # Slurm replaces a percent sign with the next letter; doubled it stands for itself (sbatch(1), "FILENAME PATTERN").
    pattern = str(job.run).replace("%", "%%")
    log = f"{pattern}-%a/slurm/%A_%a.log" if job.array else f"{pattern}/slurm/%j.log"
    values = {
        "job-name": f"vigil-{job.name}",
        "comment": job_comment(str(job.run), job.array is not None),
        "chdir": str(job.directory),
        "output": log,
        "open-mode": "append",
        "nodes": job.nodes,
        "ntasks-per-node": job.devices,
        "cpus-per-task": _cpus(job, site),
        "gpus-per-node": job.devices * job.devices_per_rank if job.gpus else None,
        "time": site.time,
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "array": job.array,
        "dependency": f"afterok:{':'.join(job.after)}" if job.after else None,
        "kill-on-invalid-dep": "yes" if job.after else None,
        "signal": f"USR1@{site.signal_before}" if site.signal_before else None,
    }
    return [f"--{name}={quote_directive(str(value))}" for name, value in values.items() if value is not None] + ["--requeue"]


def _variables(site: Site) -> dict[str, str]:
    interface = site.network.interface
    names = {} if interface is None else {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    return {**names, **site.network.nccl}


def _srun(job: BatchJob, site: Site) -> list[str]:
    """Return the options of srun, quoted for bash; ``$PWD`` and ``$run`` are variables of the script."""
    # Since Slurm 22.05 srun does not inherit --cpus-per-task from sbatch (its release notes).
    options = [f"--nodes={job.nodes}", f"--ntasks={job.nodes * job.devices}", f"--ntasks-per-node={job.devices}"]
    options += [] if site.cpus_per_task is None else [f"--cpus-per-task={_cpus(job, site)}"]
    options += ["--kill-on-bad-exit=0", "--wait=0"]
    options += ["--label"] if job.nodes * job.devices > 1 else []
    if isinstance(site.container, Pyxis):
        options += [f"--container-image={shlex.quote(site.container.image)}", '--container-workdir="$PWD"']
        options += [f"--container-mounts={_mounts(job, site.container)}"]
    return options


def _cpus(job: BatchJob, site: Site) -> int | None:
    return None if site.cpus_per_task is None else site.cpus_per_task * job.devices_per_rank


def _command(job: BatchJob, site: Site) -> list[str]:
    """Return the command of every rank before the arguments of `vigil`, quoted for bash."""
    if not isinstance(site.container, Apptainer):
        return [shlex.quote(job.command)]
    gpus = ["--nv"] if job.gpus else []
    return [
        "apptainer",
        "exec",
        *gpus,
        f"--bind={_mounts(job, site.container)}",
        '--pwd="$PWD"',
        shlex.quote(site.container.image),
        shlex.quote(job.command),
    ]


def _mounts(job: BatchJob, container: Apptainer | Pyxis) -> str:
    """Return the mounts: the folder of submission and the run folder under their own paths, and the site's."""
    own = ['"$PWD:$PWD,$run:$run"'] if job.shared is None else ['"$PWD:$PWD"', shlex.quote(f"{job.shared}:{job.shared}")]
    return ",".join([*own, *map(shlex.quote, container.mounts)])


def _check_path(path: str | PathLike[str], site: Site) -> None:
    text = str(path)
    if "\\" in text or any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise UserError(f"{text!r}: Slurm does not support a backslash or a control character in a path; use another")
    if not isinstance(site.container, NoContainer) and (":" in text or "," in text):
        raise UserError(f"{text}: a path with a colon or a comma cannot be mounted in a container; use another")


def _check_syntax(text: str) -> None:
    """Check the syntax with bash; an error is in the site's setup, since everything else is quoted."""
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, errors="replace", check=False)  # noqa: S607
    if done.returncode:
        message = done.stderr.splitlines()[0].partition("line ")[2] if done.stderr else ""
        number, _, reason = message.partition(": ")
        lines = text.splitlines()
        line = lines[int(number) - 1].strip() if number.isdigit() and int(number) <= len(lines) else ""
        raise UserError(f"site profile: setup is not valid bash: {reason or 'syntax error'} (at {line!r} of the script)")


@cache
def _template() -> Template:
    # No escaping for HTML: this is a shell script whose values are quoted already.
    environment = Environment(  # noqa: S701
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("job.sh.jinja")

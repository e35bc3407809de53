"""The batch script of a run: what Slurm is asked for, and what becomes of each way in which ranks can end.

The script is rendered from ``job.sh.jinja``, which says more. Every value that is not the script's own is quoted: by
:func:`shlex.quote` where bash reads it, and by :func:`directive` where sbatch does.
"""

import shlex
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from vigil_data.errors import UserError
from vigil_slurm.site import Apptainer, NoContainer, Pyxis, Site
from vigil_slurm.squeue import comment


@dataclass(frozen=True, slots=True)
class Job:
    """What one submission runs.

    Attributes:
        name: the recipe's.
        run: the run folder, absolute; of an array what stands before ``-INDEX``.
        directory: where the ranks run, absolute: relative paths of a recipe begin there.
        nodes: machines.
        devices: ranks on each.
        gpus: whether each rank has a GPU.
        command: the `vigil` command.
        array: the task indices of an array as ``--array`` takes them; ``None`` for one run.
        after: jobs that must have ended well before this one starts.
    """

    name: str
    run: Path
    directory: Path
    nodes: int = 1
    devices: int = 1
    gpus: bool = False
    command: str = "vigil"
    array: str | None = None
    after: tuple[str, ...] = ()


def render(job: Job, site: Site) -> str:
    """The batch script.

    Raises:
        UserError: if a path cannot be written in it, or it is not a script because of the site's own shell lines.
    """
    for path in (job.run, job.directory):
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
    )
    _check_syntax(text)
    return text


def directive(value: str) -> str:
    """Quote a value for a line of ``#SBATCH``.

    sbatch splits those lines itself (``_get_argument`` in its opt.c): a backslash escapes in every kind of quotes, and outside of
    quotes a number sign begins a comment.
    """
    plain = value and all(character.isalnum() or character in "-_./:,=@%+" for character in value)
    return value if plain else '"' + value.replace("\\", r"\\").replace('"', r"\"") + '"'


def _options(job: Job, site: Site) -> list[str]:
    """The options of sbatch, each quoted."""
    # A percent sign stands before a letter that Slurm replaces; doubled it is itself (sbatch(1), "FILENAME PATTERN").
    pattern = str(job.run).replace("%", "%%")
    log = f"{pattern}-%a/slurm/%A_%a.log" if job.array else f"{pattern}/slurm/%j.log"
    asked = {
        "job-name": f"vigil-{job.name}",
        "comment": comment(str(job.run), job.array is not None),
        "chdir": str(job.directory),
        "output": log,
        "open-mode": "append",
        "nodes": job.nodes,
        "ntasks-per-node": job.devices,
        "cpus-per-task": site.cpus_per_task,
        "gpus-per-node": job.devices if job.gpus else None,
        "time": site.time,
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "array": job.array,
        "dependency": f"afterok:{':'.join(job.after)}" if job.after else None,
        "kill-on-invalid-dep": "yes" if job.after else None,
        "signal": f"USR1@{site.signal_before}" if site.signal_before else None,
    }
    return [f"--{name}={directive(str(value))}" for name, value in asked.items() if value is not None] + ["--requeue"]


def _variables(site: Site) -> dict[str, str]:
    interface = site.network.interface
    names = {} if interface is None else {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    return {**names, **site.network.nccl}


def _srun(job: Job, site: Site) -> list[str]:
    """The options of srun, quoted for bash; ``$PWD`` and ``$run`` are the script's."""
    # Since Slurm 22.05 srun takes the CPUs of a task from its own options alone (its release notes).
    options = [f"--nodes={job.nodes}", f"--ntasks={job.nodes * job.devices}", f"--ntasks-per-node={job.devices}"]
    options += [] if site.cpus_per_task is None else [f"--cpus-per-task={site.cpus_per_task}"]
    options += ["--kill-on-bad-exit=0", "--wait=0"]
    options += ["--label"] if job.nodes * job.devices > 1 else []
    if isinstance(site.container, Pyxis):
        options += [f"--container-image={shlex.quote(site.container.image)}", '--container-workdir="$PWD"']
        options += [f"--container-mounts={_mounts(site.container)}"]
    return options


def _command(job: Job, site: Site) -> list[str]:
    """What every rank runs, before the arguments of `vigil train`; quoted for bash."""
    if not isinstance(site.container, Apptainer):
        return [shlex.quote(job.command)]
    gpus = ["--nv"] if job.gpus else []
    return [
        "apptainer",
        "exec",
        *gpus,
        f"--bind={_mounts(site.container)}",
        '--pwd="$PWD"',
        shlex.quote(site.container.image),
        shlex.quote(job.command),
    ]


def _mounts(container: Apptainer | Pyxis) -> str:
    """The folder of submission and the run folder where they are, and what the site adds."""
    own = '"$PWD:$PWD,$run:$run"'
    return ",".join([own, *map(shlex.quote, container.mounts)])


def _check_path(path: Path, site: Site) -> None:
    text = str(path)
    if "\\" in text or any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise UserError(f"{text!r}: a backslash or a control character in a path confuses Slurm; use another")
    if not isinstance(site.container, NoContainer) and (":" in text or "," in text):
        raise UserError(f"{text}: cannot be mounted in a container, since the path holds a colon or a comma; use another")


def _check_syntax(text: str) -> None:
    """Let bash read the script, and refuse what it cannot: that is in the site's setup, all else being quoted."""
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, errors="replace", check=False)  # noqa: S607
    if done.returncode:
        said = done.stderr.splitlines()[0].partition("line ")[2] if done.stderr else ""
        line, _, what = said.partition(": ")
        lines = text.splitlines()
        shown = lines[int(line) - 1].strip() if line.isdigit() and int(line) <= len(lines) else ""
        raise UserError(f"the site profile's setup is not right for bash: {what or 'syntax error'} (at {shown!r} of the script)")


@cache
def _template() -> Template:
    # Nothing is escaped for HTML: this is a shell script, and each value comes quoted.
    environment = Environment(  # noqa: S701
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("job.sh.jinja")

"""Slurm's commands, and this user's Vigil jobs that are in the queue or have just left it."""

import re
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vigil_data.errors import Failure

COMMAND_TIMEOUT_SECONDS = 60
"""Longer than Slurm's own timeout for a controller that does not answer (MessageTimeout, slurm.conf(5))."""

_COMMENT_PREFIX = "vigil:"
_SQUEUE_FORMAT = "%i|%T|%r|%M|%D|%K|%k"
"""Id, state, reason, elapsed, nodes, array index, comment (squeue(1), "--format"); a comment may contain the separator."""


_SQUEUE_ATTEMPT = "JobArrayID:64,State:32,RestartCnt:16"
"""Widths in which every value fits: Slurm cuts longer ones (squeue(1), "--Format")."""


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A job in the queue.

    Attributes:
        job: id as Slurm shows it.
        run: run folder.
        state: Slurm's state, such as PENDING or RUNNING.
        reason: why it waits; "None" if it does not.
        elapsed: running time of its current start.
        nodes: number of nodes that it has or requests.
    """

    job: str
    run: str
    state: str
    reason: str
    elapsed: str
    nodes: str


def run_command(command: str, *arguments: str) -> str:
    """Run one of Slurm's commands and return its standard output.

    Raises:
        Failure: if the command is not installed, fails (with the first line of its error message), or times out.
    """
    try:
        done = subprocess.run(  # noqa: S603 (no shell)
            [command, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_TIMEOUT_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise Failure(f"{command}: no such command; run this on a machine of the cluster, with Slurm on its PATH") from None
    except OSError as error:
        raise Failure(f"{command}: cannot be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise Failure(f"{command}: no answer within {COMMAND_TIMEOUT_SECONDS} s; is the controller up? (scontrol ping)") from None
    if done.returncode:
        raise Failure(f"{command}: {_first_error(done.stderr.splitlines()) or f'exit status {done.returncode}'}")
    return done.stdout


def _first_error(lines: Sequence[str]) -> str:
    """Return the first line that is not blank, without a prefix such as ``sbatch: error:``."""
    first = next((line.strip() for line in lines if line.strip()), "")
    return re.sub(r"^(sbatch|squeue|scontrol|scancel): ((error|fatal): )?", "", first)


def job_comment(run: str, array: bool) -> str:
    """Return the comment that marks a job as Vigil's and names its run folder.

    Args:
        run: run folder, absolute; for an array the part before ``-INDEX``.
        array: whether the job is an array; ``%a`` stands for the index then, and ``%%`` for a percent sign.
    """
    return f"{_COMMENT_PREFIX}{run.replace('%', '%%')}-%a" if array else _COMMENT_PREFIX + run


def _run_of_comment(comment: str, index: str) -> str:
    text = comment.removeprefix(_COMMENT_PREFIX)
    if not index.isdigit():
        return text
    return re.sub("%[%a]", lambda found: "%" if found[0] == "%%" else index, text)


def queued_jobs() -> list[QueuedJob]:
    """Return this user's Vigil jobs in the queue; each task of an array is a job.

    Raises:
        Failure: if squeue is not installed or fails.
    """
    jobs = []
    for line in run_command("squeue", "--me", "--array", "--noheader", f"--format={_SQUEUE_FORMAT}").splitlines():
        fields = line.split("|", 6)
        if len(fields) != 7 or not fields[6].startswith(_COMMENT_PREFIX):
            continue
        job, state, reason, elapsed, nodes, index, comment = fields
        jobs.append(QueuedJob(job, _run_of_comment(comment, index), state, reason, elapsed, nodes))
    return jobs


def lost_attempts(attempts: Collection[tuple[str, int]]) -> set[tuple[str, int]]:
    """Return the starts of jobs that are over as Slurm sees it: the job has ended, or was started again.

    The processes of such a start may still be running, on a node that was cut off.

    Args:
        attempts: id of each job, for a task of an array such as ``12_3``, and the number of restarts before that start. They
            must have run, since a job that is not in the queue counts as ended.

    Returns:
        Some of them; none if the controller does not answer.
    """
    if not attempts:
        return set()
    try:
        output = run_command("squeue", "--me", "--array", "--noheader", f"--Format={_SQUEUE_ATTEMPT}")
    except Failure:
        return set()
    # A job that was requeued is pending, or has a higher count once it runs again.
    running = {(job, int(restarts)) for job, state, restarts in map(str.split, output.splitlines()) if state != "PENDING"}
    return set(attempts) - running


def recent_job_states() -> dict[str, str]:
    """Return the state by id of all jobs that the controller still remembers (MinJobAge, slurm.conf(5)).

    The result is empty if the controller cannot be reached.
    """
    try:
        output = run_command("scontrol", "show", "job", "--oneliner")
    except Failure:
        return {}
    states = {}
    for line in output.splitlines():
        fields = dict(re.findall(r"(?:^| )(JobId|ArrayJobId|ArrayTaskId|JobState)=(\S+)", line))
        if {"JobId", "JobState"} <= fields.keys():
            task = f"{fields['ArrayJobId']}_{fields['ArrayTaskId']}" if "ArrayTaskId" in fields else fields["JobId"]
            states[task] = fields["JobState"]
    return states

"""What Slurm says of this user's jobs of Vigil's: those in the queue, and for some minutes those that left it."""

import re
from dataclasses import dataclass

from vigil_data.errors import Failure
from vigil_slurm.client import call

_COMMENT = "vigil:"
_FIELDS = "%i|%T|%r|%M|%D|%K|%k"
"""Id, state, reason, elapsed, nodes, array index, comment (squeue(1), "--format"); a comment may hold the separator."""


@dataclass(frozen=True, slots=True)
class Queued:
    """A job in the queue.

    Attributes:
        job: its id, as Slurm shows it.
        run: its run folder.
        state: Slurm's, such as PENDING or RUNNING.
        reason: why it waits; "None" where it does not.
        elapsed: how long its present start has run.
        nodes: how many it has or asks for.
    """

    job: str
    run: str
    state: str
    reason: str
    elapsed: str
    nodes: str


def comment(run: str, array: bool) -> str:
    """The comment by which a job is known as one of Vigil's: its run folder.

    Args:
        run: the run folder, absolute; of an array what stands before ``-INDEX``.
        array: whether the job is an array, in which ``%a`` stands for the index and ``%%`` for a percent sign.
    """
    return f"{_COMMENT}{run.replace('%', '%%')}-%a" if array else _COMMENT + run


def queued() -> list[Queued]:
    """This user's jobs of Vigil's that wait, run or end; tasks of arrays one by one.

    Raises:
        Failure: if squeue is absent or fails.
    """
    jobs = []
    for line in call("squeue", "--me", "--array", "--noheader", f"--format={_FIELDS}").splitlines():
        fields = line.split("|", 6)
        if len(fields) != 7 or not fields[6].startswith(_COMMENT):
            continue
        job, state, reason, elapsed, nodes, index, said = fields
        jobs.append(Queued(job, _run(said, index), state, reason, elapsed, nodes))
    return jobs


def ended() -> dict[str, str]:
    """State by job id of all jobs that the controller still remembers (MinJobAge, slurm.conf(5)); empty if it cannot be asked."""
    try:
        told = call("scontrol", "show", "job", "--oneliner")
    except Failure:
        return {}
    states = {}
    for line in told.splitlines():
        facts = dict(re.findall(r"(?:^| )(JobId|ArrayJobId|ArrayTaskId|JobState)=(\S+)", line))
        if {"JobId", "JobState"} <= facts.keys():
            task = f"{facts['ArrayJobId']}_{facts['ArrayTaskId']}" if "ArrayTaskId" in facts else facts["JobId"]
            states[task] = facts["JobState"]
    return states


def _run(said: str, index: str) -> str:
    text = said.removeprefix(_COMMENT)
    if not index.isdigit():
        return text
    return re.sub("%[%a]", lambda found: "%" if found[0] == "%%" else index, text)

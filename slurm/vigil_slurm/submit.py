"""Hand a run to Slurm: its batch script into its folder, the script to sbatch, and the job into the registry."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

from vigil_data.errors import Failure, UserError
from vigil_slurm.client import call
from vigil_slurm.registry import Submitted, append
from vigil_slurm.squeue import queued


def refuse_busy(runs: Sequence[Path]) -> None:
    """Refuse runs that a job is working on, or will.

    Args:
        runs: run folders, absolute.

    Raises:
        UserError: one line for each of them.
        Failure: if Slurm cannot be asked.
    """
    asked = set(map(str, runs))
    busy = [job for job in queued() if job.run in asked]
    if busy:
        raise UserError(*(f"{job.run}: job {job.job} is {job.state}; vigil cancel {job.job} ends it" for job in busy))


def submit(script: str, runs: Sequence[Path], tasks: Sequence[int] | None, nodes: int) -> str:
    """Write the batch script into each run folder and give it to sbatch.

    Args:
        script: the batch script.
        runs: the run folders, absolute; they exist.
        tasks: the index of each in the array; ``None`` if the job is none.
        nodes: machines that each asks for.

    Returns:
        The id of the job.

    Raises:
        Failure: if a folder cannot be written or sbatch refuses.
    """
    for run in runs:
        try:
            # Slurm makes no folders for a job's log, and drops the log of a job whose folder is not there.
            (run / "slurm").mkdir(exist_ok=True)
            (run / "slurm" / "stop").unlink(missing_ok=True)
            (run / "job.sh").write_text(script, encoding="utf-8")
        except OSError as error:
            raise Failure(f"{run}: cannot be written: {error.strerror}") from None
    job = call("sbatch", "--parsable", str(runs[0] / "job.sh")).strip().partition(";")[0]
    now = dt.datetime.now().astimezone().isoformat(timespec="seconds")
    names = [job] if tasks is None else [f"{job}_{task}" for task in tasks]
    append([Submitted(name, str(run), now, nodes) for name, run in zip(names, runs, strict=True)])
    return job

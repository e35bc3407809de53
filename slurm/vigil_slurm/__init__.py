"""Slurm: batch scripts, submission, and the state of jobs and their runs. Nothing here imports torch.

Example:
    >>> script = render_batch_script(BatchJob("demo", run=Path("/shared/runs/demo"), directory=Path.cwd()), Site())
    >>> submit_batch_script(script, [Path("/shared/runs/demo")], tasks=None, nodes=1)
    '41'
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_slurm.batch_script import BatchJob as BatchJob
    from vigil_slurm.batch_script import render_batch_script as render_batch_script
    from vigil_slurm.client import lost_attempts as lost_attempts
    from vigil_slurm.job_environment import read_attempt as read_attempt
    from vigil_slurm.job_environment import read_job_environment as read_job_environment
    from vigil_slurm.jobs import JobStatus as JobStatus
    from vigil_slurm.jobs import cancel_job as cancel_job
    from vigil_slurm.jobs import find_job as find_job
    from vigil_slurm.jobs import list_jobs as list_jobs
    from vigil_slurm.run_state import read_attempts as read_attempts
    from vigil_slurm.run_state import read_progress as read_progress
    from vigil_slurm.site import Site as Site
    from vigil_slurm.site import find_site as find_site
    from vigil_slurm.submit import parse_array as parse_array
    from vigil_slurm.submit import submit_batch_script as submit_batch_script
    from vigil_slurm.tail_log import follow_log as follow_log

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "BatchJob": "vigil_slurm.batch_script",
        "JobStatus": "vigil_slurm.jobs",
        "Site": "vigil_slurm.site",
        "cancel_job": "vigil_slurm.jobs",
        "find_job": "vigil_slurm.jobs",
        "find_site": "vigil_slurm.site",
        "follow_log": "vigil_slurm.tail_log",
        "list_jobs": "vigil_slurm.jobs",
        "lost_attempts": "vigil_slurm.client",
        "parse_array": "vigil_slurm.submit",
        "read_attempt": "vigil_slurm.job_environment",
        "read_attempts": "vigil_slurm.run_state",
        "read_job_environment": "vigil_slurm.job_environment",
        "read_progress": "vigil_slurm.run_state",
        "render_batch_script": "vigil_slurm.batch_script",
        "submit_batch_script": "vigil_slurm.submit",
    },
)

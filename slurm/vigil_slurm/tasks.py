"""The tasks of a job array, as ``sbatch --array`` takes them."""

import re

from vigil_data.errors import UserError

MOST = 1000
"""Slurm's own limit is 1001 unless the site raised it (MaxArraySize, slurm.conf(5))."""

_PART = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?::([1-9]\d{0,8}))?)?")


def indices(text: str) -> list[int]:
    """The task indices of an array.

    Args:
        text: such as ``0-4``, ``1,3,7``, ``0-10:2``, each with ``%N`` behind it for at most N tasks at a time.

    Raises:
        UserError: if it is of another form, or an array of more than 1000 tasks.
    """
    matches = [_PART.fullmatch(part) for part in text.partition("%")[0].split(",")]
    if not re.fullmatch(r"[^%]+(%[1-9]\d{0,3})?", text) or None in matches:
        raise UserError(f"--array {text}: must be of the form 0-4, 1,3,7 or 0-10:2, with %N behind it for at most N at a time")
    found: set[int] = set()
    for match in filter(None, matches):
        first, last, step = match.groups()
        chosen = range(int(first), int(last or first) + 1, int(step or 1))
        if not chosen:
            raise UserError(f"--array {text}: {match[0]} ends before it begins")
        if len(chosen) > MOST or len(found.union(chosen)) > MOST:
            raise UserError(f"--array {text}: more than {MOST} tasks")
        found.update(chosen)
    return sorted(found)

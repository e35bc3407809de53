"""A function for worker processes, which import this module; that takes no time."""

import os

from vigil_data.errors import UserError


def negated(number: int) -> int:
    """Return the opposite number; refuse 7, and let the process die at 9."""
    if number == 7:
        raise UserError("no 7", "nor 77")
    if number == 9:
        os._exit(1)
    return -number

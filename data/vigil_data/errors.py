"""Errors with one clear message, by exit status.

A :class:`UserError` ends the command with exit status 2 and names what is wrong, where, and how to fix it; a :class:`Failure`
while running ends it with 1. A :class:`MediaError` ends nothing: the item is quarantined and counted, and only too many of them
stop a run.
"""

from collections.abc import Sequence


class UserError(Exception):
    """Error that the user can fix; the command prints its lines and exits with status 2.

    Args:
        lines: one clear line for each error found: where, what is wrong, and how to fix it.

    Attributes:
        everywhere: whether every process of a run raises it, so that only one needs to print it.
    """

    everywhere = False

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines: Sequence[str] = lines


class Failure(Exception):  # noqa: N818 (neither a user's error nor a bug)
    """Failure of a valid request, such as a full disk; the command prints the message and exits with ``status``.

    Attributes:
        status: exit status of the command.
        everywhere: whether every process of a run raises it, so that only one needs to print it.
    """

    status = 1
    everywhere = False


class MediaError(Exception):
    """Error for a text, image or audio file that cannot be decoded; its message is the reason in the quarantine table."""


def capped(problems: Sequence[str], most: int = 20) -> list[str]:
    """Return the first ``most`` problems, and one line with the number of the others."""
    rest = len(problems) - most
    return [*problems[:most], *([f"… and {rest} more"] if rest > 0 else [])]

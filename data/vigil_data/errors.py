"""What can go wrong without an error in the code.

A mistake of the user ends the command with exit status 2 and says what, where and the mend; a failure while running ends it with
1. A medium that cannot be decoded ends nothing: its item is refused, counted and put in quarantine, and only too many of them
stop a run.
"""

from collections.abc import Sequence


class UserError(Exception):
    """A mistake that the user can mend; the command prints its lines and exits with status 2.

    Args:
        lines: one clear line for each mistake found: what, where, and the mend.

    Attributes:
        everywhere: whether every process of a run raises it, so that one of them need say it.
    """

    everywhere = False

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines: Sequence[str] = lines


class Failure(Exception):  # noqa: N818 (neither a mistake of the user nor an error in the code)
    """What was asked for was right, and yet cannot be done; the command prints the message's lines and exits with the status.

    Attributes:
        status: of the command.
        everywhere: whether every process of a run raises it, so that one of them need say it.
    """

    status = 1
    everywhere = False


class MediaError(Exception):
    """A text, picture or sound that cannot be decoded; the message is the reason that the quarantine table shows."""


def capped(problems: Sequence[str], most: int = 20) -> list[str]:
    """The first ``most`` problems, and one line that counts the others."""
    rest = len(problems) - most
    return [*problems[:most], *([f"… and {rest} more"] if rest > 0 else [])]

"""The two ways in which somebody else's input can be wrong.

A mistake of the user ends the command with exit status 2 and says what, where and the mend. A medium that cannot be decoded does
not: its item is refused, counted and put in quarantine, and only too many of them stop a run.
"""

from collections.abc import Sequence


class UserError(Exception):
    """A mistake that the user can mend; the command prints its lines and exits with status 2.

    Args:
        lines: one clear line for each mistake found: what, where, and the mend.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines: Sequence[str] = lines


class MediaError(Exception):
    """A text, picture or sound that cannot be decoded; the message is the reason that the quarantine table shows."""


def capped(problems: Sequence[str], most: int = 20) -> list[str]:
    """The first ``most`` problems, and one line that counts the others."""
    rest = len(problems) - most
    return [*problems[:most], *([f"… and {rest} more"] if rest > 0 else [])]

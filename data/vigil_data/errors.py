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


class TooLargeError(MediaError):
    """Error for a file that exceeds a limit, or that is made to expand to far more than it is (a decompression bomb)."""


_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160))}


def one_line(text: str) -> str:
    """Return the text with control characters escaped: file names and ids may hold line breaks and terminal codes."""
    return text.translate(_CONTROLS)


class Problems:
    """Errors of a file's rows: each distinct message once, with its first position and the number of other rows that have it.

    Memory is bounded: messages after the first :data:`MOST_MESSAGES` distinct ones are only counted.
    """

    MOST_MESSAGES = 1000

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._rows: dict[str, int] = {}
        self._uncollected = 0

    def __bool__(self) -> bool:
        return bool(self._first)

    def add(self, position: str, message: str) -> None:
        """Add an error at a position such as ``posts.jsonl:17``."""
        if message in self._rows:
            self._rows[message] += 1
        elif len(self._first) < self.MOST_MESSAGES:
            self._first[message], self._rows[message] = position, 1
        else:
            self._uncollected += 1

    def stop(self, position: str, message: str) -> None:
        """Add an error after which nothing of the file can be used; a subclass may treat it differently."""
        self.add(position, message)

    def raise_if_any(self, most: int = 20) -> None:
        """Raise the first ``most`` errors, and one line with the number of the others.

        Raises:
            UserError: if any error was added.
        """
        if not self:
            return
        first = list(self._first.items())
        lines = [one_line(f"{place}: {message}{_others(self._rows[message] - 1)}") for message, place in first[:most]]
        rest = len(first) - most + self._uncollected
        raise UserError(*lines, *([f"… and {rest:,} more"] if rest > 0 else []))


def _others(rows: int) -> str:
    return f" (and in {rows:,} more {'row' if rows == 1 else 'rows'})" if rows else ""


def shown(value: object) -> str:
    """Return a value for a message, shortened to 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def capped(problems: Sequence[str], most: int = 20) -> list[str]:
    """Return the first ``most`` problems, and one line with the number of the others."""
    rest = len(problems) - most
    return [*problems[:most], *([f"… and {rest} more"] if rest > 0 else [])]


def percent_hint(given: float) -> str:
    """Return a hint for a percentage that was given where a share of at most 1 is wanted; empty for other numbers.

    Example:
        >>> percent_hint(80.0)
        ' (did you mean 0.8, which is 80 %?)'
    """
    return f" (did you mean {given / 100:.12g}, which is {given:.12g} %?)" if 1 < given <= 100 else ""

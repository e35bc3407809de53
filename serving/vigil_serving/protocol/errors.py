"""Request errors: an HTTP status and one line, which never repeats content of the request."""

from collections.abc import Mapping
from traceback import extract_tb


class RequestError(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        line: what is wrong, where, and how to fix it; one line without content of the request.
        reason: one word for the metrics.
        headers: additional headers of the response.
    """

    def __init__(self, status: int, line: str, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(line)
        self.status, self.line, self.reason, self.headers = status, line, reason, dict(headers or {})


def malformed(line: str) -> RequestError:
    """Return the error for a body that does not match its content type (400)."""
    return RequestError(400, line, "malformed")


def invalid(line: str) -> RequestError:
    """Return the error for a readable body with missing or wrong values (422)."""
    return RequestError(422, line, "invalid")


def too_large(line: str) -> RequestError:
    """Return the error for a request that exceeds a limit (413)."""
    return RequestError(413, line, "too_large")


def busy(line: str) -> RequestError:
    """Return the error for a request that the server has no room for; the client may retry after a second (429)."""
    return RequestError(429, line, "busy", {"Retry-After": "1"})


def unavailable(line: str, reason: str) -> RequestError:
    """Return the error for a server that is loading or stopping (503)."""
    return RequestError(503, line, reason, {"Retry-After": "5"})


def traceback_summary(error: BaseException) -> str:
    """Return the type of an exception and its last four lines of code, without its message."""
    frames = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in extract_tb(error.__traceback__)]
    return f"{type(error).__name__} at {' > '.join(frames[-4:])}"

"""Why a request is not answered with decisions: a status and one line, which never repeats what the request holds."""

from collections.abc import Mapping


class RequestError(Exception):
    """A request that gets an error for an answer.

    Args:
        status: HTTP's status.
        line: what, where and the mend, in one line without content.
        reason: one word for the metrics.
        headers: further headers of the answer.
    """

    def __init__(self, status: int, line: str, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(line)
        self.status, self.line, self.reason, self.headers = status, line, reason, dict(headers or {})


def malformed(line: str) -> RequestError:
    """The body is not of its content type at all."""
    return RequestError(400, line, "malformed")


def invalid(line: str) -> RequestError:
    """The body can be read and does not say what is asked for."""
    return RequestError(422, line, "invalid")


def too_large(line: str) -> RequestError:
    """The request holds more than a limit allows."""
    return RequestError(413, line, "too_large")


def busy(line: str) -> RequestError:
    """The server has enough to do; the client is to come again."""
    return RequestError(429, line, "busy", {"Retry-After": "1"})


def unavailable(line: str, reason: str) -> RequestError:
    """The server is loading or stopping."""
    return RequestError(503, line, reason, {"Retry-After": "5"})

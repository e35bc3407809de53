"""Strict JSON: no duplicate keys, NaN, numbers beyond a float, lone surrogates or unbounded nesting."""

import json
import math
import re
from typing import Any

from vigil_serving.protocol.errors import malformed

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def loads(data: bytes, what: str = "the body") -> Any:
    """Parse JSON.

    Args:
        data: UTF-8.
        what: name of the data in error messages.

    Raises:
        RequestError: 400, if it is not strict JSON; the message gives the place, not the content.
    """
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise malformed(f"{what} is not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise malformed(f"{what} has a lone surrogate, which is not a character") from None
    except RecursionError:
        raise malformed(f"{what} is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise malformed(f"{what} is not JSON at line {error.lineno} column {error.colno}") from None
    except _NotStrictError as error:
        raise malformed(f"{what} {error}") from None
    except ValueError:  # an integer with more digits than Python reads
        raise malformed(f"{what} has a number that is too long") from None
    return value


class _NotStrictError(ValueError):
    """JSON that Python accepts and the standard does not, or that is ambiguous."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _NotStrictError("has the same key twice in one object")
    return made


def _no_constant(_: str) -> None:
    raise _NotStrictError("has NaN or Infinity, which are not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _NotStrictError("has a number beyond the range of a float")
    return value

"""JSON without its traps: no duplicate keys, no NaN, no numbers beyond a float, no lone surrogates, no bottomless nesting."""

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
        what: its name in the message.

    Raises:
        RequestError: 400, if it is not JSON or falls into one of the traps; the message says where, not what is there.
    """
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise malformed(f"{what} is not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise malformed(f"{what} holds half of a surrogate pair, which is no character") from None
    except RecursionError:
        raise malformed(f"{what} is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise malformed(f"{what} is not JSON at line {error.lineno} column {error.colno}") from None
    except _TrapError as error:
        raise malformed(f"{what} {error}") from None
    except ValueError:  # an integer of more digits than Python reads
        raise malformed(f"{what} holds a number that is too long") from None
    return value


class _TrapError(ValueError):
    """What parses as JSON in Python and should not."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _TrapError("holds the same key twice in one object")
    return made


def _no_constant(_: str) -> None:
    raise _TrapError("holds NaN or Infinity, which JSON does not have")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _TrapError("holds a number beyond the range of a float")
    return value

"""Values read out of JSON, each checked: a mistake is one line that says where it is and what is wrong."""

import math
from typing import Any, NoReturn

from vigil_data.errors import UserError


def wrong(where: str, problem: str) -> NoReturn:
    """Refuse what stands at ``where``."""
    raise UserError(f"{where}: {problem}")


def mapping(value: Any, where: str, names: tuple[str, ...] | None = None) -> dict[str, Any]:
    """An object of JSON.

    Args:
        value: what was read.
        where: its place in the file, such as ``calibration.labels.spam``.
        names: the names that it must have, and no others; any if not given.

    Raises:
        UserError: if it is no object, or has other names.
    """
    if not isinstance(value, dict):
        wrong(where, f"must be an object, not {_short(value)}")
    if names is not None and set(value) != set(names):
        missing, extra = sorted(set(names) - set(value)), sorted(set(value) - set(names))
        problems = [f"{what} {', '.join(which)}" for what, which in (("lacks", missing), ("has unknown", extra)) if which]
        wrong(where, "; ".join(problems))
    return value


def items(value: Any, where: str) -> list[Any]:
    """A list of JSON.

    Raises:
        UserError: if it is none.
    """
    return value if isinstance(value, list) else wrong(where, f"must be a list, not {_short(value)}")


def text(value: Any, where: str) -> str:
    """A string.

    Raises:
        UserError: if it is none.
    """
    return value if isinstance(value, str) else wrong(where, f"must be text, not {_short(value)}")


def count(value: Any, where: str) -> int:
    """A whole number of at least 0.

    Raises:
        UserError: if it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        wrong(where, f"must be a count, not {_short(value)}")
    return value


def number(value: Any, where: str, least: float = -math.inf, most: float = math.inf) -> float:
    """A finite number in a range.

    Args:
        value: what was read.
        where: its place in the file.
        least: the smallest that is allowed.
        most: the largest that is allowed.

    Raises:
        UserError: if it is no number, not finite, or outside the range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 1e300:
        wrong(where, f"must be a finite number, not {_short(value)}")
    if not least <= value <= most:
        wrong(where, f"must be {_range(least, most)}, not {_short(value)}")
    return float(value)


def numbers(value: Any, where: str, least: float = -math.inf, most: float = math.inf) -> list[float]:
    """A list of finite numbers in a range; see :func:`number`."""
    return [number(entry, f"{where}.{i}", least, most) for i, entry in enumerate(items(value, where))]


def _range(least: float, most: float) -> str:
    if math.isinf(most):
        return f"at least {least:g}"
    return f"at most {most:g}" if math.isinf(least) else f"in [{least:g}, {most:g}]"


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}…"

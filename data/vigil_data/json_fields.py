"""Checked values from JSON: an error is one line with its position and reason."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, is_dataclass
from dataclasses import fields as dataclass_fields
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, Union, cast, get_args, get_origin, get_type_hints

from vigil_data.errors import UserError


class Range(NamedTuple):
    """Inclusive limits of a number: :func:`structure` checks ``Annotated[float, Range(0, 1)]``."""

    least: float = -math.inf
    most: float = math.inf


class OneOf(NamedTuple):
    """Allowed strings, for types that cannot be a ``Literal``: ``Annotated[str, OneOf(ACTIONS)]``."""

    values: tuple[str, ...]


Count = Annotated[int, Range(0)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]


def wrong(where: str, problem: str) -> NoReturn:
    """Raise the error of a value at ``where``."""
    raise UserError(f"{where}: {problem}")


def mapping(value: Any, where: str, names: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Return a JSON object.

    Args:
        value: the parsed value.
        where: its position in the file, such as ``calibration.labels.spam``.
        names: the names that it must have, and no others (default: any).

    Raises:
        UserError: if it is not an object, or has other names.
    """
    if not isinstance(value, dict):
        wrong(where, f"must be an object, not {_short(value)}")
    if names is not None and set(value) != set(names):
        missing, extra = sorted(set(names) - set(value)), sorted(set(value) - set(names))
        problems = [f"{what} {', '.join(which)}" for what, which in (("lacks", missing), ("has unknown", extra)) if which]
        wrong(where, "; ".join(problems))
    return value


def items(value: Any, where: str) -> list[Any]:
    """Return a JSON list.

    Raises:
        UserError: if it is not a list.
    """
    return value if isinstance(value, list) else wrong(where, f"must be a list, not {_short(value)}")


def text(value: Any, where: str) -> str:
    """Return a string.

    Raises:
        UserError: if it is not a string.
    """
    return value if isinstance(value, str) else wrong(where, f"must be text, not {_short(value)}")


def count(value: Any, where: str) -> int:
    """Return a non-negative integer.

    Raises:
        UserError: if it is not one.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        wrong(where, f"must be a count, not {_short(value)}")
    return value


def number(value: Any, where: str, least: float = -math.inf, most: float = math.inf) -> float:
    """Return a finite number in a range.

    Args:
        value: the parsed value.
        where: its position in the file.
        least: minimum.
        most: maximum.

    Raises:
        UserError: if it is not a number, not finite, or outside the range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 1e300:
        wrong(where, f"must be a finite number, not {_short(value)}")
    if not least <= value <= most:
        wrong(where, f"must be {_range(least, most)}, not {_short(value)}")
    return float(value)


def numbers(value: Any, where: str, least: float = -math.inf, most: float = math.inf) -> list[float]:
    """Return a list of finite numbers in a range; see :func:`number`."""
    return [number(entry, f"{where}.{i}", least, most) for i, entry in enumerate(items(value, where))]


def structure(kind: Any, value: Any, where: str) -> Any:  # noqa: PLR0911 (one for each kind)
    """Build a value of a type from JSON: nested frozen dataclasses, plain values, tuples and mappings.

    Args:
        kind: a dataclass, a ``NamedTuple`` (a list in JSON), ``str``, ``int``, ``float``, ``bool``, ``Any``, a ``Literal``,
            ``tuple[X, ...]``, ``list[X]``, ``Mapping[str, X]``, a union of these, or one of them ``Annotated`` with
            :class:`Range` or :class:`OneOf`. A field of a dataclass that has a default may be absent.
        value: the parsed value.
        where: its position in the file.

    Raises:
        UserError: one line, if the value does not have the type.
    """
    if kind is Any:
        return value
    if is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        optional = {f.name for f in dataclass_fields(kind) if not (f.default is MISSING and f.default_factory is MISSING)}
        given = mapping(value, where)
        names = tuple(hint for hint in hints if hint in given or hint not in optional)
        read = mapping(given, where, names)
        return cast("Any", kind)(**{name: structure(hints[name], read[name], f"{where}.{name}") for name in names})
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return _named_tuple(kind, items(value, where), where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _within(structure(arguments[0], value, where), arguments[1], where)
    if origin is Literal:
        return value if value in arguments else wrong(where, f"must be {' or '.join(map(repr, arguments))}, not {_short(value)}")
    if origin in (tuple, list):
        return origin(structure(arguments[0], entry, f"{where}.{i}") for i, entry in enumerate(items(value, where)))
    if origin in (dict, Mapping):
        return {name: structure(arguments[1], entry, f"{where}.{name}") for name, entry in mapping(value, where).items()}
    if origin in (Union, UnionType):
        return _one_of(arguments, value, where)
    return {str: text, int: _whole, float: number, bool: _yes_or_no}[kind](value, where)


def _named_tuple(kind: Any, values: list[Any], where: str) -> Any:
    hints = get_type_hints(kind, include_extras=True)
    if len(values) != len(hints):
        wrong(where, f"must be a list of {', '.join(hints)}, not of {len(values)} values")
    return kind(*(structure(hint, each, f"{where}.{name}") for (name, hint), each in zip(hints.items(), values, strict=True)))


def _within(value: Any, limit: Range | OneOf, where: str) -> Any:
    if isinstance(limit, OneOf):
        return value if value in limit.values else wrong(where, f"must be one of {', '.join(limit.values)}, not {_short(value)}")
    return value if limit.least <= value <= limit.most else wrong(where, f"must be {_range(*limit)}, not {_short(value)}")


def _one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """Return the value as the first type that accepts it; the last type raises the error if none does."""
    if value is None and type(None) in kinds:
        return None
    *others, last = (kind for kind in kinds if kind is not type(None))
    for kind in others:
        with suppress(UserError):
            return structure(kind, value, where)
    return structure(last, value, where)


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        wrong(where, f"must be a whole number, not {_short(value)}")
    return value


def _yes_or_no(value: Any, where: str) -> bool:
    return value if isinstance(value, bool) else wrong(where, f"must be true or false, not {_short(value)}")


def _range(least: float, most: float) -> str:
    if math.isinf(most):
        return f"at least {least:g}"
    return f"at most {most:g}" if math.isinf(least) else f"in [{least:g}, {most:g}]"


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}…"

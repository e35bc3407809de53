"""Values of a resolved recipe as dotted keys, read fast: a list of a thousand runs parses a thousand of them."""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from vigil_data.errors import UserError

_KEY = re.compile(r"[^\W\d][\w ./@-]*")
_PLAIN_LIST = re.compile(r"\[[\w./-][\w ./-]*(, [\w./-][\w ./-]*)*\]")


def read_values(text: str) -> dict[str, Any]:
    """Return the dotted keys and the values of a ``resolved.yaml``; a list is one value.

    Nested mappings of one key and value a line, as `vigil train` writes them, are read here. The YAML library, which takes some
    hundred times as long, reads what has anything else.

    Raises:
        UserError: if it is not a mapping.
    """
    try:
        found = dict(flatten(json.loads(text))) if text.startswith("{") else _read_lines(text)
    except ValueError:
        found = None
    return _read_yaml(text) if found is None else found


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the dotted keys and values of nested mappings, in their order; an empty mapping is a value."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        found += flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else [(f"{prefix}{key}", value)]
    return found


def _read_lines(text: str) -> dict[str, Any] | None:
    """Return the values of nested mappings of one key and value a line; ``None`` if there is anything else."""
    found: dict[str, Any] = {}
    mappings = [(0, "")]  # indentation of the keys of each open mapping, and its own path with a dot
    opened: str | None = None  # path of a key whose value follows on the next lines
    for line in text.splitlines():
        body = line.lstrip(" ")
        indentation = len(line) - len(body)
        if opened is not None:
            if indentation <= mappings[-1][0]:  # It is null, or a list.
                return None
            mappings.append((indentation, f"{opened}."))
        while indentation < mappings[-1][0]:
            mappings.pop()
        key, colon, value = body.partition(":")
        if indentation != mappings[-1][0] or not colon or not _KEY.fullmatch(key) or (value and value[0] != " "):
            return None
        path, value = mappings[-1][1] + key, value.strip()
        opened = None if value else path
        if value:
            known, found[path] = _scalar(value)
            if not known:
                return None
    return None if opened is not None else found or None


@lru_cache(maxsize=4096)  # Runs share most of their recipes.
def _scalar(text: str) -> tuple[bool, Any]:
    """Return whether the text of a value is read, and the value."""
    first = text[0]
    if first == "'":
        inner = text[1:-1].replace("''", "")
        return text[-1] == "'" and len(text) > 1 and "'" not in inner, text[1:-1].replace("''", "'")
    if _PLAIN_LIST.fullmatch(text):
        words = [_scalar(word) for word in text[1:-1].split(", ")]
        return all(known for known, _ in words), [word for _, word in words]
    if first.isdigit() or first in '-"[{' or text in {"true", "false", "null"}:
        try:
            return True, json.loads(text)
        except ValueError:
            return _flow_collection(text) if first in "[{" else (False, None)
    if text.lower() in {"true", "false", "null"}:
        return False, None
    is_word = first.isalpha() or first == "/" or text.startswith(("./", "../"))
    return is_word and not any(mark in text for mark in (": ", " #")) and not text.endswith(":"), text


def _flow_collection(text: str) -> tuple[bool, Any]:
    """Return whether a list or mapping on one line is read, and its value."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        value = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError):
        return False, None
    return isinstance(value, list) or value == {}, value


def _read_yaml(text: str) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        values = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError) as error:
        raise UserError(f"not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise UserError("not a recipe: it has no keys")
    return dict(flatten(values))

"""Translation of pydantic errors into messages with file, line, key path, what is wrong, and the nearest valid value.

pydantic locates an error by a path in which members of unions are mixed with keys; the specs are walked along that path to remove
them, and to find which keys or kinds are valid.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from vigil_data.errors import percent_hint
from vigil_data.specs import Spec
from vigil_data.yaml_files.yaml_tree import KeyPath, Origin, Tree, describe, key_path, nearest

_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
    "finite_number": "a finite number",
}
"""Expected values, for errors of type."""

_MESSAGES = {
    "greater_than": "must be greater than {gt:.12g}, not {given}",
    "greater_than_equal": "must be at least {ge:.12g}, not {given}",
    "less_than": "must be less than {lt:.12g}, not {given}",
    "less_than_equal": "must be at most {le:.12g}, not {given}",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} entries, not {actual_length}",
    "too_long": "must have at most {max_length} entries, not {actual_length}",
}

_PATTERNS = {
    r"^[a-z][a-z0-9_]*$": "be made of a-z, 0-9 and _ and begin with a letter",
    r"^[a-z0-9][a-z0-9_-]*$": "be made of a-z, 0-9, _ and - and begin with a letter or digit",
}
"""Descriptions of the patterns in specs."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Location of an error.

    Attributes:
        path: the key path, as in the file.
        annotation: type of the value; ``None`` for an unknown key.
        block: the spec that has the key, if any.
        others: specs of another ``kind`` that are allowed in place of the block.
        description: description of the key.
    """

    path: KeyPath = ()
    annotation: Any = None
    block: type[Spec] | None = None
    others: tuple[type[Spec], ...] = ()
    description: str = ""


def translate_errors(error: ValidationError, spec: type[Spec], tree: Tree, file: Origin, complete: bool) -> list[str]:
    """Return one line for each mistake, in the order of files and lines.

    Args:
        error: error of the validation.
        spec: the type that was validated.
        tree: the merged tree.
        file: origin of values that are not written in any file.
        complete: false if a file could not be read; then keys that it might have had are not reported as missing.
    """
    found: dict[tuple[KeyPath, str], str] = {}
    wanted: dict[KeyPath, list[str]] = {}
    for details in error.errors(include_url=False):
        if not complete and details["type"] in ("missing", "value_error", "union_tag_not_found", "too_short"):
            continue
        place = _place(details["loc"], spec)
        path = _written(place.path, tree)
        place = replace(place, path=path)
        node = _node(tree, path)
        if node is not None and (node.unreadable or _too_short_for_its_mistakes(details, node)):
            continue
        if details["type"] in _WANTED:
            # Each member of a union has its own error; the last one names all expected types.
            kinds = _kinds(_specs(place.annotation))
            what = f"a mapping with kind: {_either(kinds)}" if len(kinds) > 1 else _WANTED[details["type"]]
            wanted.setdefault(path, []).append(what)
            hint = _share_hint(details["input"]) if details["type"] == "float_type" else ""
            found[path, "type"] = f"must be {' or '.join(wanted[path])}, not {describe(details['input'])}{hint}"
        elif details["type"] == "value_error":
            for text in str(details["ctx"]["error"]).splitlines():
                path, what = _cross_check(text, place.path, tree)
                found[path, what] = what
        else:
            path, what = _what(details, place, spec)
            found[path, what] = what
    lines = [(_origin(path, tree, file), key_path(path), what) for (path, _), what in found.items()]
    lines.sort(key=lambda line: (line[0].file, line[0].line or 0))
    return [f"{origin}: {what}" if what.startswith(path) else f"{origin}: {path}: {what}" for origin, path, what in lines]


def _too_short_for_its_mistakes(details: ErrorDetails, node: Tree) -> bool:
    """Whether entries are missing only because they are wrong, which other errors say: pydantic counts valid ones."""
    written = len(node.value) if isinstance(node.value, dict | list) else 1
    return details["type"] == "too_short" and written > details["ctx"]["actual_length"]


def _origin(path: KeyPath, tree: Tree, file: Origin) -> Origin:
    """Return where the value, or else the innermost block around it, was written."""
    origin = file
    node: Tree | None = tree
    for part in path:
        node = _child(node, part)
        origin = (node.origin if node else None) or origin
    return origin


def _what(details: ErrorDetails, place: _Place, spec: type[Spec]) -> tuple[KeyPath, str]:
    kind, context = details["type"], details.get("ctx", {})
    if kind == "extra_forbidden":
        return place.path, _unknown_key(place, spec)
    if kind == "missing" and isinstance(place.path[-1], int):
        return place.path[:-1], f"has too few entries: the list ends before entry {place.path[-1] + 1}"
    if kind == "missing":
        return place.path, "is missing" + (f" ({place.description})" if place.description else "")
    if kind == "union_tag_not_found":
        return (*place.path, "kind"), f"is missing: one of {_either(_kinds(_specs(place.annotation)))}"
    if kind == "union_tag_invalid":
        return (*place.path, "kind"), _not_one_of(context["tag"], context["expected_tags"])
    return place.path, _value_mistake(kind, context, details)


def _value_mistake(kind: str, context: Mapping[str, Any], details: ErrorDetails) -> str:
    if kind == "literal_error":
        return _not_one_of(details["input"], context["expected"])
    if kind == "string_pattern_mismatch":
        pattern = context["pattern"]
        return f"must {_PATTERNS.get(pattern, f'match {pattern}')}, not {describe(details['input'])}"
    if kind == "too_short" and context["actual_length"] == 0:
        return "must not be empty"
    if kind in _MESSAGES:
        upper = context.get("lt", context.get("le"))
        hint = percent_hint(details["input"]) if upper == 1 and isinstance(details["input"], int | float) else ""
        return _MESSAGES[kind].format(given=describe(details["input"]), **context) + hint
    return details["msg"]


def _share_hint(given: Any) -> str:
    """Return a hint for a percentage in words, such as ``5 %``; empty for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", given) if isinstance(given, str) else None
    return f" (did you mean {float(match[1]) / 100:.12g}?)" if match else ""


def _not_one_of(given: Any, expected: str) -> str:
    """``expected`` is pydantic's list, each word in quotes."""
    known = re.findall(r"'([^']*)'", expected)
    return f"must be {_either(known)}, not {describe(given)}{nearest(str(given), known)}"


def _cross_check(text: str, path: KeyPath, tree: Tree) -> tuple[KeyPath, str]:
    """Move a validator's message to the key that its first word names, if there is such a key; keys may contain dots."""
    node = _node(tree, path)
    named: KeyPath = ()
    rest = text.split(" ", 1)[0].rstrip(":")
    while node is not None and isinstance(node.value, dict):
        key = max((key for key in node.value if f"{rest}.".startswith(f"{key}.")), key=len, default=None)
        if key is None:
            break
        named, node, rest = (*named, key), node.value[key], rest[len(key) + 1 :]
    if not path:
        return named, text
    return ((*path, *named), text.removeprefix(key_path(named)).lstrip(":").strip()) if named else (path, text)


def _unknown_key(place: _Place, spec: type[Spec]) -> str:
    key = str(place.path[-1])
    known = list(place.block.model_fields) if place.block else []
    hint = nearest(key, known)
    if hint:
        return f"is not a key of {_block_name(place, spec)}{hint}"
    kinds = [kind for other in place.others if key in other.model_fields for kind in _kinds([other])]
    if kinds:
        return f"is not a key of {_block_name(place, spec)}; it is one of kind {_either(kinds)}"
    elsewhere = [path for path in _all_keys(spec, ()) if path.rpartition(".")[2] == key]
    if len(elsewhere) == 1:
        return f"is not a key of {_block_name(place, spec)} (did you mean {elsewhere[0]}?)"
    return f"is not a key of {_block_name(place, spec)}; its keys are {', '.join(known)}"


def _block_name(place: _Place, spec: type[Spec]) -> str:
    kind = _kinds([place.block]) if place.block and place.others else []
    kind_of_file = (spec.model_config.get("title") or spec.__name__).lower()
    name = key_path(place.path[:-1]) or f"{'an' if kind_of_file[0] in 'aeiou' else 'a'} {kind_of_file}"
    return f"{name} of kind {kind[0]}" if kind else name


def _all_keys(spec: type[Spec], path: KeyPath) -> Iterator[str]:
    """Yield the key paths of a spec and of the specs in it, except those that only some kinds of a union have."""
    for name, field in spec.model_fields.items():
        yield key_path((*path, name))
        inner = _specs(field.annotation)
        if len(inner) == 1:
            yield from _all_keys(inner[0], (*path, name))


def _place(location: Sequence[str | int], spec: type[Spec]) -> _Place:
    """Follow pydantic's location from spec to spec; a part that is neither a key nor an index names the member of a union."""
    place = _Place(annotation=spec)
    for part in location:
        specs = _specs(place.annotation)
        if part == "[key]":
            return _Place(place.path, None, place.block)
        if len(specs) > 1:
            chosen = next((s for s in specs if part in _kinds([s])), None)
            if chosen is None:
                return place
            place = _Place(place.path, chosen, place.block, tuple(s for s in specs if s is not chosen))
        elif specs:
            field = specs[0].model_fields.get(str(part))
            annotation, description = (field.annotation, field.description or "") if field else (None, "")
            place = _Place((*place.path, part), annotation, specs[0], place.others, description)
        elif (inner := _inside(place.annotation)) is not None:
            place = _Place((*place.path, part), inner)
        elif place.annotation is not None and get_origin(place.annotation) in (Union, types.UnionType):
            return place
        else:
            place = _Place((*place.path, part))
    return place


def _specs(annotation: Any) -> list[type[Spec]]:
    """Return the specs that an annotation allows."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return [annotation] if issubclass(annotation, Spec) else []
    if get_origin(annotation) is Annotated:
        return _specs(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [spec for member in get_args(annotation) for spec in _specs(member)]
    return []


def _inside(annotation: Any) -> Any:
    """Return the type of a mapping's values or a list's entries; ``None`` for other types."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next((inner for member in get_args(annotation) if (inner := _inside(member)) is not None), None)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _inside(arguments[0])
    if not isinstance(origin, type) or not arguments:
        return None
    if issubclass(origin, Mapping):
        return arguments[1]
    return arguments[0] if issubclass(origin, Sequence) else None


def _kinds(specs: Sequence[type[Spec]]) -> list[str]:
    return [kind for spec in specs if "kind" in spec.model_fields for kind in get_args(spec.model_fields["kind"].annotation)]


def _written(path: KeyPath, tree: Tree) -> KeyPath:
    """Return a path without the places in lists that are written as their only entry, such as ``init_from: runs/a``."""
    node: Tree | None = tree
    written: list[str | int] = []
    for part in path:
        child = _child(node, part)
        if child is None and isinstance(part, int) and node is not None and not isinstance(node.value, list):
            continue
        node = child
        written.append(part)
    return tuple(written)


def _node(tree: Tree, path: KeyPath) -> Tree | None:
    node: Tree | None = tree
    for part in path:
        node = _child(node, part)
    return node


def _child(node: Tree | None, part: str | int) -> Tree | None:
    if node is None:
        return None
    if isinstance(node.value, dict):
        return node.value.get(str(part))
    if isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
        return node.value[part]
    return None


def _either(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"

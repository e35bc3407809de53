"""YAML files as trees that record where each value was written, so that errors have file and line.

YAML 1.2 is read: ``1e-4`` is a number and ``yes`` is text. Aliases work; merge keys (``<<``) and custom tags do not, since
``extends`` replaces the former and nothing needs the latter. Mistakes are collected in a list rather than raised, so that one
check shows them all.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

Scalar = str | int | float | bool | None
KeyPath = tuple[str | int, ...]

_MAX_VALUES = 100_000
"""Aliases of aliases can make a small file enormous; no recipe comes near this."""
_MAX_DEPTH = 50


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was written: ``file`` as the user named it, ``line`` from 1; no line on the command line."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Tree:
    """A value and where it was written; inner nodes hold trees.

    Attributes:
        value: children or a scalar.
        origin: where it was written; ``None`` for defaults.
        unreadable: whether a mistake in the value is reported already; its value is ``None``.
    """

    value: dict[str, Tree] | list[Tree] | Scalar
    origin: Origin | None = None
    unreadable: bool = False

    def plain(self) -> object:
        """Return the value without origins, as dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def walk(self, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Tree]]:
        """Yield every node with its path, parents first."""
        yield path, self
        if isinstance(self.value, dict):
            for key, child in self.value.items():
                yield from child.walk((*path, key))
        elif isinstance(self.value, list):
            for index, child in enumerate(self.value):
                yield from child.walk((*path, index))


def key_path(path: KeyPath) -> str:
    """Format a path as users write it: ``model.encoders.text``, with indices of lists in brackets."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_file(
    path: Path, mistakes: list[str], named_at: str = "", kind: str = "recipe", example: str = "name: my-run"
) -> Tree | None:
    """Read the mapping in a file.

    Args:
        path: the file; shown in messages as it is given here.
        mistakes: one line is appended for each mistake.
        named_at: place that names the file, shown if the file does not exist.
        kind: what the file should be, for messages.
        example: a key and value of such a file, for messages.

    Returns:
        The tree, or ``None`` if the file could not be read as a mapping.
    """
    if not path.is_file():
        mistakes.append(named_at + _not_a_file(path, kind))
        return None
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        mistakes.append(f"{path}: cannot be read: {error.strerror}")
        return None
    except UnicodeDecodeError as error:
        mistakes.append(f"{path}: is not a text file in UTF-8 (byte {error.start}): is it a {kind}?")
        return None
    tree = parse(text, str(path), mistakes)
    if tree is None:
        return None
    if not isinstance(tree.value, dict):
        what = "is empty" if tree.value is None else f"holds {describe(tree.plain())} on top"
        mistakes.append(f"{tree.origin}: {what}; a {kind} is a mapping of keys such as `{example}`")
        return None
    return tree


def _not_a_file(path: Path, kind: str) -> str:
    if path.is_dir():
        return f"{path} is a folder, not a {kind} file"
    if path.exists():
        return f"{path} is not an ordinary file"
    siblings = {p.stem: p for p in path.parent.glob("*.yaml")} if path.parent.is_dir() else {}
    near = difflib.get_close_matches(path.stem, siblings, n=1)
    hint = f" (did you mean {siblings[near[0]]}?)" if near else ""
    return f"there is no file {path}{hint}"


def parse(text: str, file: str, mistakes: list[str], under: KeyPath = ()) -> Tree | None:
    """Parse one YAML document.

    Args:
        text: the document.
        file: how messages name it.
        mistakes: one line is appended for each mistake.
        under: key of a value from the command line, which has no lines.

    Returns:
        The tree, or ``None`` if the text is not YAML.
    """
    reader = _Reader(file, mistakes, not under)
    yaml = YAML(typ="safe", pure=True)
    yaml.composer.warn_double_anchors = False
    try:
        node = yaml.compose(StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reader.report(mark.line + 1 if mark is not None else 1, under, _syntax(error, text))
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        reader.report(line, under, f"holds the control character {chr(error.character)!r}, which YAML forbids")
    except RecursionError:
        mistakes.append(f"{file}: is nested too deeply")
    else:
        return reader.tree(node, under, node.start_mark.line + 1) if node is not None else Tree(None, reader.origin(1))
    return None


def _syntax(error: MarkedYAMLError, text: str) -> str:
    mark, lines = error.problem_mark, text.splitlines()
    line = lines[mark.line] if mark is not None and mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return "is indented with a tab; YAML wants spaces"
    if "expected a single document" in (error.context or ""):
        return "a second document begins here (---); a file is one document"
    return f"is not YAML: {(error.problem or 'cannot be parsed').strip()}" + (f", {error.context}" if error.context else "")


@dataclass
class _Reader:
    """Converts composed nodes to trees.

    Attributes:
        file: how messages name the document.
        mistakes: mistakes found so far.
        has_lines: whether line numbers are shown.
        open: ids of the nodes being read, to detect a node that contains itself.
        count: values read so far.
    """

    file: str
    mistakes: list[str]
    has_lines: bool
    open: tuple[int, ...] = ()
    count: int = 0

    def origin(self, line: int) -> Origin:
        return Origin(self.file, line if self.has_lines else None)

    def report(self, line: int, path: KeyPath, what: str) -> None:
        self.mistakes.append(f"{self.origin(line)}: {key_path(path)}: {what}" if path else f"{self.origin(line)}: {what}")

    def tree(self, node: Node, path: KeyPath, line: int) -> Tree:
        """Return the tree of a node; ``line`` is the line of its key, or its own in a list."""
        self.count += 1
        if id(node) in self.open or self.count > _MAX_VALUES:
            if self.count <= _MAX_VALUES + 1:
                self.report(line, path, "an alias (*name) makes this endless or far too large")
            return Tree(None, self.origin(line), unreadable=True)
        if len(self.open) > _MAX_DEPTH:
            self.report(line, path[:3], "is nested too deeply")
            return Tree(None, self.origin(line), unreadable=True)
        outer, self.open = self.open, (*self.open, id(node))
        unreadable = False
        value: dict[str, Tree] | list[Tree] | Scalar = None
        try:
            if isinstance(node, ScalarNode):
                value = _scalar(_tag(node), node.value)
            elif isinstance(node, SequenceNode) and _tag(node) == "!!seq":
                value = [self.tree(child, (*path, index), child.start_mark.line + 1) for index, child in enumerate(node.value)]
            elif isinstance(node, MappingNode) and _tag(node) == "!!map":
                value = self.mapping(node, path)
            else:
                raise ValueError(f"the tag {_tag(node)} means nothing here; remove it")
        except ValueError as error:
            self.report(line, path, str(error))
            unreadable = True
        self.open = outer
        return Tree(value, self.origin(line), unreadable)

    def mapping(self, node: Node, path: KeyPath) -> dict[str, Tree]:
        """Return a mapping's children; invalid keys are reported and left out."""
        children: dict[str, Tree] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if _tag(key_node) == "!!merge":
                self.report(
                    line, path, "merge keys (<<) are not supported; put what is shared into a file and name it in `extends`"
                )
                continue
            try:
                key = _key(key_node)
            except ValueError as error:
                self.report(line, path, str(error))
                continue
            if key in children:
                first = f", first on line {lines[key]}" if self.has_lines else ""
                self.report(line, (*path, key), f"is written twice{first}; keep one")
                continue
            lines[key] = line
            children[key] = self.tree(value_node, (*path, key), line)
        return children


def _tag(node: Node) -> str:
    return str(node.tag).replace("tag:yaml.org,2002:", "!!")


def _key(node: Node) -> str:
    if not isinstance(node, ScalarNode) or _tag(node) != "!!str":
        shown = node.value if isinstance(node, ScalarNode) else "a list or mapping"
        raise ValueError(f"keys are text, not {shown}; put it in quotes")
    return str(_scalar("!!str", node.value))


def _scalar(tag: str, text: str) -> Scalar:
    """Return the value of a scalar; dates stay text."""
    if tag == "!!null":
        return None
    if tag == "!!bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if tag in ("!!int", "!!float"):
        try:
            return _integer(text) if tag == "!!int" else _float(text)
        except ValueError as error:
            raise ValueError(f"{describe(text)} cannot be read as a number") from error
    if tag not in ("!!str", "!!timestamp"):
        raise ValueError(f"the tag {tag} means nothing here; remove it")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("holds half a surrogate pair, which is no character")
    return text


def _integer(text: str) -> int:
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    base = {"0x": 16, "0o": 8, "0b": 2}.get(digits[:2].lower(), 10)
    return sign * int(digits.replace("_", ""), base)


def _float(text: str) -> float:
    sign, digits = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    if digits.lower() in (".inf", ".nan"):
        return sign * (math.inf if digits.lower() == ".inf" else math.nan)
    return sign * float(digits.replace("_", ""))


def describe(value: object) -> str:
    """Describe a value briefly, for a message."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "…")
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def nearest(word: str, known: Sequence[str]) -> str:
    """Return ``(did you mean x?)`` with the known word nearest to ``word``, or an empty string."""
    near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""

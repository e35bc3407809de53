"""Resolution of recipes: files and overrides are merged into one validated value.

Order: defaults, then the files of ``extends`` as listed (each after its own ``extends``), then the file, then
``key.path=value`` overrides. Mappings merge, anything else replaces, and a block whose ``kind`` changes is replaced completely.
``null`` sets null. All mistakes are reported at once, each with file and line.

Example:
    >>> resolved = resolve_recipe("recipes/demo.yaml", ["optimizer.lr=1e-4"])
    >>> resolved.recipe.optimizer.lr
    0.0001
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.representer import RoundTripRepresenter

from vigil_data.filesystem import StrPath
from vigil_data.yaml_files.read_spec import COMMAND_LINE, defaults, merge, plain_tree, validate_tree
from vigil_data.yaml_files.yaml_tree import KeyPath, Origin, Tree, parse, read_file
from vigil_training.recipe.recipe import Recipe


class _Representer(RoundTripRepresenter):
    """Writes null as ``null`` rather than as an empty value, and quotes texts that ruamel.yaml does not read back otherwise."""

    def represent_text(self, text: str) -> Any:
        """Represent a string: in quotes where it has one of Unicode's line breaks, or begins like a key (``?0``, ``:0``)."""
        style = '"' if re.search(r"^[?:]|[\x85\u2028\u2029]", text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Representer.add_representer(type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null"))
_Representer.add_representer(str, _Representer.represent_text)


@dataclass(frozen=True, slots=True)
class ResolvedRecipe:
    """A recipe and where its values come from.

    Attributes:
        recipe: the validated recipe.
        values: the same as plain data, with every default.
        origins: where the value of each key path was written; a path that is absent kept its default.
    """

    recipe: Recipe
    values: dict[str, Any]
    origins: dict[KeyPath, Origin]


def resolve_recipe(recipe: StrPath | Recipe, overrides: Sequence[str] = (), source: str = COMMAND_LINE) -> ResolvedRecipe:
    """Merge and validate a recipe.

    Args:
        recipe: the recipe file, or a recipe whose values the overrides replace.
        overrides: ``key.path=value``, the value in YAML; the later of two for the same key counts.
        source: where the overrides come from, for messages.

    Raises:
        UserError: one line ``FILE:LINE: key.path: what`` for each mistake found.
    """
    mistakes: list[str] = []
    if isinstance(recipe, Recipe):
        origin, complete, base = Origin(f"recipe {recipe.name}"), True, plain_tree(recipe.model_dump(mode="json"))
    else:
        origin = Origin(str(recipe), 1)
        complete, base = _with_extends(Path(recipe), mistakes, (), "")
    tree = merge(merge(defaults(Recipe), base), _override_tree(overrides, source, mistakes))
    return _resolved(tree, origin, complete, mistakes)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe without ``extends``, such as the ``resolved.yaml`` of a run.

    Raises:
        UserError: one line for each mistake found.
    """
    mistakes: list[str] = []
    tree = read_file(path, mistakes)
    origin = Origin(str(path), 1)
    return _resolved(merge(defaults(Recipe), tree or Tree({}, origin)), origin, tree is not None, mistakes).recipe


def dump_recipe(resolved: ResolvedRecipe, origins: bool = False) -> str:
    """Return a recipe as YAML with every default, which :func:`read_recipe` reads back as an equal recipe.

    Args:
        resolved: from :func:`resolve_recipe`.
        origins: append the file and line of each value as a comment.
    """
    yaml = YAML()
    yaml.width = 2**16
    yaml.Representer = _Representer
    stream = StringIO()
    yaml.dump(_to_yaml(resolved.values, (), resolved.origins if origins else None), stream)
    return stream.getvalue()


def _with_extends(path: Path, mistakes: list[str], above: tuple[Path, ...], named_at: str) -> tuple[bool, Tree]:
    """Return whether a file and all that it extends could be read, and the merged tree."""
    nothing = Tree({}, Origin(str(path), 1))
    if path.resolve() in above:
        cycle = " -> ".join(_shown(p) for p in (*above[above.index(path.resolve()) :], path.resolve()))
        mistakes.append(f"{named_at}forms a cycle: {cycle}")
        return False, nothing
    tree = read_file(path, mistakes, named_at)
    if tree is None or not isinstance(tree.value, dict):
        return False, nothing
    own = dict(tree.value)
    extends = own.pop("extends", None)
    complete, below = True, Tree({})
    for name in _extended(extends, mistakes):
        file = Path(os.path.normpath(path.parent / str(name.value)))
        readable, tree_of_name = _with_extends(file, mistakes, (*above, path.resolve()), f"{name.origin}: extends: ")
        complete, below = complete and readable, merge(below, tree_of_name)
    return complete, merge(below, Tree(own, tree.origin))


def _extended(extends: Tree | None, mistakes: list[str]) -> list[Tree]:
    if extends is None or extends.value is None:
        return []
    names = extends.value if isinstance(extends.value, list) else [extends]
    wrong = [name for name in names if not isinstance(name.value, str) or not name.value]
    mistakes += [f"{name.origin}: extends: must be a list of files, relative to this one" for name in wrong]
    return [name for name in names if name not in wrong]


def _shown(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _override_tree(overrides: Sequence[str], source: str, mistakes: list[str]) -> Tree:
    origin = Origin(source)
    tree: dict[str, Tree] = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            mistakes.append(f"{source}: {override!r} is not of the form key.path=value")
            continue
        if keys[0] == "extends":
            mistakes.append(f"{source}: extends: belongs in a file; give a recipe that extends both")
            continue
        value = parse(text, source, mistakes, under=tuple(keys))
        if value is None:
            continue
        block = tree
        for key in keys[:-1]:
            child = block.get(key)
            inner = dict(child.value) if child and isinstance(child.value, dict) else {}
            block[key] = Tree(inner, origin)
            block = inner
        block[keys[-1]] = value
    return Tree(tree)


def _resolved(tree: Tree, file: Origin, complete: bool, mistakes: list[str]) -> ResolvedRecipe:
    recipe = validate_tree(Recipe, tree, file, complete, mistakes)
    origins = {path: node.origin for path, node in tree.walk() if node.origin is not None}
    return ResolvedRecipe(recipe, recipe.model_dump(mode="json"), origins)


def _to_yaml(values: Mapping[str, Any], path: KeyPath, origins: Mapping[KeyPath, Origin] | None) -> CommentedMap:
    """Return the values as ruamel writes them: lists on one line and, with ``origins``, a comment after each value."""
    written = CommentedMap()
    for key, value in values.items():
        here = (*path, key)
        if isinstance(value, dict) and value:
            written[key] = _to_yaml(value, here, origins)
            continue
        written[key] = _to_flow(value)
        if origins is not None:
            written.yaml_add_eol_comment(str(origins.get(here, "default")), key, column=0)
    return written


def _to_flow(value: Any) -> Any:
    """Return a value as ruamel.yaml writes it on one line."""
    if isinstance(value, list):
        sequence = CommentedSeq(map(_to_flow, value))
        sequence.fa.set_flow_style()
        return sequence
    if isinstance(value, dict):
        return {_to_flow(key): _to_flow(child) for key, child in value.items()}
    return value

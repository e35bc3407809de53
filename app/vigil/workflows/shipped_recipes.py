"""Recipes that come with Vigil: where they are, their one-line descriptions, and copies of them with the files that they name."""

import os
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath, write_failure

_PACKAGE = Path(__file__).resolve().parent.parent
RECIPES = next(folder for folder in (_PACKAGE / "recipes", _PACKAGE.parent.parent / "recipes") if folder.is_dir())
"""The folder of shipped recipes: a part of the installed package, or the checkout's."""

_SCHEMA = re.compile(r"^# yaml-language-server: \$schema=(\S+)$", re.MULTILINE)
_NAMED = re.compile(r"(?<![\w/.-])recipes/([\w/-]+\.yaml)")
"""A shipped file as the comments of another one name it: ``recipes/policies/demo.yaml``."""


class ShippedRecipe(NamedTuple):
    """Name of a shipped recipe, and the first sentence of its file."""

    name: str
    description: str


def shipped_recipes() -> list[ShippedRecipe]:
    """Return the shipped recipes by name."""
    files = sorted(RECIPES.glob("*.yaml"), key=lambda file: file.stem)
    return [ShippedRecipe(file.stem, _first_sentence(file.read_text("utf-8"))) for file in files]


def taxonomy_file(name: str, folder: Path) -> Path:
    """Return the file of a taxonomy.

    Args:
        name: name of a shipped one, or the path of its file.
        folder: what the path is relative to.

    Raises:
        UserError: if there is none.
    """
    from vigil_data.yaml_files.yaml_tree import nearest

    shipped = {file.stem: file for file in sorted((RECIPES / "taxonomies").glob("*.yaml"))}
    if name in shipped:
        return shipped[name]
    if name.endswith((".yaml", ".yml")):
        return folder / name
    raise UserError(
        f"no taxonomy {name} comes with Vigil{nearest(name, list(shipped))}; there are {', '.join(shipped)}, or name a file"
    )


def copy_recipe(name: str, to: StrPath) -> list[Path]:
    """Copy a recipe with all files that it extends or that its comments name, so that it is valid in its new place.

    Comments that name ``recipes/…`` name the new folder in the copies, so that their commands can be run as they are.

    Args:
        name: name of a shipped recipe.
        to: the folder; the files keep their places relative to each other.

    Returns:
        The files, the recipe first; those that are there already and equal are kept.

    Raises:
        UserError: if there is no such recipe, ``to`` is a file, or a file exists with other content; nothing is written then.
    """
    known = [recipe.name for recipe in shipped_recipes()]
    if name not in known:
        raise UserError(f"no recipe {name!r} comes with Vigil; there are {', '.join(known)}")
    to = Path(to)
    if to.exists() and not to.is_dir():
        raise UserError(f"{to}: is not a folder; name another one: vigil recipe copy {name} DIR")
    copies = {to / part: _renamed((RECIPES / part).read_text("utf-8"), to) for part in _parts(f"{name}.yaml")}
    different = [
        file for file, text in copies.items() if file.exists() and not (file.is_file() and file.read_text("utf-8") == text)
    ]
    if different:
        raise UserError(
            *(f"{file}: exists with other content, and is not overwritten" for file in different),
            f"nothing is copied; name another folder: vigil recipe copy {name} DIR",
        )
    for file, text in copies.items():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        except OSError as error:
            raise write_failure(file, error) from error
    return list(copies)


def _first_sentence(text: str) -> str:
    """Return the first sentence of the comment at the head of a recipe."""
    lines = [line.removeprefix("#").strip() for line in _SCHEMA.sub("", text).strip().splitlines()]
    paragraph = " ".join(lines[: lines.index("")] if "" in lines else lines)
    return re.split(r"\.(?:\s|$)", paragraph, maxsplit=1)[0]


def _parts(first: str) -> list[str]:
    """Return a shipped file and all that it names, directly or not, as paths relative to :data:`RECIPES`."""
    from vigil_data.yaml_files.yaml_tree import read_file

    found = [first]
    for part in found:  # grows
        if not part.endswith(".yaml"):
            continue
        text, place = (RECIPES / part).read_text("utf-8"), Path(part).parent
        tree = read_file(RECIPES / part, [])
        values: Any = {} if tree is None else tree.plain()
        extends = values.get("extends", [])
        relative = [*([extends] if isinstance(extends, str) else extends), *_SCHEMA.findall(text)]
        named = [os.path.normpath(place / name) for name in relative] + _NAMED.findall(text)
        found += [name for name in dict.fromkeys(named) if name not in found]
    return found


def _renamed(text: str, to: Path) -> str:
    return _NAMED.sub(lambda named: shlex.quote(str(to / named[1])), text)

"""Site profiles, read as recipes are: all mistakes at once, each with file and line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vigil_data.errors import UserError
from vigil_slurm.specs import Site
from vigil_training.document import Origin, Tree, read_file
from vigil_training.mistakes import reword
from vigil_training.resolve import COMMAND_LINE, defaults, merge


def read_site(path: Path | None, values: Mapping[str, Any]) -> Site:
    """Read a site profile.

    Args:
        path: the profile; ``None`` for the defaults.
        values: by key, from the command line; they replace the profile's, and ``None`` does not.

    Raises:
        UserError: one line for each mistake found.
    """
    mistakes: list[str] = []
    origin = Origin(COMMAND_LINE if path is None else str(path), None if path is None else 1)
    tree = None if path is None else read_file(path, mistakes, kind="site profile", example="partition: gpu")
    asked = Tree({key: Tree(value, Origin(COMMAND_LINE)) for key, value in values.items() if value is not None})
    whole = merge(merge(defaults(Site), tree or Tree({}, origin)), asked)
    try:
        site = Site.model_validate_json(json.dumps(whole.plain()), strict=True)
    except ValidationError as error:
        mistakes += reword(error, Site, whole, origin, tree is not None or path is None)
    if mistakes:
        raise UserError(*dict.fromkeys(mistakes))
    return site

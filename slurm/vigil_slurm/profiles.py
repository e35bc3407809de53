"""Where site profiles are: ``./slurm/sites``, then the user's own ``~/.config/vigil/sites``, or any path."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path

from vigil_data.errors import UserError

VARIABLE = "VIGIL_SITE"


def folders(environment: Mapping[str, str] | None = None) -> list[Path]:
    """Folders in which a profile is looked for by its name; the first that has it counts."""
    environment = os.environ if environment is None else environment
    home = Path(environment.get("XDG_CONFIG_HOME") or Path(environment.get("HOME") or "~").expanduser() / ".config")
    return [Path("slurm") / "sites", home / "vigil" / "sites"]


def find(name: str | None, environment: Mapping[str, str] | None = None) -> Path | None:
    """The file of a profile.

    Args:
        name: a name (``dev-cluster``) or a path (anything with a slash or ending in .yaml); the variable VIGIL_SITE if not given.
        environment: the variables; those of this process if not given.

    Returns:
        The path, which a reader may still find absent if it was given as one; ``None`` where nothing names a profile.

    Raises:
        UserError: if no folder has a profile of that name.
    """
    environment = os.environ if environment is None else environment
    asked = name or environment.get(VARIABLE)
    if not asked:
        return None
    if "/" in asked or asked.endswith((".yaml", ".yml")):
        return Path(asked)
    searched = folders(environment)
    for folder in searched:
        if (path := folder / f"{asked}.yaml").is_file():
            return path
    known = sorted({path.stem for folder in searched for path in folder.glob("*.yaml")})
    near = difflib.get_close_matches(asked, known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else f"; there are {', '.join(known)}" if known else ""
    by = "--profile" if name else VARIABLE
    raise UserError(f"{by} {asked}: no {asked}.yaml in {' or '.join(map(str, searched))}{hint}")

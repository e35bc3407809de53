"""YAML files that come with the package, or the user's own in their place: sources of datasets, formats of guards."""

from pathlib import Path

from vigil_data.errors import UserError
from vigil_data.yaml_files.yaml_tree import nearest


def shipped_names(folder: Path) -> list[str]:
    """Return the names of the files that come with the package, in order."""
    return sorted(file.stem for file in folder.glob("*.yaml"))


def named_file(name: str, folder: Path, kind: str, command: str) -> Path:
    """Return a shipped file by its name, or the user's own by its path.

    Args:
        name: a name, or the path of a YAML file.
        folder: folder of the shipped files.
        kind: what the files are, for the message.
        command: command that lists them, for the message.

    Raises:
        UserError: if there is none, with the nearest name.
    """
    if name in (shipped := shipped_names(folder)):
        return folder / f"{name}.yaml"
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name)
    raise UserError(f"there is no {kind} {name}{nearest(name, shipped)}; `{command}` lists them")

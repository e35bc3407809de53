"""Where the command `vigil` begins: it says which extra to install if a package is absent."""

import re
import sys
from importlib.metadata import requires

DISTRIBUTIONS = {
    "PIL": "pillow",
    "google": "protobuf",
    "lance": "pylance",
    "multipart": "python-multipart",
    "ruamel": "ruamel-yaml",
}
"""Modules whose distributions are called otherwise."""


EXTRAS = ("runtime", "command", "score", "serve", "sign", "ray", "triton", "train", "deepspeed", "demo")
"""The extras of pyproject.toml, those that bring less first."""


def main() -> None:
    """Run :func:`vigil.cli.main`; exit with 2 if it needs a package that is not installed."""
    try:
        from vigil.cli import main as run

        run()
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name.startswith("vigil_"):
            raise
        sys.stderr.write(f"error: the package {name} is not installed; {mend(name)}\n")
        sys.exit(2)


def mend(module: str) -> str:
    """Say which of Vigil's extras brings a module."""
    wanted = _normal(DISTRIBUTIONS.get(module, module))
    found = (re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", line) for line in requires("vigil") or ())
    bringing = {match[2] for match in found if match and _normal(match[1]) == wanted}
    return next((f"`pip install 'vigil[{extra}]'` brings it" for extra in EXTRAS if extra in bringing), f"install {wanted}")


def _normal(name: str) -> str:
    """A distribution's name in the one form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()

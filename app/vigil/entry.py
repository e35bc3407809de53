"""Console script `vigil`; if a package is missing it names the extra to install."""

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
"""Modules whose distribution has another name."""

EXTRAS = (
    "runtime",
    "command",
    "score",
    "card",
    "serve",
    "sign",
    "ray",
    "triton",
    "dedup",
    "pdq",
    "monitor",
    "train",
    "deepspeed",
    "lora",
    "qlora",
    "gguf",
    "sweep",
    "tensorboard",
    "mlflow",
    "openlineage",
    "demo",
    "language",
    "ocr",
    "transcribe",
)
"""The extras of pyproject.toml; of several that install a package, the first is named."""


def main() -> None:
    """Run :func:`vigil.cli.main`; exit with status 2 if a package is not installed."""
    try:
        from vigil.cli import main as run

        run()
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name.startswith("vigil"):
            raise
        sys.stderr.write(f"error: the package {name} is not installed; {install_hint(name)}\n")
        sys.exit(2)


def install_hint(module: str) -> str:
    """Return which of Vigil's extras installs a module."""
    distribution = normalized(DISTRIBUTIONS.get(module, module))
    installing = {extra for extra, requirement in requirements() if requirement_name(requirement) == distribution}
    extra = next((extra for extra in EXTRAS if extra in installing), None)
    return f"install {distribution}" if extra is None else f"install it with `pip install 'vigil[{extra}]'`"


def requirements() -> list[tuple[str, str]]:
    """Return the requirements in Vigil's metadata, each with its extra; the extra is empty for those of the core."""
    found = []
    for line in requires("vigil") or ():
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        found.append((extra[1] if extra else "", requirement.strip()))
    return found


def requirement_name(requirement: str) -> str:
    """Return the normalized name of the distribution in a requirement such as ``numpy>=2.0``."""
    return normalized(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])


def normalized(name: str) -> str:
    """Return a distribution's name in its normal form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()

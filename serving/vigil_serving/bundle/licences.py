"""Licences of weights: from the recipe, their model card, or the metadata of the package that contains them."""

from collections.abc import Mapping
from importlib.metadata import Distribution, distribution, packages_distributions
from pathlib import Path

from vigil_data.decode.gguf_file import read_gguf
from vigil_data.errors import UserError
from vigil_data.sources import resolve
from vigil_data.specs import Hub, Package, Source
from vigil_serving.bundle.metadata import Licence

NOT_STATED = "not stated"

_CLASSIFIERS = {
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: MIT License": "MIT",
    "License :: OSI Approved :: BSD License": "BSD",
    "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "License :: OSI Approved :: ISC License (ISCL)": "ISC",
}
"""SPDX names of common package classifiers; the last part of any other classifier is used as it is."""


def licences(sources: Mapping[str, Source], stated: Mapping[str, str]) -> dict[str, Licence]:
    """Find the licence of each source.

    Args:
        sources: ``text``, ``image``, ``audio`` or ``tokenizer`` to its source.
        stated: licences that the recipe states, which take precedence.
    """
    return {
        name: Licence(stated[name], f"{_describe(source)}; stated in the recipe") if name in stated else licence(source)
        for name, source in sources.items()
    }


def licence(source: Source) -> Licence:
    """Find the licence of one source.

    A model card next to the weights, then a GGUF file's own metadata, take precedence over the metadata of the package around
    them, which may cover only its code.
    """
    name = _describe(source)
    try:
        path = _cached_card(source) if isinstance(source, Hub) else resolve(source)
    except UserError:
        path = None
    if path is not None and (found := _from_card(path)):
        return Licence(found, f"{name}; its model card")
    if path is not None and path.suffix == ".gguf" and (found := read_gguf(path).metadata.get("general.license")):
        return Licence(str(found), f"{name}; its metadata")
    if isinstance(source, Package) and (stated := _from_package(source.package)):
        return Licence(stated[0], f"{name}; {stated[1]}")
    return Licence(NOT_STATED, name)


def hub_name(found: Mapping[str, Licence]) -> str | None:
    """Return the name for the hub's ``license:`` field: the common licence, ``other`` if they differ, or ``None`` without any."""
    names = {one.name.lower() for one in found.values()}
    if not names:
        return None
    return names.pop() if len(names) == 1 and NOT_STATED not in names else "other"


def _from_package(package: str) -> tuple[str, str] | None:
    """Return the licence in a package's metadata, and where it was found."""
    top = package.split(".", maxsplit=1)[0]
    for project in packages_distributions().get(top, ()):
        metadata = distribution(project)
        if name := _from_metadata(metadata):
            return name, f"metadata of {project} {metadata.version}"
    return None


def _from_metadata(package: Distribution) -> str | None:
    fields = package.metadata
    if expression := fields.get_all("License-Expression"):
        return str(expression[0])
    for classifier in map(str, fields.get_all("Classifier") or ()):
        if classifier.startswith("License :: ") and classifier.count("::") > 1:
            return _CLASSIFIERS.get(classifier, classifier.rsplit(" :: ", 1)[-1])
    text = "".join(fields.get_all("License") or ()).strip()
    # Some packages put the full licence text there, whose first line is not a name.
    return text if text and "\n" not in text and text.lower() != "unknown" else None


def _cached_card(source: Hub) -> Path | None:
    """Return the model card of a repository if the hub's cache has it; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.id, "README.md", revision=source.revision)
    return Path(found) if isinstance(found, str) else None


def _from_card(path: Path) -> str | None:
    """Return the licence in the front matter of a model card: ``path`` itself, or the README.md in or next to it."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    card = path if path.name == "README.md" else (path if path.is_dir() else path.parent) / "README.md"
    try:
        text = card.read_text(encoding="utf-8")
        head = YAML(typ="safe", pure=True).load(text.split("---", 2)[1]) if text.startswith("---") else None
    except (OSError, UnicodeDecodeError, YAMLError, IndexError):
        return None
    stated = head.get("license_name") or head.get("license") if isinstance(head, Mapping) else None
    return str(stated) if stated else None


def _describe(source: Source) -> str:
    if isinstance(source, Hub):
        return f"hub {source.id}" + (f" at {source.revision}" if source.revision else "")
    return f"package {source.package}" if isinstance(source, Package) else source.path

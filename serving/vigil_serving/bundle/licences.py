"""Under which terms weights came: as the recipe says, or as their model card, or the package that carries them, states it."""

from collections.abc import Mapping
from importlib.metadata import Distribution, distribution, packages_distributions
from pathlib import Path

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
"""What the classifiers of packages mean, for those in use; another one is taken as it ends."""


def licences(sources: Mapping[str, Source], stated: Mapping[str, str]) -> dict[str, Licence]:
    """Find the licence of each source.

    Args:
        sources: ``text``, ``image``, ``audio`` or ``tokenizer`` to where it came from.
        stated: what the recipe says of them, which goes before all else.
    """
    return {
        name: Licence(stated[name], f"{_describe(source)}; stated in the recipe") if name in stated else licence(source)
        for name, source in sources.items()
    }


def licence(source: Source) -> Licence:
    """Find the licence of one source.

    A model card that lies with the weights goes before the metadata of the package around them, which may be of its code alone.

    Args:
        source: a package, a file or folder, or a repository of the hub.
    """
    name = _describe(source)
    try:
        path = _cached(source) if isinstance(source, Hub) else resolve(source)
    except UserError:
        path = None
    if path is not None and (found := _of_card(path)):
        return Licence(found, f"{name}; its model card")
    if isinstance(source, Package) and (stated := _of_package(source.package)):
        return Licence(stated[0], f"{name}; {stated[1]}")
    return Licence(NOT_STATED, name)


def hub_name(found: Mapping[str, Licence]) -> str | None:
    """The one name that the hub's ``license:`` can hold for several: theirs if they agree, else ``other``.

    Args:
        found: licences by part.

    Returns:
        ``None`` without any.
    """
    names = {one.name.lower() for one in found.values()}
    if not names:
        return None
    return names.pop() if len(names) == 1 and NOT_STATED not in names else "other"


def _of_package(package: str) -> tuple[str, str] | None:
    """The licence that a package's metadata state, and where."""
    top = package.split(".", maxsplit=1)[0]
    for project in packages_distributions().get(top, ()):
        metadata = distribution(project)
        if name := _stated(metadata):
            return name, f"metadata of {project} {metadata.version}"
    return None


def _stated(package: Distribution) -> str | None:
    fields = package.metadata
    if expression := fields.get_all("License-Expression"):
        return str(expression[0])
    for classifier in map(str, fields.get_all("Classifier") or ()):
        if classifier.startswith("License :: ") and classifier.count("::") > 1:
            return _CLASSIFIERS.get(classifier, classifier.rsplit(" :: ", 1)[-1])
    text = "".join(fields.get_all("License") or ()).strip()
    # Some packages put the whole text there, whose first line is no name.
    return text if text and "\n" not in text and text.lower() != "unknown" else None


def _cached(source: Hub) -> Path | None:
    """The model card of a repository, if the hub's cache has it; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.id, "README.md", revision=source.revision)
    return Path(found) if isinstance(found, str) else None


def _of_card(path: Path) -> str | None:
    """The licence in the head of a model card: ``path`` itself, or the README.md in or beside it."""
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

"""Collections: a YAML file that lists sources with their paths, for an import of all of them at once; and files of taxonomies.

Example:
    >>> reader = open_source("esc10", Path("ESC-10"), split_by=["fold=1:test"])
    >>> write("datasets/sounds", reader.items(), on_leak="skip")
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from vigil_data.errors import UserError
from vigil_data.importers.source_reader import SourceReader, SplitBy
from vigil_data.importers.source_schema import SourceName, load_source, shipped_sources, source_file
from vigil_data.quality.origin import Origin
from vigil_data.specs import Spec
from vigil_data.taxonomy import Taxonomy
from vigil_data.yaml_files.read_spec import read_spec
from vigil_data.yaml_files.yaml_tree import read_file


class Part(Spec):
    """One source of a collection."""

    source: str = Field(description="name of a shipped source, or path of a YAML file relative to the collection's")
    path: str = Field(description="its file or folder, relative to the root that the import is given")
    split_by: tuple[str, ...] = Field((), description="splits by values of columns, each COLUMN=VALUE:SPLIT")


class Collection(Spec):
    """Sources that are imported together."""

    name: SourceName = Field(description="name of the collection")
    taxonomy: str | None = Field(None, description="name of a shipped taxonomy, or path of its file relative to the collection's")
    sources: tuple[Part, ...] = Field(min_length=1, description="the sources, in order")


class TaxonomyFile(Spec):
    """File with the key ``taxonomy``, which recipes extend."""

    taxonomy: Taxonomy = Field(description="the taxonomy")


def load_taxonomy(file: Path) -> Taxonomy:
    """Read the file of a taxonomy.

    Raises:
        UserError: one line for each mistake found.
    """
    return read_spec(TaxonomyFile, file, "taxonomy", "taxonomy: {name: my-taxonomy}").taxonomy


def is_collection(file: Path) -> bool:
    """Whether a YAML file lists sources, rather than being one."""
    tree = read_file(file, []) if file.is_file() else None
    return tree is not None and isinstance(tree.value, dict) and "sources" in tree.value


def split_rule(text: str) -> SplitBy:
    """Read a rule such as ``fold=1:test``.

    Raises:
        UserError: if it has another form.
    """
    condition, colon, split = text.rpartition(":")
    column, equals, value = condition.partition("=")
    if not (colon and equals and column and value and split):
        raise UserError(f"--split-by {text}: must be COLUMN=VALUE:SPLIT, such as fold=1:test")
    return SplitBy(column, value, split)


def open_source(name: str, path: Path, *, taxonomy: Path | None = None, split_by: Sequence[str] = ()) -> SourceReader:
    """Return the reader of a source.

    Args:
        name: a shipped source, or the YAML file of one.
        path: its files.
        taxonomy: file of the taxonomy whose labels the targets are of (default: the source's own labels).
        split_by: rules for :func:`split_rule`.

    Raises:
        UserError: one line for each mistake found.
    """
    source = load_source(name)
    options: dict[str, Any] = {"split_by": list(split_by)} if split_by else {}
    if taxonomy is not None:
        options["taxonomy"] = str(taxonomy.absolute())
    importer = name if name in shipped_sources() else str(Path(name).absolute())
    return SourceReader(
        source,
        path,
        taxonomy=None if taxonomy is None else load_taxonomy(taxonomy),
        split_by=[split_rule(text) for text in split_by],
        origin=Origin(importer, str(path.absolute()), options),
    )


def open_import(
    name: str,
    path: Path,
    find_taxonomy: Callable[[str, Path], Path],
    *,
    taxonomy: str | None = None,
    split_by: Sequence[str] = (),
) -> list[SourceReader]:
    """Return the readers of a source, or of all sources of a collection.

    Args:
        name: a shipped source, or the YAML file of a source or a collection.
        path: the files of the source, or the folder that the paths of the collection are relative to.
        find_taxonomy: finds the file of a taxonomy by its name, or by its path relative to a folder.
        taxonomy: the taxonomy whose labels the targets are of (default: the source's own labels, or the collection's choice).
        split_by: rules for :func:`split_rule`.

    Raises:
        UserError: one line for each mistake found.
    """
    file = source_file(name)
    chosen = find_taxonomy(taxonomy, Path()) if taxonomy else None
    if not is_collection(file):
        return [open_source(name, path, taxonomy=chosen, split_by=split_by)]
    if split_by:
        raise UserError(f"--split-by: {file} is a collection; write split_by at one of its sources")
    collection = read_spec(Collection, file, "collection", "sources: [{source: davidson, path: davidson}]")
    if not path.is_dir():
        raise UserError(f"{path}: not a folder; name the one that the paths of {file} are relative to")
    if chosen is None and collection.taxonomy is not None:
        chosen = find_taxonomy(collection.taxonomy, file.parent)
    readers: list[SourceReader] = []
    problems: list[str] = []
    for number, part in enumerate(collection.sources):
        own = part.source.endswith((".yaml", ".yml"))
        try:
            readers.append(
                open_source(
                    str(file.parent / part.source) if own else part.source,
                    path / part.path,
                    taxonomy=chosen,
                    split_by=part.split_by,
                )
            )
        except UserError as error:
            problems += (f"{file}: sources[{number}]: {line}" for line in error.lines)
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return readers

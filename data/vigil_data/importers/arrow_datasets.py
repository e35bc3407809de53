"""Datasets that the library ``datasets`` has written, read without it: folders of ``save_to_disk``, and names of classes.

A folder has ``state.json`` with the names of its Arrow files (streams of record batches), and ``dataset_info.json`` with the
features. A folder of several splits has ``dataset_dict.json`` and one such folder for each. Values of a ``ClassLabel`` are stored
as numbers; they are read as the names of the classes, and -1 as unknown.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vigil_data.errors import Problems, UserError
from vigil_data.filesystem import why_not_a_file
from vigil_data.importers.bounded_lines import Limits
from vigil_data.importers.table_reader import TableRow, fields_fit

Classes = Mapping[str, list[str]]
"""Column to the names of its classes."""

_BATCH_ROWS, _BATCH_BYTES = 1024, 16_000_000
"""Rows that are Python objects at once."""


def is_arrow_dataset(folder: Path) -> bool:
    """Whether ``save_to_disk`` has written the folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def dataset_splits(folder: Path) -> dict[str, Path]:
    """Return the splits of a folder: name to the split's own folder; a dataset without splits is one with the folder's name.

    Raises:
        UserError: if a file of it is missing or damaged.
    """
    if (folder / "state.json").is_file():
        return {folder.name: folder}
    names = _json(folder / "dataset_dict.json").get("splits")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{folder / 'dataset_dict.json'}: has no list of splits; write the dataset again with save_to_disk")
    return {name: _inside(folder, name) for name in names}


def read_arrow(folder: Path, problems: Problems, limits: Limits) -> Iterator[TableRow]:
    """Yield the rows of one split.

    Args:
        folder: with ``state.json``.
        problems: collects the errors of rows that are above the limits, which are skipped.
        limits: what is held in memory at once.

    Raises:
        UserError: if a file is missing or damaged.
    """
    import pyarrow as pa

    state = _json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise UserError(f"{folder}: has a separate list of rows; write it again after flatten_indices()")
    info = folder / "dataset_info.json"
    classes = _classes(_json(info).get("features") or {}) if info.is_file() else {}
    number = 0
    for entry in state.get("_data_files") or []:
        file = _inside(folder, str(entry.get("filename") if isinstance(entry, dict) else entry))
        if why := why_not_a_file(file):
            raise UserError(f"{file} {why}")
        try:
            with pa.memory_map(str(file)) as mapped, pa.ipc.open_stream(mapped) as stream:
                for batch in stream:
                    step = max(1, min(_BATCH_ROWS, _BATCH_BYTES * batch.num_rows // max(1, batch.nbytes)))
                    for start in range(0, batch.num_rows, step):
                        for values in batch.slice(start, step).to_pylist():
                            number += 1
                            position = f"{file}: row {number}"
                            if fields_fit(values, position, problems, limits):
                                yield TableRow(position, with_class_names(values, classes), str(file))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: not an Arrow stream, or damaged ({str(error).splitlines()[0]})") from None


def parquet_classes(file: Path) -> Classes:
    """Return the names of classes that the library has stored in a Parquet file; empty if it has none, or is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        stored = (pq.read_schema(file).metadata or {}).get(b"huggingface")
        return _classes(json.loads(stored)["info"]["features"]) if stored else {}
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return {}


def with_class_names(values: dict[str, Any], classes: Classes) -> dict[str, Any]:
    """Return a row with the names of classes in place of their numbers."""
    return {**values, **{name: _named(values.get(name), names) for name, names in classes.items()}} if classes else values


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(entry, names) for entry in value]
    if isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None if value == -1 else value
    return value


def _classes(features: Any) -> dict[str, list[str]]:
    """Return the columns of classes, or of lists of classes."""
    found = {}
    for name, feature in features.items() if isinstance(features, dict) else ():
        inner = feature[0] if isinstance(feature, list) and len(feature) == 1 else feature
        if isinstance(inner, dict) and inner.get("_type") in ("Sequence", "List", "LargeList"):
            inner = inner.get("feature")
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" and isinstance(inner.get("names"), list):
            found[name] = [str(one) for one in inner["names"]]
    return found


def _json(file: Path) -> dict[str, Any]:
    if why := why_not_a_file(file):
        raise UserError(f"{file} {why}; write the dataset again with save_to_disk")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{file}: not JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: must be a JSON object")
    return value


def _inside(folder: Path, name: str) -> Path:
    """Return the path of a name that a file of the dataset states, which must not lead out of the folder."""
    if not name or name != Path(name).name or name == "..":
        raise UserError(f"{folder}: names the file {name!r}, which is not in this folder")
    return folder / name

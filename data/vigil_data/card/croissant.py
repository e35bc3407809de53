"""Croissant 1.1 metadata (https://docs.mlcommons.org/croissant), and the Parquet copy whose records its readers can load.

Readers of Croissant know Parquet, not Lance. Without a copy the metadata describe the columns of ``items.lance`` and its files;
with one, ``mlcroissant`` loads every record of the copy, which has all columns but images, audio and sizes.
"""

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vigil_data.card.facts import DatasetFacts
from vigil_data.card.statements import NOT_STATED, Statements
from vigil_data.dataset.dataset import Dataset
from vigil_data.dataset.table_schema import DIGESTS, FACTS, PAYLOADS, TARGET
from vigil_data.errors import UserError
from vigil_data.filesystem import replaced_file, sha256_file
from vigil_data.progress import ProgressCallback

CONFORMS_TO = "http://mlcommons.org/croissant/1.1"
EXPORT_FOLDER = "parquet"
"""Folder of the Parquet files, next to the metadata."""

MAX_EXPORTED_SPLITS = 20
"""Splits that have a file of their own; a dataset with more is exported into one file."""

NO_LICENCE = "NOASSERTION"
"""SPDX's term where no licence is stated."""

_LANCE, _PARQUET, _ITEMS = "lance-table", "parquet-files", "items"
_NOT_EXPORTED = frozenset({"image", "audio", "image_roles", "audio_roles", *FACTS.names, *DIGESTS.names})
_FILE_NAME = re.compile(r"[A-Za-z0-9][\w-]{0,63}", re.ASCII)
_TYPES = (
    (pa.types.is_boolean, "sc:Boolean"),
    (pa.types.is_integer, "sc:Integer"),
    (pa.types.is_floating, "sc:Float"),
    (pa.types.is_timestamp, "sc:DateTime"),
    (pa.types.is_string, "sc:Text"),
    (pa.types.is_large_string, "sc:Text"),
)
_MEDIA = {"image": "sc:ImageObject", "audio": "sc:AudioObject"}
_RESPONSIBLE_AI = {
    "Intended use": "rai:dataUseCases",
    "Limits": "rai:dataLimitations",
    "Collection": "rai:dataCollection",
    "Annotators": "rai:dataAnnotationProtocol",
    "Personal information": "rai:personalSensitiveInformation",
    "Maintenance": "rai:dataReleaseMaintenancePlan",
}
_TERMS = """
arrayShape citeAs column equivalentProperty extract field fileObject fileProperty fileSet format includes isArray isLiveDataset
jsonPath key md5 parentField path recordSet references regex repeated replace samplingRate separator source subField transform
"""
_CONTEXT: Mapping[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **{name: f"cr:{name}" for name in _TERMS.split()},
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
}
"""The context that the specification recommends (section "Namespaces")."""


def croissant(
    dataset: Dataset, facts: DatasetFacts, statements: Statements, folder: Path, files: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the metadata as JSON-LD.

    Args:
        dataset: the dataset.
        facts: its facts.
        statements: what people state about it.
        folder: folder of the metadata, for the checksums of the exported files.
        files: split to its Parquet file relative to ``folder``, if the dataset was exported.
    """
    licences = [statements.license] if statements.license else sorted({of.licence for of in facts.sources.values() if of.licence})
    citations = [statements.citation, *(of.citation for of in facts.sources.values())]
    title = statements.title or facts.name
    metadata: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": title,
        "description": statements.description or f"{facts.items:,} items, labels: {', '.join(facts.labels) or 'none'}.",
        "version": f"{facts.version}.0.0",
        "datePublished": facts.written[:10],
        "license": [licence for licence in licences if licence] or [NO_LICENCE],
        "citeAs": "\n".join(text for text in citations if text) or f"{title}, version {facts.version}, {facts.written[:10]}",
        "keywords": ["content safety", *facts.labels],
        "inLanguage": list(facts.languages.items),
        "creator": [{"@type": "sc:Organization", "name": name} for name in statements.creators],
        "url": statements.url,
        **{
            key: statement
            for heading, key in _RESPONSIBLE_AI.items()
            if (statement := statements.sections()[heading]) != NOT_STATED
        },
        "distribution": _distribution(facts, folder, files),
        "recordSet": _record_sets(dataset.schema, files),
    }
    return {key: value for key, value in metadata.items() if value not in ("", [])}


def _distribution(facts: DatasetFacts, folder: Path, files: Mapping[str, str] | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {
            "@type": "cr:FileSet",
            "@id": _LANCE,
            "name": "items.lance",
            "description": f"Lance table of all items, version {facts.version}, in the dataset's folder {facts.name}.",
            "encodingFormat": "https://lance.org/format/",
            "includes": "items.lance/*",
        }
    ]
    if files is not None:
        found.append(
            {
                "@type": "cr:FileSet",
                "@id": _PARQUET,
                "name": EXPORT_FOLDER,
                "description": "All columns but images, audio and sizes, one file for each split.",
                "encodingFormat": "application/x-parquet",
                "includes": f"{EXPORT_FOLDER}/*.parquet",
            }
        )
    for split, name in (files or {}).items():
        found.append(
            {
                "@type": "cr:FileObject",
                "@id": quote(name),
                "name": Path(name).name,
                "description": f"Items of the split {split}." if split else "Items without a split.",
                "contentUrl": name,
                "contentSize": f"{(folder / name).stat().st_size} B",
                "encodingFormat": "application/x-parquet",
                "sha256": sha256_file(folder / name),
            }
        )
    return found


def _record_sets(schema: pa.Schema, files: Mapping[str, str] | None) -> list[dict[str, Any]]:
    exported = files is not None
    fields = []
    for field in schema:
        repeated = pa.types.is_list(field.type)
        type_ = _MEDIA.get(field.name) or _data_type(field.type.value_type if repeated else field.type)
        if type_ is None or field.name in DIGESTS.names or (exported and field.name in _NOT_EXPORTED):
            continue
        column = exported_name(field.name) if exported else field.name
        fields.append(
            {
                "@type": "cr:Field",
                "@id": f"{_ITEMS}/{quote(column, safe='')}",
                "name": column,
                "description": _description(field.name),
                "dataType": type_,
                **({"isArray": True, "arrayShape": "-1"} if repeated else {}),
                "source": {"fileSet": {"@id": _PARQUET if exported else _LANCE}, "extract": {"column": column}},
            }
        )
    return [
        {
            "@type": "cr:RecordSet",
            "@id": _ITEMS,
            "name": _ITEMS,
            "description": "One record for each item.",
            "key": {"@id": f"{_ITEMS}/id"},
            "field": fields,
        }
    ]


def _data_type(type_: pa.DataType) -> str | None:
    return next((name for is_type, name in _TYPES if is_type(type_)), None)


def _description(column: str) -> str:
    if column.startswith(TARGET):
        return f"Target of the label {column.removeprefix(TARGET)} from 0 to 1; null is unknown, which is not negative."
    if column in PAYLOADS.names:
        return f"The item's {column} parts, in order."
    return {
        "id": "Identifier, unique in the dataset.",
        "split": "Split of the item.",
        "source": "Source of the item.",
        "characters": "Number of characters of its texts.",
        "images": "Number of its images.",
        "seconds": "Seconds of its audio.",
    }.get(column, f"Column {column}.")


def exported_name(column: str) -> str:
    """Return the name of a column in the Parquet copy: targets are named as in manifests, ``target.LABEL``."""
    return f"target.{column.removeprefix(TARGET)}" if column.startswith(TARGET) else column


def export_parquet(
    dataset: Dataset, splits: Iterable[str], folder: Path, progress: ProgressCallback | None = None
) -> dict[str, str]:
    """Write all columns but images, audio and sizes into one Parquet file for each split, as a stream.

    Args:
        dataset: the dataset.
        splits: its splits; the items without one are under the empty name.
        folder: folder in which :data:`EXPORT_FOLDER` is made.
        progress: called with the number of items written.

    Returns:
        Split to its file relative to ``folder``; one entry, the empty name, if there are more than
        :data:`MAX_EXPORTED_SPLITS` splits.

    Raises:
        UserError: if the folder holds Parquet files that this export would not replace.
    """
    named = list(splits)
    files = {"": f"{EXPORT_FOLDER}/items.parquet"}
    if len(named) <= MAX_EXPORTED_SPLITS and any(named):
        files = {split: f"{EXPORT_FOLDER}/{_file_name(split, place)}.parquet" for place, split in enumerate(named)}
    to = folder / EXPORT_FOLDER
    to.mkdir(parents=True, exist_ok=True)
    if stale := sorted({file.name for file in to.glob("*.parquet")} - {Path(name).name for name in files.values()}):
        raise UserError(f"{to} has other Parquet files, which readers would take for a part of the dataset; delete {stale[0]}")
    columns = [name for name in dataset.schema.names if name not in _NOT_EXPORTED]
    schema = pa.schema([dataset.schema.field(name).with_name(exported_name(name)) for name in columns])
    written = 0
    with ExitStack() as stack:
        writers = {}
        for split, name in files.items():
            target = stack.enter_context(replaced_file(folder / name))
            writers[split] = stack.enter_context(pq.ParquetWriter(target, schema, compression="zstd"))
        for batch in dataset.batches(columns, 4096):
            table = pa.Table.from_batches([batch]).rename_columns(schema.names)
            split_B = pc.fill_null(table["split"], "")
            for split, writer in writers.items():
                rows = table if len(writers) == 1 else table.filter(pc.equal(split_B, split))
                if rows.num_rows:
                    writer.write_table(rows)
            written += batch.num_rows
            if progress is not None:
                progress("exporting", written, len(dataset))
    return files


def _file_name(split: str, place: int) -> str:
    return split if _FILE_NAME.fullmatch(split) and not split.startswith("split-") else f"split-{place}"


def croissant_json(metadata: Mapping[str, Any]) -> str:
    """Return the metadata as text; nothing in it can end an HTML element that it is embedded in."""
    return json.dumps(metadata, indent=2, ensure_ascii=False).replace("<", "\\u003c") + "\n"

"""Digests by which the lineage identifies what lies on disk."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vigil_data.filesystem import StrPath, sha256_file, sha256_json
from vigil_data.lineage.events import Key, Node

if TYPE_CHECKING:
    import lance

ITEMS = "items.lance"
RUN_ID = "run_id"


def digest_of_table(table: "lance.LanceDataset") -> str:
    """Return the SHA-256 of a version of a Lance table: its schema, and the names of its data and deletion files.

    Lance gives each file a random name and never changes it, so that a copy of the table has the same digest, and no data are
    read.
    """
    schema: list[Any] = [[field.id(), field.name(), str(field)] for field in table.lance_schema.fields()]
    fragments: list[Any] = []
    for fragment in table.get_fragments():
        deleted = fragment.metadata.deletion_file
        fragments.append(
            [
                fragment.fragment_id,
                [[file.path, list(file.fields)] for file in fragment.metadata.files],
                None if deleted is None else [deleted.read_version, deleted.id, deleted.num_deleted_rows],
            ]
        )
    return sha256_json([schema, fragments])


def dataset_node(path: str, table: "lance.LanceDataset", **facts: Any) -> Node:
    """Return the node of a version of a dataset.

    Args:
        path: the dataset's folder, absolute, or its address.
        table: the version of its items.
        facts: what else is known, in addition to its version and number of rows.
    """
    counted = {"version": table.version, "rows": table.count_rows()}
    return Node("dataset", digest_of_table(table), path.rstrip("/").rpartition("/")[2], path, {**counted, **facts})


def identify(path: StrPath) -> Key | None:
    """Return kind and digest of a file or folder; ``None`` if only the ledger knows what it is, or nothing does."""
    path = Path(path)
    if (path / RUN_ID).is_file():
        return "run", (path / RUN_ID).read_text(encoding="utf-8").strip()
    if (path / ITEMS).is_dir():
        import lance

        return "dataset", digest_of_table(lance.dataset(str(path / ITEMS)))
    manifest = path / "manifest.json"
    for kind, file, fits in (
        ("bundle", manifest, (path / "bundle.json").is_file()),
        ("checkpoint", manifest, path.name.startswith("step-")),
        ("evaluation", path / "metrics.json", True),
        ("evaluation", path, path.name == "metrics.json"),
        ("policy", path, path.suffix == ".json"),
        ("queue", path, path.suffix == ".jsonl" and path.with_suffix(".record.json").is_file()),
    ):
        if fits and file.is_file():
            return kind, sha256_file(file)
    return None

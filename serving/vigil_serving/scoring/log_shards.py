"""A job's decisions in a traffic log: one file for each day on which shards were scored, each decision exactly once."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vigil_data.dataset.dataset import Dataset
from vigil_data.errors import UserError
from vigil_data.filesystem import recover_file, replaced_file
from vigil_serving.bundle.load import Bundle
from vigil_serving.scoring.job_spec import JobSpec, SelectedRows
from vigil_serving.scoring.output_schema import policy_title
from vigil_serving.scoring.shards import Shards, resume_hint
from vigil_serving.traffic.folder import day_folder, days_of, make_log_folder
from vigil_serving.traffic.lineage import record_traffic
from vigil_serving.traffic.options import EXPOSURE, ITEM_COLUMNS, Origin, TrafficLogOptions
from vigil_serving.traffic.records import exposures, texts
from vigil_serving.traffic.schema import TIME, traffic_schema


def check_log(options: TrafficLogOptions, dataset: Dataset) -> None:
    """Check that a job can be logged.

    Raises:
        UserError: if the folder cannot be written, or the dataset lacks a column.
    """
    for name in options.columns:
        if name not in dataset.columns:
            raise UserError(f"--log-column {name}: {dataset.path} has no such column; it has {', '.join(dataset.columns)}")
    make_log_folder(Path(options.folder))


def log_shards(shards: Shards[JobSpec], rows: SelectedRows, bundle: Bundle, options: TrafficLogOptions, name: str) -> None:
    """Write the decisions of all shards into a traffic log; a file of the same name, of an interrupted attempt, is replaced.

    The time of a decision is that of its shard, to which it was written.

    Args:
        shards: checked shards.
        rows: the rows that were scored.
        bundle: the bundle that decided.
        options: folder and further columns.
        name: name of the files, one for each day.

    Raises:
        Failure: if a file cannot be written.
    """
    folder = Path(options.folder)
    times = [datetime.fromtimestamp(shards.file(number).stat().st_mtime, UTC) for number in range(shards.job.shards)]
    numbers_by_day: dict[date, list[int]] = {}
    for number, time in enumerate(times):
        numbers_by_day.setdefault(time.date(), []).append(number)
    schema = traffic_schema(bundle.labels, options.columns)
    for day, numbers in numbers_by_day.items():
        to = day_folder(folder, day) / name
        with resume_hint(to):
            make_log_folder(to.parent)
            recover_file(to)
            with replaced_file(to) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
                for number in numbers:
                    writer.write_table(_table(shards, number, rows, bundle=bundle, schema=schema, time=times[number]))
    for day, path in days_of(folder):
        if day not in numbers_by_day:
            (path / name).unlink(missing_ok=True)
    record_traffic(folder, Origin("score", "live", bundle.digest, policy_title(bundle), tuple(bundle.labels)))


def _table(
    shards: Shards[JobSpec], number: int, rows: SelectedRows, *, bundle: Bundle, schema: pa.Schema, time: datetime
) -> pa.Table:
    """Return the decisions of a shard with the columns of the log."""
    scored, dataset = shards.read(number), rows.dataset
    constant = {"time": pa.scalar(time, TIME), "source": "score", "role": "live", "bundle": bundle.digest}
    constant["policy"] = pa.scalar(policy_title(bundle), pa.string())
    further = [name for name in schema.names if name in dataset.columns and _of_item(name, schema)]
    items = dataset.table(further, rows.numbers[shards.job.span(number)]) if further else None
    arrays: list[Any] = []
    for field in schema:
        name = field.name
        if name in constant:
            array = pa.repeat(constant[name], scored.num_rows)
        elif name == "labels":
            array = _labels(scored, bundle)
        elif name in scored.column_names and not _of_item(name, schema):
            array = scored[name].cast(field.type)
        elif items is not None and name in further:
            array = (exposures if name == EXPOSURE else texts)(items[name].to_pylist())
        else:
            array = pa.nulls(scored.num_rows, field.type)
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=schema)


def _of_item(name: str, schema: pa.Schema) -> bool:
    """Whether a column of the log is one of the item."""
    return name in ITEM_COLUMNS or name == EXPOSURE or schema.names.index(name) > schema.names.index("error")


def _labels(scored: pa.Table, bundle: Bundle) -> pa.ListArray:
    """Return the decided labels; null for items that could not be decoded."""
    known_N = scored["error"].is_null().to_numpy()
    decided_NL = np.stack([pc.fill_null(scored[f"decision.{label}"], False).to_numpy() for label in bundle.labels], axis=1)
    offsets = np.concatenate([[0], np.cumsum(decided_NL.sum(axis=1))]).astype(np.int32)
    names = pa.array(list(bundle.labels), pa.string()).take(pa.array(np.nonzero(decided_NL)[1]))
    return pa.ListArray.from_arrays(pa.array(offsets), names, mask=pa.array(~known_N))

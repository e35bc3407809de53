"""Exposures (views) of items from a table of their own, joined to decisions by id."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vigil_data.errors import UserError, shown
from vigil_data.filesystem import StrPath


class Exposures:
    """Views by id, in 16 bytes each: ids are kept as 64-bit hashes, like those of :class:`vigil_data.dataset.id_set.IdSet`.

    Args:
        path: Parquet or CSV file with the columns ``id`` and ``exposure``.

    Raises:
        UserError: if a column is missing, an id occurs twice, or an exposure is negative or not finite.
    """

    def __init__(self, path: StrPath) -> None:
        table = _read(Path(path))
        exposures_N = table["exposure"].to_numpy()
        invalid = np.flatnonzero(~(np.isfinite(exposures_N) & (exposures_N >= 0)))
        if len(invalid):
            row = int(invalid[0])
            name = shown(table["id"][row].as_py())
            raise UserError(f"{path}: exposure {exposures_N[row]:g} of {name}: must be a finite number of at least 0")
        hashes_N = _hashes(table["id"])
        order_N = np.argsort(hashes_N, kind="stable")
        self._hashes, self._exposures = hashes_N[order_N], exposures_N[order_N]
        twice = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        if len(twice):
            name = shown(table["id"][int(order_N[twice[0]])].as_py())
            raise UserError(f"{path}: {name} has two rows; give each id once")

    def of(self, ids: pa.Array) -> pa.Array:
        """Return the exposure of each id, float64; null for ids that the table lacks."""
        if len(self._hashes) == 0:
            return pa.nulls(len(ids), pa.float64())
        hashes_N = _hashes(ids)
        places_N = np.minimum(np.searchsorted(self._hashes, hashes_N), len(self._hashes) - 1)
        return pa.array(self._exposures[places_N], pa.float64(), mask=self._hashes[places_N] != hashes_N)


def _read(path: Path) -> pa.Table:
    try:
        if path.suffix == ".csv":
            table = pa.csv.read_csv(path, convert_options=pa.csv.ConvertOptions(column_types={"id": pa.string()}))
        else:
            table = pq.read_table(path)
        return table.select(["id", "exposure"]).cast(pa.schema([("id", pa.string()), ("exposure", pa.float64())]))
    except KeyError:
        raise UserError(f"{path}: needs the columns id and exposure; it has {', '.join(table.column_names)}") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: not a table of id and exposure: {str(error).splitlines()[0]}") from None


def _hashes(ids: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    return np.fromiter(map(hash, ids.to_pylist()), np.int64, len(ids))

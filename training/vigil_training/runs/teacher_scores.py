"""A teacher's probabilities: found and checked without torch, read from a table, and looked up by item."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from vigil_data.errors import UserError
from vigil_training.recipe.recipe import Recipe
from vigil_training.runs.run import Run

if TYPE_CHECKING:
    import pyarrow as pa

    from vigil_training.recipe.specs import FillUnknown

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Teacher:
    """A model whose scores are learned.

    Attributes:
        kind: what the path names.
        path: the path.
        labels: labels that both models have, in the student's order.
    """

    kind: Literal["run", "bundle", "table"]
    path: Path
    labels: tuple[str, ...]


class TeacherScores:
    """Probabilities of items, by id.

    Args:
        ids: ids of K items.
        probabilities_KL: calibrated, NaN where the teacher has none, in the order of ``labels``.
        labels: the student's labels.
        fill: which unknown targets are filled.
    """

    def __init__(
        self, ids: Sequence[str], probabilities_KL: Floats, labels: Sequence[str], fill: "FillUnknown | None" = None
    ) -> None:
        self._row = {id_: row for row, id_ in enumerate(ids)}
        # The last row is that of unknown ids.
        self._probabilities_KL = np.vstack([probabilities_KL, np.full((1, len(labels)), np.nan)]).astype(np.float32)
        self._confidence_L = None if fill is None else np.array([fill.labels.get(label, fill.confidence) for label in labels])

    def probabilities(self, ids: Sequence[str]) -> Floats:
        """Return the probabilities of items, ``[N, L]``; NaN for an item without any."""
        rows = [self._row.get(id_, -1) for id_ in ids]
        return self._probabilities_KL[rows]

    def fill(self, ids: Sequence[str], targets_NL: NDArray[Any]) -> Floats:
        """Return the targets of items with unknown ones filled; see :func:`vigil_modeling.losses.distillation.fill_unknown`."""
        from vigil_modeling.losses.distillation import fill_unknown

        targets_NL = targets_NL.astype(np.float32)
        return targets_NL if self._confidence_L is None else fill_unknown(targets_NL, self.probabilities(ids), self._confidence_L)


def find_teacher(recipe: Recipe) -> Teacher:
    """Return the teacher that ``distillation.teacher`` names.

    Raises:
        UserError: if it is no finished run, no bundle and no table of scores, or has none of the recipe's labels.
    """
    spec = recipe.distillation
    assert spec is not None
    path, where = Path(spec.teacher), "distillation.teacher:"
    kind: Literal["run", "bundle", "table"]
    if path.is_file():
        kind, has = "table", table_labels(path)
    elif (path / "bundle.json").is_file():
        from vigil_serving.bundle.load import load_bundle

        kind, has = "bundle", load_bundle(path, check_hashes=False).labels
    elif (path / "resolved.yaml").is_file():
        run = Run(path)
        if not run.finished:
            raise UserError(f"{where} {path}: the run has not finished, so it is not calibrated; finish it with `vigil train`")
        kind, has = "run", run.recipe.taxonomy.labels
    else:
        what = "is neither a run, nor a bundle, nor a table" if path.exists() else "does not exist"
        raise UserError(f"{where} {path} {what}; name a run, a bundle, or a Parquet or CSV file with id and probability.LABEL")
    if spec.calibrate and kind != "table":
        raise UserError(f"distillation.calibrate: {path} is a {kind}, which has its own calibration; leave this out")
    labels = tuple(label for label in recipe.taxonomy.labels if label in has)
    if not labels:
        raise UserError(
            f"{where} {path} has none of the labels {', '.join(recipe.taxonomy.labels)}; it has {', '.join(has) or 'none'}"
        )
    return Teacher(kind, path, labels)


def find_teacher_problems(recipe: Recipe) -> Iterator[str]:
    """Yield what is wrong with a recipe's teacher; each line starts with its key."""
    if recipe.distillation is not None:
        try:
            find_teacher(recipe)
        except UserError as error:
            yield from error.lines


def table_labels(path: Path) -> tuple[str, ...]:
    """Return the labels of a table of scores, from its columns alone.

    Raises:
        UserError: if it cannot be read or has no column ``id``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from vigil_evaluation.predictions import prediction_labels

    where = f"distillation.teacher: {path}"
    try:
        if path.suffix.lower() == ".csv":
            with path.open(encoding="utf-8-sig") as file:
                table = pa.table({name.strip().strip('"'): [] for name in file.readline().rstrip("\r\n").split(",")})
        else:
            table = pq.read_schema(path).empty_table()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"distillation.teacher: {path}: not a readable Parquet or CSV file: {str(error).splitlines()[0]}"
        ) from None
    if "id" not in table.column_names:
        raise UserError(f"{where}: has no column id; its columns are {', '.join(table.column_names[:8])}")
    return prediction_labels(table)


def read_scores(path: Path, labels: Sequence[str]) -> tuple[list[str], Floats]:
    """Read a table of scores: ids of K items, and probabilities ``[K, L]``; items with an ``error`` are left out.

    Args:
        path: Parquet, or CSV with a header.
        labels: labels to read.

    Raises:
        UserError: if a probability is missing or outside [0, 1], or an id is missing or repeated.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    from vigil_evaluation.predictions import prediction_arrays, scored_items

    where = f"distillation.teacher: {path}"
    try:
        if path.suffix.lower() == ".csv":
            text = pyarrow.csv.ConvertOptions(column_types={"id": pa.string()}, include_columns=_columns(labels))
            table = pyarrow.csv.read_csv(path, convert_options=text)
        else:
            has = pq.read_schema(path).names
            table = pq.read_table(path, columns=[*_columns(labels), *(["error"] if "error" in has else [])])
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{where}: cannot be read: {str(error).splitlines()[0]}") from None
    table, _ = scored_items(table, where)
    try:
        _, probabilities_KL = prediction_arrays(table, labels)
    except UserError as error:
        raise UserError(*(f"{where}: {line.removeprefix('predictions: ')}" for line in error.lines)) from None
    return [str(id_) for id_ in table.column("id").to_pylist()], probabilities_KL.astype(np.float32)


def scores_table(ids: Sequence[str], labels: Sequence[str], probabilities_KL: Floats, metadata: Mapping[str, str]) -> "pa.Table":
    """Return a table of scores, as :func:`read_scores` reads it."""
    import pyarrow as pa

    columns = {"id": pa.array(ids, pa.string())}
    columns |= {f"probability.{label}": pa.array(probabilities_KL[:, i], pa.float32()) for i, label in enumerate(labels)}
    return pa.table(columns).replace_schema_metadata(dict(metadata))


def in_order_of(labels: Sequence[str], part: Sequence[str], probabilities_KL: Floats) -> Floats:
    """Return probabilities of some labels as those of all, with NaN for the others."""
    full_KL = np.full((len(probabilities_KL), len(labels)), np.nan, np.float32)
    full_KL[:, [list(labels).index(label) for label in part]] = probabilities_KL
    return full_KL


def _columns(labels: Sequence[str]) -> list[str]:
    return ["id", *(f"probability.{label}" for label in labels)]

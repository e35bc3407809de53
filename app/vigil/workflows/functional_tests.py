"""Functional tests: run a model on a suite and write predictions.parquet, suite.json and suite.html."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vigil.workflows.model_source import source_kind
from vigil.workflows.prediction_sources import Predictions, score_rows
from vigil.workflows.suite_datasets import DEMO_ITEMS, SuiteDataset, open_suite
from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath, replaced_file, write_file
from vigil_data.progress import ProgressCallback
from vigil_evaluation.specs import EvaluationSpec

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from vigil_data.dataset.dataset import Dataset
    from vigil_evaluation.suites.results import SuiteColumns, SuiteResults

EMPTY_ITEMS_FACT = "items without any modality of the model"
UNKNOWN_LABELS_FACT = "labels without a known target"
IGNORED_COLUMNS_FACT = "ignored columns"


@dataclass(frozen=True, slots=True)
class SuiteOptions:
    """Settings of a suite run.

    Attributes:
        functionality: column that names the tests (default: that of the evaluation settings).
        targets: columns that name the group an item is about, in addition to ``identity`` and ``target_identity``.
        pair: column that links minimal pairs.
        template: column that names the template an item was made from.
        split: split of a dataset (default: all rows).
        items: number of originals of the demonstration's suite.
        seed: random seed (default: the suite's, or 1 for the demonstration).
        replicates: bootstrap replicates (default: those of the evaluation settings).
        thresholds: label to threshold, for a table of scores (default: 0.5).
        allow_outside: whether the YAML of a suite may name files outside its folder.
    """

    functionality: str | None = None
    targets: tuple[str, ...] = ()
    pair: str = "pair"
    template: str = "template"
    split: str | None = None
    items: int = DEMO_ITEMS
    seed: int | None = None
    replicates: int | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    allow_outside: bool = False


class SuiteRun(NamedTuple):
    """Outcome of a suite run: its folder, the results, and the predictions table."""

    folder: Path
    results: "SuiteResults"
    table: "pa.Table"


def run_suite(
    model: StrPath,
    suite: StrPath,
    *,
    to: StrPath | None = None,
    options: SuiteOptions | None = None,
    progress: ProgressCallback | None = None,
) -> SuiteRun:
    """Run a model on a suite and write predictions.parquet, suite.json and suite.html, each atomically.

    Args:
        model: a run, a bundle, or a Parquet file of scores (``id`` and ``probability.LABEL``) of the suite's items.
        suite: YAML file of a suite, folder of a dataset, or ``demo``.
        to: the folder to write (default: within a run, next to a bundle or file).
        options: settings of the suite run.
        progress: called with (task, done, total).

    Raises:
        UserError: if there is no such model or suite, no label in common, or no column of functionalities.
    """
    from vigil_evaluation.evaluation_data import EvaluationData
    from vigil_evaluation.suites.results import SuiteResults, functional_test_results

    model, options = Path(model), options or SuiteOptions()
    labels, spec = _labels_and_spec(model)
    spec = _with_options(spec, options)

    def common_labels(of_suite: Sequence[str], name: str) -> list[str]:
        if common := [label for label in labels if label in of_suite]:
            return common
        has, wants = ", ".join(labels), ", ".join(of_suite) or "none"
        raise UserError(f"{model} and the suite {name} have no label in common: the model has {has}; the suite {wants}")

    with open_suite(
        os.fspath(suite),
        items=options.items,
        seed=options.seed,
        allow_outside=options.allow_outside,
        check_labels=common_labels,
        progress=progress,
    ) as opened:
        common = common_labels(opened.dataset.labels, opened.name)
        predictions = _predictions(model, opened, spec, options, progress)
        tested, unknown = _tested_labels(predictions.table, common)
        if not tested:
            raise UserError(f"{opened.name}: no target of {', '.join(common)} is known, so there is nothing to test")
        spec = spec.model_copy(update={"slices": (), "crosses": ()})
        predictions = _without_weights(predictions)
        data = EvaluationData.from_table(predictions.table, tested, predictions.thresholds, spec)
        tests = functional_test_results(data, _columns(options))
    if tests is None:
        raise UserError(f"{opened.name}: no scored item has a value in the column {spec.functionality}")
    results = SuiteResults(
        suite=opened.name,
        facts={**predictions.facts, **opened.facts, **({UNKNOWN_LABELS_FACT: ", ".join(unknown)} if unknown else {})},
        descriptions=opened.descriptions,
        thresholds={label: float(predictions.thresholds[label]) for label in tested},
        skipped=[label for label in opened.dataset.labels if label not in labels],
        findings=tests,
    )
    folder = Path(to) if to is not None else _default_folder(model, opened.name)
    _write(results, predictions.table, folder)
    return SuiteRun(folder, results, predictions.table)


def _labels_and_spec(model: Path) -> tuple[tuple[str, ...], EvaluationSpec]:
    if (kind := source_kind(model)) == "table":
        return tuple(_score_labels(model)), EvaluationSpec()
    if kind == "bundle":
        from vigil_serving.bundle.load import load_bundle

        return load_bundle(model, check_hashes=False).labels, EvaluationSpec()
    from vigil_training.runs.run import Run

    run = Run(model)
    run.read_thresholds()
    return run.recipe.taxonomy.labels, run.recipe.evaluation


def _with_options(spec: EvaluationSpec, options: SuiteOptions) -> EvaluationSpec:
    given = {"functionality": options.functionality, "replicates": options.replicates}
    own = {"functionality": spec.functionality or "functionality"}
    return spec.model_copy(update=own | {name: value for name, value in given.items() if value is not None})


def _predictions(
    model: Path, suite: SuiteDataset, spec: EvaluationSpec, options: SuiteOptions, progress: ProgressCallback | None
) -> Predictions:
    """Predict the items that belong to a functionality."""
    _check_columns(suite, spec, options)
    rows = suite.dataset.rows(options.split, f"`{spec.functionality}` IS NOT NULL")
    if not len(rows):
        raise UserError(f"{suite.name}: no item has a value in the column {spec.functionality}")
    wanted = [*spec.columns, *options.targets, options.pair, options.template]
    if source_kind(model) == "table":
        predictions = _join_scores(model, suite.dataset, rows, wanted, options)
    else:
        predictions = score_rows(model, suite.dataset, rows, wanted, progress)
    empty = predictions.table.column("presence").to_pylist().count("none")
    facts = {name: fact for name, fact in predictions.facts.items() if name != "dataset"}
    return replace(predictions, facts=facts | ({EMPTY_ITEMS_FACT: str(empty)} if empty else {}))


def _without_weights(predictions: Predictions) -> Predictions:
    """Remove the sampling columns: the items of a suite are constructed to test something, and represent no traffic."""
    from vigil_evaluation.sampling_weights import INCLUSION_PROBABILITY, WEIGHT

    names = [name for name in (INCLUSION_PROBABILITY, WEIGHT) if name in predictions.table.column_names]
    if not names:
        return predictions
    reason = f"{' and '.join(names)}: the items of a suite are constructed, and represent no traffic"
    table, facts = predictions.table.drop_columns(names), dict(predictions.facts) | {IGNORED_COLUMNS_FACT: reason}
    return replace(predictions, table=table, facts=facts)


def _tested_labels(table: "pa.Table", labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the labels that can be tested, and those without any known target.

    A pair with ``pair_gold`` ``stays`` tests labels of unknown target, too.
    """
    stays = "pair_gold" in table.column_names and "stays" in table.column("pair_gold").to_pylist()
    unknown = [] if stays else [label for label in labels if table.column(f"target.{label}").null_count == table.num_rows]
    return [label for label in labels if label not in unknown], unknown


def _columns(options: SuiteOptions) -> "SuiteColumns":
    from vigil_evaluation.suites.results import SuiteColumns

    return SuiteColumns(tuple(dict.fromkeys([*options.targets, *SuiteColumns().targets])), options.pair, options.template)


def _check_columns(suite: SuiteDataset, spec: EvaluationSpec, options: SuiteOptions) -> None:
    """Raise if a requested column does not exist."""
    columns, defaults = suite.dataset.columns, SuiteOptions()
    if spec.functionality not in columns:
        what = f"has no column {spec.functionality}; name the column of the tests with --functionality"
        raise UserError(f"{suite.name}: {what}: {', '.join(columns)}")
    given = [("--pair", options.pair), ("--template", options.template), *(("--identity", name) for name in options.targets)]
    for option, name in given:
        if name not in columns and name not in (defaults.pair, defaults.template):
            raise UserError(f"{option} {name}: {suite.name} has no such column; it has {', '.join(columns)}")


def _score_labels(file: Path) -> list[str]:
    """Return the labels of a table of scores."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(file).names
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: not a readable Parquet file of scores ({str(error).splitlines()[0]})") from None
    labels = [name.removeprefix("probability.") for name in names if name.startswith("probability.")]
    if "id" not in names or not labels:
        raise UserError(f"{file}: a table of scores needs the columns id and probability.LABEL")
    return labels


def _join_scores(
    model: Path, dataset: "Dataset", rows: "NDArray[np.int64]", columns: Sequence[str], options: SuiteOptions
) -> Predictions:
    """Join a table of scores with the targets and columns of the suite's items."""
    import pyarrow.parquet as pq

    from vigil_data.presence import presence_patterns
    from vigil_evaluation.predictions import prediction_arrays
    from vigil_training.runs.prediction_table import predictions_table

    labels = _score_labels(model)
    scores = pq.read_table(model, columns=["id", *(f"probability.{label}" for label in labels)])
    for label in labels:  # The targets come from the suite.
        scores = scores.append_column(f"target.{label}", [[None] * scores.num_rows])
    _, scored_NL = prediction_arrays(scores, labels)
    row_of = {id_: row for row, id_ in enumerate(scores.column("id").to_pylist())}
    ids = dataset.table(["id"], rows).column("id").to_pylist()
    if absent := [id_ for id_ in ids if id_ not in row_of]:
        raise UserError(f"{model}: {len(absent)} of the suite's {len(ids)} items have no scores, the first is {absent[0]}")
    if unknown := sorted(set(options.thresholds) - set(labels)):
        raise UserError(f"--threshold {unknown[0]}: {model} has no such label; it has {', '.join(labels)}")
    table = predictions_table(
        ids,
        labels,
        dataset.targets(labels, rows),
        scored_NL[[row_of[id_] for id_ in ids]],
        presence_patterns(dataset.facts(rows) > 0),
        dataset=dataset,
        rows=rows,
        columns=columns,
    )
    thresholds = {label: options.thresholds.get(label, 0.5) for label in labels}
    facts = {"scores": str(model), "items": str(len(ids))}
    return Predictions(str(model), "table", table, tuple(labels), thresholds, None, None, facts)


def _default_folder(model: Path, suite: str) -> Path:
    if (kind := source_kind(model)) == "table":
        return model.with_name(f"{model.stem}-{suite}")
    if kind == "bundle":
        # A bundle contains only the files of its manifest.
        return Path(os.path.normpath(model)).with_name(f"{model.resolve().name}-suites") / suite
    from vigil_training.runs.run import Run

    return Run(model).evaluation(f"suite-{suite}")


def _write(results: "SuiteResults", table: "pa.Table", folder: Path) -> None:
    import pyarrow.parquet as pq

    from vigil_evaluation.report.suite_page import render_suite_page

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    with replaced_file(folder / "predictions.parquet") as partial:
        pq.write_table(table, partial)
    write_file(folder / "suite.json", results.to_json())
    render_suite_page(results, folder / "suite.html")

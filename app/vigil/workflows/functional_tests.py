"""Functional suites: from a suite's YAML, the demonstration or any dataset to what a model does in each test."""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vigil_data.errors import UserError, capped
from vigil_evaluation.specs import EvaluationSpec
from vigil_training.recipe.resolve import read_spec
from vigil_training.recipe.yaml_tree import KeyPath, Origin, Tree, key_path, read_file

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from vigil.workflows.prediction_sources import Predictions
    from vigil_data.dataset.dataset import Dataset, Written
    from vigil_data.items import Item
    from vigil_data.suites.specs import Suite
    from vigil_evaluation.suites.results import SuiteColumns, SuiteResults

DEMO = "demo"
"""The name by which a command is asked for the demonstration's own suite."""

UNSEEN = "items of which the model sees nothing"

UNTOLD = "labels without a known target"

DEMO_ITEMS = 300
DEMO_SEED = 1

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class SuiteOptions:
    """How a suite is read and measured.

    Attributes:
        functionality: the column that names the tests; the one of the evaluation's settings if not given.
        targets: columns that name the group an item speaks of, beside ``identity`` and ``target_identity``.
        pair: the column that links minimal pairs.
        template: the column of what items were made from.
        split: of a dataset, the rows that are run; all if not given.
        items: of the demonstration, how many originals.
        seed: of what is made; a suite's own, or 1 for the demonstration, if not given.
        replicates: of the bootstrap; as the evaluation's settings say if not given.
        thresholds: of a table of scores, by label; 0.5 where not given.
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


class SuiteRun(NamedTuple):
    """What a suite left: its folder, what was found, and the predictions table."""

    folder: Path
    outcome: "SuiteResults"
    table: "pa.Table"


class _Source(NamedTuple):
    """A suite as a dataset."""

    name: str
    dataset: "Dataset"
    facts: dict[str, str]
    descriptions: dict[str, str]


def read_suite(path: Path, seed: int | None = None) -> "Suite":
    """Read a suite's YAML and check all of it, the files that it names included.

    Args:
        path: the file.
        seed: in place of the file's.

    Raises:
        UserError: one line ``FILE:LINE: key.path: what`` for each mistake found.
    """
    from vigil_data.suites.build import absent_files
    from vigil_data.suites.validation import ValidatedSuite

    suite = read_spec(ValidatedSuite, path, "suite", "name: my-suite", {"seed": seed})
    if absent := absent_files(suite, path.parent):
        tree = read_file(path, [])
        raise UserError(*(f"{_origin(tree, key, path)}: {key_path(key)}: {what}" for key, what in absent))
    return suite


def _origin(tree: Tree | None, path: KeyPath, file: Path) -> Origin:
    """Where a value is written, or the innermost block around it."""
    origin = Origin(str(file), 1)
    for part in path:
        inner = tree.value if tree is not None else None
        if isinstance(inner, dict):
            tree = inner.get(str(part))
        elif isinstance(inner, list) and isinstance(part, int):
            tree = inner[part]
        else:
            tree = None
        origin = (tree.origin if tree is not None else None) or origin
    return origin


def make_suite(path: Path, to: Path, seed: int | None = None, progress: Progress | None = None) -> "Written":
    """Make the dataset of a suite's YAML.

    Args:
        path: the suite's file.
        to: the dataset's folder, which must not hold one yet.
        seed: in place of the file's.
        progress: called with what is being done, how much of it is done, and how much there is to do.

    Raises:
        UserError: a mistake in the file, a medium that cannot be made or decoded, or a dataset that is there already.
    """
    suite = read_suite(path, seed)
    return _write(to, _items_of(suite, path, progress), str(path))


def _items_of(suite: "Suite", path: Path, progress: Progress | None) -> "Iterator[Item]":
    from vigil_data.suites.build import make

    return make(suite, path.parent, progress=progress)


def _write(to: Path, items: "Iterable[Item]", name: str) -> "Written":
    """Write a suite's items; one that cannot be decoded is a mistake here, as the suite is not what it says without it."""
    from vigil_data.dataset.dataset import Dataset, exists, write

    if exists(to):
        raise UserError(f"dataset {to} exists already; give another folder")
    written = write(to, items)
    if written.quarantined:
        refused = Dataset(to).quarantine().to_pylist()
        refusals = (f"item {row['id']}: {row['modality']} {row['index']} cannot be decoded: {row['reason']}" for row in refused)
        raise UserError(*capped([f"{name}: {refusal}" for refusal in refusals]))
    return written


def run_suite(
    model: Path, suite: str, *, to: Path | None = None, options: SuiteOptions | None = None, progress: Progress | None = None
) -> SuiteRun:
    """Run a model over a suite and write predictions.parquet, suite.json and suite.html.

    Args:
        model: a run, a bundle, or a Parquet file of scores (``id`` and ``probability.LABEL``) of a suite's dataset.
        suite: the file of a suite, a dataset's folder, or ``demo``.
        to: the folder to write; within a run, or beside a bundle or file, if not given.
        options: how the suite is read and measured.
        progress: called with what is being done, how much of it is done, and how much there is to do.

    Raises:
        UserError: no such model or suite, no label in common, or no functionality to be told apart.
    """
    from vigil_evaluation.evaluation_data import EvaluationData
    from vigil_evaluation.suites.results import SuiteResults, functional_test_results

    options = options or SuiteOptions()
    labels, spec = _model(model)
    spec = _measured(spec, options)
    with _opened(suite, labels, model, options, progress) as source:
        common, skipped = _common(labels, source.dataset.labels, model, source.name)
        predictions = _predictions(model, source, spec, options, progress)
        judged, untold = _judged(predictions.table, common)
        if not judged:
            raise UserError(f"{source.name}: no target of {', '.join(common)} is known, so that there is nothing to test")
        spec = spec.model_copy(update={"slices": (), "crosses": ()})
        data = EvaluationData.from_table(predictions.table, judged, predictions.thresholds, spec)
        found = functional_test_results(data, _columns(options))
    if found is None:
        raise UserError(f"{source.name}: no item that could be scored has a value in the column {spec.functionality}")
    outcome = SuiteResults(
        suite=source.name,
        facts={**predictions.facts, **source.facts, **({UNTOLD: ", ".join(untold)} if untold else {})},
        descriptions=source.descriptions,
        thresholds={label: float(predictions.thresholds[label]) for label in judged},
        skipped=skipped,
        findings=found,
    )
    return SuiteRun(_save(outcome, predictions.table, to or _folder(model, source.name)), outcome, predictions.table)


def _model(model: Path) -> tuple[tuple[str, ...], EvaluationSpec]:
    """The model's labels, and how it is evaluated."""
    if model.is_file():
        return tuple(_scores(model)), EvaluationSpec()
    if (model / "bundle.json").is_file():
        from vigil_serving.bundle.load import load_bundle

        return load_bundle(model, check_hashes=False).metadata.labels, EvaluationSpec()
    if not model.exists():
        raise UserError(f"{model} is not there; name a run, a bundle, or a Parquet file of scores")
    from vigil_training.runs.run import Run

    run = Run(model)
    run.read_thresholds()
    return run.recipe.taxonomy.labels, run.recipe.evaluation


def _measured(spec: EvaluationSpec, options: SuiteOptions) -> EvaluationSpec:
    asked = {"functionality": options.functionality, "replicates": options.replicates}
    own = {"functionality": spec.functionality or "functionality"}
    return spec.model_copy(update=own | {name: value for name, value in asked.items() if value is not None})


@contextmanager
def _opened(
    suite: str, labels: Sequence[str], model: Path, options: SuiteOptions, progress: Progress | None
) -> Iterator[_Source]:
    """The suite as a dataset, which goes again if it was made for this."""
    from vigil_data.dataset.dataset import Dataset, exists

    path = Path(suite)
    if exists(path):
        dataset = Dataset(path)
        named = Path.cwd() / path
        yield _Source(named.name or named.resolve().name, dataset, {"suite": f"{path} version {dataset.version}"}, {})
        return
    if suite != DEMO and not path.is_file():
        what = "is a folder without a dataset" if path.is_dir() else "is not there"
        raise UserError(f"{suite} {what}; name the YAML of a suite, a dataset's folder, or {DEMO}")
    with tempfile.TemporaryDirectory(prefix="vigil-suite-") as folder:
        made = Path(folder) / "dataset"
        if suite == DEMO:
            from vigil_data.demo.scenarios import LABELS
            from vigil_data.suites.demo import demo_items

            _common(labels, LABELS, model, DEMO)
            seed = DEMO_SEED if options.seed is None else options.seed
            _write(made, demo_items(options.items, seed, progress), DEMO)
            yield _Source(DEMO, Dataset(made), {"suite": f"the demonstration's, seed {seed}"}, {})
            return
        read = read_suite(path, options.seed)
        _common(labels, tuple(read.labels), model, read.name)
        _write(made, _items_of(read, path, progress), suite)
        described = {name: test.description for name, test in read.functionalities.items() if test.description}
        facts = {"suite": f"{path}, version {read.version}, seed {read.seed}"}
        yield _Source(read.name, Dataset(made), facts, described)


def _common(labels: Sequence[str], of_suite: Sequence[str], model: Path, suite: str) -> tuple[list[str], list[str]]:
    """The labels that model and suite have in common, in the model's order, and those of the suite that the model lacks."""
    common = [label for label in labels if label in of_suite]
    if not common:
        has, wants = ", ".join(labels), ", ".join(of_suite) or "none"
        raise UserError(f"{model} and the suite {suite} have no label in common: the model has {has}; the suite {wants}")
    return common, [label for label in of_suite if label not in labels]


def _predictions(
    model: Path, source: _Source, spec: EvaluationSpec, options: SuiteOptions, progress: Progress | None
) -> "Predictions":
    """Score the items that belong to a functionality."""
    from vigil.workflows.prediction_sources import score_rows

    _check_columns(source, spec, options)
    rows = source.dataset.rows(options.split, f"`{spec.functionality}` IS NOT NULL")
    if not len(rows):
        raise UserError(f"{source.name}: no item has a value in the column {spec.functionality}")
    wanted = [*spec.columns, *options.targets, options.pair, options.template]
    if model.is_file():
        found = _of_scores(model, source.dataset, rows, wanted, options)
    else:
        found = score_rows(
            model, source.dataset, rows, wanted, lambda done, total: progress("scoring", done, total) if progress else None
        )
    unseen = found.table.column("presence").to_pylist().count("none")
    facts = {name: fact for name, fact in found.facts.items() if name != "dataset"}
    return replace(found, facts=facts | ({UNSEEN: str(unseen)} if unseen else {}))


def _judged(table: "pa.Table", labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """The labels of which something can be said, and those whose target is known of no item.

    A pair whose gold label is said to stay tells of labels that nobody knows.
    """
    stays = "pair_gold" in table.column_names and "stays" in table.column("pair_gold").to_pylist()
    untold = [] if stays else [label for label in labels if table.column(f"target.{label}").null_count == table.num_rows]
    return [label for label in labels if label not in untold], untold


def _columns(options: SuiteOptions) -> "SuiteColumns":
    from vigil_evaluation.suites.results import SuiteColumns

    return SuiteColumns(tuple(dict.fromkeys([*options.targets, *SuiteColumns().targets])), options.pair, options.template)


def _check_columns(source: _Source, spec: EvaluationSpec, options: SuiteOptions) -> None:
    """Refuse columns that were asked for and are not there."""
    has, usual = source.dataset.columns, SuiteOptions()
    if spec.functionality not in has:
        what = f"has no column {spec.functionality}; name the one that tells its tests apart with --functionality"
        raise UserError(f"{source.name}: {what}: {', '.join(has)}")
    asked = [("--pair", options.pair), ("--template", options.template), *(("--identity", name) for name in options.targets)]
    for option, name in asked:
        if name not in has and name not in (usual.pair, usual.template):
            raise UserError(f"{option} {name}: {source.name} has no such column; it has {', '.join(has)}")


def _scores(file: Path) -> list[str]:
    """The labels of a table of scores."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(file).names
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: not a readable Parquet file of scores ({str(error).splitlines()[0]})") from None
    labels = [name.removeprefix("probability.") for name in names if name.startswith("probability.")]
    if "id" not in names or not labels:
        raise UserError(f"{file}: a table of scores has the columns id and probability.LABEL")
    return labels


def _of_scores(
    model: Path, dataset: "Dataset", rows: "NDArray[np.int64]", columns: Sequence[str], options: SuiteOptions
) -> "Predictions":
    """A table of scores beside what the suite expects of its items."""
    import pyarrow.parquet as pq

    from vigil.workflows.prediction_sources import Predictions
    from vigil_data.presence import presence_patterns
    from vigil_evaluation.predictions import prediction_arrays
    from vigil_training.runs.prediction_table import predictions_table

    labels = _scores(model)
    scores = pq.read_table(model, columns=["id", *(f"probability.{label}" for label in labels)])
    for label in labels:  # the targets are the suite's
        scores = scores.append_column(f"target.{label}", [[None] * scores.num_rows])
    _, scored_NL = prediction_arrays(scores, labels)
    place = {id_: row for row, id_ in enumerate(scores.column("id").to_pylist())}
    ids = dataset.table(["id"], rows).column("id").to_pylist()
    if absent := [id_ for id_ in ids if id_ not in place]:
        raise UserError(f"{model}: {len(absent)} of the suite's {len(ids)} items have no scores, the first is {absent[0]}")
    present = presence_patterns(dataset.facts(rows) > 0)
    table = predictions_table(
        ids,
        labels,
        dataset.targets(labels, rows),
        scored_NL[[place[id_] for id_ in ids]],
        present,
        dataset=dataset,
        rows=rows,
        columns=columns,
    )
    if wrong := sorted(set(options.thresholds) - set(labels)):
        raise UserError(f"--threshold {wrong[0]}: {model} has no such label; it has {', '.join(labels)}")
    cuts = {label: options.thresholds.get(label, 0.5) for label in labels}
    facts = {"scores": str(model), "items": str(len(ids))}
    return Predictions(str(model), "table", table, tuple(labels), cuts, None, None, facts)


def _folder(model: Path, suite: str) -> Path:
    if model.is_file():
        return model.with_name(f"{model.stem}-{suite}")
    if (model / "bundle.json").is_file():
        # A bundle holds nothing but what its manifest lists.
        return Path(os.path.normpath(model)).with_name(f"{model.resolve().name}-suites") / suite
    from vigil_training.runs.run import Run

    return Run(model).evaluation(f"suite-{suite}")


def _save(outcome: "SuiteResults", table: "pa.Table", folder: Path) -> Path:
    import pyarrow.parquet as pq

    from vigil_evaluation.report.suite_page import render_suite_page

    try:
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / "predictions.parquet")
        (folder / "suite.json").write_text(outcome.to_json(), encoding="utf-8")
        render_suite_page(outcome, folder / "suite.html")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    return folder

"""Release gate: compare a candidate with the model in use, and refuse regressions.

Runs, bundles and tables of scores are compared on the same items.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vigil.workflows.model_source import find_source_kind, recipe_file, source_kind
from vigil.workflows.prediction_sources import Predictions, load_predictions, score_rows, training_dataset
from vigil_data.errors import Failure, UserError, capped
from vigil_data.filesystem import StrPath, replaced_file, write_file
from vigil_data.progress import ProgressCallback

if TYPE_CHECKING:
    import pyarrow as pa

    from vigil_evaluation.comparison.alignment import ScoredModel
    from vigil_evaluation.comparison.results import Comparison, ReleaseGate
    from vigil_evaluation.specs import EvaluationSpec
    from vigil_training.runs.run import Run


class RegressionError(Failure):
    """The challenger failed the gate; the first line is a summary, each further line a reason."""


def compare_sources(
    champion: StrPath,
    challenger: StrPath,
    spec: "EvaluationSpec",
    gate: "ReleaseGate | None" = None,
    *,
    data: StrPath | None = None,
    split: str | None = "test",
    common: bool = False,
    thresholds: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {}),
    calibrate_on: "tuple[pa.Table | None, pa.Table | None]" = (None, None),
    progress: ProgressCallback | None = None,
) -> "tuple[Comparison, pa.Table]":
    """Compare two models, after predicting with those that are runs or bundles.

    Args:
        champion: the model in use: a run, a bundle, or a Parquet file of predictions.
        challenger: the candidate, of the same kinds.
        spec: slices, cluster, replicates and confidence.
        gate: conditions to pass (default: no regression by more than 0.01).
        data: the dataset that runs and bundles predict (default: the challenger's).
        split: split of the dataset; all rows if ``None``.
        common: compare the common items instead of refusing predictions of different items.
        thresholds: label to the lowest flagged probability, of the champion and of the challenger; for tables only.
        calibrate_on: predictions of the champion and of the challenger for other, labelled items, on which each side is
            calibrated and its thresholds are chosen; for tables only.
        progress: called with (task, done, total).

    Returns:
        The comparison, and a table of every decision that differs.

    Raises:
        UserError: if a source or its dataset does not exist, or the two cannot be compared.
    """
    from vigil_evaluation.comparison.compare import compare

    champion, challenger = Path(champion), Path(challenger)
    columns = (*spec.columns, *(gate.slices if gate is not None else ()))
    pairs = ((champion, challenger), (challenger, champion))
    models = [
        _scored_model(_predictions(source, other, source == champion, data, split, columns, progress), spec, given, on, progress)
        for (source, other), given, on in zip(pairs, thresholds, calibrate_on, strict=True)
    ]
    return compare(models[0], models[1], spec, gate, common=common, progress=progress)


def spec_of(*sources: StrPath) -> "EvaluationSpec":
    """Return the evaluation settings of the first run or bundle among the sources that has any; else the defaults."""
    from vigil_evaluation.specs import EvaluationSpec
    from vigil_training.recipe.resolve import read_recipe

    for source in sources:
        if (recipe := recipe_file(source)) is not None:
            try:
                return read_recipe(recipe).evaluation
            except UserError:
                # The recipe of a bundle may name files that exist only where it was trained; its settings are then unavailable.
                if find_source_kind(source) != "bundle":
                    raise
    return EvaluationSpec()


def check_release(
    run: "Run",
    champion: StrPath,
    *,
    data: StrPath | None = None,
    split: str | None = None,
    gate: "ReleaseGate | None" = None,
    progress: ProgressCallback | None = None,
) -> "Comparison":
    """Compare a run with the model that it is to replace, and raise if it is a regression.

    Args:
        run: a finished run.
        champion: a run, a bundle, or a Parquet file of predictions.
        data: the dataset (default: the run's).
        split: split of the dataset (default: ``test``).
        gate: conditions to pass (default: no regression by more than 0.01).
        progress: called with (task, done, total).

    Returns:
        The comparison, if the run passes.

    Raises:
        RegressionError: if it does not.
        UserError: if the two cannot be compared.
    """
    comparison, _ = compare_sources(
        champion, run.path, run.recipe.evaluation, gate, data=data, split=split or "test", progress=progress
    )
    raise_on_regression(comparison)
    return comparison


def raise_on_regression(comparison: "Comparison") -> None:
    """Raise if the challenger does not pass.

    Raises:
        RegressionError: with one line per reason, at most twenty.
    """
    if comparison.passed:
        return
    regressions, others = len(comparison.of("regression")), len(comparison.of("not shown"))
    of = f"of {comparison.compared} comparisons"
    counts = [f"{regressions} {of} {'is' if regressions == 1 else 'are'} worse by more than the tolerance"] if regressions else []
    counts += [f"{others} {of} {'does' if others == 1 else 'do'} not exclude that"] if others else []
    head = f"{comparison.challenger.name} does not pass against {comparison.champion.name}: {', '.join(counts)}"
    raise RegressionError("\n".join([head, *capped(comparison.failures)]))


def without_items(comparison: "Comparison") -> dict[str, Any]:
    """Return a comparison in JSON form without individual items, as bundles carry it."""
    return asdict(replace(comparison, flips=replace(comparison.flips, top=[])))


def write_comparison(comparison: "Comparison", flips: "pa.Table", to: StrPath) -> None:
    """Write comparison.json, comparison.html and flips.parquet, each atomically.

    Args:
        comparison: the comparison.
        flips: every decision that differs.
        to: the folder; it is made if it does not exist.
    """
    import pyarrow.parquet as pq

    from vigil_evaluation.report.comparison_page import render_comparison_page

    folder = Path(to)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "comparison.json", comparison.to_json())
    with replaced_file(folder / "flips.parquet") as partial:
        pq.write_table(flips, partial)
    render_comparison_page(comparison, folder / "comparison.html")


def _predictions(  # noqa: PLR0917 (the settings of one side)
    source: Path,
    other: Path,
    is_champion: bool,
    data: StrPath | None,
    split: str | None,
    columns: Sequence[str],
    progress: ProgressCallback | None,
) -> Predictions:
    """Predict the given dataset, by default the challenger's, also with a champion that was trained on another one."""
    kinds = source_kind(source), source_kind(other)
    if kinds[0] == "table" and kinds[1] != "table":  # A table takes no dataset.
        data = None
    if data is None and is_champion and "table" not in kinds:
        own, others = training_dataset(source), training_dataset(other)
        if others is not None and (own is None or _resolved(own) != _resolved(others)):
            from vigil_data.dataset.dataset import Dataset

            dataset = Dataset(Path(others[0]), others[1])
            found = score_rows(source, dataset, dataset.rows(split), columns, progress)
            return replace(found, facts={**found.facts, "split": split or "all"})
    return load_predictions(source, data=data, split=split, columns=columns, progress=progress)


def _resolved(dataset: tuple[str, int | None]) -> tuple[Path, int | None]:
    return Path(dataset[0]).resolve(), dataset[1]


def _scored_model(
    predictions: Predictions,
    spec: "EvaluationSpec",
    thresholds: Mapping[str, float],
    calibrate_on: "pa.Table | None",
    progress: ProgressCallback | None,
) -> "ScoredModel":
    from vigil.workflows.evaluate import calibrate_scores
    from vigil_evaluation.comparison.alignment import ScoredModel

    name, labels = predictions.name, predictions.labels
    table, cuts, facts = predictions.table, predictions.thresholds, predictions.facts
    if predictions.kind == "table":
        scores = calibrate_scores(table, name, labels, spec, calibrate_on=calibrate_on, thresholds=thresholds, progress=progress)
        table, cuts, facts = scores.table, scores.thresholds, {**facts, **scores.facts}
    elif thresholds or calibrate_on is not None:
        raise UserError(f"{name} has its own calibration and thresholds; those of a table of scores alone can be given")
    return ScoredModel(name, table, labels, cuts, predictions.kind, predictions.policy, facts)

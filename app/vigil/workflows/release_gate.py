"""Is a candidate fit to replace what is in use? Runs, bundles and tables of scores are compared on the same items."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vigil.workflows.prediction_sources import Predictions, load_predictions, score_rows
from vigil_data.errors import Failure, UserError, capped

if TYPE_CHECKING:
    import pyarrow as pa

    from vigil_evaluation.comparison.results import Comparison, ReleaseGate
    from vigil_evaluation.specs import EvaluationSpec
    from vigil_training.runs.run import Run

Say = Callable[[str], None]
Progress = Callable[[int, int], None]


class RegressionError(Failure):
    """The challenger does not pass: a line that says so, and one for each reason."""


@dataclass(frozen=True, slots=True)
class ComparisonRequest:
    """What is compared and how.

    Attributes:
        champion: what is in use: a run, a bundle, or a Parquet file of predictions.
        challenger: what is to replace it, likewise.
        data: the dataset that runs and bundles predict; the challenger's own if not given.
        split: which rows of it.
        common: compare the items that both have, rather than refuse predictions of different ones.
        thresholds: of the champion and the challenger, label to the lowest probability that is flagged; for tables.
    """

    champion: Path
    challenger: Path
    data: Path | None = None
    split: str | None = "test"
    common: bool = False
    thresholds: tuple[Mapping[str, float], Mapping[str, float]] = field(default_factory=lambda: ({}, {}))


def compare_sources(
    question: ComparisonRequest,
    spec: "EvaluationSpec",
    gate: "ReleaseGate | None" = None,
    *,
    progress: Progress | None = None,
    say: Say | None = None,
) -> "tuple[Comparison, pa.Table]":
    """Predict with both where that is needed, and compare.

    Args:
        question: what is compared.
        spec: slices, cluster, replicates and confidence.
        gate: what must hold.
        progress: told the items predicted and their number.
        say: told what is done.

    Returns:
        What was found, and a table of every decision that differs.

    Raises:
        UserError: if a source is none, a dataset is not there, or they cannot be compared.
    """
    from vigil_evaluation.comparison.compare import compare

    say, columns = say or (lambda _: None), (*spec.columns, *(gate.slices if gate is not None else ()))
    sides = []
    for source, other, given in (
        (question.champion, question.challenger, question.thresholds[0]),
        (question.challenger, question.champion, question.thresholds[1]),
    ):
        say(f"predictions of {source}")
        sides.append(_contender(_predictions(source, other, question, columns, progress), given))
    champion, challenger = sides
    return compare(champion, challenger, spec, gate, common=question.common, progress=say)


def spec_of(*sources: Path) -> "EvaluationSpec":
    """The evaluation settings of the first run, or bundle of one, among the sources; the defaults where there is none."""
    from vigil_evaluation.specs import EvaluationSpec
    from vigil_training.recipe.resolve import read_recipe

    for source in sources:
        if (recipe := source / "resolved.yaml").is_file():
            try:
                return read_recipe(recipe).evaluation
            except UserError:
                if not (source / "bundle.json").is_file():
                    raise
                # What a bundle was trained with need not be there any more; what it says of evaluation is then not to be had.
    return EvaluationSpec()


def check_release(
    run: "Run",
    champion: Path,
    *,
    data: Path | None = None,
    split: str | None = None,
    gate: "ReleaseGate | None" = None,
    progress: Progress | None = None,
    say: Say | None = None,
) -> "Comparison":
    """Compare a run with what it is to replace.

    Args:
        run: a finished run.
        champion: a run, a bundle, or a Parquet file of predictions.
        data: the dataset; the run's own if not given.
        split: which rows of it; ``test`` if not given.
        gate: what must hold.
        progress: told the items predicted and their number.
        say: told what is done.

    Returns:
        What was found, if the run passes.

    Raises:
        Regression: if it does not.
        UserError: if they cannot be compared.
    """
    question = ComparisonRequest(champion, run.path, data, split or "test")
    comparison, _ = compare_sources(question, run.recipe.evaluation, gate, progress=progress, say=say)
    raise_on_regression(comparison)
    return comparison


def raise_on_regression(comparison: "Comparison") -> None:
    """Raise if the challenger does not pass.

    Raises:
        Regression: with a line for each reason, at most twenty.
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
    """A comparison as a bundle carries it: without anything of single items."""
    return asdict(replace(comparison, flips=replace(comparison.flips, top=[])))


def write_comparison(comparison: "Comparison", flips: "pa.Table", to: Path) -> None:
    """Write comparison.json, comparison.html and flips.parquet.

    Args:
        comparison: what was found.
        flips: every decision that differs.
        to: a folder, which is made if it is not there.
    """
    import pyarrow.parquet as pq

    from vigil_evaluation.report.comparison_page import render_comparison_page

    to.mkdir(parents=True, exist_ok=True)
    with _whole(to / "comparison.json") as part:
        part.write_text(comparison.to_json(), encoding="utf-8")
    with _whole(to / "flips.parquet") as part:
        pq.write_table(flips, part)
    render_comparison_page(comparison, to / "comparison.html")


@contextmanager
def _whole(file: Path) -> Iterator[Path]:
    """Where to write a file that appears when it is complete."""
    part = file.with_name(f".{file.name}.part")
    yield part
    part.replace(file)


def _predictions(
    source: Path, other: Path, question: ComparisonRequest, columns: Sequence[str], progress: Progress | None
) -> Predictions:
    """The predictions of a source: of the dataset that was named, or else of the challenger's."""
    data, split = question.data, question.split
    if source.is_file() and other.is_dir():
        data = None
    if data is None and source == question.champion and source.is_dir() and other.is_dir():
        own, others = _trained_on(source), _trained_on(other)
        if others is not None and own != others:
            from vigil_data.dataset.dataset import Dataset

            dataset = Dataset(Path(others[0]), others[1])
            found = score_rows(source, dataset, dataset.rows(split), columns, progress)
            return replace(found, facts={**found.facts, "split": split or "all"})
    return load_predictions(source, data=data, split=split, columns=columns, progress=progress)


def _trained_on(source: Path) -> tuple[str, int | None] | None:
    """The dataset and its version that a run or a bundle was trained on; ``None`` if it does not say."""
    from vigil_serving.bundle.load import load_bundle
    from vigil_serving.bundle.manifest import is_bundle
    from vigil_training.runs.run import Run

    if is_bundle(source):
        dataset: Mapping[str, Any] = load_bundle(source, check_hashes=False).metadata.lineage.get("dataset", {})
    elif (source / "resolved.yaml").is_file():
        dataset = Run(source).read_environment().get("dataset", {})
    else:
        dataset = {}
    return (str(Path(dataset["path"]).resolve()), dataset.get("version")) if "path" in dataset else None


def _contender(found: Predictions, thresholds: Mapping[str, float]) -> Any:
    from vigil_evaluation.comparison.alignment import ScoredModel

    if thresholds and found.kind != "table":
        raise UserError(f"{found.name} has thresholds of its own; other ones can be given for a table alone")
    if unknown := [label for label in thresholds if label not in found.labels]:
        raise UserError(f"{found.name}: a threshold is given for {', '.join(unknown)}, of which it has no scores")
    cuts = {**found.thresholds, **thresholds}
    return ScoredModel(found.name, found.table, found.labels, cuts, found.kind, found.policy, found.facts)

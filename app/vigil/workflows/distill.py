"""Comparison of a distilled student with its teacher: what it loses per label, and what it saves in weights and latency."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vigil_data.errors import UserError
from vigil_data.filesystem import write_json
from vigil_data.progress import ProgressCallback

if TYPE_CHECKING:
    from vigil_training.runs.run import Run

REPORT = "distillation.json"
METRICS = ("average_precision", "auroc")


def compare_with_teacher(run: "Run", split: str, *, progress: ProgressCallback | None = None) -> dict[str, Any]:
    """Compare a student with its teacher on a split of the student's dataset, and write distillation.json.

    Args:
        run: a finished run of a recipe with ``distillation``.
        split: the split.
        progress: called with (task, done, total).

    Returns:
        ``metrics``: one entry for each metric and label with both values and the interval of the difference; ``label`` is null
        for the mean over labels. ``student`` and ``teacher``: weights, and milliseconds for an item where both are runs.

    Raises:
        UserError: if the run has no teacher, or the split is absent or empty, or the teacher's table scores none of its items.
    """
    import numpy as np

    from vigil.workflows.prediction_sources import load_predictions
    from vigil_evaluation.comparison.alignment import ScoredModel
    from vigil_evaluation.comparison.compare import compare
    from vigil_evaluation.comparison.results import ReleaseGate
    from vigil_evaluation.predictions import with_probabilities
    from vigil_training.runs.teacher_scores import find_teacher, read_scores
    from vigil_training.runs.teacher_scoring import score_items

    recipe, dataset = run.recipe, run.dataset()
    if recipe.distillation is None:
        raise UserError(f"{run.path}: was trained without a teacher")
    teacher = find_teacher(recipe)
    student = load_predictions(run.path, split=split, progress=progress)
    if teacher.kind == "table":
        ids, probabilities_KL = read_scores(teacher.path, teacher.labels)
    else:
        ids, probabilities_KL = score_items(teacher, dataset, dataset.rows(split), progress=progress)
    place = {id_: row for row, id_ in enumerate(ids)}
    both = [row for row, id_ in enumerate(student.table.column("id").to_pylist()) if id_ in place]
    if not both:
        raise UserError(f"{teacher.path}: scores no item of split {split}; add them to the table, or name another --split")
    table = student.table.take(both)
    other = [name for label in recipe.taxonomy.labels if label not in teacher.labels for name in _columns(label)]
    table = table.drop_columns([name for name in other if name in table.column_names])
    rows = [place[id_] for id_ in table.column("id").to_pylist()]
    scored = with_probabilities(table, teacher.labels, probabilities_KL[rows].astype(np.float64))
    thresholds = {label: student.thresholds[label] for label in teacher.labels}
    found, _ = compare(
        ScoredModel(str(teacher.path), scored, teacher.labels, thresholds),
        ScoredModel(str(run.path), table, teacher.labels, thresholds),
        recipe.evaluation.model_copy(update={"slices": (), "crosses": ()}),
        ReleaseGate(metrics=METRICS),
        progress=progress,
    )
    metrics = [
        {
            "metric": cell.metric,
            "label": cell.label,
            "known": cell.known,
            "positive": cell.positive,
            "teacher": cell.champion,
            "student": cell.challenger,
            "change": cell.delta,
            "interval": None if cell.interval is None else [cell.interval.low, cell.interval.high],
        }
        for cell in found.cells
        if cell.column is None
    ]
    report: dict[str, Any] = {
        "split": split,
        "items": len(both),
        "teacher": {"path": str(teacher.path), "kind": teacher.kind},
        "student": {"path": str(run.path)},
        "metrics": metrics,
    }
    if teacher.kind == "run":
        from vigil_training.runs.latency import measure_size_and_latency
        from vigil_training.runs.run import Run

        sides = {"teacher": Run(teacher.path), "student": run}
        for side, facts in measure_size_and_latency(sides, dataset, split).items():
            report[side] |= facts
    write_json(run.path / REPORT, report)
    return report


def report_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield a report as lines of a table."""
    teacher, student = report["teacher"], report["student"]
    yield f"{student['path']} against its teacher {teacher['path']}, {report['items']} items of split {report['split']}"
    yield f"{'label':<20} {'metric':<18} {'positive':>8} {'known':>7} {'teacher':>8} {'student':>8} {'change':>8}  interval"
    for cell in report["metrics"]:
        if cell["teacher"] is None or cell["student"] is None:
            continue
        interval = "-" if cell["interval"] is None else "{:+.3f} to {:+.3f}".format(*cell["interval"])
        yield (
            f"{cell['label'] or 'mean over labels':<20} {cell['metric']:<18} {cell['positive']:>8} {cell['known']:>7} "
            f"{cell['teacher']:>8.3f} {cell['student']:>8.3f} {cell['change']:>+8.3f}  {interval}"
        )
    if "weights" in student:
        share = student["weights"] / teacher["weights"]
        yield f"weights: {student['weights']:,} of the teacher's {teacher['weights']:,} ({share:.0%})"
        yield (
            f"latency of one item, PyTorch on the CPU, median in turns: {student['milliseconds']:.2f} ms, teacher "
            f"{teacher['milliseconds']:.2f} ms ({student['milliseconds'] / teacher['milliseconds']:.2f})"
        )


def _columns(label: str) -> Sequence[str]:
    return f"probability.{label}", f"target.{label}"

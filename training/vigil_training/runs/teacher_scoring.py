"""Scores of the teacher in a run folder: computed once, before the first step, by all ranks, and read by every start."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from vigil_data.dataset.dataset import Dataset
from vigil_data.errors import UserError
from vigil_data.filesystem import replaced_file, sha256_file, sha256_json
from vigil_data.loading.sampler import Rows
from vigil_data.progress import Progress, ProgressCallback
from vigil_training.checkpoint.manifest import MANIFEST
from vigil_training.distributed.rank_group import raised_on_all_ranks
from vigil_training.distributed.session import Session
from vigil_training.runs.predict import predict_rows, raw_probabilities
from vigil_training.runs.prediction_table import calibration_groups, dataset_weights
from vigil_training.runs.run import Run
from vigil_training.runs.teacher_scores import (
    Floats,
    Teacher,
    TeacherScores,
    find_teacher,
    in_order_of,
    read_scores,
    scores_table,
    table_labels,
)

log = logging.getLogger("vigil.distillation")

SCORED_BY = b"vigil.scored_by"
"""Metadata key of teacher.parquet: digest of the teacher and the items."""

CHUNK_ROWS = 256
"""Rows that a bundle scores at once."""

MAX_SHOWN_IDS = 3
"""Items without a score that an error names."""


def score_teacher(run: Run, dataset: Dataset, session: Session) -> dict[str, Any]:
    """Write the teacher's calibrated probabilities of the training items to the run folder; every rank calls it.

    Scores of the same teacher and items that an earlier start of the run wrote are kept.

    Args:
        run: its recipe has ``distillation``.
        dataset: the dataset in the version that is trained on.
        session: the ranks, which share the items.

    Returns:
        Teacher, numbers of items and of filled targets, for environment.json.

    Raises:
        UserError: if the teacher cannot be used, or has no score for too many items.
    """
    recipe = run.recipe
    spec = recipe.distillation
    assert spec is not None
    try:
        teacher = find_teacher(recipe)
    except UserError as error:
        raise raised_on_all_ranks(error) from None
    rows = dataset.rows(recipe.data.train, recipe.data.where)
    source = [str(teacher.path.resolve()), _digest(teacher), str(dataset.path.resolve()), dataset.version]
    scored_by = sha256_json([*source, recipe.data.train, recipe.data.where, teacher.labels, spec.calibrate])
    if not session.ranks.run_on_rank_0(lambda: _stored_by(run) == scored_by):
        world = session.world
        if teacher.kind == "table":
            own = session.ranks.run_on_rank_0(lambda: _from_table(run, teacher, dataset, rows))
            parts = [own]
        else:
            log.info("scoring %d training items with the teacher %s", len(rows), teacher.path)
            with Progress("predicting", enabled=world.is_main) as progress:
                own = score_items(teacher, dataset, rows[world.rank :: world.size], session=session, progress=progress)
            parts = session.ranks.gather_objects(own)
        if world.is_main:
            ids = [id_ for part, _ in parts for id_ in part]
            table = scores_table(
                ids, teacher.labels, np.concatenate([part for _, part in parts]), {SCORED_BY.decode(): scored_by}
            )
            with replaced_file(run.teacher) as partial:
                pq.write_table(table, partial)
        session.ranks.barrier()
    return session.ranks.run_on_rank_0(lambda: _describe(run, teacher, dataset, rows))


def read_teacher(run: Run, facts: Mapping[str, Any] | None) -> TeacherScores | None:
    """Read the teacher's scores from the run folder; ``None`` without distillation.

    Args:
        run: the run.
        facts: what :func:`score_teacher` returned when the run began.

    Raises:
        UserError: if they are missing or were changed since the run began.
    """
    spec, labels = run.recipe.distillation, run.recipe.taxonomy.labels
    if spec is None or facts is None:
        return None
    if not run.teacher.is_file() or sha256_file(run.teacher) != facts["sha256"]:
        what = "was changed since the run began" if run.teacher.is_file() else "is missing"
        raise UserError(
            f"{run.teacher}: {what}, and a resumed run needs the scores it began with; restore it, or train into another folder"
        )
    has = table_labels(run.teacher)
    ids, probabilities_KL = read_scores(run.teacher, has)
    return TeacherScores(ids, in_order_of(labels, has, probabilities_KL), labels, spec.fill_unknown)


def score_items(
    teacher: Teacher,
    dataset: Dataset,
    rows: Rows,
    *,
    session: Session | None = None,
    progress: ProgressCallback | None = None,
) -> tuple[list[str], Floats]:
    """Score rows of a dataset with a run or bundle: ids of those that can be decoded, and calibrated probabilities ``[K, L]``."""

    def report(task: str, done: int, total: int | None) -> None:
        if session is not None:
            session.watchdog.beat(f"teacher, {done} items")
        if progress is not None:
            progress(task, done, total)

    if not len(rows):
        return [], np.empty((0, len(teacher.labels)), np.float32)
    if teacher.kind == "run":
        run = Run(teacher.path)
        outputs = predict_rows(run, dataset, rows, device="cpu" if session is None else session.device, progress=report)
        ids, has = outputs.ids, run.recipe.taxonomy.labels
        if not ids:
            return [], np.empty((0, len(teacher.labels)), np.float32)
        calibration = run.read_calibrated().calibration
        groups = calibration_groups(calibration.by, ids, outputs.presence, dataset)
        probabilities_KL = calibration.apply(raw_probabilities(outputs.logits_NL), groups)
    else:
        from vigil_serving.runtime.scorer import Scorer

        scorer, decisions = Scorer(teacher.path), []
        has = scorer.bundle.labels
        for start in range(0, len(rows), CHUNK_ROWS):
            decisions += scorer.score(dataset.take(rows[start : start + CHUNK_ROWS]))
            report("predicting", len(decisions), len(rows))
        scored = [decision for decision in decisions if decision.error is None]
        ids = [decision.id for decision in scored]
        probabilities_KL = np.array([[d.probabilities[label] for label in has] for d in scored]).reshape(len(ids), len(has))
    return ids, probabilities_KL[:, [has.index(label) for label in teacher.labels]].astype(np.float32)


def _from_table(run: Run, teacher: Teacher, dataset: Dataset, rows: Rows) -> tuple[list[str], Floats]:
    """Return the scores of the training items in a table, calibrated if the recipe asks for it."""
    recipe = run.recipe
    assert recipe.distillation is not None
    ids, raw_KL = read_scores(teacher.path, teacher.labels)
    place = {id_: i for i, id_ in enumerate(ids)}
    if recipe.distillation.calibrate:
        from vigil_evaluation.calibration.fit import fit_calibration

        validation = dataset.rows(recipe.data.validation)
        known = dataset.table(["id"], validation).column("id").to_pylist()
        scored = [i for i, id_ in enumerate(known) if id_ in place]
        if not scored:
            raise UserError(
                f"distillation.calibrate: {teacher.path} scores no item of split {recipe.data.validation}; add some, or leave "
                "this out"
            )
        targets_NL = dataset.targets(teacher.labels, validation[scored]).astype(np.float64)
        theirs_NL = raw_KL[[place[known[i]] for i in scored]].astype(np.float64)
        weights = dataset_weights(dataset, targets_NL, rows=validation[scored])
        spec = recipe.evaluation.model_copy(update={"calibration": recipe.evaluation.calibration.model_copy(update={"by": None})})
        fitted = fit_calibration(targets_NL, theirs_NL, teacher.labels, spec, None, None, weights=weights)
        raw_KL = fitted.calibration.apply(raw_KL.astype(np.float64), None).astype(np.float32)
        log.info("calibrated the teacher's table on %d items of split %s", len(scored), recipe.data.validation)
    wanted = [id_ for id_ in dataset.table(["id"], rows).column("id").to_pylist() if id_ in place]
    return wanted, raw_KL[[place[id_] for id_ in wanted]]


def _describe(run: Run, teacher: Teacher, dataset: Dataset, rows: Rows) -> dict[str, Any]:
    """Count missing scores and filled targets.

    Raises:
        UserError: if too many scores are missing.
    """
    recipe = run.recipe
    spec, labels = recipe.distillation, recipe.taxonomy.labels
    assert spec is not None
    ids, probabilities_KL = read_scores(run.teacher, teacher.labels)
    scores = TeacherScores(ids, in_order_of(labels, teacher.labels, probabilities_KL), labels, spec.fill_unknown)
    items, scored = dataset.table(["id"], rows).column("id").to_pylist(), set(ids)
    missing = [id_ for id_ in items if id_ not in scored]
    if len(missing) > spec.max_missing * len(items):
        raise UserError(
            f"distillation.teacher: {teacher.path}: has no score for {len(missing)} of {len(items)} training items "
            f"({len(missing) / len(items):.1%}), such as {', '.join(missing[:MAX_SHOWN_IDS])}; score them, or raise "
            f"distillation.max_missing from {spec.max_missing:g}"
        )
    targets_NL = dataset.targets(labels, rows)
    filled_NL = np.isnan(targets_NL) & ~np.isnan(scores.fill(items, targets_NL))
    positive_NL = filled_NL & (scores.probabilities(items) >= 0.5)
    filled = {
        label: {"positive": int(positive_NL[:, i].sum()), "negative": int((filled_NL & ~positive_NL)[:, i].sum())}
        for i, label in enumerate(labels)
    }
    log.info("teacher %s: scores of %d items, %d have none", teacher.path, len(items) - len(missing), len(missing))
    if without := [label for label in labels if label not in teacher.labels]:
        log.info("teacher: does not have %s, which are learned from targets alone", ", ".join(without))
    if spec.fill_unknown is not None:
        counts = ", ".join(f"{label} {n['positive']} + {n['negative']}" for label, n in filled.items())
        log.info("teacher: filled unknown targets, positive + negative: %s", counts)
    return {
        "teacher": str(teacher.path),
        "kind": teacher.kind,
        "sha256": sha256_file(run.teacher),
        "labels": list(teacher.labels),
        "items": len(items),
        "missing": len(missing),
        "filled": filled if spec.fill_unknown is not None else {},
    }


def _stored_by(run: Run) -> str | None:
    if not run.teacher.is_file():
        return None
    metadata: dict[bytes, bytes] = pq.read_schema(run.teacher).metadata or {}
    return metadata.get(SCORED_BY, b"").decode()


def _digest(teacher: Teacher) -> str:
    """Return a digest of the model and its calibration, or of the table."""
    if teacher.kind == "table":
        return sha256_file(teacher.path)
    if teacher.kind == "bundle":
        return sha256_file(teacher.path / "manifest.json")
    run = Run(teacher.path)
    return f"{sha256_file(run.checkpoint('best') / MANIFEST)} {run.calibration_digest()}"

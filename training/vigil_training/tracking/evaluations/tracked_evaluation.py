"""Evaluations and suites in Weights & Biases: numbers, curves and tables, and examples by the content rule."""

import io
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vigil_training.runs.run import Run
from vigil_training.tracking.content import WITHHELD, ContentRule, withhold
from vigil_training.tracking.evaluations.evaluation_tables import (
    Example,
    Rows,
    curve_rows,
    describe_evidence,
    find_examples,
    functionality_rows,
    label_rows,
    slice_rows,
    slice_values,
)
from vigil_training.tracking.wandb_logger import add_to_tracked_run

if TYPE_CHECKING:
    import wandb

    from vigil_data.dataset.dataset import Dataset
    from vigil_data.items import Item
    from vigil_evaluation.evaluation_data import EvaluationData
    from vigil_evaluation.report.evidence import ItemExample
    from vigil_evaluation.results import EvaluationResults
    from vigil_evaluation.suites.results import SuiteResults

log = logging.getLogger("vigil.track")

_PLOTS = {
    "precision_recall": ("recall", ("precision",)),
    "roc": ("false_positive_rate", ("recall",)),
    "reliability": ("probability", ("target",)),
    "threshold": ("threshold", ("precision", "recall", "false_positive_rate", "flagged")),
}
"""Curve to its horizontal column, and the columns that are drawn over it, each in a plot with a line for each label."""


def track_evaluation(
    run: Run,
    folder: Path,
    results: "EvaluationResults",
    data: "EvaluationData",
    *,
    contents: "Mapping[str, ItemExample]" = MappingProxyType({}),
    dataset: "Dataset | None" = None,
) -> None:
    """Add an evaluation to the tracked run: macro metrics to its summary, curves, tables, examples and the report.

    Does nothing if tracking is disabled. A failure to track is logged and not raised.

    Args:
        run: the run.
        folder: folder of the evaluation.
        results: what the evaluation found.
        data: the parsed predictions.
        contents: id to the content and evidence of items, for the report and the examples.
        dataset: dataset of the items, from which texts and media of examples are read if the content rule sends them.
    """
    rule = ContentRule(run.recipe.tracking.content)
    prefix = f"evaluation/{folder.name}"

    def add(tracked: "wandb.Run", record: Callable[[dict[str, Any]], None]) -> None:
        withheld = rule.withheld_values(data.table, data.labels)
        shown, shared = withhold(results, withheld), _shared_data(data, rule, withheld)
        for metric, macro in shown.overall.macro.items():
            tracked.summary[f"{prefix}/macro/{metric}"] = macro.value
        found: dict[str, Any] = {
            "labels": _table(label_rows(shown)),
            "slices": _table(slice_rows(shown)),
            **{name: plot for name, rows in curve_rows(data).items() for name, plot in _plots(name, rows).items()},
        }
        if shown.functionality is not None:
            found["functionalities"] = _table(functionality_rows(shown.functionality))
        with tempfile.TemporaryDirectory(dir=run.path / "wandb") as place:
            if rule.level != "none":
                columns = [breakdown.column for breakdown in shown.by if breakdown.column in shared.columns]
                found |= _examples(rule, shared, columns, contents=contents, dataset=dataset, place=Path(place))
            found["report"] = _report(rule, folder, shown, shared, contents=contents, place=Path(place))
            record(_bound(tracked, {f"{prefix}/{name}": value for name, value in found.items()}))

    add_to_tracked_run(run, add, f"the evaluation is not tracked; {folder} has all of it")


def track_suite(run: Run, folder: Path, results: "SuiteResults") -> None:
    """Add a suite's table of functionalities to the tracked run; see :func:`track_evaluation`.

    Args:
        run: the run.
        folder: folder of the suite's results.
        results: what was found.
    """

    def add(tracked: "wandb.Run", record: Callable[[dict[str, Any]], None]) -> None:
        record(_bound(tracked, {f"suite/{folder.name}/functionalities": _table(functionality_rows(results.findings))}))

    add_to_tracked_run(run, add, f"the suite is not tracked; {folder} has all of it")


def _bound(tracked: "wandb.Run", values: dict[str, Any]) -> dict[str, Any]:
    """Write the tables to the tracked run's own files.

    W&B would also stage each as an artifact, by its absolute path: a copy of the run folder could not be sent.
    """
    import wandb
    from wandb.plot.custom_chart import CustomChart

    for key, value in values.items():
        if isinstance(value, CustomChart):
            value.set_key(key)
            value.table.bind_to_run(tracked, value.spec.table_key, tracked.step)  # type: ignore[no-untyped-call]
        elif isinstance(value, wandb.Table):
            value.bind_to_run(tracked, key, tracked.step)  # type: ignore[no-untyped-call]
    return values


def _table(rows: Rows) -> "wandb.Table":
    import wandb

    return wandb.Table(columns=[*rows.columns], data=list(rows.rows))


def _plots(name: str, rows: Rows) -> "dict[str, Any]":
    """Return the plots of a curve, with a line for each label; nothing for a curve without points."""
    import wandb

    across, drawn = _PLOTS[name]
    plots: dict[str, Any] = {}
    for up in drawn:
        kept = [rows.columns.index(column) for column in ("label", across, up)]
        points = [[row[i] for i in kept] for row in rows.rows]
        table = wandb.Table(columns=["label", across, up], data=[point for point in points if None not in point])
        if table.data:
            title = f"{name.replace('_', ' ')}: {up.replace('_', ' ')}" if len(drawn) > 1 else name.replace("_", " ")
            plots[f"{name}_{up}" if len(drawn) > 1 else name] = wandb.plot.line(table, across, up, stroke="label", title=title)
    return plots


def _shared_data(data: "EvaluationData", rule: ContentRule, withheld: frozenset[str]) -> "EvaluationData":
    """Return predictions without the texts and values that the rule keeps at home."""
    import pyarrow as pa

    from vigil_evaluation.slices.grouping import TableColumns

    table = data.table
    if rule.level == "full":
        return data
    for i, field in enumerate(table.schema):
        if pa.types.is_string(field.type) and (field.name != "id" or rule.level == "none"):
            values = [WITHHELD if value in withheld else value for value in table.column(i).to_pylist()]
            table = table.set_column(i, field.name, pa.array(values, pa.string()))
    if "text" in table.column_names:
        table = table.drop_columns(["text"])
    return replace(data, columns=TableColumns(table))


def _report(
    rule: ContentRule,
    folder: Path,
    results: "EvaluationResults",
    data: "EvaluationData",
    *,
    contents: "Mapping[str, ItemExample]",
    place: Path,
) -> "wandb.Html":
    """Return the report: as it is, or drawn again with what the rule allows."""
    import wandb

    page = folder / "report.html"
    if rule.level != "full":
        from vigil_evaluation.report.evaluation_page import render_evaluation_page

        page = place / "report.html"
        shared = {id_: _shared_content(rule, example) for id_, example in contents.items()} if rule.level == "redacted" else {}
        render_evaluation_page(results, data, page, shared)
    return wandb.Html(page.read_text(encoding="utf-8"), inject=False)


def _shared_content(rule: ContentRule, example: "ItemExample") -> "ItemExample":
    from vigil_training.tracking.evaluations.redaction import names_in

    names = sorted(set().union(*(names_in(text) for text in example.texts)))
    evidence = {
        label: tuple(replace(one, excerpt=one.excerpt and rule.text(one.excerpt, names)) for one in segments)
        for label, segments in example.evidence.items()
    }
    texts = tuple(rule.text(text, names) or "" for text in example.texts)
    # A shared text may be shorter or longer, and spans count its characters.
    return replace(example, texts=texts, evidence=evidence, spans=example.spans if texts == example.texts else {})


def _examples(
    rule: ContentRule,
    data: "EvaluationData",
    columns: Sequence[str],
    *,
    contents: "Mapping[str, ItemExample]",
    dataset: "Dataset | None",
    place: Path,
) -> dict[str, Any]:
    """Return the table of examples, ids and numbers, and the texts, pictures and sounds that the rule allows, by their id.

    A sound is written to ``place``, from which W&B copies it.
    """
    examples = find_examples(data)
    items: dict[str, Item] = {}
    if dataset is not None and rule.level in ("redacted", "full"):
        wanted = {example.id for example in examples}
        ids = dataset.table(["id"]).column("id").to_pylist()
        items = {item.id: item for item in dataset.take([row for row, id_ in enumerate(ids) if id_ in wanted])}
    rows = [
        _example_row(example, data.thresholds, values, describe_evidence(contents.get(example.id), example.label))
        for example, values in zip(examples, slice_values(data, columns, examples), strict=True)
    ]
    fixed = ["label", "kind", "id", "probability", "threshold", "target", *columns, "evidence"]
    if items:
        texts = {id_: _texts(rule, item) for id_, item in items.items()}
        rows = [[*row, texts.get(example.id, "")] for row, example in zip(rows, examples, strict=True)]
        fixed.append("texts")
    found: dict[str, Any] = {"examples": _table(Rows(fixed, rows))}
    if pictures := [picture for item in items.values() if (picture := _image(rule, item)) is not None]:
        found["examples_images"] = pictures
    if sounds := [sound for item in items.values() if (sound := _audio(rule, item, place)) is not None]:
        found["examples_audio"] = sounds
    return found


def _example_row(example: Example, thresholds: Mapping[str, float], values: Mapping[str, str], evidence: str) -> list[Any]:
    numbers = [example.probability, thresholds[example.label], example.target]
    return [example.label, example.kind, example.id, *numbers, *values.values(), evidence]


def _texts(rule: ContentRule, item: "Item") -> str:
    from vigil_training.tracking.evaluations.redaction import names_in

    names = [str(item.columns["author"])] if item.columns.get("author") else []
    if rule.level == "redacted":
        names += sorted(set().union(*(names_in(text) for text in item.text)))
    return "\n\n".join(rule.text(text, names) or "" for text in item.text)


def _image(rule: ContentRule, item: "Item") -> "wandb.Image | None":
    import wandb

    shared = rule.image(item.image[0]) if item.image else None
    return None if shared is None else wandb.Image(shared, caption=item.id)


def _audio(rule: ContentRule, item: "Item", place: Path) -> "wandb.Audio | None":
    import soundfile
    import wandb

    data = rule.audio(item.audio[0]) if item.audio else None
    if data is None:
        return None
    with suppress(soundfile.LibsndfileError):
        file = place / f"{len(list(place.iterdir()))}.{soundfile.info(io.BytesIO(data)).format.lower()}"
        file.write_bytes(data)
        return wandb.Audio(str(file), caption=item.id)
    return None

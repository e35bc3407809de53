"""Scores of published guards: a dataset through another guard's own prompt format, into the table that evaluation reads.

Example:
    >>> score_with_guard("Llama-Guard-3-8B", "llama-guard", "datasets/comments", "scores.parquet")
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vigil.workflows.shipped_recipes import taxonomy_file
from vigil_data.dataset.dataset import Dataset
from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath, sha256_json
from vigil_data.guard_formats.page import ANY, GuardFormat, Turn, load_format
from vigil_data.guard_formats.prompts import Content, read_content
from vigil_data.presence import presence_patterns
from vigil_data.progress import ProgressCallback
from vigil_data.yaml_files.yaml_tree import nearest
from vigil_serving.scoring.job_spec import SelectedRows, ShardedRows, select_rows
from vigil_serving.scoring.merge_shards import DecisionCounts, check_output, check_shards, merge_shards
from vigil_serving.scoring.output_schema import schema_digest
from vigil_serving.scoring.workdir import open_workdir, remove_workdir
from vigil_training.runs.prediction_table import STANDARD_COLUMNS

if TYPE_CHECKING:
    from vigil_modeling.guards.answer_logits import Device, DType
    from vigil_modeling.guards.published_guard import PublishedGuard

CHUNK = 256
"""Rows per shard: what a kill costs at most. Batches of similar length are made among them."""

BATCH_TOKENS = 8192
MARKER = b"vigil.guard"
"""Metadata key of every table written here."""


@dataclass(frozen=True, slots=True)
class GuardOptions:
    """Settings of a run of a published guard.

    Attributes:
        turn: what is judged: the texts as a user's prompt, or as an assistant's response.
        taxonomy: name of a shipped taxonomy, or path of its file.
        labels: labels to score (default: those of the dataset that the format maps; all of them if it has none).
        mapping: label to keys of categories, or ``any``, in addition to the format's.
        split: only rows of this split.
        where: only rows of this SQL condition.
        columns: columns of the dataset to copy, in addition to the standard ones.
        device: device of the model.
        dtype: dtype of its weights.
        max_tokens: longest prompt (default: the model's own limit).
        batch_tokens: tokens of a batch, padding included.
        chunk: rows per shard.
        restart: discard the shards of an interrupted run.
    """

    turn: Turn = "prompt"
    taxonomy: str = "safety"
    labels: tuple[str, ...] = ()
    mapping: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    split: str | None = None
    where: str | None = None
    columns: tuple[str, ...] = ()
    device: "Device" = "auto"
    dtype: "DType" = "auto"
    max_tokens: int | None = None
    batch_tokens: int = BATCH_TOKENS
    chunk: int = CHUNK
    restart: bool = False


class GuardSummary(NamedTuple):
    """Counts over the output table.

    Attributes:
        items: number of items.
        unscored: reason to the number of items without scores.
        cut: number of items whose text was cut to fit.
        labels: the labels that were scored.
        unmapped: labels of the dataset that the format says nothing about.
        resumed: number of items that an earlier, interrupted run had scored.
    """

    items: int
    unscored: dict[str, int]
    cut: int
    labels: tuple[str, ...]
    unmapped: tuple[str, ...]
    resumed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardJob(ShardedRows):
    """What is scored, and with which guard.

    Attributes:
        model: path of the model.
        weights: digest of its files' names, sizes and times.
        guard_format: name of the format.
        labels: digest of the format, the mapping of its categories, and the policy texts.
        turn: what is judged.
        dtype: dtype of the weights.
        max_tokens: longest prompt; 0 is the default.
    """

    model: str
    weights: str
    guard_format: str
    labels: str
    turn: str
    dtype: str
    max_tokens: int


class LabelPlan(NamedTuple):
    """Labels that are scored, and what each is made of.

    Attributes:
        mapping: label to keys of categories, or ``any``, in the order of the table's columns.
        policies: label to its policy text, of a format that reads it.
        unmapped: labels of the dataset that the format says nothing about.
    """

    mapping: dict[str, tuple[str, ...]]
    policies: dict[str, str]
    unmapped: tuple[str, ...]


def score_with_guard(  # noqa: PLR0917 (what, how, on what, whereto)
    model: StrPath,
    guard_format: str,
    dataset: StrPath,
    to: StrPath,
    options: GuardOptions | None = None,
    progress: ProgressCallback | None = None,
) -> GuardSummary:
    """Score a dataset's texts with a published guard; the table appears under its name when it is complete.

    An interrupted or killed run resumes from its shards. docs/guards.md describes scores and columns.

    Args:
        model: folder of a causal language model in Hugging Face's layout, a ``.gguf`` file, or owner/name on the hub.
        guard_format: a shipped format, or the path of a page.
        dataset: the dataset's folder; its latest version is scored.
        to: a Parquet file (.parquet).
        options: settings.
        progress: called with (task, items done, total).

    Raises:
        UserError: if model, format, dataset, a label or the output cannot be used, or existing shards are of another run.
        Failure: if something cannot be read or written, or the model's logits are not finite.
    """
    options = options or GuardOptions()
    to = Path(to).absolute()
    if to.suffix != ".parquet":
        raise UserError(f"--to {to}: must end in .parquet")
    check_output(to, marker=MARKER, command="vigil guard run")
    page = load_format(guard_format)
    page.turn(options.turn)
    rows, described = select_rows(dataset, options.split, options.where)
    if not len(rows.numbers):
        raise UserError(f"{rows.dataset.path}: no item to score")
    plan = plan_labels(page, rows.dataset, options)
    columns = _columns(rows, options)
    schema = _schema(tuple(plan.mapping), rows.dataset, columns)
    path = model_path(model)
    from vigil_modeling.guards.answer_logits import AnswerModel, choose_device
    from vigil_modeling.guards.published_guard import PublishedGuard

    device, dtype = choose_device(options.device, options.dtype)
    job = GuardJob(
        model=str(path),
        weights=_weights_digest(path),
        guard_format=page.name,
        labels=sha256_json([page.model_dump(mode="json"), plan.mapping, plan.policies]),
        turn=options.turn,
        dtype=dtype,
        max_tokens=options.max_tokens or 0,
        chunk=options.chunk,
        columns=schema_digest(schema),
        **described,
    )
    report = progress or (lambda *_: None)
    with open_workdir(to, job, restart=options.restart) as shards:
        missing = list(shards.missing())
        resumed = done = job.rows - sum(job.size(number) for number in missing)
        if missing:
            report("loading the model", 0, None)
            guard = PublishedGuard(
                *(page, options.turn, path, partial(AnswerModel, path, device, dtype)),
                mapping=plan.mapping,
                policies=plan.policies,
                max_tokens=options.max_tokens,
                batch_tokens=options.batch_tokens,
            )
            for number in missing:
                numbers = rows.numbers[job.span(number)]
                within = _within(report, done, len(numbers), job.rows)
                shards.write(number, _score(guard, options.turn, rows.dataset, numbers, schema, within))
                done += len(numbers)
                report("scoring", done, job.rows)
        check_shards(shards, rows, DecisionCounts())
        merge_shards(shards, schema, _metadata(page, job), to)
        summary = _summary(to, plan, resumed)
        remove_workdir(shards.folder)
    return summary


def plan_labels(page: GuardFormat, dataset: Dataset, options: GuardOptions) -> LabelPlan:
    """Return the labels to score, and what each is made of.

    Raises:
        UserError: if a label or a category is unknown, a policy text is missing, or no label is left.
    """
    known, policies = _policies(page, options) if page.asks == "policy" else (_mapping(page, options), {})
    for label in options.labels:
        if label not in known:
            raise UserError(
                f"--labels {label}: format {page.name} has no category for it{nearest(label, list(known))}; "
                f"map it with --map {label}=CATEGORY; {_categories(page)}"
            )
    of_dataset = [label for label in known if label in dataset.labels]
    chosen = list(dict.fromkeys(options.labels)) or of_dataset or list(known)
    if not chosen:
        raise UserError(
            f"format {page.name} maps no label of the taxonomy {options.taxonomy}; map labels with --map LABEL=CATEGORY; "
            f"{_categories(page)}"
        )
    if page.asks == "policy" and (silent := [label for label in chosen if not policies[label]]):
        raise UserError(f"taxonomy {options.taxonomy}: no policy text for {', '.join(silent)}; write at least a definition")
    unmapped = tuple(label for label in dataset.labels if label not in known)
    return LabelPlan({label: known[label] for label in chosen}, {k: v for k, v in policies.items() if k in chosen}, unmapped)


def model_path(model: StrPath) -> Path:
    """Return the folder or file of a model, from the hub's cache if it is owner/name and no path.

    Raises:
        UserError: if there is none.
    """
    from vigil_data.source_specs import Hub, Local
    from vigil_data.sources import resolve

    if not Path(model).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)) and not str(model).endswith(".gguf"):
        return resolve(Hub(id=str(model)))
    return resolve(Local(path=str(model)))


def _policies(page: GuardFormat, options: GuardOptions) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    from vigil_data.importers.collection import load_taxonomy
    from vigil_data.prompts.clauses import clause_text

    if options.mapping:
        raise UserError(f"--map: format {page.name} has no categories; it reads the policy text of the taxonomy's labels")
    taxonomy = load_taxonomy(taxonomy_file(options.taxonomy, Path()))
    labels = {name: label for head in taxonomy.heads.values() for name, label in head.labels.items()}
    texts = {name: clause_text(name, label) for name, label in labels.items()}
    return {name: (name,) for name in labels}, {name: text if "\n" in text else "" for name, text in texts.items()}


def _mapping(page: GuardFormat, options: GuardOptions) -> dict[str, tuple[str, ...]]:
    name, layout = options.taxonomy, page.turn(options.turn)
    if name not in page.taxonomies and (file := taxonomy_file(name, Path())).stem != name:
        from vigil_data.importers.collection import load_taxonomy

        name = load_taxonomy(file).name
    mapping = {**page.taxonomies.get(name, {}), **options.mapping}
    for label, keys in options.mapping.items():
        for key in keys:
            if key not in page.categories and not (key == ANY and page.asks == "once"):
                raise UserError(f"--map {label}={key}: no category of format {page.name}; {_categories(page)}")
    present = {label: tuple(key for key in keys if key not in layout.without) for label, keys in mapping.items()}
    return {label: keys for label, keys in present.items() if keys}


def _categories(page: GuardFormat) -> str:
    named = [f"{key} ({category.name})" if category.name != key else key for key, category in page.categories.items()]
    return f"its categories are {', '.join([*named, *([ANY] if page.asks == 'once' else [])])}"


def _columns(rows: SelectedRows, options: GuardOptions) -> list[str]:
    """Return the columns to copy: those that are asked for, and standard ones that are not null in all rows."""
    dataset = rows.dataset
    if absent := [name for name in options.columns if name not in dataset.columns]:
        raise UserError(f"--columns {absent[0]}: {dataset.path} has no such column; it has {', '.join(dataset.columns)}")
    standard = [name for name in STANDARD_COLUMNS if name in dataset.columns and name not in options.columns]
    filled: set[str] = set()
    for start in range(0, len(rows.numbers), 1 << 16):
        table = dataset.table(standard, rows.numbers[start : start + (1 << 16)]) if standard else None
        filled |= {name for name in standard if table is not None and table[name].null_count < table.num_rows}
    return [*options.columns, *(name for name in standard if name in filled)]


def _schema(labels: Sequence[str], dataset: Dataset, columns: Sequence[str]) -> pa.Schema:
    return pa.schema(
        [("id", pa.string())]
        + [(f"{kind}.{label}", pa.float32()) for label in labels for kind in ("target", "probability")]
        + [("presence", pa.string())]
        + [(name, dataset.schema.field(name).type) for name in columns]
        + [("tokens", pa.int32()), ("cut", pa.bool_()), ("error", pa.string())]
    )


def _score(  # noqa: PLR0917
    guard: "PublishedGuard",
    turn: Turn,
    dataset: Dataset,
    numbers: NDArray[np.int64],
    schema: pa.Schema,
    report: Callable[[float], None],
) -> pa.Table:
    """Score rows; images and audio are not read."""
    names = [name for name in schema.names if name in dataset.columns]
    stored = dataset.table([*dataset.item_columns(("text",), labels=(), columns=()), *names], numbers)
    read = [read_content(item, turn) for item in dataset.items(stored)]
    present = [place for place, content in enumerate(read) if isinstance(content, Content)]
    labels = [name.removeprefix("target.") for name in schema.names if name.startswith("target.")]
    targets_NL = dataset.targets(labels, numbers)
    probabilities_NL = np.full((len(read), len(labels)), np.nan)
    tokens: list[int | None] = [None] * len(read)
    cut: list[bool | None] = [None] * len(read)
    if present:
        scores = guard.score([content for content in read if isinstance(content, Content)], report)
        probabilities_NL[present] = scores.probabilities_NL
        for place, length, shortened in zip(present, scores.tokens_N.tolist(), scores.cut_N.tolist(), strict=True):
            tokens[place], cut[place] = length, shortened
    values: dict[str, object] = {"id": stored["id"], **{name: stored[name] for name in names}}
    for place, label in enumerate(labels):
        for kind, table_NL in (("target", targets_NL), ("probability", probabilities_NL)):
            column_N = table_NL[:, place].astype(np.float32)
            values[f"{kind}.{label}"] = pa.array(column_N, pa.float32(), mask=np.isnan(column_N))
    values["presence"] = presence_patterns(dataset.facts(numbers) > 0)
    values |= {"tokens": tokens, "cut": cut, "error": [c if isinstance(c, str) else None for c in read]}
    return pa.Table.from_pydict({name: values[name] for name in schema.names}, schema=schema)


def _within(report: ProgressCallback, before: int, size: int, total: int) -> Callable[[float], None]:
    """Return a report of the share of a shard that is done, as items of the whole run."""
    return lambda share: report("scoring", before + int(share * size), total)


def _weights_digest(path: Path) -> str:
    """Return a digest of the names, sizes and times of a model's files; their content would take minutes to read."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return sha256_json([[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()])


def _metadata(page: GuardFormat, job: GuardJob) -> dict[str, str]:
    metadata = {
        MARKER.decode(): job.model,
        "vigil.format": page.name,
        "vigil.turn": job.turn,
        "vigil.dtype": job.dtype,
        "vigil.dataset": job.dataset,
        "vigil.dataset_version": str(job.version),
    }
    return metadata | {f"vigil.{name}": value for name in ("split", "where") if (value := getattr(job, name)) is not None}


def _summary(to: Path, plan: LabelPlan, resumed: int) -> GuardSummary:
    table = pq.read_table(to, columns=["error", "cut"])
    reasons = {entry["values"]: entry["counts"] for entry in table["error"].drop_null().value_counts().to_pylist()}
    return GuardSummary(
        table.num_rows, reasons, table["cut"].to_pylist().count(True), tuple(plan.mapping), plan.unmapped, resumed
    )

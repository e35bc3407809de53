"""Score a dataset with a guard whose language model an LLM server runs, into the table that ``vigil score`` writes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from vigil_data.filesystem import StrPath
from vigil_data.progress import ProgressCallback
from vigil_serving.bundle.load import Bundle
from vigil_serving.bundle.policy_text import with_policy_text
from vigil_serving.bundle.policy_text_file import read_policy_text
from vigil_serving.llm_server.client import ConnectionSettings
from vigil_serving.llm_server.folder import load_guard_folder
from vigil_serving.llm_server.protocols import Api
from vigil_serving.llm_server.scorer import ServerCheck, ServerScorer
from vigil_serving.scoring.job_spec import JobSpec, SelectedRows, select_rows
from vigil_serving.scoring.local_executor import read_ahead
from vigil_serving.scoring.merge_shards import DecisionCounts, check_output, check_shards, merge_shards
from vigil_serving.scoring.output_schema import decisions_table, output_schema, schema_digest
from vigil_serving.scoring.score import table_metadata
from vigil_serving.scoring.shards import Shards
from vigil_serving.scoring.workdir import open_workdir, remove_workdir

CHUNK = 256
"""Rows per shard: what a kill costs at most."""
TOLERANCE = 0.5
"""Largest difference of log odds on the golden prompts: what bfloat16 changes is far below, and another model far above."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerJob(JobSpec):
    """What is scored, and with which guard; its server may have another address when the job resumes.

    Attributes:
        model: name of the model on the server; ``None`` for its only one.
        top_logprobs: number of likeliest tokens to ask for.
    """

    model: str | None
    top_logprobs: int


@dataclass(frozen=True, slots=True)
class ServerSummary:
    """Counts over the output table, and what was found about the server.

    Attributes:
        items: number of items.
        errors: number of items without a decision: undecodable, or not answered.
        bounded: number of items with a probability that is only a bound.
        decided: label to the number of items whose probability reaches its threshold.
        actions: action of the policy to its number of items; empty without a policy.
        not_evaluated: labels with a policy text that was not evaluated.
        uncalibrated: labels with a policy text that has no calibration.
        resumed: number of items that an earlier, interrupted run had scored.
        retried: attempts of requests that failed and were made again.
        check: agreement with the trained guard; ``None`` if all items had been scored before.
    """

    items: int
    errors: int
    bounded: int
    decided: dict[str, int]
    actions: dict[str, int]
    not_evaluated: tuple[str, ...]
    uncalibrated: tuple[str, ...]
    resumed: int
    retried: int
    check: ServerCheck | None


def score_with_server(
    folder: StrPath,
    dataset: StrPath,
    to: StrPath,
    connection: ConnectionSettings,
    *,
    api: Api = "completions",
    model: str | None = None,
    top: int = 20,
    concurrency: int = 16,
    tolerance: float = TOLERANCE,
    split: str | None = None,
    where: str | None = None,
    policy_text: StrPath | None = None,
    chunk: int = CHUNK,
    restart: bool = False,
    progress: ProgressCallback | None = None,
) -> ServerSummary:
    """Score a dataset's items in row order; an interrupted or killed job resumes from its shards.

    Args:
        folder: the guard's Hugging Face folder; its hashes are checked.
        dataset: the dataset's folder; its latest version is scored.
        to: a Parquet file (.parquet) or a Lance table (.lance).
        connection: how to reach the server.
        api: interface of the server.
        model: name of the model on the server (default: the only one).
        top: number of likeliest tokens to ask for.
        concurrency: requests at the same time.
        tolerance: largest allowed difference of log odds from the trained guard on the golden prompts.
        split: score only this split.
        where: score only the rows of this SQL condition.
        policy_text: file of policy texts in place of the guard's, see :func:`.policy_text_file.read_policy_text`.
        chunk: rows per shard.
        restart: discard the shards of an interrupted job.
        progress: called with the items done and the total.

    Raises:
        UserError: if the folder was altered; dataset, split, condition or output cannot be used; the server does not take the
            guard's prompts or serves another model; or existing shards are of another job.
        Failure: if the server does not respond, or something cannot be read or written.
    """
    to = Path(to).absolute()
    report = progress or (lambda *_: None)
    check_output(to)
    bundle, facts = load_guard_folder(Path(folder).resolve())
    texts = None if policy_text is None else read_policy_text(policy_text, bundle)
    if texts is not None:
        bundle = with_policy_text(bundle, texts)
    schema = _schema(bundle)
    rows, described = select_rows(dataset, split, where)
    job = ServerJob(
        bundle=bundle.digest,
        variant="server",
        policy_text=None if texts is None else texts.digest,
        model=model,
        top_logprobs=top,
        chunk=chunk,
        columns=schema_digest(schema),
        **described,
    )
    check: ServerCheck | None = None
    with open_workdir(to, job, restart=restart) as shards:
        missing = list(shards.missing())
        resumed = done = job.rows - sum(job.size(number) for number in missing)
        scorer = ServerScorer(bundle, facts, connection, api=api, model=model, top=top, concurrency=concurrency)
        if missing:
            with scorer:
                report("connecting", 0, None)
                check = scorer.check(tolerance)
                report("scoring", done, job.rows)
                for number in _score_shards(shards, missing, scorer, rows, schema):
                    done += job.size(number)
                    report("scoring", done, job.rows)
        counts = DecisionCounts(decided=dict.fromkeys(bundle.labels, 0))
        counts.actions = dict.fromkeys(bundle.policy.actions if bundle.policy else (), 0)
        check_shards(shards, rows, counts)
        merge_shards(shards, schema, table_metadata(bundle, job), to)
        remove_workdir(shards.folder)
    return ServerSummary(
        items=counts.items,
        errors=counts.errors,
        bounded=counts.bounded,
        decided=counts.decided,
        actions=counts.actions,
        not_evaluated=bundle.not_evaluated,
        uncalibrated=bundle.uncalibrated,
        resumed=resumed,
        retried=scorer.client.retried,
        check=check,
    )


def _schema(bundle: Bundle) -> pa.Schema:
    """The columns of ``vigil score``, and ``bounded``: labels whose probability is only a bound."""
    return output_schema(bundle).append(pa.field("bounded", pa.list_(pa.string())))


def _score_shards(
    shards: Shards[ServerJob], numbers: Sequence[int], scorer: ServerScorer, rows: SelectedRows, schema: pa.Schema
) -> Iterator[int]:
    """Write shards while the server is kept busy with the prompts of the next ones, and yield the number of each."""
    wanted = np.concatenate([rows.numbers[shards.job.span(number)] for number in numbers])
    scored = scorer.score(chain.from_iterable(read_ahead(rows.dataset, wanted)))
    for number in numbers:
        found = list(islice(scored, shards.job.size(number)))
        table = decisions_table([one.decision for one in found], scorer.bundle)
        bounded = [None if one.decision.error else list(one.bounded) for one in found]
        shards.write(number, table.append_column(schema.field("bounded"), pa.array(bounded, pa.list_(pa.string()))))
        yield number

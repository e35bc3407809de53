"""Decisions of a guard whose language model another server runs.

Example:
    >>> bundle, facts = load_guard_folder("guards/comments")
    >>> with ServerScorer(bundle, facts, ConnectionSettings("http://127.0.0.1:8000")) as scorer:
    ...     [scored] = scorer.score([Item("1", ("call me now",))])
    >>> scored.decision.probabilities
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vigil_data.decode import Decoder, Undecodable
from vigil_data.errors import UserError
from vigil_data.items import Item
from vigil_data.loading.packing import DecodedItem, Packed, pack
from vigil_data.prompts.assemble import Cut
from vigil_serving.bundle.load import Bundle
from vigil_serving.llm_server.client import ConnectionSettings, HttpClient, Refused
from vigil_serving.llm_server.folder import TOKENIZER, LanguageModelFacts
from vigil_serving.llm_server.prompts import batch_prompts
from vigil_serving.llm_server.protocols import Answers, Api, LogOdds
from vigil_serving.llm_server.server import GuardServer
from vigil_serving.runtime.decisions import Decision, decide
from vigil_serving.runtime.onnx_sessions import GraphOutputs

BATCH_ITEMS = 32
"""Items whose prompts are assembled and sent together, so that prompts with the same beginning follow each other."""
MAX_WAITING_BATCHES = 3
"""Batches whose prompts wait or are on their way, so that the server always has work and memory is bounded."""

_Reply = LogOdds | None | str
"""Log odds, ``None`` for neither answer, or why the server refused the prompt."""


class ScoredItem(NamedTuple):
    """The decision on an item.

    Attributes:
        decision: the decision; its ``error`` is set if the item could not be decoded or the server gave no answer.
        bounded: labels with one answer that was not reported: the probability is only a bound, on the right side of 0.5.
    """

    decision: Decision
    bounded: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServerCheck:
    """Agreement of the server with the trained guard on the folder's golden prompts.

    Attributes:
        prompts: number of prompts.
        max_difference: largest difference of log odds.
        flips: prompts on which the likelier answer differs.
        bounded: prompts with an answer that was not reported; they are not compared.
        tokens: whether prompts are sent as token ids.
        model: name of the model on the server.
    """

    prompts: int
    max_difference: float
    flips: int
    bounded: int
    tokens: bool
    model: str | None


class ServerScorer:
    """A guard's folder, and the server that serves its language model.

    Args:
        bundle: the folder, from :func:`.load_guard_folder`.
        facts: content of its llm.json.
        connection: how to reach the server.
        api: interface of the server.
        model: name of the model on the server (default: the only one).
        top: number of likeliest tokens to ask for.
        concurrency: requests at the same time.

    Raises:
        UserError: if the address is invalid.
    """

    def __init__(
        self,
        bundle: Bundle,
        facts: LanguageModelFacts,
        connection: ConnectionSettings,
        *,
        api: Api = "completions",
        model: str | None = None,
        top: int = 20,
        concurrency: int = 16,
    ) -> None:
        assert bundle.prompt is not None
        self.bundle, self._facts, self._concurrency = bundle, facts, concurrency
        self._prompt = bundle.prompt
        self._decoder = Decoder(bundle.inputs, bundle.labels)
        self.client = HttpClient(connection)
        yes, no = self._prompt.pieces.answer_ids
        answers = Answers((yes, no), (facts.answer_texts[0], facts.answer_texts[1]))
        tokenizer = Tokenizer.from_file(str(bundle.path / TOKENIZER))
        self.server = GuardServer(self.client, api, answers, tokenizer, model=model, top=top)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.client.close()

    def check(self, tolerance: float) -> ServerCheck:
        """Connect, and compare the server with the trained guard.

        Args:
            tolerance: largest allowed difference of log odds.

        Raises:
            UserError: if the server does not take the guard's prompts, or differs by more.
            Failure: if it does not respond.
        """
        golden = self._facts.golden
        self.server.connect(golden[0].ids)
        with self._pool() as pool:
            replies = [(prompt, future.result()) for prompt, future in [(p, pool.submit(self._ask, p.ids)) for p in golden]]
        if refused := [reply for _, reply in replies if isinstance(reply, str)]:
            raise UserError(f"{self.client.settings.url}: refuses a prompt of the guard: {refused[0]}")
        known = [(prompt.log_odds, reply.value) for prompt, reply in replies if isinstance(reply, LogOdds) and not reply.bounded]
        found = ServerCheck(
            prompts=len(golden),
            max_difference=max((abs(ours - theirs) for ours, theirs in known), default=0.0),
            flips=sum((ours >= 0) != (theirs >= 0) for ours, theirs in known),
            bounded=len(golden) - len(known),
            tokens=self.server.form is not None and self.server.form.tokens,
            model=self.server.model,
        )
        if not known:
            raise UserError(
                f"{self.client.settings.url}: the {self.server.top} likeliest tokens never have both answers; raise "
                "--top-logprobs, and the server's limit of it, or check that it serves the guard"
            )
        if found.max_difference > tolerance:
            raise UserError(
                f"{self.client.settings.url}: its log odds differ from the trained guard's by up to {found.max_difference:.2f} "
                f"on {found.prompts} prompts: it serves another model, or one of less precision; serve this folder, or raise "
                "--tolerance"
            )
        return found

    def score(self, items: Iterable[Item]) -> Iterator[ScoredItem]:
        """Decide items, in order, while the prompts of the next ones are on their way.

        Raises:
            UserError: if the server refuses access.
            Failure: if it does not respond.
        """
        items = iter(items)
        waiting: deque[_Batch] = deque()
        pool = self._pool()
        try:
            while batch := list(islice(items, BATCH_ITEMS)):
                waiting.append(self._send(batch, pool))
                if len(waiting) == MAX_WAITING_BATCHES:
                    yield from self._decide(waiting.popleft())
            while waiting:
                yield from self._decide(waiting.popleft())
        except BaseException:
            self.client.close()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._concurrency, thread_name_prefix="llm")

    def _ask(self, ids: Sequence[int]) -> _Reply:
        try:
            return self.server.log_odds(ids)
        except Refused as refused:
            return str(refused)

    def _send(self, items: Sequence[Item], pool: ThreadPoolExecutor) -> "_Batch":
        """Decode items, and submit their prompts in the order of their token ids: what starts alike follows each other."""
        decoded: list[DecodedItem] = []
        places: list[int] = []
        errors: dict[int, str] = {}
        for place, item in enumerate(items):
            try:
                decoded.append(self._decoder.decode(item))
                places.append(place)
            except Undecodable as error:
                errors[place] = str(error)
        packed = pack(decoded)
        if not decoded:
            return _Batch(items, packed, places, errors, {}, (), decoded)
        prompts, cut = batch_prompts(self._prompt, packed)
        replies = {answer: pool.submit(self._ask, prompts[answer]) for answer in sorted(prompts, key=prompts.__getitem__)}
        return _Batch(items, packed, places, errors, replies, cut, decoded)

    def _decide(self, batch: "_Batch") -> Iterator[ScoredItem]:
        labels = self.bundle.labels
        odds_NL = np.zeros((len(batch.places), len(labels)))
        bounded: list[list[str]] = [[] for _ in batch.places]
        errors = dict(batch.errors)
        for answer, future in batch.replies.items():
            (row, column), reply = divmod(answer, len(labels)), future.result()
            if isinstance(reply, LogOdds):
                odds_NL[row, column] = reply.value
                if reply.bounded:
                    bounded[row].append(labels[column])
            else:
                why = f"neither answer is among the {self.server.top} likeliest tokens" if reply is None else reply
                errors.setdefault(batch.places[row], f"{labels[column]}: {why}")
        scores = GraphOutputs(_sigmoid(self._constrained(odds_NL)).astype(np.float32), {}, batch.cut)
        items = [batch.items[place] for place in batch.places]
        made = decide(batch.packed, scores, self.bundle, [item.columns for item in items])
        omitted = [sum(one.cut.values()) for one in batch.decoded]
        decided = {p: replace(d, cut=n) for p, d, n in zip(batch.places, made, omitted, strict=True)}
        order = {label: place for place, label in enumerate(labels)}
        marks = dict(zip(batch.places, (tuple(sorted(names, key=order.__getitem__)) for names in bounded), strict=True))
        for place, item in enumerate(batch.items):
            if place in errors:
                yield ScoredItem(Decision(item.id, {}, error=errors[place]), ())
            else:
                yield ScoredItem(decided[place], marks[place])

    def _constrained(self, odds_NL: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the log odds of each label with its descendants; see ``LabelStructure.constrain`` in modeling."""
        if not self._facts.subtrees:
            return odds_NL
        return np.stack([odds_NL[:, list(tree)].max(1) for tree in self._facts.subtrees], axis=1)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Items whose prompts are on their way: the decodable ones' places, and the reply to each question."""

    items: Sequence[Item]
    packed: Packed
    places: Sequence[int]
    errors: dict[int, str]
    replies: "dict[int, Future[_Reply]]"
    cut: tuple[Cut, ...]
    decoded: Sequence[DecodedItem]


def _sigmoid(odds_NL: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(-np.logaddexp(0, -odds_NL))

"""Assembly of prompts: questions about items and policies become rows of token ids with shared beginnings.

Example:
    >>> texts = text_tokens(item_S, role_S, input_ids_ST, attention_mask_ST)
    >>> rows = assemble(pieces, clauses, questions_all(len(batch), len(clauses)), {"text": texts})
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vigil_data.errors import UserError
from vigil_data.items import MODALITIES, ROLES, Modality
from vigil_data.prompts.clauses import Clause
from vigil_data.prompts.pieces import PromptPieces
from vigil_data.prompts.planner import Group, plan_rows

MIN_CONTENT_TOKENS = 16
"""Tokens that an item must have left when the longest policy stands in the prompt."""

Ints = NDArray[np.int64]


class Question(NamedTuple):
    """One prompt: does the item violate the policy of these clauses?

    Attributes:
        item: row of the batch.
        clauses: numbers of the policy's clauses, in the order in which they are read.
        answer: number of the answer; ``item * L + label`` in inference.
    """

    item: int
    clauses: tuple[int, ...]
    answer: int


class SegmentTokens(NamedTuple):
    """Tokens of a batch's S segments of one modality.

    Attributes:
        item: int64 ``[S]``, ascending: the row of the batch that each belongs to.
        role: int64 ``[S]``: the place of each segment's role in :data:`vigil_data.items.ROLES`.
        tokens: int64 ``[S]``: number of tokens of each.
        ids: int64 ``[S, T]``: token ids, those of a segment first in its row; ``None`` for soft tokens.
    """

    item: Ints
    role: Ints
    tokens: Ints
    ids: Ints | None


class Cut(NamedTuple):
    """A segment that was shortened because the prompt is longer than the context.

    Attributes:
        item: row of the batch.
        modality: modality of the segment.
        segment: place among the item's segments of that modality.
        tokens: number of tokens left out; all if the segment is not in the prompt.
    """

    item: int
    modality: Modality
    segment: int
    tokens: int


@dataclass(frozen=True, slots=True)
class PromptRows:
    """R rows of prompts, padded at the end to T tokens, each row of at most B blocks.

    A block is a stretch of tokens. A token attends to its own block and to those on the path from the header to it, causally:
    ``mask[r, i, j] = sees[r, block[r, i], block[r, j]] and j <= i``. Padding is block 0, which sees itself alone, so that no row
    of the mask is empty.

    Attributes:
        input_ids: int64 ``[R, T]``, 0 for soft tokens and padding.
        soft: int64 ``[R, T]``: 1 + place in the batch's soft tokens (those of images, then of audio); 0 elsewhere.
        position: int64 ``[R, T]``: place within the token's own prompt; 0 for padding.
        block: int64 ``[R, T]``: block within the row.
        sees: bool ``[R, B, B]``: whether block b attends to block c.
        segment: int64 ``[R, T]``: 1 + number of the segment among those of the batch (texts, then images, then audio); 0 for
            constant pieces and policies.
        answer_row: int64 ``[A]``: row of the last token of each question's prompt, in the order of the questions.
        answer_column: int64 ``[A]``: its column.
        answer: int64 ``[A]``: :attr:`Question.answer`.
        cut: segments that were shortened.
    """

    input_ids: Ints
    soft: Ints
    position: Ints
    block: Ints
    sees: NDArray[np.bool_]
    segment: Ints
    answer_row: Ints
    answer_column: Ints
    answer: Ints
    cut: tuple[Cut, ...]

    @property
    def tokens(self) -> int:
        """Number of tokens without padding."""
        return int((self.block > 0).sum())


def questions_all(n_items: int, n_labels: int) -> list[Question]:
    """Return the questions of inference: each item against each label's clause."""
    return [Question(item, (label,), item * n_labels + label) for item in range(n_items) for label in range(n_labels)]


def text_tokens(item_S: Ints, role_S: Ints, input_ids_ST: Ints, attention_mask_ST: Ints) -> SegmentTokens:
    """Return the tokens of passages, as :class:`vigil_data.decode.Decoder` makes them with ``special_tokens: false``."""
    return SegmentTokens(item_S, role_S, attention_mask_ST.sum(1, dtype=np.int64), input_ids_ST)


def soft_tokens(item_S: Ints, role_S: Ints, tokens: int) -> SegmentTokens:
    """Return soft tokens of images or windows of audio, the same number for each."""
    return SegmentTokens(item_S, role_S, np.full(len(item_S), tokens, np.int64), None)


def content_room(pieces: PromptPieces, clauses: Sequence[Clause], together: int = 1) -> int:
    """Return how many tokens an item may have, its headings included, next to the longest policy.

    Args:
        pieces: the constant pieces.
        clauses: the clauses; a label may have several.
        together: number of labels whose clauses stand in one policy.

    Raises:
        UserError: if that is less than :data:`MIN_CONTENT_TOKENS`; the message names the labels.
    """
    ascending = sorted(clauses, key=lambda clause: len(clause.ids))
    longest = list({clause.label: clause for clause in ascending}.values())
    policy = sorted(longest, key=lambda clause: -len(clause.ids))[:together]
    return _room(pieces, policy, len(_policy(pieces, policy).ids) - len(pieces.policy_heading))


def _room(pieces: PromptPieces, policy: Sequence[Clause], tokens: int) -> int:
    room = pieces.max_tokens - pieces.fixed_tokens - tokens
    if room < max(MIN_CONTENT_TOKENS, len(pieces.empty)):
        raise UserError(
            f"the policy of {', '.join(clause.label for clause in policy)} has {tokens} tokens and the rest of the prompt "
            f"{pieces.fixed_tokens}: of max_tokens {pieces.max_tokens}, {max(room, 0)} are left for the content; "
            "shorten the policy or raise max_tokens"
        )
    return room


def assemble(
    pieces: PromptPieces,
    clauses: Sequence[Clause],
    questions: Sequence[Question],
    segments: Mapping[Modality, SegmentTokens],
    *,
    multiple: int = 1,
) -> PromptRows:
    """Assemble the prompts of a batch.

    An item's content is cut so that the longest of its prompts has ``pieces.max_tokens`` tokens; which prompts share a row does
    not change what a prompt is.

    Args:
        pieces: the constant pieces; their ``order`` must be resolved.
        clauses: clauses that the questions number.
        questions: at least one.
        segments: modality to the tokens of the batch's segments; items without any are allowed.
        multiple: the rows' length T and number of blocks B are rounded up to a multiple of this.

    Raises:
        UserError: if a policy leaves no room for content.
        ValueError: if the order is ``auto``, or there is no question.
    """
    if pieces.order == "auto" or not questions:
        raise ValueError("prompts need an order that is not auto, and a question")
    contents = _Contents(pieces, segments)
    policies: dict[tuple[int, ...], _Block] = {}
    rooms: dict[tuple[int, ...], int] = {}
    room: dict[int, int] = {}
    for item, numbers, _ in questions:
        if numbers not in policies:
            policy = [clauses[number] for number in numbers]
            policies[numbers] = _policy(pieces, policy)
            rooms[numbers] = _room(pieces, policy, len(policies[numbers].ids) - len(pieces.policy_heading))
        room[item] = min(room.get(item, pieces.max_tokens), rooms[numbers])
    items = {item: contents.of(item, tokens) for item, tokens in room.items()}
    header, gap, tail = _constant(pieces.header), _constant(pieces.gap), _constant(pieces.question)
    first: dict[Any, _Block]
    by_policy = pieces.order == "policy_first"
    first = {key: block + gap for key, block in (policies if by_policy else items).items()}
    second = {key: block + tail for key, block in (items if by_policy else policies).items()}
    members: dict[Any, list[int]] = {key: [] for key in first}
    for number, (item, numbers, _) in enumerate(questions):
        members[numbers if by_policy else item].append(number)
    leaves = [second[item if by_policy else numbers] for item, numbers, _ in questions]
    keys = list(first)
    groups = [Group(len(first[key].ids), tuple(len(leaves[n].ids) for n in members[key])) for key in keys]
    rows = _Rows(len(questions))
    for row in plan_rows(len(header.ids), groups, pieces.row_tokens):
        rows.start(header)
        for share in row:
            key = keys[share.group]
            parent = rows.add(first[key])
            for leaf in share.leaves:
                question = members[key][leaf]
                rows.add(leaves[question], parent, question)
    return rows.finish([question.answer for question in questions], contents.cut, multiple)


@dataclass(frozen=True, slots=True)
class _Block:
    """Token ids, soft tokens and segments of a stretch of tokens, each ``[n]``; see :class:`PromptRows`."""

    ids: Ints
    soft: Ints
    segment: Ints

    def __add__(self, other: "_Block") -> "_Block":
        return _joined([self, other])


def _constant(ids: Sequence[int]) -> _Block:
    zeros = np.zeros(len(ids), np.int64)
    return _Block(np.array(ids, np.int64), zeros, zeros)


def _joined(blocks: Sequence[_Block]) -> _Block:
    return _Block(*(np.concatenate([getattr(block, name) for block in blocks]) for name in ("ids", "soft", "segment")))


def _policy(pieces: PromptPieces, clauses: Sequence[Clause]) -> _Block:
    ids = list(pieces.policy_heading)
    for number, clause in enumerate(clauses):
        ids += (*(pieces.gap if number else ()), *clause.ids)
    return _constant(ids)


class _Contents:
    """Blocks of the items' segments."""

    def __init__(self, pieces: PromptPieces, segments: Mapping[Modality, SegmentTokens]) -> None:
        self.cut: list[Cut] = []
        self._pieces = pieces
        self._of: dict[int, list[tuple[Modality, int, _Block, _Block]]] = {}
        seen, soft = 0, 0
        for modality in MODALITIES:
            if modality not in segments:
                continue
            item_S, role_S, tokens_S, ids_ST = segments[modality]
            headings = [_constant(pieces.headings[modality][role]) for role in ROLES]
            counts: dict[int, int] = {}
            for number, (item, role, tokens) in enumerate(zip(item_S.tolist(), role_S.tolist(), tokens_S.tolist(), strict=True)):
                zeros = np.zeros(tokens, np.int64)
                place = np.full(tokens, 1 + seen + number, np.int64)
                if ids_ST is None:
                    block = _Block(zeros, np.arange(1 + soft, 1 + soft + tokens, dtype=np.int64), place)
                    soft += tokens
                else:
                    block = _Block(ids_ST[number, :tokens].astype(np.int64, copy=False), zeros, place)
                index = counts[item] = counts.get(item, -1) + 1
                self._of.setdefault(item, []).append((modality, index, headings[role], block))
            seen += len(item_S)

    def of(self, item: int, room: int) -> _Block:
        """Return the content of an item: its heading, and at most ``room`` tokens."""
        heading = _constant(self._pieces.content_heading)
        if item not in self._of:
            return heading + _constant(self._pieces.empty)
        segments = self._of[item]
        kept = kept_tokens([len(s[2].ids) for s in segments], [len(s[3].ids) for s in segments], room)
        blocks = [heading]
        for (modality, index, title, block), tokens in zip(segments, kept, strict=True):
            if tokens:
                blocks += (title, _Block(block.ids[:tokens], block.soft[:tokens], block.segment[:tokens]))
            if tokens < len(block.ids):
                self.cut.append(Cut(item, modality, index, len(block.ids) - tokens))
        return _joined(blocks)


def kept_tokens(headings: Sequence[int], tokens: Sequence[int], room: int) -> list[int]:
    """Return how many tokens of each of an item's segments stay in the prompt, from the beginning of each.

    The longest segments are cut to one length, the largest with which all fit; the first of them keep one token more where that
    fits too. Where not even one token of each segment fits, the last segments are left out.

    Args:
        headings: tokens of each segment's heading, which stands before the segment unless it is left out.
        tokens: tokens of each segment.
        room: maximum number of tokens in all.
    """
    kept = list(tokens)
    last = len(kept)
    while last and sum(headings[:last]) + last > room:
        last -= 1
        kept[last] = 0
    room -= sum(headings[:last])
    if sum(kept) <= room:
        return kept
    level, free = 0, room
    for number, length in enumerate(ordered := sorted(kept[:last])):
        level = free // (last - number)
        if length > level:
            break
        free -= length
    spare = free - level * sum(length > level for length in ordered)
    for number in range(last):
        if kept[number] > level:
            kept[number] = level + (spare > 0)
            spare -= 1
    return kept


class _Rows:
    """Rows that are being filled."""

    def __init__(self, questions: int) -> None:
        self._rows: list[list[_Block]] = []
        self._paths: list[list[list[int]]] = []  # of each block of each row: the blocks that it sees
        self._starts: list[list[int]] = []  # of each block of each row: position of its first token
        self._row, self._column = np.zeros(questions, np.int64), np.zeros(questions, np.int64)
        self._length = 0

    def start(self, header: _Block) -> None:
        """Begin a row with the header."""
        self._rows.append([header])
        self._paths.append([[0], [1]])
        self._starts.append([0])
        self._length = len(header.ids)

    def add(self, block: _Block, parent: int = 1, question: int | None = None) -> int:
        """Add a block below another, and return its number; its last token answers ``question``."""
        row, paths, starts = self._rows[-1], self._paths[-1], self._starts[-1]
        number = len(paths)
        starts.append(starts[parent - 1] + len(row[parent - 1].ids))
        paths.append([*paths[parent], number])
        row.append(block)
        self._length += len(block.ids)
        if question is not None:
            self._row[question], self._column[question] = len(self._rows) - 1, self._length - 1
        return number

    def finish(self, answers: Sequence[int], cut: Sequence[Cut], multiple: int) -> PromptRows:
        """Return the rows as arrays, T and B rounded up to a multiple of ``multiple``."""
        longest = max(sum(len(block.ids) for block in row) for row in self._rows)
        T, B = (-(-size // multiple) * multiple for size in (longest, max(map(len, self._paths))))
        shape = (len(self._rows), T)
        arrays = {name: np.zeros(shape, np.int64) for name in ("input_ids", "soft", "position", "block", "segment")}
        sees = np.zeros((len(self._rows), B, B), np.bool_)
        sees[:, 0, 0] = True
        for r, (row, paths, starts) in enumerate(zip(self._rows, self._paths, self._starts, strict=True)):
            whole = _joined(row)
            n = len(whole.ids)
            lengths = [len(block.ids) for block in row]
            arrays["input_ids"][r, :n], arrays["soft"][r, :n], arrays["segment"][r, :n] = whole.ids, whole.soft, whole.segment
            arrays["block"][r, :n] = np.repeat(np.arange(1, 1 + len(row)), lengths)
            offsets = np.cumsum([0, *lengths[:-1]])
            arrays["position"][r, :n] = np.arange(n) - np.repeat(offsets - starts, lengths)
            for b, path in enumerate(paths):
                sees[r, b, path] = True
        return PromptRows(
            **arrays,
            sees=sees,
            answer_row=self._row,
            answer_column=self._column,
            answer=np.array(answers, np.int64),
            cut=tuple(cut),
        )


def paths(rows: PromptRows) -> Iterator[Ints]:
    """Yield the columns of each question's prompt in its row, first to last, in the order of the questions."""
    for row, column in zip(rows.answer_row.tolist(), rows.answer_column.tolist(), strict=True):
        seen_T = rows.sees[row, rows.block[row, column], rows.block[row]]
        yield np.flatnonzero(seen_T[: column + 1])


class TextTokens(NamedTuple):
    """Where rows have the tokens of texts, M of them, each int64 ``[M]``.

    Attributes:
        row: row of the token.
        column: its column.
        segment: number of its text among those of the batch.
        token: its place in that text.
        label: place of a label whose question the row asks after the text.
    """

    row: Ints
    column: Ints
    segment: Ints
    token: Ints
    label: Ints


def text_tokens_of(rows: PromptRows, labels: Sequence[int], n_labels: int, cells: int) -> TextTokens:
    """Return where some labels' questions have the tokens of their items' texts.

    Args:
        rows: the rows.
        labels: the labels, by their place in the taxonomy.
        n_labels: number of labels of the taxonomy, L.
        cells: number of items times L; an answer from this number on is not of an item and a label.
    """
    place = {label: number for number, label in enumerate(labels)}
    found: list[Ints] = [np.zeros((5, 0), np.int64)]
    for row, answer, columns in zip(rows.answer_row.tolist(), rows.answer.tolist(), paths(rows), strict=True):
        label = place.get(answer % n_labels)
        if answer >= cells or label is None:
            continue
        text = columns[(rows.segment[row, columns] > 0) & (rows.soft[row, columns] == 0)]
        segment = rows.segment[row, text] - 1
        order = np.arange(len(text))
        first = np.maximum.accumulate(np.where(np.diff(segment, prepend=-1) != 0, order, 0))  # of each token's segment
        found.append(np.stack([np.full(len(text), row), text, segment, order - first, np.full(len(text), label)]))
    return TextTokens(*np.concatenate(found, axis=1))

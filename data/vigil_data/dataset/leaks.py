"""Leaks: equal content in more than one split, found by digests of the content of every item.

A model that has seen an item in training is not tested by its copy in the test split. Texts are compared in NFKC, ignoring case
and white space; images and audio byte by byte. Two items are duplicates if all of their content is equal; items that share only a
text, an image or an audio file are counted apart, since memes and quotations do so by nature; context is not shared content.
Items without a split are ignored.

Example:
    >>> leaks = find_leaks(dataset.table(["id", "split", "digests", "target:spam"]))
    >>> leaks.contents, leaks.opposite
    (12, 3)
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_data.dataset.table_schema import TARGET
from vigil_data.dataset.text_content import normalised
from vigil_data.errors import UserError
from vigil_data.items import MODALITIES, Item

OnLeak = Literal["warn", "skip", "refuse"]
"""Store the items of an import that have duplicates in another split, skip them, or refuse the import."""

COLUMNS = ("id", "split", "digests")
"""Columns of a dataset that :func:`find_leaks` reads, in addition to its targets."""

GUARDED = ("test", "validation")
"""Splits whose items are kept first, before other names in alphabetical order and ``train`` last."""

MAX_EXAMPLES = 5

_CONTENT = len(MODALITIES)
"""Kind of the digest of all content; 0 to 2 are those of a text, an image and an audio file. The last two bits are the kind."""


class Example(NamedTuple):
    """Two items with equal content in different splits.

    Attributes:
        kept: id and split of the item of the guarded split.
        other: id and split of its duplicate.
        label: a label with opposite targets, if there is one.
    """

    kept: tuple[str, str]
    other: tuple[str, str]
    label: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Leaks:
    """Content in more than one split.

    Attributes:
        contents: number of different contents that are in more than one split.
        items: number of (new) items that have them.
        opposite: number of those contents for which a label's target is at least 0.5 in one split and below it in another.
        shared: modality to the number of texts, images or audio files in more than one split, in items that differ otherwise.
        examples: pairs of items, those with opposite targets first.
        skipped_N: whether each (new) item has a duplicate in a split that comes before its own in :data:`GUARDED`.
    """

    contents: int = 0
    items: int = 0
    opposite: int = 0
    shared: Mapping[str, int] = field(default_factory=dict)
    examples: Sequence[Example] = ()
    skipped_N: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))


def digests_of(item: Item) -> list[int]:
    """Return the digest of all content, then of all own texts together, of each own image and audio file; none if it is empty.

    Context (a segment with the role ``context``) is part of all content, since it can decide a label, but is no part of its own:
    a message that several items answer is not shared content.
    """
    return _digests(_parts(item, own=True), _parts(item, own=False))


def digests_with_texts(digests: Sequence[int], item: Item, context_media: Sequence[int] = ()) -> list[int]:
    """Return the digests of an item with other texts.

    Args:
        digests: its digests; those of its own images and audio files stay.
        item: its texts, without images and audio files.
        context_media: from :func:`context_media`, if it has any.
    """
    own_media = [digest for digest in digests if digest & 3 in (1, 2)]
    return _digests([*_parts(item, own=True), *own_media], [*_parts(item, own=False), *context_media])


def context_media(item: Item) -> list[int]:
    """Return the digests of the images and audio files that are context; they are not stored."""
    return [digest for digest in _parts(item, own=False) if digest & 3 in (1, 2)]


def _digests(own: Sequence[int], context: Sequence[int]) -> list[int]:
    if not own and not context:
        return []
    parts = [*own, *([_CONTENT, *context] if context else [])]
    return [_digest(struct.pack(f"<{len(parts)}Q", *parts), _CONTENT), *own]


def _parts(item: Item, *, own: bool) -> list[int]:
    """Return the digests of the item's own segments, or of its context."""
    texts, images, files = (
        [content for place, content in enumerate(getattr(item, m)) if (item.role(m, place) != "context") == own]
        for m in MODALITIES
    )
    parts = [_digest(text.encode("utf-8", "surrogatepass"), 0)] if (text := normalised("\n".join(texts))) else []
    parts += [_digest(image, 1) for image in images]
    return parts + [_digest(audio, 2) for audio in files]


def leak_lines(leaks: Leaks, positions: Mapping[str, str] | None = None) -> list[str]:
    """Return what was found as lines of text, opposite labels first; none if there is nothing.

    Args:
        leaks: result of :func:`find_leaks`.
        positions: id to position in a file, such as ``posts.jsonl:17``.
    """
    lines = []
    if leaks.opposite:
        lines.append(
            f"OPPOSITE LABELS: {_count(leaks.opposite, 'content is', 'contents are')} positive in one split and negative in "
            "another; a model learns one answer and is tested against the other"
        )
    if leaks.contents:
        lines.append(
            f"{_count(leaks.contents, 'content is', 'contents are')} in more than one split, in {leaks.items:,} of these items; "
            "a test counts as correct what a model learned by heart"
        )
    for example in leaks.examples:
        (kept, kept_split), (other, other_split) = example.kept, example.other
        differ = f"; {example.label} differs" if example.label else ""
        kept, other = (f"{id_} ({positions[id_]})" if positions and id_ in positions else id_ for id_ in (kept, other))
        lines.append(f"for example {kept} in {kept_split} and {other} in {other_split}{differ}")
    if leaks.shared:
        parts = [_count(count, _PART[modality], f"{_PART[modality]}s") for modality, count in leaks.shared.items()]
        lines.append(f"{' and '.join(parts)} in more than one split, in items that differ otherwise")
    return lines


class LeakError(UserError):
    """Error for an import that is refused because of leaks.

    Attributes:
        leaks: what was found.
    """

    def __init__(self, leaks: Leaks) -> None:
        super().__init__(*leak_lines(leaks))
        self.leaks = leaks


_PART = {"text": "text", "image": "image file", "audio": "audio file"}


def _count(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"


def _digest(data: bytes, kind: int) -> int:
    return int.from_bytes(sha256(data).digest()[:8], "little") & ~3 | kind


def repeating_rows(digests: Sequence[pa.ChunkedArray]) -> list[NDArray[np.bool_]]:
    """Return which rows have a digest that occurs more than once; only they can have leaks.

    Args:
        digests: columns of digests, of new and of stored items.
    """
    every_S = np.concatenate([np.asarray(pc.list_flatten(column).to_numpy(), np.uint64) for column in digests])
    every_S.sort()
    repeated_R = np.unique(every_S[1:][every_S[1:] == every_S[:-1]])
    del every_S
    found = []
    for column in digests:
        rows = []
        for chunk in column.chunks:
            length_N = np.asarray(pc.list_value_length(chunk).fill_null(0).to_numpy(zero_copy_only=False), np.int64)
            repeats_S = np.isin(np.asarray(chunk.flatten().to_numpy(), np.uint64), repeated_R)
            rows.append(np.bincount(np.repeat(np.arange(len(length_N)), length_N)[repeats_S], minlength=len(length_N)) > 0)
        found.append(np.concatenate([np.zeros(0, np.bool_), *rows]))
    return found


def find_leaks(new: pa.Table, stored: pa.Table | None = None) -> Leaks:
    """Find content of new items that is in another split of the new or the stored items.

    Args:
        new: :data:`COLUMNS` and targets of the new items, or of a whole dataset.
        stored: the same columns of the items that are stored already, whose splits take precedence.
    """
    old = 0 if stored is None else stored.num_rows
    table = new if stored is None else pa.concat_tables([stored, new], promote_options="permissive")
    names, split_N = ranked_splits(table)
    row_S, digest_S = _segments(table, split_N)
    content_N = np.zeros(table.num_rows, np.uint64)
    is_content_S = digest_S & np.uint64(3) == _CONTENT
    content_N[row_S[is_content_S]] = digest_S[is_content_S]
    if old:
        wanted_S = np.isin(digest_S, digest_S[row_S >= old])
        row_S, digest_S = row_S[wanted_S], digest_S[wanted_S]
    # In each group of equal digests stored rows come first, then those of the guarded splits.
    groups = _Groups.of(digest_S, row_S, np.lexsort((row_S, split_N[row_S], row_S >= old, digest_S)))
    kind_G = (digest_S[groups.order][groups.start_G] & np.uint64(3)).astype(np.int64)
    several_G = groups.differ(split_N)
    partly = np.bincount(kind_G[several_G & (kind_G != _CONTENT) & groups.differ(content_N)], minlength=_CONTENT)
    leaking = groups.take(several_G & (kind_G == _CONTENT))
    skipped_N = np.zeros(table.num_rows, np.bool_)
    skipped_N[leaking.row_S] = split_N[leaking.row_S] != split_N[leaking.first_S]
    label_of = _opposite_labels(table, leaking, split_N)
    chosen = list(dict.fromkeys([*label_of, *range(len(leaking.start_G))]))[:MAX_EXAMPLES]
    return Leaks(
        contents=len(leaking.start_G),
        items=int((leaking.row_S >= old).sum()),
        opposite=len(label_of),
        shared={modality: int(partly[kind]) for kind, modality in enumerate(MODALITIES) if partly[kind]},
        examples=[_example(table, leaking.rows(group), split_N, names, label_of.get(group)) for group in chosen],
        skipped_N=skipped_N[old:],
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Groups:
    """Rows in groups of equal digests: the rows of all groups, one group after the other, and where each group starts."""

    row_S: NDArray[np.int64]
    start_G: NDArray[np.int64]
    order: NDArray[np.int64]

    @classmethod
    def of(cls, digest_S: NDArray[np.uint64], row_S: NDArray[np.int64], order: NDArray[np.int64]) -> "_Groups":
        ordered_S = digest_S[order]
        start_G = np.flatnonzero(np.concatenate([np.ones(min(1, len(order)), np.bool_), ordered_S[1:] != ordered_S[:-1]]))
        return cls(row_S[order], start_G, order)

    @property
    def size_G(self) -> NDArray[np.int64]:
        return np.diff(self.start_G, append=len(self.row_S))

    @property
    def first_S(self) -> NDArray[np.int64]:
        """The first row of each row's group."""
        return np.repeat(self.row_S[self.start_G], self.size_G)

    def rows(self, group: int) -> NDArray[np.int64]:
        return self.row_S[self.start_G[group] :][: self.size_G[group]]

    def take(self, wanted_G: NDArray[np.bool_]) -> "_Groups":
        wanted_S = np.repeat(wanted_G, self.size_G)
        sizes = self.size_G[wanted_G]
        return _Groups(self.row_S[wanted_S], np.cumsum(sizes) - sizes, self.order[wanted_S])

    def reduce(self, reduction: np.ufunc, value_S: NDArray[Any]) -> NDArray[Any]:
        """Reduce the values of each group."""
        return reduction.reduceat(value_S, self.start_G) if len(self.start_G) else value_S[:0]

    def differ(self, value_N: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether the rows of each group have more than one value."""
        value_S = value_N[self.row_S]
        differ_G: NDArray[np.bool_] = self.reduce(np.minimum, value_S) != self.reduce(np.maximum, value_S)
        return differ_G


def ranked_splits(table: pa.Table) -> tuple[list[str], NDArray[np.int64]]:
    """Return the names of splits, guarded ones first and train last, and each row's position among them; -1 for none."""
    names = [name for name in table["split"].unique().to_pylist() if name]
    names.sort(key=lambda name: (name == "train", GUARDED.index(name) if name in GUARDED else len(GUARDED), name))
    found = pc.index_in(table["split"], pa.array(names, pa.string())).fill_null(-1)
    return names, np.asarray(found.to_numpy(), np.int64)


def _segments(table: pa.Table, split_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Return row and digest of every content and part of the rows that have a split."""
    lengths_N = np.asarray(pc.list_value_length(table["digests"]).fill_null(0).to_numpy(), np.int64)
    row_S = np.repeat(np.arange(table.num_rows), lengths_N)
    within_S = split_N[row_S] >= 0
    return row_S[within_S], np.asarray(pc.list_flatten(table["digests"]).to_numpy(), np.uint64)[within_S]


def _opposite_labels(table: pa.Table, groups: _Groups, split_N: NDArray[np.int64]) -> dict[int, str]:
    """Return group to a label that is positive in one of its splits and negative in another."""
    label_of: dict[int, str] = {}
    split_S, most = split_N[groups.row_S], split_N.max(initial=0) + 1
    for name in table.column_names:
        if not name.startswith(TARGET):
            continue
        target_S = np.asarray(table[name].to_numpy(), np.float64)[groups.row_S]
        ends = []
        for known_S in (target_S >= 0.5, target_S < 0.5):
            ends.append(groups.reduce(np.minimum, np.where(known_S, split_S, most)))
            ends.append(groups.reduce(np.maximum, np.where(known_S, split_S, -1)))
        least_positive_G, most_positive_G, least_negative_G, most_negative_G = ends
        both_G = (most_positive_G >= 0) & (most_negative_G >= 0)
        apart_G = (least_positive_G != most_negative_G) | (most_positive_G != least_negative_G)
        for group in np.flatnonzero(both_G & apart_G).tolist():
            label_of.setdefault(group, name.removeprefix(TARGET))
    return label_of


def _example(
    table: pa.Table, rows: NDArray[np.int64], split_N: NDArray[np.int64], names: Sequence[str], label: str | None
) -> Example:
    """Return a pair of a group's rows in different splits, with opposite targets of ``label`` if one is given."""
    chosen: dict[tuple[int, bool], int] = {}
    for row in rows.tolist():
        target = None if label is None else table[TARGET + label][row].as_py()
        if label is None or target is not None:
            chosen.setdefault((int(split_N[row]), target is not None and target >= 0.5), row)
    pairs = (
        (one, other)
        for (split, sign), one in chosen.items()
        for (other_split, other_sign), other in chosen.items()
        if split != other_split and (label is None or sign != other_sign)
    )
    kept, copy = ((table["id"][row].as_py(), names[split_N[row]]) for row in next(pairs))
    return Example(kept, copy, label)

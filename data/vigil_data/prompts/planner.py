"""Rows of prompts that share their beginning: as cheap as possible, under a bound of the row's length.

A group is a beginning that several prompts share (a policy, or an item), and its leaves are their remainders. A row holds the
header of all prompts once, then groups, each as its beginning and some leaves. A group that exceeds the bound is continued in
another row, where its beginning stands once more.
"""

from collections.abc import Sequence
from typing import NamedTuple

CAPACITIES = 16
"""Row lengths that are tried."""

ATTENTION_TOKENS = 4096
"""Length of a row at which attention costs as much as the rest of a layer: 2,400 tokens were measured with the layers of
SmolLM2-135M, 10,000 with those of a Llama of 1B (one core, float32)."""


class Share(NamedTuple):
    """A group's beginning with some of its leaves, in one row."""

    group: int
    leaves: tuple[int, ...]


class Group(NamedTuple):
    """Number of tokens of a shared beginning, and of each leaf."""

    tokens: int
    leaves: tuple[int, ...]


Row = tuple[Share, ...]


def plan_rows(header: int, groups: Sequence[Group], bound: int) -> list[Row]:
    """Distribute prompts over rows.

    Several row lengths are tried. Longer rows repeat fewer beginnings, but attention is quadratic in the length, and all rows are
    padded to the longest.

    Args:
        header: tokens that stand at the beginning of each row.
        groups: tokens of the beginnings and leaves; a group without leaves is left out.
        bound: maximum number of tokens of a row; a prompt that is longer has its own row.

    Returns:
        The rows; each leaf of each group is in exactly one.
    """
    groups = list(groups)
    longest = max((header + group.tokens + leaf for group in groups for leaf in group.leaves), default=0)
    if not longest:
        return []
    largest = max(longest, min(bound, header + sum(group.tokens + sum(group.leaves) for group in groups if group.leaves)))
    growth = (largest / longest) ** (1 / (CAPACITIES - 1))
    capacities = dict.fromkeys(round(longest * growth**number) for number in range(CAPACITIES))
    return min((_fill(header, groups, capacity) for capacity in capacities), key=lambda rows: row_cost(header, groups, rows))


def row_cost(header: int, groups: Sequence[Group], rows: Sequence[Row]) -> int:
    """Return what rows cost relative to each other: their tokens, padding included, each with its share of attention."""
    tokens = padded_tokens(header, groups, rows)
    return tokens * (ATTENTION_TOKENS + tokens // max(len(rows), 1))


def padded_tokens(header: int, groups: Sequence[Group], rows: Sequence[Row]) -> int:
    """Return the number of tokens of rows that are padded to the longest of them."""
    lengths = [
        header + sum(groups[number].tokens + sum(groups[number].leaves[leaf] for leaf in leaves) for number, leaves in row)
        for row in rows
    ]
    return len(lengths) * max(lengths, default=0)


def _fill(header: int, groups: Sequence[Group], capacity: int) -> list[Row]:
    """Pack whole groups into rows of a capacity, and split those that are longer; the longest first."""
    room = capacity - header
    split: dict[Group, list[tuple[int, ...]]] = {}
    shares: list[tuple[int, Share]] = []
    for number, group in enumerate(groups):
        if group not in split:
            split[group] = [leaves for _, leaves in _pack(list(enumerate(group.leaves)), room - group.tokens)]
        shares += [(group.tokens + sum(group.leaves[leaf] for leaf in s), Share(number, s)) for s in split[group]]
    rows = _pack([(number, tokens) for number, (tokens, _) in enumerate(shares)], room)
    return [tuple(shares[number][1] for number in numbers) for _, numbers in rows]


def _pack(sizes: Sequence[tuple[int, int]], room: int) -> list[tuple[int, tuple[int, ...]]]:
    """Pack things into as few bins as first-fit decreasing needs (at most 11/9 of the fewest, and one more).

    Args:
        sizes: each thing and its size.
        room: size of a bin; a larger thing has its own bin.

    Returns:
        Size and things of each bin; things in ascending order.
    """
    if sum(size for _, size in sizes) <= room:
        return [(0, tuple(thing for thing, _ in sizes))] if sizes else []
    left: list[int] = []
    bins: list[list[int]] = []
    for thing, size in sorted(sizes, key=lambda entry: -entry[1]):
        for number, free in enumerate(left):
            if size <= free:
                left[number] -= size
                bins[number].append(thing)
                break
        else:
            left.append(room - size)
            bins.append([thing])
    return [(room - free, tuple(sorted(things))) for free, things in zip(left, bins, strict=True)]

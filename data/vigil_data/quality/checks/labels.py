"""Findings on labels: those that cannot be learned, or not be tested, as the targets are."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vigil_data.items import Item


@dataclass(slots=True)
class _Known:
    """Known targets of one label in one split."""

    count: int = 0
    low: float = 1.0
    high: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.low, self.high = min(self.low, value), max(self.high, value)


class LabelChecks:
    """Counter of the known targets of each label and split.

    Args:
        labels: labels that exist even if no target of theirs is known.
    """

    def __init__(self, labels: Iterable[str] = ()) -> None:
        self._known: dict[str, dict[str, _Known]] = defaultdict(dict, {label: {} for label in labels})
        self._splits: set[str] = set()

    def add(self, item: Item, split: str) -> Iterator[str]:
        """Count an item's targets; yield what is wrong with them."""
        self._splits.add(split)
        for label, value in item.targets.items():
            splits = self._known[label]
            if value is None:
                continue
            if 0 <= value <= 1:
                splits.setdefault(split, _Known()).add(value)
            else:
                yield f"target of {label} is {value:g}, outside [0, 1]"

    def findings(self) -> Iterator[str]:
        """Yield one line for each label and fault."""
        for label, splits in sorted(self._known.items()):
            if not splits:
                yield f"{label} is not known of any item"
                continue
            count = sum(known.count for known in splits.values())
            low, high = min(known.low for known in splits.values()), max(known.high for known in splits.values())
            if low == high:
                yield f"{label} is {low:g} wherever it is known ({_items(count)}); nothing can be learned"
            if len(splits) == 1 < len(self._splits):
                yield f"{label} is known in {split_name(next(iter(splits)))} only ({_items(count)})"
            for split, known in splits.items() if low < high else ():
                if known.low == known.high:
                    yield f"{label} is {known.low:g} wherever it is known in {split_name(split)} ({_items(known.count)})"


def _items(count: int) -> str:
    return f"{count:,} {'item' if count == 1 else 'items'}"


def split_name(split: str) -> str:
    """Return the name of a split for messages."""
    return split or "no split"

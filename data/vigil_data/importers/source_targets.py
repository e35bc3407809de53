"""Targets of a row from the values of its columns, as a source states them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from vigil_data.errors import shown
from vigil_data.importers.source_schema import Classes, DatasetSource, Target, Unlisted
from vigil_data.taxonomy import Taxonomy, any_of

Targets = dict[str, float | None]
_Values = Mapping[str, Any]
_UNLISTED: dict[Unlisted, float | None] = {"unknown": None, "negative": 0.0, "positive": 1.0}


class TargetMapping:
    """Targets of a source's rows.

    Args:
        source: the source.
        taxonomy: targets are those of its labels (default: the source's own labels).

    Attributes:
        columns: columns without which a file is not one of the source.
    """

    def __init__(self, source: DatasetSource, taxonomy: Taxonomy | None = None) -> None:
        self._targets = [(label, partial(_read_target, target)) for label, target in source.targets.items()]
        self._classes = [
            (group, dict.fromkeys((label for label in group.values.values() if label is not None), 0.0))
            for group in source.classes
        ]
        self._taxonomy = taxonomy
        self._mapping = source.taxonomies[taxonomy.name] if taxonomy is not None else {}
        required = [
            target.column for target in source.targets.values() if target.column is not None and target.missing == "error"
        ]
        counted = [column for target in source.targets.values() for column in (*target.positive, *target.negative)]
        self.columns = list(dict.fromkeys([*required, *counted, *(group.column for group in source.classes)]))

    def read(self, values: _Values, problems: Callable[[str], None]) -> Targets:
        """Return the targets of a row; each value that the source does not describe is a problem."""
        targets: Targets = {}
        for label, read in self._targets:
            try:
                targets[label] = read(values)
            except ValueError as error:
                problems(str(error))
        for group, negative in self._classes:
            try:
                targets |= _read_classes(group, negative, values)
            except ValueError as error:
                problems(str(error))
        if self._taxonomy is None:
            return targets
        mapped = {label: any_of([targets.get(own) for own in names]) for label, names in self._mapping.items()}
        return self._taxonomy.with_parents(mapped)


def text_of(value: Any) -> str:
    """Return a value as the keys of a source write it: ``1`` for 1 and 1.0, ``true`` for True."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _read_target(target: Target, values: _Values) -> float | None:
    if target.positive:
        counts = [[_number(column, values.get(column)) for column in columns] for columns in (target.positive, target.negative)]
        yes, no = (sum(count for count in group if count is not None) for group in counts)
        return yes / (yes + no) if yes + no > 0 else None
    column = str(target.column)
    value = values.get(column)
    if value is None:
        if target.missing == "error":
            raise ValueError(f"column {column!r} is empty")
        return _UNLISTED[target.missing]
    if target.values:
        found = target.values.get(key := text_of(value), -1.0)
        if found != -1.0:
            return found
        if target.otherwise == "error":
            raise ValueError(f"{column} is {shown(key)}, none of {', '.join(target.values)}")
        return _UNLISTED[target.otherwise]
    number = _number(column, value)
    if number is None or target.threshold is not None:
        return None if number is None or target.threshold is None else float(number >= target.threshold)
    if not 0 <= number <= 1:
        raise ValueError(f"{column} is {shown(value)}, outside [0, 1]")
    return number


def _read_classes(group: Classes, negative: Mapping[str, float], values: _Values) -> Targets:
    value = values.get(group.column)
    if value is None:
        raise ValueError(f"column {group.column!r} is empty")
    given: Sequence[Any] = value if isinstance(value, list) else [value]
    targets: Targets = dict(negative)
    for entry in given:
        if (key := text_of(entry)) not in group.values:
            known = ", ".join(group.values)
            raise ValueError(f"{group.column} is {shown(key)}, none of {known if len(known) <= 200 else f'{known[:197]}…'}")
        label = group.values[key]
        if label is not None:
            targets[label] = 1.0
    return targets


def _number(column: str, value: Any) -> float | None:
    """Return a finite number; ``None`` for an absent one.

    Raises:
        ValueError: for anything else.
    """
    if value is None:
        return None
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not abs(number) <= 1e300:
        raise ValueError(f"{column} is {shown(value)}, not a number")
    return number

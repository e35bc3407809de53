"""Parse constraint sentences, such as ``false-positive rate at most 0.5 % in every language with over 500 items``."""

import re
from typing import Any

_NUMBER = r"(\d+(?:\.\d+)?)\s*(%?)"
_LEAST, _MOST = r"(?:at least|>=|≥)", r"(?:at most|<=|≤)"

_HEADS = {
    "precision": rf"precision {_LEAST} {_NUMBER}",
    "false_positive_rate": rf"false[- ]positive[- ]rate {_MOST} {_NUMBER}",
    "recall": rf"recall {_LEAST} {_NUMBER}",
    "expected_miss_rate": rf"expected miss rate {_MOST} {_NUMBER}",
    "miss_rate": rf"miss rate {_MOST} {_NUMBER}",
    "share_of_traffic": rf"{_MOST} {_NUMBER} of traffic",
    "overturned": rf"overturned {_MOST} {_NUMBER} of traffic",
}

_TAILS = {
    "column": r" in every ([A-Za-z_][A-Za-z0-9_.]*)(?: with over (\d[\d,_]*) items)?",
    "labels": r" for ([a-z][a-z0-9_]*(?:(?:, | and )[a-z][a-z0-9_]*)*)",
    "confidence": rf" (?:with|at) {_NUMBER} confidence",
}

EXAMPLES = (
    "precision at least 95 %",
    "false-positive rate at most 0.5 % in every language with over 500 items",
    "recall at least 60 % for hate",
    "miss rate at most 30 %",
    "expected miss rate at most 20 %",
    "at most 2 % of traffic",
    "overturned at most 0.1 % of traffic",
)
"""One example per metric. A column, labels, and ``with 90 % confidence`` may follow."""


def parse_constraint(sentence: str) -> dict[str, Any]:
    """Parse a constraint sentence.

    Args:
        sentence: one of :data:`EXAMPLES` with other numbers, columns and labels.

    Returns:
        ``metric`` and ``bound``; if stated, also ``column``, ``over``, ``labels`` and ``confidence``.

    Raises:
        ValueError: if it does not parse; the message lists the valid forms.
    """
    text = " ".join(sentence.split())
    for metric, head in _HEADS.items():
        if found := re.match(head, text, re.IGNORECASE):
            read = {"metric": metric, "bound": parse_share(found.group(1) + found.group(2))}
            return read | _tails(text[found.end() :], sentence)
    raise ValueError(f"is not a constraint: {sentence!r}; write one of: {' | '.join(EXAMPLES)}")


def parse_share(value: Any) -> Any:
    """Convert a fraction to a number: ``5 %`` is 0.05, and 0.05 is itself; other values are returned unchanged."""
    if isinstance(value, str) and (found := re.fullmatch(_NUMBER, value.strip())):
        number = float(found.group(1))
        # Dividing by 100 gives the float closest to the written number, which multiplying by 0.01 does not.
        return number / 100 if found.group(2) else number
    return value


def _tails(rest: str, sentence: str) -> dict[str, Any]:
    read: dict[str, Any] = {}
    while rest:
        for name, tail in _TAILS.items():
            if name not in read and (found := re.match(tail, rest, re.IGNORECASE)):
                break
        else:
            raise ValueError(
                f"does not parse from {rest.strip()!r} on, in {sentence!r}; after the number write: "
                "in every COLUMN with over 500 items | for LABEL | with 90 % confidence"
            )
        if name == "column":
            read |= {"column": found.group(1), "over": int(re.sub(r"[,_]", "", found.group(2) or "0"))}
        elif name == "labels":
            read["labels"] = tuple(re.split(r", | and ", found.group(1)))
        else:
            read["confidence"] = parse_share(found.group(1) + found.group(2))
        rest = rest[found.end() :]
    return read

"""Checks of items one by one, and of what all of them have in common: ids, texts, targets, labels and unknown tokens."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from vigil_data.dataset.text_content import NO_CONTENT, is_blank
from vigil_data.items import SAMPLING_COLUMNS, Item, sampling_value
from vigil_data.quality.checks.findings import Findings
from vigil_data.quality.checks.labels import LabelChecks, split_name
from vigil_data.quality.checks.unknown_tokens import Share, UnknownTokens
from vigil_data.settings import TextSettings

MOST_UNKNOWN = 0.01
"""Share of unknown tokens of a split above which the check warns."""

_CHARACTERS_AT_ONCE = 1_000_000


class ItemChecks:
    """Checks of items; their media are not looked at.

    Args:
        findings: receives what is found about labels and tokens.
        text: how a recipe reads text, to count unknown tokens.
        labels: labels that exist even if no target of theirs is known.
    """

    def __init__(self, findings: Findings, text: TextSettings | None, labels: Sequence[str] = ()) -> None:
        self._findings = findings
        self._labels = LabelChecks(labels)
        self._tokens = None if text is None else UnknownTokens(text)
        self._texts: dict[str, list[str]] = defaultdict(list)
        self._pending = 0

    def add(self, item: Item, *, has_media: bool) -> Iterator[tuple[str, str]]:
        """Yield kind and reason of each finding of one item."""
        split = item.columns.get("split") or ""
        if not item.id:
            yield "schema", "the id is missing"
        for problem in self._labels.add(item, split):
            yield "target", problem
        for name in SAMPLING_COLUMNS:
            if item.columns.get(name) is not None:
                try:
                    sampling_value(name, item.columns[name])
                except ValueError as error:
                    yield "schema", str(error)
        yield from self._text_problems(item, split, has_media=has_media)

    def _text_problems(self, item: Item, split: str, *, has_media: bool) -> Iterator[tuple[str, str]]:
        if not all(isinstance(text, str) for text in item.text):
            yield "schema", "a text is null"
            return
        blank = [is_blank(text) for text in item.text]
        if all(blank) and not has_media:
            yield "no content", NO_CONTENT
        elif any(blank):
            yield "blank text", "a blank text next to other content"
        if self._tokens is not None:
            self._texts[split] += item.text
            self._pending += sum(map(len, item.text))
            if self._pending > _CHARACTERS_AT_ONCE:
                self._count_tokens()

    def finish(self) -> list[Share]:
        """Add the findings on labels and tokens; return the unknown tokens of each split."""
        for reason in self._labels.findings():
            self._findings.add("label", reason)
        if self._tokens is None:
            return []
        self._count_tokens()
        shares = self._tokens.rows()
        by_way = {(share.split, share.normalization): share.share for share in shares}
        for share in shares:
            if share.normalization == self._tokens.reading and share.share > MOST_UNKNOWN:
                worst = ", ".join(f"{piece} ({count:,})" for piece, count in share.commonest[:3])
                other = by_way.get((share.split, "default"), 1.0)
                hint = f"; {other:.2%} with inputs.text.normalize: {{}}" if other < share.share else ""
                unknown = f"{share.share:.2%} of the tokens of {split_name(share.split)} are {self._tokens.unknown_token}"
                self._findings.add("unknown tokens", f"{unknown}: {worst}{hint}", count=share.unknown)
        return shares

    def _count_tokens(self) -> None:
        if self._tokens is not None:
            for split, texts in self._texts.items():
                self._tokens.add(split, texts)
        self._texts.clear()
        self._pending = 0

"""The card in Markdown, with the front matter of a Hugging Face dataset card."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vigil_data.card.cautions import cautions
from vigil_data.card.counting import Distribution
from vigil_data.card.facts import DatasetFacts, Prevalence, Values
from vigil_data.card.statements import NOT_STATED, Statements
from vigil_data.errors import one_line

NOTHING = "-"
"""Shown for a share of nothing."""

MAX_ROWS = 20
"""Rows of a table; the HTML page and the JSON have more."""

_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}
_SIZES |= {100_000_000: "10M<n<100M", 1_000_000_000: "100M<n<1B", 10_000_000_000: "1B<n<10B"}
_TASKS = {"text": "text-classification", "image": "image-classification", "audio": "audio-classification"}
_LICENCES = """
apache-2.0 mit cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 bsd-2-clause bsd-3-clause gpl-2.0
gpl-3.0 lgpl-3.0 agpl-3.0 mpl-2.0 odbl odc-by pddl cdla-permissive-2.0 unlicense openrail
"""
_HUB_LICENCES = frozenset(_LICENCES.split())
"""Licences that the Hugging Face hub knows by these names."""

_URL = re.compile(r"https?://[^\s<>|\\`]+")
_LANGUAGE = re.compile(r"[a-z]{2,3}")
_SPECIAL = re.compile(r"[\\`*\[\]<>|~&$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_LINK = re.compile(r"://|(?<=www)\.|@", re.IGNORECASE)


class _Link(str):
    """A cell that is a link if it is the address of a web page."""

    __slots__ = ()


def markdown_card(facts: DatasetFacts, statements: Statements, files: Mapping[str, str] | None = None) -> str:
    """Return the card in Markdown.

    Args:
        facts: the facts.
        statements: what people state about the dataset.
        files: split to the Parquet file with its rows, relative to the card, if they were exported.
    """
    parts = [
        f"---\n{_front_matter(facts, statements, files or {})}---",
        f"# {plain(statements.title or facts.name)}",
        plain(statements.description) or f"*Description: {NOT_STATED}.*",
        f"Version {facts.version}, written {facts.written}: {facts.items:,} items, {len(facts.labels):,} labels.",
        *_cautions(facts),
        *_labels(facts),
        *_sources(facts),
        *_splits(facts),
        *_content(facts),
        *_versions(facts),
        *(f"## {heading}\n\n{plain(text)}" for heading, text in statements.sections().items()),
        *_citation(facts, statements),
        "---\n\nWritten by `vigil data card`. Unknown targets are not counted as negative. Intervals: Wilson, 95%.",
    ]
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Return untrusted text on one line, as Markdown that shows it unchanged: no markup, link or table cell in it is active."""
    escaped = _SPECIAL.sub(lambda found: f"\\{found[0]}", one_line(text))
    return _LINK.sub(lambda found: "".join(f"&#{ord(character)};" for character in found[0]), escaped).replace("\\<", "&lt;")


def _front_matter(facts: DatasetFacts, statements: Statements, files: Mapping[str, str]) -> str:
    """Return the metadata as YAML, whose flow style is JSON."""
    stated = [statements.license] if statements.license else sorted({of.licence for of in facts.sources.values() if of.licence})
    known = sorted({licence.lower() for licence in stated if licence.lower() in _HUB_LICENCES})
    unknown = [licence for licence in stated if licence.lower() not in _HUB_LICENCES]
    metadata: dict[str, Any] = {"pretty_name": statements.title or facts.name}
    if stated:
        metadata["license"] = [*known, *(["other"] if unknown else [])]
    if unknown:
        metadata["license_name"] = ", ".join(unknown)
    if languages := [language for language in facts.languages.items if _LANGUAGE.fullmatch(language)]:
        metadata["language"] = languages
    present = {modality for pattern in facts.presence for modality in pattern.split("+")}
    if tasks := [task for modality, task in _TASKS.items() if modality in present]:
        metadata["task_categories"] = tasks
    if len(facts.labels) > 1 and "text" in present:
        metadata["task_ids"] = ["multi-label-classification"]
    metadata["size_categories"] = [next((name for most, name in _SIZES.items() if facts.items < most), "10B<n<100B")]
    metadata["tags"] = ["content-safety", "vigil", *(["croissant"] if files else [])]
    if files:
        parts = [{"split": split or "none", "path": path} for split, path in files.items()]
        metadata["configs"] = [{"config_name": "default", "data_files": parts}]
    return "".join(f"{key}: {json.dumps(value, ensure_ascii=True)}\n" for key, value in metadata.items())


def _cautions(facts: DatasetFacts) -> Iterator[str]:
    if found := cautions(facts):
        yield "## Be careful"
        yield "\n".join(f"- **{plain(one.topic)}.** {plain(one.text)}" for one in found)


def _labels(facts: DatasetFacts) -> Iterator[str]:
    yield "## Labels"
    if not facts.labels:
        yield "No label."
        return
    splits = list(facts.splits)[:5]
    shown = list(facts.labels.items())[:MAX_ROWS]
    described = any(of.description for of in facts.labels.values())
    header = ["label", *(["description"] if described else []), "known", "positive", "prevalence"]
    header += [f"{split or '(no split)'}: positive of known" for split in splits]
    rows = []
    for label, of in shown:
        known = f"{of.all.known:,} ({_share(of.all.known, of.all.items)})"
        within = (f"{of.splits[split].positive:,} of {of.splits[split].known:,}" for split in splits)
        description = [of.description] if described else []
        rows.append([label, *description, known, f"{of.all.positive:,}", _prevalence(of.all), *within])
    yield _table(header, rows, len(facts.labels) - len(rows))
    pairs = sorted((pair for pair in facts.pairs if pair.phi is not None), key=lambda pair: -abs(pair.phi or 0))
    if pairs:
        yield "Labels that occur together, in the items that know both (φ: correlation):"
        yield _table(
            ["labels", "φ", "both", "first", "second", "items that know both"],
            [
                [f"{of.first}, {of.second}", f"{of.phi:+.2f}", of.both, of.first_positive, of.second_positive, of.known]
                for of in pairs[:MAX_ROWS]
            ],
            len(pairs) - MAX_ROWS,
        )


def _sources(facts: DatasetFacts) -> Iterator[str]:
    yield "## Sources and licences"
    rows = [
        [name or "(no source)", of.items, ", ".join(of.labels), of.licence or NOT_STATED, _Link(of.url or "")]
        for name, of in facts.sources.items()
    ]
    yield _table(["source", "items", "labels", "licence", "from"], rows[:MAX_ROWS], len(rows) - MAX_ROWS)


def _splits(facts: DatasetFacts) -> Iterator[str]:
    yield "## Splits"
    rows = [[split or "(no split)", items, _share(items, facts.items)] for split, items in facts.splits.items()]
    yield _table(["split", "items", "share"], rows[:MAX_ROWS], len(rows) - MAX_ROWS)
    leaks = facts.leaks
    found = f"{leaks.contents:,} contents are in more than one split, in {leaks.items:,} items"
    yield f"{found}; {leaks.opposite:,} with opposite labels." if leaks.contents else "No content is in more than one split."
    if (clusters := facts.clusters) is not None:
        yield (
            f"Near-duplicates: {clusters.clusters:,} clusters of {clusters.items:,} items, the largest of {clusters.largest:,}; "
            f"{clusters.several_splits:,} are in more than one split."
        )


def _content(facts: DatasetFacts) -> Iterator[str]:
    yield "## Content"
    yield _table(["modalities", "items", "share"], [[name, n, _share(n, facts.items)] for name, n in facts.presence.items()])
    roles = [[modality, role, items] for modality, of in facts.roles.items() for role, items in of.items()]
    if any(role != "body" for _, role, _ in roles):
        yield _table(["modality", "role", "items"], roles)
    sizes: dict[str, Distribution | None] = {"characters of text": facts.characters, "seconds of audio": facts.seconds}
    if facts.tokens is not None:
        sizes[f"tokens of text ({facts.tokens.sampled:,} sampled)"] = facts.tokens.tokens
    if facts.images is not None:
        sizes["images of an item"] = facts.images.per_item
        sizes[f"width of an image in pixels ({facts.images.sampled:,} sampled)"] = facts.images.width
        sizes[f"height of an image in pixels ({facts.images.sampled:,} sampled)"] = facts.images.height
    rows = [
        [name, *(f"{value:,.4g}" if value < 1000 else f"{value:,.0f}" for value in (of.minimum, of.median, of.p95, of.maximum))]
        for name, of in sizes.items()
        if of is not None
    ]
    if rows:
        yield _table(["per item", "least", "median", "95th percentile", "most"], rows)
    for title, values in (("language", facts.languages), ("content type", facts.content_types)):
        yield from _values(title, values, facts.items)
    if (authors := facts.authors) is not None:
        yield (
            f"Authors: {authors.authors:,}; the most frequent one wrote {authors.top_share:.1%} of the items with an author, the "
            f"ten most frequent {authors.top_ten_share:.1%}. {authors.unknown:,} items have no author."
        )
    if (times := facts.times) is not None:
        yield f"Created from {times.first} to {times.last}; {times.unknown:,} items have no time."
    if (sampling := facts.sampling) is not None:
        parts = _sampling(sampling.probability, sampling.weight, sampling.effective)
        yield f"The items are not a random sample: {', '.join(parts)}."


def _sampling(probability: Distribution | None, weight: float | None, effective: float | None) -> Iterator[str]:
    if probability is not None:
        yield f"probabilities of inclusion from {probability.minimum:.4g} to {probability.maximum:.4g}"
    if weight is not None:
        yield f"weights that stand for {weight:,.0f} items, worth {effective:,.0f} equally weighted ones"


def _values(title: str, values: Values, items: int) -> Iterator[str]:
    if values.items:
        rows = [[value, count, _share(count, items)] for value, count in list(values.items.items())[:MAX_ROWS]]
        rows += [["(not known)", values.unknown, _share(values.unknown, items)]] if values.unknown else []
        yield _table([title, "items", "share"], rows, values.distinct - MAX_ROWS)


def _versions(facts: DatasetFacts) -> Iterator[str]:
    yield "## Versions"
    rows = []
    for of in facts.history[:MAX_ROWS]:
        counts = ", ".join(f"{name} {count:,}" for name, count in of.counts.items())
        rows.append([of.version, of.written, of.items, of.operation, of.reason, counts])
    yield _table(["version", "written", "items", "operation", "reason", "changed"], rows, len(facts.history) - MAX_ROWS)
    if facts.quarantine:
        yield "In quarantine:"
        rows = [[of.modality, of.reason, of.items] for of in facts.quarantine[:MAX_ROWS]]
        yield _table(["modality", "reason", "items"], rows, len(facts.quarantine) - MAX_ROWS)


def _citation(facts: DatasetFacts, statements: Statements) -> Iterator[str]:
    yield "## Citation"
    yield plain(statements.citation) or f"{NOT_STATED.capitalize()}."
    if cited := [f"- {plain(name)}: {plain(of.citation)}" for name, of in facts.sources.items() if of.citation]:
        yield "Sources:\n\n" + "\n".join(cited)


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]], left_out: int = 0) -> str:
    """Return a table; whole numbers are written with separators."""
    lines = [[_cell(value) for value in row] for row in rows]
    marks = ["---:" if place and all(line[place][:1].isdigit() for line in lines) else "---" for place in range(len(header))]
    table = [f"| {' | '.join(line)} |" for line in ([plain(title) for title in header], marks, *lines)]
    return "\n".join([*table, *([f"\n… and {left_out:,} more"] if left_out > 0 else [])])


def _cell(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"<{value}>" if isinstance(value, _Link) and _URL.fullmatch(value) else plain(str(value))


def _share(part: int, total: int) -> str:
    return f"{part / total:.1%}" if total else NOTHING


def _prevalence(of: Prevalence) -> str:
    if of.prevalence is None or of.interval is None:
        return NOTHING
    return f"{of.prevalence:.1%} ({of.interval[0]:.1%} to {of.interval[1]:.1%})"

"""Card of a dataset as one self-contained HTML page, with no content of its items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from vigil_data.card.cautions import cautions
from vigil_data.card.counting import Distribution
from vigil_data.card.facts import DatasetFacts, LabelPair, Values
from vigil_data.card.statements import Statements
from vigil_data.filesystem import StrPath
from vigil_evaluation.report import curves as plot
from vigil_evaluation.report.axes import Axis, fit_axis
from vigil_evaluation.report.rendering import render_page

MAX_SPLITS, MAX_SOURCES = 8, 30
"""Splits and sources in the tables of prevalence; the JSON has all."""

MIN_CORRELATIONS = 3
"""Correlations from which labels are drawn as a matrix; fewer are listed."""

MAX_MONTHS = 60
"""Months that are drawn; a longer time is drawn in years."""

PHI_BOUNDS = (0.05, 0.1, 0.3, 0.5)
"""Correlations from which the next step of the colour scale is used."""


@dataclass(frozen=True, slots=True)
class Bar:
    """Bar of a histogram in the coordinates of :mod:`vigil_evaluation.report.curves`, with its tooltip."""

    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """Histogram.

    Attributes:
        title: heading.
        axis: what the bottom axis measures.
        bars: bars with at least one item.
        across: positions in [0, 1] on the bottom axis and their texts.
        up: texts at the bottom, middle and top of the left axis.
        caption: numbers in words.
    """

    title: str
    axis: str
    bars: Sequence[Bar]
    across: Sequence[tuple[float, str]]
    up: tuple[str, str, str]
    caption: str


def render_dataset_card(facts: DatasetFacts, statements: Statements, to: StrPath) -> None:
    """Write the card atomically.

    Args:
        facts: facts about a version of the dataset.
        statements: what people state about it.
        to: HTML file.
    """
    render_page(
        "dataset_card.html.jinja",
        to,
        facts=facts,
        title=statements.title or facts.name,
        statements=statements,
        cautions=cautions(facts),
        known=_known_share(facts),
        prevalence_axis=_prevalence_axis(facts),
        share_axis=fit_axis([0.0, 1.0]),
        splits=list(facts.splits)[:MAX_SPLITS],
        sources=[name for name, _ in list(facts.sources.items())[:MAX_SOURCES]],
        pairs={(first, second): pair for pair in facts.pairs for first, second in _both_ways(pair)},
        matrix=sum(pair.phi is not None for pair in facts.pairs) >= MIN_CORRELATIONS,
        paired=[name for name in facts.labels if any(name in {pair.first, pair.second} for pair in facts.pairs)],
        histograms=_histograms(facts),
        values=_values(facts),
        phi_bounds=PHI_BOUNDS,
        plot=plot,
    )


def _both_ways(pair: LabelPair) -> list[tuple[str, str]]:
    return [(pair.first, pair.second), (pair.second, pair.first)]


def _known_share(facts: DatasetFacts) -> float | None:
    cells = facts.items * len(facts.labels)
    return sum(of.all.known for of in facts.labels.values()) / cells if cells else None


def _prevalence_axis(facts: DatasetFacts) -> Axis:
    return fit_axis([0.0, *(end for of in facts.labels.values() for end in of.all.interval or ())])


def _values(facts: DatasetFacts) -> dict[str, Values]:
    """Return heading to counts of values, for the tables with bars."""
    found = {"Modalities": Values(facts.presence, 0, 0, len(facts.presence))}
    for modality, roles in facts.roles.items():
        if set(roles) != {"body"}:
            found[f"Roles of {modality}"] = Values(roles, 0, 0, len(roles))
    found |= {"Languages": facts.languages, "Content types": facts.content_types}
    return {heading: values for heading, values in found.items() if values.items}


def _histograms(facts: DatasetFacts) -> list[Histogram]:
    sizes: dict[str, tuple[str, Distribution | None, str]] = {}
    sizes["Length of text"] = ("characters", facts.characters, "items with text")
    if facts.tokens is not None:
        of = f"sampled items; {facts.tokens.longer:,} need more than one passage of {facts.tokens.max_tokens:,} tokens"
        sizes["Tokens of text"] = ("tokens", facts.tokens.tokens, of)
    sizes["Duration of audio"] = ("seconds", facts.seconds, "items with audio")
    if facts.images is not None:
        sizes["Images of an item"] = ("images", facts.images.per_item, "items with images")
        sizes["Width of images"] = ("pixels", facts.images.width, "sampled images")
        sizes["Height of images"] = ("pixels", facts.images.height, "sampled images")
    found = [_sizes(title, unit, of, what) for title, (unit, of, what) in sizes.items() if of is not None]
    if facts.times is not None:
        found.append(_times(facts.times.months, facts.times.unknown))
    return found


def _sizes(title: str, unit: str, of: Distribution, what: str) -> Histogram:
    edges = [of.histogram[0][0], *(high for _, high, _ in of.histogram)]
    step = -(-len(of.histogram) // 5)
    across = [(place / len(of.histogram), _short(edge)) for place, edge in enumerate(edges) if place % step == 0]
    texts = [f"{count:,} from {_short(low)} to below {_short(high)} {unit}" for low, high, count in of.histogram]
    median, p95, largest = (f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in (of.median, of.p95, of.maximum))
    caption = f"{of.count:,} {what}. Median {median}, 95% at most {p95}, all at most {largest} {unit}."
    axis = f"{unit} (log scale)" if of.logarithmic else unit
    return _histogram(title, axis, [count for *_, count in of.histogram], texts, across, caption)


def _times(months: Mapping[str, int], unknown: int) -> Histogram:
    first, last = (date.fromisoformat(f"{month}-01") for month in (min(months), max(months)))
    every = [f"{place // 12}-{place % 12 + 1:02}" for place in range(_month(first), _month(last) + 1)]
    every = [f"{month:0>7}" for month in every]
    counts = {month: months.get(month, 0) for month in every}
    unit = "month"
    if len(counts) > MAX_MONTHS:
        unit, by_year = "year", {f"{year:04}": 0 for year in range(first.year, last.year + 1)}
        for month, count in months.items():
            by_year[month[:4]] += count
        counts = by_year
    names = list(counts)
    step = -(-len(names) // 4)
    across = [((place + 0.5) / len(names), name) for place, name in enumerate(names) if place % step == 0]
    caption = f"{sum(counts.values()):,} items with a time, {unknown:,} without."
    texts = [f"{count:,} in {name}" for name, count in counts.items()]
    return _histogram("Time of creation", unit, list(counts.values()), texts, across, caption)


def _month(day: date) -> int:
    return day.year * 12 + day.month - 1


def _histogram(  # noqa: PLR0917 (bars and words of one picture)
    title: str, axis: str, counts: Sequence[int], texts: Sequence[str], across: Sequence[tuple[float, str]], caption: str
) -> Histogram:
    tallest = max(counts)
    width = (plot.x(1) - plot.x(0)) / len(counts)
    bars = []
    for place, (count, text) in enumerate(zip(counts, texts, strict=True)):
        if count:
            height = max(round(plot.y(0) - plot.y(count / tallest), 2), 1.0)
            left, gap = plot.x(place / len(counts)), min(1.0, width / 4)
            bars.append(Bar(left, round(plot.y(0) - height, 2), round(width - gap, 2), height, text))
    return Histogram(title, axis, bars, across, ("0", _short(tallest / 2), _short(tallest)), caption)


def _short(value: float) -> str:
    """Return a number in at most five characters, such as ``85.8k``."""
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor * 0.9995:
            return f"{value / factor:.3g}{suffix}"
    return f"{value:.3g}"

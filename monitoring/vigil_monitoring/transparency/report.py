"""Transparency report of a period: the template's tables, the same numbers as JSON, and a page."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vigil_data.filesystem import make_folder
from vigil_data.progress import ProgressCallback
from vigil_evaluation.report.rendering import render_page
from vigil_monitoring.results import write_result
from vigil_monitoring.traffic import Traffic
from vigil_monitoring.transparency.codes import CATEGORIES
from vigil_monitoring.transparency.counts import (
    MEASURES,
    PublishedAppeals,
    PublishedMeasures,
    Row,
    Tally,
    TimeToAct,
    publish_appeals,
)
from vigil_monitoring.transparency.mapping import TransparencyMapping
from vigil_monitoring.transparency.measures import measures
from vigil_monitoring.transparency.people import Appeal, HumanMeasure
from vigil_monitoring.transparency.template import AutomatedAccuracy, Identification, write_template

KIND = "transparency"
PAGE = Path(__file__).parent / "page.html.jinja"


@dataclass(frozen=True, slots=True)
class CategoryRow:
    """Measures of a category of the template.

    Attributes:
        category: its code.
        description: its meaning.
        ground: ``terms`` or ``law``.
        count: number of measures at the provider's own initiative; ``None`` if withheld.
    """

    category: str
    description: str
    ground: str
    count: int | None


@dataclass(frozen=True, slots=True)
class LabelActions:
    """Measures of a label by action, in the order of :attr:`TransparencyReport.actions`; ``None`` if withheld."""

    label: str
    counts: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class TransparencyReport:
    """Published numbers of a period; ``None`` is a count that is withheld.

    Attributes:
        service: name of the service; empty if not given.
        provider: name of the provider; empty if not given.
        mapping: name of the mapping.
        k: counts from 1 to k - 1 are withheld.
        withheld: number of different counts that are withheld.
        decisions: decisions of the period, with and without an action.
        measures: number of measures.
        automated: those taken solely by automated means.
        human: those taken by people.
        actions: actions that restrict something.
        by_label: measures by decisive label.
        by_action: measures by action.
        by_content_type: measures by content type.
        by_language: measures by language.
        by_origin: measures by what led to them.
        by_category: measures by category of the template.
        label_actions: measures by label and action.
        times: median times from posting to the measure; empty where the time of posting is not logged.
        appeals: complaints; ``None`` if no file of them was given.
        accuracy: accuracy of automated means; empty if no online metrics were given.
    """

    service: str
    provider: str
    mapping: str
    k: int
    withheld: int
    decisions: int
    measures: int | None
    automated: int | None
    human: int | None
    actions: tuple[str, ...]
    by_label: tuple[Row, ...]
    by_action: tuple[Row, ...]
    by_content_type: tuple[Row, ...]
    by_language: tuple[Row, ...]
    by_origin: tuple[Row, ...]
    by_category: tuple[CategoryRow, ...]
    label_actions: tuple[LabelActions, ...]
    times: tuple[TimeToAct, ...]
    appeals: PublishedAppeals | None
    accuracy: tuple[AutomatedAccuracy, ...]


def write_report(  # noqa: PLR0917 (what a report is made of)
    traffic: Traffic,
    mapping: TransparencyMapping,
    identification: Identification,
    to: Path,
    k: int,
    by_people: Sequence[HumanMeasure] = (),
    appeals: Sequence[Appeal] | None = None,
    accuracy: Iterable[AutomatedAccuracy] = (),
    progress: ProgressCallback | None = None,
) -> tuple[TransparencyReport, list[Path]]:
    """Count a period's measures and write the report: the template's tables, ``transparency.json`` and ``transparency.html``.

    Args:
        traffic: the period's decisions of role live.
        mapping: labels and actions in the template's terms.
        identification: service, provider and period.
        to: folder of the files; it is made.
        k: counts from 1 to k - 1 are withheld, with those that reveal them.
        by_people: measures that people took.
        appeals: complaints of the period; ``None`` if unknown.
        accuracy: accuracy of automated means.
        progress: shows the decisions read.

    Raises:
        UserError: if the traffic cannot be read or has actions or labels that the mapping lacks, or the folder cannot be made.
    """
    make_folder(to)
    published = PublishedMeasures(Tally.of(measures(traffic, mapping, by_people, progress)), mapping, k)
    complaints = None if appeals is None else publish_appeals(appeals, k)
    shares = tuple(accuracy)
    report = TransparencyReport(
        service=identification.service,
        provider=identification.provider,
        mapping=mapping.name,
        k=k,
        withheld=published.withheld + (complaints.withheld if complaints else 0),
        decisions=traffic.rows,
        measures=published.total(),
        automated=published.total("automated"),
        human=published.total("human"),
        actions=tuple(published.dimensions["action"]),
        by_label=tuple(published.rows("label")),
        by_action=tuple(published.rows("action")),
        by_content_type=tuple(published.rows("content_type")),
        by_language=tuple(published.rows("language")),
        by_origin=tuple(published.rows("origin")),
        by_category=_categories(published),
        label_actions=tuple(LabelActions(label, tuple(counts)) for label, counts in published.label_actions()),
        times=tuple(published.times_to_act()),
        appeals=complaints,
        accuracy=shares,
    )
    files = write_template(to, identification, published, mapping, complaints, shares)
    write_result(to / "transparency.json", KIND, identification.period, asdict(report))
    render_page(PAGE, to / "transparency.html", report=report, period=identification.period)
    return report, [*files, to / "transparency.json", to / "transparency.html"]


def _categories(published: PublishedMeasures) -> tuple[CategoryRow, ...]:
    rows = []
    for ground in ("law", "terms"):
        for code, category in CATEGORIES.items():
            if (ground, code, None) in published.places:
                rows.append(CategoryRow(code, category.description, ground, published.template(ground, code, None, MEASURES)))
    return tuple(rows)

"""Tables of the Union's template for transparency reports, as CSV files (RFC 4180, UTF-8).

Commission Implementing Regulation (EU) 2024/2835, Annex I: names of files, columns, indicators and scopes are those of the
official CSV template, as providers publish it in 2026. Written are the tables that follow from the traffic: 1 (identification),
2 (categories), 5 and 6 (measures at the provider's own initiative, on illegal content and on terms and conditions), 7
(complaints) and 8 (automated means). Orders, notices, human resources, recipients and the qualitative part (3, 4, 9 to 11) are
not in it.

A cell is empty where a number is not known or withheld; the contextual information next to it says which.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vigil_data.filesystem import write_file
from vigil_monitoring.results import Period
from vigil_monitoring.transparency.codes import CATEGORIES, OFFICIAL_LANGUAGES, OTHER, TERMS_ONLY
from vigil_monitoring.transparency.counts import DETECTED, MEASURES, RESTRICTIONS, AppealRow, PublishedAppeals, PublishedMeasures
from vigil_monitoring.transparency.mapping import TransparencyMapping

COLUMNS = (MEASURES, DETECTED, *RESTRICTIONS)
ALL, HOSTING, PLATFORMS, VERY_LARGE = (
    "All",
    "Only for providers of hosting services, including online platforms",
    "Only for providers of online platforms",
    "Only for VLOPs",
)
WITHHELD = "withheld: a small number, or one from which a small number would follow"

REGARDING: Mapping[str, str] = {
    "": "Number of complaints submitted to the internal-complaints mechanism",
    "visibility": "Complaint regarding a decision to remove or disable access to or restrict visibility of information",
    "service": "Complaint regarding a decision to suspend or terminate the provision of the service",
    "account": "Complaint regarding a decision to suspend or terminate an account",
    "monetary": "Complaint regarding a decision to restrict the ability to monetise information",
    "notice": "Complaint regarding a decision not to take action on a notice submitted in accordance with Article 16",
    "trusted flagger notice": "Complaint regarding a decision not to take action on a notice submitted by a Trusted Flagger in "
    "accordance with Article 16",
}
SUSPENSIONS = tuple(
    f"Number of suspensions enacted for the provision of manifestly {what}"
    for what in ("illegal content", "unfounded notices", "unfounded complaints")
)


@dataclass(frozen=True, slots=True)
class AutomatedAccuracy:
    """Accuracy of automated means in one scope, from reviews of a probability sample.

    Attributes:
        indicator: ``Accuracy``, ``Precision`` or ``Recall``.
        language: two-letter code; empty for all languages.
        value: the share.
        low: lower end of its interval.
        high: upper end.
        confidence: confidence of the interval.
    """

    indicator: str
    language: str
    value: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Identification:
    """What table 1 states; empty text is left for the provider to fill in."""

    service: str
    provider: str
    period: Period

    @property
    def days(self) -> str:
        """The reporting period as the template writes it."""
        return f"{self.period.start}/{self.period.end}"


def write_template(  # noqa: PLR0917 (what the tables are made of)
    folder: Path,
    identification: Identification,
    measures: PublishedMeasures,
    mapping: TransparencyMapping,
    appeals: PublishedAppeals | None,
    accuracy: Sequence[AutomatedAccuracy],
) -> list[Path]:
    """Write the tables into a folder, and return their files."""
    head = [identification.service, identification.days]
    tables: dict[str, list[list[str]]] = {
        "1_report_identification": _identification(identification),
        "2_categories_names": _categories(),
        "5_own_initiative_illegal": _measures("law", "Category of illegal content", head, measures, mapping),
        "6_own_initiative_TC": _measures(
            "terms", "Category of incompatibility with the provider's terms and conditions", head, measures, mapping
        ),
        "7_appeals_and_recidivism": _appeals(head, appeals),
        "8_automated_means": _automated(head, measures, accuracy),
    }
    files = []
    for name, rows in tables.items():
        write_file(file := folder / f"{name}.csv", csv_text(rows).encode())
        files.append(file)
    return files


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    """Return rows as CSV; a cell that a spreadsheet would execute as a formula is quoted by an apostrophe."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerows([f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t")) else cell for cell in row] for row in rows)
    return text.getvalue()


def _identification(of: Identification) -> list[list[str]]:
    values = {
        "Name of the service provider": of.provider,
        "Date of the publication of the report": "",
        "Date of the publication of the latest previous report": "",
        "Starting date of reporting period": of.period.start.isoformat(),
        "Ending date of reporting period": of.period.end.isoformat(),
    }
    head = ["Applicability", "Service", "Indicator", "Value"]
    return [head, *([ALL, of.service, name, value] for name, value in values.items())]


def _categories() -> list[list[str]]:
    head = [
        "Category label",
        "Category description",
        "Category of illegal content / incompatible with the terms and conditions",
        "Contextual information",
    ]
    rows = [head, ["TOTAL", "All the entries", "TOTAL", ""]]
    for number, (code, category) in enumerate(CATEGORIES.items(), 1):
        rows.append([f"Category {number}", category.description, code, ""])
        below = {**category.subcategories, OTHER: "Not captured by any other sub-category"}
        rows += [
            [f"Category {number}{chr(ord('a') + place)}", text, keyword, ""]
            for place, (keyword, text) in enumerate(below.items())
        ]
    return rows


def _measures(
    ground: str, heading: str, head: Sequence[str], measures: PublishedMeasures, mapping: TransparencyMapping
) -> list[list[str]]:
    rows = [
        ["Applicability", "Service", "Reporting period", heading, 'Description of the sub-category "Other"', *COLUMNS]
        + [f"Contextual Information on {column}" for column in COLUMNS]
    ]
    places: list[tuple[str | None, str | None]] = [(None, None)]
    for code, category in CATEGORIES.items():
        if ground == "terms" or code != TERMS_ONLY:
            places += [(code, None), *((code, keyword) for keyword in (*category.subcategories, OTHER))]
    for category_code, subcategory in places:
        other = ""
        if subcategory == OTHER:
            labels = [
                name
                for name, of in mapping.labels.items()
                if (of.ground, of.category, of.subcategory) == (ground, category_code, OTHER)
            ]
            other = ", ".join(labels)
        # Every measure of the traffic is counted, so that a category without one is 0, not unknown.
        counts: list[int | None] = [0] * len(COLUMNS)
        if (ground, category_code, subcategory) in measures.places:
            counts = [measures.template(ground, category_code, subcategory, column) for column in COLUMNS]
        rows.append(
            [ALL, *head, subcategory or category_code or "TOTAL", other]
            + [_number(count) for count in counts]
            + [_context(count) for count in counts]
        )
    return rows


def _appeals(head: Sequence[str], appeals: PublishedAppeals | None) -> list[list[str]]:
    rows = [["Applicability", "Service", "Reporting period", "Section", "Indicator", "Scope", "Value", "Contextual Information"]]
    of = {} if appeals is None else {(row.settlement, row.regarding): row for row in appeals.rows}
    section = "Internal complaints mechanism"
    for regarding, indicator in REGARDING.items():
        for scope, value, context in _outcomes(of.get((False, regarding)), omitted=not regarding):
            applies = ALL if not regarding and scope == "Total number" else PLATFORMS
            rows.append([applies, *head, section, indicator, scope, value, context])
        if not regarding:
            new = "Number of restrictions newly imposed as a result of an internal complaint"
            count = None if appeals is None else appeals.new_restrictions
            context = "" if appeals is None else _context(count)
            rows.append([PLATFORMS, *head, section, new, "Total number", _number(count), context])
    section = "Out-of-court dispute settlement bodies"
    indicator = "Number of disputes submitted to out-of-court dispute settlement bodies"
    for scope, value, context in [*_outcomes(of.get((True, "")), omitted=True), ("Percentage of outcomes implemented", "", "")]:
        rows.append([PLATFORMS, *head, section, indicator, scope, value, context])
    section = "Suspensions imposed on repeated offenders"
    return [*rows, *([PLATFORMS, *head, section, indicator, "Total number", "", ""] for indicator in SUSPENSIONS)]


def _outcomes(row: AppealRow | None, *, omitted: bool) -> list[tuple[str, str, str]]:
    """Return scope, value and context of each count of complaints."""
    scopes = ["Total number", "Decisions upheld", "Decisions partially reversed", "Decisions reversed"]
    if row is None:
        return [(scope, "", "") for scope in (*scopes, "Median time", *(["Decision omitted"] if omitted else []))]
    counts = [row.submitted, row.upheld, row.partially_reversed, row.reversed]
    cells = [(scope, _number(count), _context(count)) for scope, count in zip(scopes, counts, strict=True)]
    cells.append(("Median time", "" if row.median_hours is None else f"{row.median_hours:.2f}", "in hours"))
    if omitted:
        cells.append(("Decision omitted", _number(row.omitted), _context(row.omitted)))
    return cells


def _automated(head: Sequence[str], measures: PublishedMeasures, accuracy: Sequence[AutomatedAccuracy]) -> list[list[str]]:
    rows = [["Applicability", "Service", "Reporting period", "Section", "Indicator", "Scope", "Value", "Contextual Information"]]
    section = "Use of automated means for content moderation"
    shares = {(of.language, of.indicator): of for of in accuracy}

    def counted(applies: str, scope: str, language: str | None, *, own: bool) -> None:
        for means, indicator in (
            ("automated", "Number of measures solely taken by automated means"),
            ("human", "Number of measures not taken by automated means"),
        ):
            count = measures.total(means, language=language, own_initiative=own)  # type: ignore[arg-type]
            rows.append([applies, *head, section, indicator, scope, _number(count), _context(count)])

    def measured(applies: str, scope: str, language: str) -> None:
        for indicator in ("Accuracy", "Precision", "Recall"):
            value, context = "", ""
            if (of := shares.get((language, indicator))) is not None:
                value = f"{of.value:.4f}"
                context = f"{100 * of.confidence:g}% interval {of.low:.4f} to {of.high:.4f}, from reviews of a probability sample"
            rows.append([applies, *head, section, f"Accuracy of the automated means - {indicator}", scope, value, context])

    for scope, own in (("Total number", False), ("Own-initiative", True)):
        counted(ALL, scope, None, own=own)
        measured(ALL, scope, "")
    for applies, scope in ((HOSTING, "NAM Total"), (PLATFORMS, "NAM Trusted Flagger")):  # notices: not in the traffic
        rows += [
            [applies, *head, section, f"Number of notices {what} by automated means", scope, "", ""]
            for what in ("solely processed", "not processed")
        ]
        rows += [
            [applies, *head, section, f"Accuracy of the automated means - {what}", scope, "", ""]
            for what in ("Accuracy", "Precision", "Recall")
        ]
    for language in OFFICIAL_LANGUAGES:
        counted(VERY_LARGE, language, language, own=False)
        measured(VERY_LARGE, language, language)
    return rows


def _number(count: int | None) -> str:
    return "" if count is None else str(count)


def _context(count: int | None) -> str:
    return WITHHELD if count is None else ""

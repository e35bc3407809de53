"""Counts of measures and complaints of a period, as a transparency report needs them."""

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from vigil_monitoring.transparency.codes import OFFICIAL_LANGUAGES
from vigil_monitoring.transparency.mapping import TransparencyMapping
from vigil_monitoring.transparency.measures import Measure
from vigil_monitoring.transparency.people import MEANS, OUTCOMES, REGARDING, Appeal, Means, Origin
from vigil_monitoring.transparency.publication import Publication

UNKNOWN = "unknown"
"""Content type or language of items for which it is not known."""


class MeasureCell(NamedTuple):
    """What measures are counted by."""

    label: str
    action: str
    content_type: str
    language: str
    means: Means
    detected_by: Means
    origin: Origin


@dataclass
class Tally:
    """Counts of measures, and how long each took.

    Attributes:
        counts: number of measures of each cell.
        seconds: action and means to the seconds from posting to the measure, where both are known.
    """

    counts: Counter[MeasureCell] = field(default_factory=Counter)
    seconds: dict[tuple[str, Means], "array[float]"] = field(default_factory=lambda: defaultdict(lambda: array("f")))

    @classmethod
    def of(cls, measures: Iterable[Measure]) -> "Tally":
        """Count measures."""
        tally = cls()
        for of in measures:
            kind, language = of.content_type or of.presence or UNKNOWN, language_code(of.language)
            cell = MeasureCell(of.label, of.action, kind, language, of.means, of.detected_by, of.origin)
            tally.counts[cell] += 1
            if of.posted is not None and (seconds := (of.time - of.posted).total_seconds()) >= 0:
                tally.seconds[of.action, of.means].append(seconds)
        return tally


class AppealCell(NamedTuple):
    """What complaints are counted by."""

    settlement: bool
    regarding: str
    outcome: str
    decided_by: str
    new_restriction: bool


UNDECIDED = "undecided"
_OUTCOME_FIELDS: Mapping[str, str | None] = {
    "submitted": None,
    **{outcome.replace(" ", "_"): outcome for outcome in (*OUTCOMES, UNDECIDED)},
}
"""Counts of :class:`AppealRow` to the outcome that they count; ``None`` for any."""


def language_code(language: str | None) -> str:
    """Return the two-letter code of a language tag such as ``en-US``; :data:`UNKNOWN` if there is none."""
    return UNKNOWN if not language else language.replace("_", "-").split("-")[0].lower()


@dataclass(frozen=True, slots=True)
class Row:
    """A published count.

    Attributes:
        name: what is counted, such as a label.
        count: the number; ``None`` if it is withheld.
        automated: those decided by a model alone; ``None`` if withheld.
        human: those decided by people; ``None`` if withheld.
    """

    name: str
    count: int | None
    automated: int | None
    human: int | None


@dataclass(frozen=True, slots=True)
class TimeToAct:
    """Median time from posting to the measure.

    Attributes:
        action: the action; empty for all.
        means: by whom; empty for all.
        median_seconds: the median.
    """

    action: str
    means: str
    median_seconds: float


@dataclass(frozen=True, slots=True)
class AppealRow:
    """Complaints, or disputes, of one kind: counts are ``None`` where they are withheld.

    Attributes:
        regarding: what they are about; empty for all.
        settlement: whether they are out-of-court disputes.
        submitted: number submitted.
        upheld: decisions that stand.
        partially_reversed: decisions reversed in part.
        reversed: decisions reversed.
        omitted: without a decision.
        undecided: open at the end of the file.
        median_hours: median time from submission to decision; ``None`` if none is decided, or a count of the row is withheld.
    """

    regarding: str
    settlement: bool
    submitted: int | None
    upheld: int | None
    partially_reversed: int | None
    reversed: int | None
    omitted: int | None
    undecided: int | None
    median_hours: float | None


class PublishedMeasures:
    """Counts of measures as they are published, in the template's tables and in those of the page.

    Args:
        tally: all measures.
        mapping: categories and restrictions.
        k: counts from 1 to k - 1 are withheld.
    """

    def __init__(self, tally: Tally, mapping: TransparencyMapping, k: int) -> None:
        self._sums: Publication[MeasureCell] = Publication(tally.counts, k)
        self._seconds, self._k = tally.seconds, k
        cells = list(tally.counts)
        self.dimensions: Mapping[str, list[str]] = {
            "label": [label for label in mapping.labels if any(cell.label == label for cell in cells)],
            "action": [action for action in mapping.actions if any(cell.action == action for cell in cells)],
            "content_type": sorted({cell.content_type for cell in cells}),
            "language": sorted({cell.language for cell in cells}),
            "origin": sorted({cell.origin for cell in cells}),
        }
        self._declare_page()
        self._declare_template(mapping)

    @property
    def withheld(self) -> int:
        """Number of different counts that are withheld."""
        return self._sums.withheld

    def total(self, means: Means | None = None, *, language: str | None = None, own_initiative: bool = False) -> int | None:
        """Return the number of measures, of all means or one, in all languages or one; ``None`` if withheld."""
        return self._sums.read(("means", means, language, own_initiative))

    def rows(self, dimension: str) -> list[Row]:
        """Return the counts by a dimension: label, action, content_type, language or origin."""
        read = self._sums.read
        return [Row(name, *(read((dimension, name, means)) for means in (None, *MEANS))) for name in self.dimensions[dimension]]

    def label_actions(self) -> list[tuple[str, list[int | None]]]:
        """Return the counts of each label by action."""
        read, actions = self._sums.read, self.dimensions["action"]
        return [(label, [read(("label and action", label, action)) for action in actions]) for label in self.dimensions["label"]]

    def template(self, ground: str, category: str | None, subcategory: str | None, column: str) -> int | None:
        """Return a cell of the template's tables 5 and 6; category ``None`` for the total."""
        return self._sums.read((ground, category, subcategory, column))

    def times_to_act(self) -> list[TimeToAct]:
        """Return the median times, of all measures and by action and means, where at least k times are known.

        A median is left out where its count is withheld: that it exists would say that the count is at least k.
        """
        found = []
        for action in ("", *self.dimensions["action"]):
            for means in ("", *MEANS):
                values = [
                    seconds
                    for (of, by), several in self._seconds.items()
                    if of == (action or of) and by == (means or by)
                    for seconds in several
                ]
                name = ("action", action, means or None) if action else ("means", means or None, None, False)
                if len(values) >= max(self._k, 1) and self._sums.read(name) is not None:
                    found.append(TimeToAct(action, means, median(values)))
        return found

    def _declare_page(self) -> None:
        declare = self._sums.declare
        for means in (None, *MEANS):
            for language in (None, *OFFICIAL_LANGUAGES):
                for own in (False, True):
                    declare(
                        ("means", means, language, own),
                        lambda cell, means=means, language=language, own=own: (  # type: ignore[misc]
                            cell.means == (means or cell.means)
                            and cell.language == (language or cell.language)
                            and (not own or cell.origin == "own initiative")
                        ),
                    )
            for dimension, names in self.dimensions.items():
                for name in names:
                    declare(
                        (dimension, name, means),
                        lambda cell, dimension=dimension, name=name, means=means: (  # type: ignore[misc]
                            getattr(cell, dimension) == name and cell.means == (means or cell.means)
                        ),
                    )
        for label in self.dimensions["label"]:
            for action in self.dimensions["action"]:
                declare(
                    ("label and action", label, action),
                    lambda cell, label=label, action=action: cell.label == label and cell.action == action,  # type: ignore[misc]
                )

    def _declare_template(self, mapping: TransparencyMapping) -> None:
        places: dict[tuple[str, str | None, str | None], set[str]] = defaultdict(set)
        for name in self.dimensions["label"]:
            of = mapping.labels[name]
            for category, subcategory in ((None, None), (of.category, None), (of.category, of.subcategory)):
                places[of.ground, category, subcategory].add(name)
        columns = template_columns(mapping)
        for (ground, category, subcategory), labels in places.items():
            for column, counted in columns.items():
                self._sums.declare(
                    (ground, category, subcategory, column),
                    lambda cell, labels=labels, counted=counted: (  # type: ignore[misc]
                        cell.label in labels and cell.origin == "own initiative" and counted(cell)
                    ),
                )
        self.places = frozenset(places)


MEASURES = "Number of measures taken at the provider's own initiative"
DETECTED = "Number of measures taken after detection with solely automated means"
RESTRICTIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "Visibility restriction Removal": ("visibility", ("DECISION_VISIBILITY_CONTENT_REMOVED",)),
    "Visibility restriction Disable": ("visibility", ("DECISION_VISIBILITY_CONTENT_DISABLED",)),
    "Visibility restriction Demoted": ("visibility", ("DECISION_VISIBILITY_CONTENT_DEMOTED",)),
    "Visibility restriction Age restricted": ("visibility", ("DECISION_VISIBILITY_CONTENT_AGE_RESTRICTED",)),
    "Visibility restriction Interaction restricted": ("visibility", ("DECISION_VISIBILITY_CONTENT_INTERACTION_RESTRICTED",)),
    "Visibility restriction Labelled": ("visibility", ("DECISION_VISIBILITY_CONTENT_LABELLED",)),
    "Visibility restriction Other": ("visibility", ("DECISION_VISIBILITY_OTHER",)),
    "Monetary restriction Suspension": ("monetary", ("DECISION_MONETARY_SUSPENSION",)),
    "Monetary restriction Termination": ("monetary", ("DECISION_MONETARY_TERMINATION",)),
    "Monetary restriction Other": ("monetary", ("DECISION_MONETARY_OTHER",)),
    "Provision of the service Suspension": (
        "provision",
        ("DECISION_PROVISION_PARTIAL_SUSPENSION", "DECISION_PROVISION_TOTAL_SUSPENSION"),
    ),
    "Provision of the service Termination": (
        "provision",
        ("DECISION_PROVISION_PARTIAL_TERMINATION", "DECISION_PROVISION_TOTAL_TERMINATION"),
    ),
    "Account restriction Suspension": ("account", ("DECISION_ACCOUNT_SUSPENDED",)),
    "Account restriction Termination": ("account", ("DECISION_ACCOUNT_TERMINATED",)),
}
"""Columns of the template's tables 5 and 6 to the field of an action and the codes that they count."""


def template_columns(mapping: TransparencyMapping) -> dict[str, Callable[[MeasureCell], bool]]:
    """Return each column of counts of the template's tables 5 and 6, with what it counts."""
    columns: dict[str, Callable[[MeasureCell], bool]] = {
        MEASURES: lambda _: True,
        DETECTED: lambda cell: cell.detected_by == "automated",
    }
    for name, (kind, codes) in RESTRICTIONS.items():
        imposing = frozenset(
            action
            for action, of in mapping.actions.items()
            if set(codes) & set(of.visibility if kind == "visibility" else (getattr(of, kind),))
        )
        columns[name] = lambda cell, imposing=imposing: cell.action in imposing  # type: ignore[misc]
    return columns


@dataclass(frozen=True, slots=True)
class PublishedAppeals:
    """Complaints as they are published.

    Attributes:
        rows: all complaints, then by what they are about; then disputes, if there are any.
        new_restrictions: restrictions newly imposed as a result of complaints; ``None`` if withheld.
        by_model: complaints that a model decided; ``None`` if withheld.
        by_people: complaints that people decided; ``None`` if withheld.
        withheld: number of different counts that are withheld.
    """

    rows: tuple[AppealRow, ...]
    new_restrictions: int | None
    by_model: int | None
    by_people: int | None
    withheld: int


def publish_appeals(appeals: Sequence[Appeal], k: int) -> PublishedAppeals:
    """Count complaints for publication.

    Args:
        appeals: those of the period.
        k: counts from 1 to k - 1 are withheld.
    """
    counts = Counter(
        AppealCell(of.settlement, of.regarding, of.outcome or UNDECIDED, of.decided_by or UNDECIDED, of.new_restriction)
        for of in appeals
    )
    sums: Publication[AppealCell] = Publication(counts, k)
    scopes = [(False, regarding) for regarding in (None, *REGARDING)]
    scopes += [(True, None)] if any(of.settlement for of in appeals) else []
    for settlement, regarding in scopes:
        for outcome in (None, *OUTCOMES, UNDECIDED):
            sums.declare(
                (settlement, regarding, outcome),
                lambda cell, settlement=settlement, regarding=regarding, outcome=outcome: (  # type: ignore[misc]
                    cell.settlement == settlement
                    and cell.regarding == (regarding or cell.regarding)
                    and cell.outcome == (outcome or cell.outcome)
                ),
            )
    sums.declare("new", lambda cell: cell.new_restriction and not cell.settlement)
    for means in MEANS:
        sums.declare(means, lambda cell, means=means: cell.decided_by == means and not cell.settlement)  # type: ignore[misc]
    rows = []
    for settlement, regarding in scopes:
        hours = [
            (of.decided - of.time).total_seconds() / 3600
            for of in appeals
            if of.decided and of.settlement == settlement and of.regarding == (regarding or of.regarding)
        ]
        counted = {name: sums.read((settlement, regarding, outcome)) for name, outcome in _OUTCOME_FIELDS.items()}
        shown = (
            len(hours) >= max(k, 1) and None not in counted.values()
        )  # that a median exists would say that a count is at least k
        hours_taken = median(hours) if shown else None
        rows.append(AppealRow(regarding or "", settlement, **counted, median_hours=hours_taken))
    return PublishedAppeals(tuple(rows), sums.read("new"), sums.read("automated"), sums.read("human"), sums.withheld)

"""Transparency: reports in the fields of the European Union's templates, and statements of reasons for its database.

Example:
    >>> traffic = open_traffic("traffic", start=date(2026, 7, 1), end=date(2026, 12, 31))
    >>> mapping = read_mapping(Path("recipes/transparency/comments.yaml"))
    >>> period = Period(date(2026, 7, 1), date(2026, 12, 31))
    >>> report, files = write_report(traffic, mapping, Identification("Example", "Example Ltd", period), Path("report"), k=10)
"""

from vigil_monitoring.transparency.mapping import TransparencyMapping as TransparencyMapping
from vigil_monitoring.transparency.mapping import read_mapping as read_mapping
from vigil_monitoring.transparency.measures import Measure as Measure
from vigil_monitoring.transparency.measures import measures as measures
from vigil_monitoring.transparency.people import read_appeals as read_appeals
from vigil_monitoring.transparency.people import read_human_measures as read_human_measures
from vigil_monitoring.transparency.report import TransparencyReport as TransparencyReport
from vigil_monitoring.transparency.report import write_report as write_report
from vigil_monitoring.transparency.statements import make_statement as make_statement
from vigil_monitoring.transparency.statements import write_statements as write_statements
from vigil_monitoring.transparency.suppression import suppress as suppress
from vigil_monitoring.transparency.template import AutomatedAccuracy as AutomatedAccuracy
from vigil_monitoring.transparency.template import Identification as Identification

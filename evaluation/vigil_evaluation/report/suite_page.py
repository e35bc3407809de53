"""Results of a functional test suite as one self-contained HTML page."""

from vigil_data.filesystem import StrPath
from vigil_evaluation.report.rendering import render_page
from vigil_evaluation.suites.results import SuiteResults


def render_suite_page(suite: SuiteResults, to: StrPath) -> None:
    """Write the page of a suite atomically.

    Args:
        suite: a model's results on the suite.
        to: HTML file.
    """
    render_page("suite.html.jinja", to, suite=suite, results=suite.findings)

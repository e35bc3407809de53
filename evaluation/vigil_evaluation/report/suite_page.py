"""A suite's outcome as one self-contained HTML page."""

from pathlib import Path

from vigil_evaluation.report.rendering import render_page
from vigil_evaluation.suites.outcome import SuiteOutcome


def render_suite(outcome: SuiteOutcome, to: Path) -> None:
    """Write the page.

    Args:
        outcome: what a model did on a suite.
        to: the HTML file, written whole or not at all.
    """
    render_page("suite.html.jinja", to, outcome=outcome, found=outcome.findings)

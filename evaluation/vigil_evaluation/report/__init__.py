"""Findings as one self-contained HTML page, which fetches nothing and runs nothing out of the table it shows."""

import base64
import hashlib
from pathlib import Path

import pyarrow as pa
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vigil_evaluation.findings import Findings
from vigil_evaluation.predictions import arrays
from vigil_evaluation.report import charts as plot
from vigil_evaluation.report.summary import highlights, mistakes

FOLDER = Path(__file__).parent

FEW = 10
"""Numbers that rest on fewer positives or negatives are marked."""

GROUPS_SHOWN = 60
"""Groups of one column on the page; metrics.json has them all."""


def render(findings: Findings, table: pa.Table, to: Path) -> None:
    """Write the report.

    Args:
        findings: what :func:`vigil_evaluation.findings.evaluate` found in ``table``.
        table: the predictions table, for the charts and the mistakes.
        to: the HTML file, written whole or not at all.
    """
    labels = list(findings.overall.labels)
    targets_NL, probabilities_NL = arrays(table, labels)
    columns = [breakdown.column for breakdown in findings.by]
    details = [
        {
            "name": label,
            "numbers": numbers,
            "charts": plot.charts(targets_NL[:, i], probabilities_NL[:, i], numbers.threshold),
            "mistakes": mistakes(table, targets_NL[:, i], probabilities_NL[:, i], numbers.threshold, columns),
        }
        for i, (label, numbers) in enumerate(findings.overall.labels.items())
    ]
    script = (FOLDER / "script.js").read_text(encoding="utf-8")
    page = _environment().get_template("page.html.jinja")
    html = page.render(
        findings=findings,
        details=details,
        highlights=highlights(findings),
        groups_shown=GROUPS_SHOWN,
        few=FEW,
        plot=plot,
        style=Markup((FOLDER / "style.css").read_text(encoding="utf-8")),  # noqa: S704 (our own file)
        script=Markup(script),  # noqa: S704 (our own file)
        # The page's policy names the hash of its one script: no other runs, whatever a table's values hold.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    part = to.with_name(f".{to.name}.part")
    part.write_text(html, encoding="utf-8", errors="replace")
    part.replace(to)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"score": _score, "percent": _percent, "width": _width}
    return environment


def _score(value: float) -> str:
    return f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _width(value: float) -> str:
    return f"{100 * min(max(value, 0.0), 1.0):.1f}"

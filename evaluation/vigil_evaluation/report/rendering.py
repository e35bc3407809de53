"""Rendering shared by all pages: one self-contained file that fetches nothing and executes nothing from the data."""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vigil_data.filesystem import StrPath, write_file
from vigil_evaluation.report import axes, glossary

TEMPLATES = Path(__file__).parent / "templates"
STATIC = Path(__file__).parent / "static"

FEW_ITEMS = 10
"""Numbers that rest on fewer positives or fewer negatives are marked."""


def render_page(
    template: str | Path, to: StrPath, *, own_script: Path | None = None, own_style: Path | None = None, **values: Any
) -> None:
    """Render a template and write the page atomically.

    Args:
        template: name of a file in ``templates``, or the path of another package's, that extends ``layout.html.jinja``.
        to: HTML file.
        own_script: JavaScript of this page, which runs after that of all pages.
        own_style: CSS of this page, after that of all pages.
        values: variables of the template.

    Raises:
        Failure: if the file cannot be written.
    """
    script, style = (_texts(STATIC / name, own) for name, own in (("script.js", own_script), ("style.css", own_style)))
    template = TEMPLATES / template
    html = (
        environment(template.parent)
        .get_template(template.name)
        .render(
            values,
            few_items=FEW_ITEMS,
            style=Markup(style),  # noqa: S704 (our own files)
            script=Markup(script),  # noqa: S704 (our own files)
            # The content security policy allows one script, by hash: no other runs, whatever the values contain.
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )
    write_file(Path(to), html.encode(errors="replace"))


def _texts(*files: Path | None) -> str:
    return "".join(file.read_text(encoding="utf-8") for file in files if file is not None)


@cache
def environment(folder: Path = TEMPLATES) -> Environment:
    """Return the Jinja environment of a folder of templates: every value is escaped, and an undefined name is an error."""
    made = Environment(
        loader=FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "score": format_score,
        "percent": format_percent,
        "count": format_count,
        "points": format_points,
        "width": css_percent,
        "instant": format_time,
        "diverging": axes.diverging_class,
        "error_rate": axes.error_rate_class,
    }
    made.globals |= {"axes": axes, "glossary": glossary, "terms": glossary.TERMS}
    return made


def format_score(value: float) -> str:
    """Format with three decimals."""
    return f"{value:.3f}"


def format_percent(value: float) -> str:
    """Format as a percentage with one decimal, or two below 0.95 %."""
    return f"{value:.2%}" if 0 < abs(value) < 0.0095 else f"{value:.1%}"


def format_count(value: float) -> str:
    """Format with thousands separators, as a whole number."""
    return f"{value:,.0f}"


def format_points(value: float) -> str:
    """Format a difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def format_time(value: str) -> str:
    """Format a time in ISO 8601 and UTC with spaces, at which it may be broken."""
    return value.replace("T", " ").replace("+00:00", " UTC")


def css_percent(value: float) -> str:
    """Format a share as the number of a CSS percentage."""
    return f"{100 * min(max(value, 0.0), 1.0):.1f}"

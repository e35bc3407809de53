"""What all pages share: one self-contained file that fetches nothing and runs nothing of what it shows."""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vigil_evaluation.report import axes

TEMPLATES = Path(__file__).parent / "templates"
STATIC = Path(__file__).parent / "static"

FEW = 10
"""Numbers that rest on fewer positives or negatives are marked."""


def render_page(template: str, to: Path, **values: Any) -> None:
    """Write a page.

    Args:
        template: a file of ``templates`` that extends ``layout.html.jinja``.
        to: the HTML file, written whole or not at all.
        values: what the template shows.
    """
    script = (STATIC / "script.js").read_text(encoding="utf-8")
    html = (
        environment()
        .get_template(template)
        .render(
            values,
            few=FEW,
            style=Markup((STATIC / "style.css").read_text(encoding="utf-8")),  # noqa: S704 (our own file)
            script=Markup(script),  # noqa: S704 (our own file)
            # The page's policy names the hash of its one script: no other runs, whatever the values hold.
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )
    part = to.with_name(f".{to.name}.part")
    part.write_text(html, encoding="utf-8", errors="replace")
    part.replace(to)


@cache
def environment() -> Environment:
    """The templates' environment: all that is shown is escaped, and a name that is not defined is an error."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {
        "score": score,
        "percent": percent,
        "count": count,
        "points": points,
        "width": width,
        "diverging": axes.diverging,
        "shade": axes.shade,
    }
    made.globals |= {"scales": axes}
    return made


def score(value: float) -> str:
    """Three digits."""
    return f"{value:.3f}"


def percent(value: float) -> str:
    """One digit after the point, two where there would be no digit but 0."""
    return f"{value:.2%}" if 0 < abs(value) < 0.0095 else f"{value:.1%}"


def count(value: int) -> str:
    """Thousands apart."""
    return f"{value:,}"


def points(value: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def width(value: float) -> str:
    """A share as the number of a CSS percentage."""
    return f"{100 * min(max(value, 0.0), 1.0):.1f}"

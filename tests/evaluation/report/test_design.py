"""The palette of all pages: defined once, in both themes, with sufficient contrast and distinguishable colour steps."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from vigil_evaluation.report.rendering import STATIC, TEMPLATES

STYLE = (STATIC / "style.css").read_text()
LIGHT, DARK = (
    dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
)
THEMES = pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_style_defines_every_colour_once_in_both_themes() -> None:
    assert LIGHT.keys() == DARK.keys()
    assert len(LIGHT) > 15
    outside = re.sub(r":root \{.*?\}", "", STYLE, flags=re.DOTALL)
    assert set(re.findall(r"#[0-9a-fA-F]{3,8}\b", outside)) <= {"#fff"}
    assert re.findall(r"rgb|hsl|color-mix", outside) == []
    used = set(re.findall(r"var\(--([\w-]+)\)", STYLE))
    assert used == LIGHT.keys()


@THEMES
def test_style_text_contrast_meets_wcag_aa(colours: dict[str, str]) -> None:
    for ground in ("page", "card", "note"):
        for text in ("ink", "soft", "accent", "other"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for step in ("w1", "w2", "w3", "w4", "b1", "b2", "b3", "b4", "accent-soft"):
        assert contrast(colours["ink"], colours[step]) >= 4.5, step


@THEMES
def test_style_line_and_control_contrast_meets_wcag_aa(colours: dict[str, str]) -> None:
    for drawn in ("accent", "other", "soft", "field"):
        for ground in ("page", "card"):
            assert contrast(colours[drawn], colours[ground]) >= 3, (drawn, ground)


def seen_without(colour: str, matrix: tuple[tuple[float, ...], ...]) -> tuple[float, ...]:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return tuple(min(max(sum(m * c for m, c in zip(row, linear, strict=True)), 0), 1) for row in matrix)


BLINDNESS = {
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
"""Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB."""


@THEMES
@pytest.mark.parametrize("kind", list(BLINDNESS))
def test_style_worse_and_better_are_distinguishable_with_colour_blindness(colours: dict[str, str], kind: str) -> None:
    distances = []
    for step in (1, 2, 3, 4):
        worse, better = (seen_without(colours[f"{side}{step}"], BLINDNESS[kind]) for side in "wb")
        distances.append(max(abs(one - other) for one, other in zip(worse, better, strict=True)))
    assert all(low < high for low, high in pairwise(distances))
    assert distances[-1] > 0.15
    assert distances[1] > 0.03


def test_script_uses_the_margins_of_the_curves() -> None:
    from vigil_evaluation.report.curves import BOTTOM, FPR_DECADES, HEIGHT, LEFT, RIGHT, TOP, WIDTH

    script = (STATIC / "script.js").read_text()
    assert f"{{ left: {LEFT:g}, right: {WIDTH - RIGHT:g}, bottom: {HEIGHT - BOTTOM:g}, top: {TOP:g} }}" in script
    assert f"Math.log10(x) / {FPR_DECADES}" in script


def test_templates_escape_every_value() -> None:
    for template in Path(TEMPLATES).rglob("*.jinja"):
        assert "| safe" not in template.read_text(), template.name

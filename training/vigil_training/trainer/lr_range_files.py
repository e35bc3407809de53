"""Files of a learning-rate range test: the curve as CSV, and as a picture."""

import csv
import math
from pathlib import Path

from vigil_data.filesystem import write_file
from vigil_training.trainer.lr_range import RangeCurve

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 40, 50


def write_curve(curve: RangeCurve, folder: Path) -> tuple[Path, Path]:
    """Write ``curve.csv`` (lr, loss, smoothed loss of each step) and ``curve.svg`` into a folder, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    table, picture = folder / "curve.csv", folder / "curve.svg"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("lr", "loss", "smoothed"))
        writer.writerows(zip(curve.rates.tolist(), curve.losses.tolist(), curve.smoothed.tolist(), strict=True))
    write_file(picture, draw_curve(curve))
    return table, picture


def draw_curve(curve: RangeCurve) -> str:
    """Return the losses over the logarithm of the rate as SVG, with the suggestion and the divergence marked."""
    finite: list[float] = [value for value in (*curve.losses.tolist(), *curve.smoothed.tolist()) if math.isfinite(value)]
    # A diverged loss may be larger than the rest by any factor.
    high = min(max(finite), 4 * max(float(curve.smoothed[0]), min(finite)))
    low = min(finite)
    first, last = math.log10(curve.rates[0]), math.log10(curve.rates[-1])

    def x(rate: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(rate) - first) / ((last - first) or 1.0)

    def y(loss: float) -> float:
        share = (min(loss, high) - low) / ((high - low) or 1.0)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    def line(values: list[float], style: str) -> str:
        pairs = zip(curve.rates.tolist(), values, strict=True)
        points = " ".join(f"{x(rate):.1f},{y(value):.1f}" for rate, value in pairs if math.isfinite(value))
        return f'<polyline points="{points}" fill="none" {style}/>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for power in range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1):
        parts.append(f'<line x1="{x(10**power):.1f}" x2="{x(10**power):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        parts.append(f'<text x="{x(10**power):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">1e{power}</text>')
    for value in (low, (low + high) / 2, high):
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">learning rate</text>')
    parts.append(f'<text x="{LEFT}" y="16">training loss of each step (thin) and its moving average</text>')
    parts.append(line(curve.losses.tolist(), 'stroke="#9bb8d8" stroke-width="1"'))
    parts.append(line(curve.smoothed.tolist(), 'stroke="#1f5fa8" stroke-width="2"'))
    for rate, text, colour, height in (
        (curve.suggestion, "steepest", "#2b7a2b", TOP - 6),
        (curve.diverged, "diverged", "#b02020", TOP + 14),
    ):
        if rate is not None:
            # The text is left of its line, or right of it near the left border.
            anchor, shift = ("end", -4) if x(rate) > WIDTH / 2 else ("start", 4)
            place = f'x1="{x(rate):.1f}" x2="{x(rate):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"'
            parts.append(f'<line {place} stroke="{colour}" stroke-dasharray="4 3"/>')
            label = f'<text x="{x(rate) + shift:.1f}" y="{height}" fill="{colour}" text-anchor="{anchor}">'
            parts.append(f"{label}{text} {rate:.2g}</text>")
    return "\n".join([*parts, "</svg>", ""])

"""Dot plots on a logarithmic axis, as SVG: small, without a library, readable in light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

ROW, TOP, BOTTOM, LEFT, WIDTH, RIGHT = 22, 64, 36, 190, 560, 20
RADIUS = 5
#: Told apart by most eyes, on white and on black (Okabe and Ito).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#999999", "#f0e442", "#8c510a", "#5e3c99")


def decades(values: Sequence[float]) -> tuple[int, int]:
    """Return the powers of ten around values.

    Examples
    --------
    >>> decades([0.5, 30.0])
    (-1, 2)
    """
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def dots(title: str, axis: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """Return a plot of positive numbers: a row for each name, a dot for each series, a line at 1.

    Parameters
    ----------
    title, axis
        What is shown; what the axis says.
    rows
        By name, and then by series; what is not there, or not positive, has no dot.
    """
    shown = {name: {key: value for key, value in row.items() if value > 0} for name, row in rows.items()}
    series = list(dict.fromkeys(key for row in shown.values() for key in row))
    low, high = decades([value for row in shown.values() for value in row.values()] or [1.0])
    height = TOP + ROW * len(shown) + BOTTOM

    def x(value: float) -> float:
        return LEFT + WIDTH * (math.log10(value) - low) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + RIGHT} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="100%" height="100%" fill="#ffffff"/><text x="10" y="18" font-size="14">{escape(title)}</text>',
    ]
    at = 10.0
    for number, key in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<circle cx="{at:.0f}" cy="36" r="{RADIUS}" fill="{colour}"/>')
        parts.append(f'<text x="{at + 8:.0f}" y="40">{escape(key)}</text>')
        at += 24 + 6.5 * len(key)
    for power in range(low, high + 1):
        place, colour = x(10.0**power), "#444444" if power == 0 else "#dddddd"
        parts.append(
            f'<line x1="{place:.1f}" y1="{TOP - 8}" x2="{place:.1f}" y2="{height - BOTTOM}" stroke="{colour}"/>'
        )
        parts.append(f'<text x="{place:.1f}" y="{height - BOTTOM + 14}" text-anchor="middle">{10.0**power:g}</text>')
    parts.append(f'<text x="{LEFT + WIDTH / 2:.0f}" y="{height - 6}" text-anchor="middle">{escape(axis)}</text>')
    for number, (name, row) in enumerate(shown.items()):
        y = TOP + ROW * number + ROW // 2
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<line x1="{LEFT}" y1="{y}" x2="{LEFT + WIDTH}" y2="{y}" stroke="#f0f0f0"/>')
        for key, value in row.items():
            colour = COLOURS[series.index(key) % len(COLOURS)]
            tip = f"<title>{escape(name)}, {escape(key)}: {value:.3g}</title>"
            parts.append(
                f'<circle cx="{x(value):.1f}" cy="{y}" r="{RADIUS}" fill="{colour}" fill-opacity="0.8">{tip}</circle>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"

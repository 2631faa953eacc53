"""Heat maps and curves as SVG, written by hand: the tour's pictures need nothing but NumPy."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import numpy.typing as npt

CELL = 28
WIDTH, HEIGHT = 420, 240
MARGIN = 44
LINE = 14
COLOURS = ("#1b5e9e", "#d1491a", "#2e7d32", "#7b3fa0")


def heat_map(shares: npt.ArrayLike, words: Sequence[str], title: str) -> str:
    """Shares from 0 to 1, (queries, keys), as squares: the darker the more.

    Args:
        shares: a row for each query.
        words: of queries and keys alike.
        title: what screen readers say.
    """
    numbers = np.asarray(shares)
    margin = 12 + 9 * max(map(len, words))
    parts = []
    for row, line in enumerate(numbers):
        y = margin + CELL * row
        parts.append(_text(margin - 6, y + CELL * 0.66, words[row], "end"))
        for column, share in enumerate(line[: row + 1]):
            x = margin + CELL * column
            parts.append(
                f'<rect x="{x}" y="{y}" width="{CELL - 2}" height="{CELL - 2}" fill="{COLOURS[0]}" '
                f'fill-opacity="{share:.2f}" stroke="#bbb"/>'
            )
    for column, word in enumerate(words):
        x = margin + CELL * (column + 0.6)
        parts.append(
            f'<g transform="translate({x:.1f} {margin - 6}) rotate(-90)">'
            f"{_text(0, 0, word, 'start')}</g>"
        )
    size = margin + CELL * len(words) + 6
    return _svg(size, size, title, parts)


def curves(x: npt.ArrayLike, lines: Mapping[str, npt.ArrayLike], y_label: str, x_label: str) -> str:
    """Lines over a common axis, each with its name at its end.

    Args:
        x: (points,), ascending.
        lines: by name, (points,) each.
        y_label, x_label: what the axes are.
    """
    across = np.asarray(x, dtype=np.float64)
    values = np.array([np.asarray(line, dtype=np.float64) for line in lines.values()])
    low, high = min(values.min(), 0), max(values.max(), 0)
    left, right, top, bottom = MARGIN, WIDTH - 2 * MARGIN, 30, HEIGHT - MARGIN
    places = left + (across - across[0]) / (across[-1] - across[0]) * (right - left)
    heights = bottom - (values - low) / (high - low) * (bottom - top)
    zero = bottom + low / (high - low) * (bottom - top)
    parts = [f'<path d="M{left} {zero:.1f}H{right}M{left} {top}V{bottom}" stroke="#777"/>']
    for number, line in enumerate(heights):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(places, line, strict=True))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
    names, free = list(lines), 0.0
    for number in np.argsort(heights[:, -1], kind="stable"):
        free = max(free, heights[number, -1] + 4)
        colour = COLOURS[number % len(COLOURS)]
        parts.append(_text(right + 6, free, names[number], "start", colour))
        free += LINE
    for value, y in ((high, top), (low, bottom)):
        parts.append(_text(left - 6, y + 4, f"{value + 0:.3g}", "end"))
    for value, place in ((across[0], left), (across[-1], right)):
        parts.append(_text(place, bottom + 18, f"{value:g}", "middle"))
    parts.append(_text((left + right) / 2, bottom + 34, x_label, "middle"))
    parts.append(_text(left - 6, 14, y_label, "start"))
    return _svg(WIDTH, HEIGHT, f"{y_label}, {x_label}: {', '.join(lines)}", parts)


def _text(x: float, y: float, content: str, anchor: str, colour: str = "#222") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"'
    return f"<text {place}>{escape(content)}</text>"


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """A picture on white, which is readable on a dark page too."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            *parts,
            "</svg>\n",
        ]
    )

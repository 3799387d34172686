"""Charts as inline SVG text: lines over steps, intervals beside each other, confidence against accuracy.

Colours are CSS variables of the page (`--accent`, `--ink` ...), so that a chart follows light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np

WIDTH, HEIGHT = 440, 212
LEFT, RIGHT, TOP, BOTTOM = 64, 18, 12, 42  # margins
POINTS = 700  # of a curve; each stretch of a longer one keeps its lowest and its highest point
LONGEST = 19  # letters of a name beside a bar; a run's ends with what tells it apart
COLOURS = ("var(--accent)", "var(--second)", "var(--third)", "var(--fourth)", "var(--fifth)")


@dataclass(frozen=True)
class Curve:
    """A named line; x and y of equal length, y may hold None where there is no value."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]


def lines(title: str, curves: Sequence[Curve], x_name: str = "step", even: bool = False) -> str:
    """Curves over one axis; logarithmic in y where all values are positive and span a factor of 50.

    even: never logarithmic, and from 0 (rates, of which 0 means something).
    """
    kept = [(curve, *_finite(curve)) for curve in curves]
    kept = [(curve, x, y) for curve, x, y in kept if len(x)]
    if not kept:
        return ""
    every_y = np.concatenate([y for _, _, y in kept])
    logarithmic = not even and every_y.min() > 0 and every_y.max() / every_y.min() > 50
    x_axis = _Axis(min(x.min() for _, x, _ in kept), max(x.max() for _, x, _ in kept), LEFT, WIDTH - RIGHT)
    y_axis = _Axis(
        min(0.0, every_y.min()) if even else every_y.min(), every_y.max(), HEIGHT - BOTTOM, TOP, logarithmic
    )
    parts = [_grid(x_axis, y_axis, x_name)]
    for at, (_, x, y) in enumerate(kept):
        x, y = thinned(x, y)
        points = " ".join(f"{x_axis(a):.1f},{y_axis(b):.1f}" for a, b in zip(x, y, strict=True))
        colour = COLOURS[at % len(COLOURS)]
        if len(x) == 1:
            parts.append(f'<circle cx="{x_axis(x[0]):.1f}" cy="{y_axis(y[0]):.1f}" r="3" fill="{colour}"/>')
        else:
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
    names = [curve.name for curve, _, _ in kept]
    legend = "".join(
        f'<span class="key"><i style="background:{COLOURS[at % len(COLOURS)]}"></i>{escape(name)}</span>'
        for at, name in enumerate(names)
    )
    drawn = svg(title, WIDTH, HEIGHT, "".join(parts))
    return (
        f"<figure><figcaption>{escape(title)} {legend if len(names) > 1 else ''}</figcaption>{drawn}</figure>"
    )


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most about POINTS points: of each stretch the lowest and the highest, so that spikes stay."""
    if len(x) <= POINTS:
        return x, y
    edges = np.linspace(0, len(x), POINTS // 2 + 1).astype(int)
    kept = {0, len(x) - 1}
    for low, high in pairwise(edges):
        kept |= {low + int(y[low:high].argmin()), low + int(y[low:high].argmax())}
    at = np.array(sorted(kept))
    return x[at], y[at]


@dataclass(frozen=True)
class Bar:
    """A figure with its interval. strong: drawn in the accent colour."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    strong: bool = False


def intervals(title: str, bars: Sequence[Bar], shown: Callable[[float], str]) -> str:
    """A dot with whiskers for each figure, one below the other, over one axis."""
    if not bars:
        return ""
    every = [end for bar in bars for end in (bar.value, bar.low, bar.high) if end is not None]
    left, height = 132, 30 + 26 * len(bars)
    spread = (max(every) - min(every)) or abs(every[0]) or 1.0
    axis = _Axis(min(every) - 0.04 * spread, max(every) + 0.04 * spread, left, WIDTH - 66)
    parts = [
        f'<line x1="{axis(tick):.1f}" x2="{axis(tick):.1f}" y1="4" y2="{height - 24}" class="grid"/>'
        f'<text x="{axis(tick):.1f}" y="{height - 8}" text-anchor="middle">{_short(tick)}</text>'
        for tick in axis.ticks(5)
    ]
    for at, bar in enumerate(bars):
        y, colour = 18 + 26 * at, "var(--accent)" if bar.strong else "var(--second)"
        weight = ' font-weight="600"' if bar.strong else ""
        name = escape(bar.name if len(bar.name) <= LONGEST else f"…{bar.name[1 - LONGEST :]}")
        parts.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end"{weight}>{name}</text>')
        if bar.low is not None and bar.high is not None:
            ends = f'x1="{axis(bar.low):.1f}" x2="{axis(bar.high):.1f}" y1="{y}" y2="{y}"'
            parts.append(f'<line {ends} class="whisker" stroke="{colour}"/>')
        parts.append(f'<circle cx="{axis(bar.value):.1f}" cy="{y}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{WIDTH - 56}" y="{y + 4}"{weight}>{shown(bar.value)}</text>')
    drawn = svg(title, WIDTH, height, "".join(parts))
    return f"<figure class='medium'><figcaption>{escape(title)}</figcaption>{drawn}</figure>"


def reliability(title: str, bins: Sequence[dict[str, float | None]]) -> str:
    """Accuracy of each bin of confidence, beside the line where both are equal; a dot's area is its rows."""
    size = 260
    axis_x, axis_y = _Axis(0, 1, 44, size - 14), _Axis(0, 1, size - 42, 10)
    most = max((one["rows"] or 0 for one in bins), default=0) or 1
    parts = [_grid(axis_x, axis_y, "confidence", 5)]
    parts.append(f'<line x1="{axis_x(0)}" y1="{axis_y(0)}" x2="{axis_x(1)}" y2="{axis_y(1)}" class="even"/>')
    for one in bins:
        if one["rows"] and one["accuracy"] is not None and one["confidence"] is not None:
            radius = 3 + 9 * math.sqrt(one["rows"] / most)
            place = f'cx="{axis_x(one["confidence"]):.1f}" cy="{axis_y(one["accuracy"]):.1f}"'
            parts.append(f'<circle {place} r="{radius:.1f}" fill="var(--accent)" opacity=".75"/>')
    drawn = svg(title, size, size, "".join(parts))
    return f'<figure class="small"><figcaption>{escape(title)}</figcaption>{drawn}</figure>'


def board(title: str, squares: Sequence[str], values: Sequence[float], shape: Sequence[int]) -> str:
    """Shares from 0 to 1 as a board of (rows, columns), darker where larger, in percent on each square."""
    rows, columns = shape
    size, edge = 34, 20
    most = max(values, default=0) or 1.0
    parts = []
    for at, (square, value) in enumerate(zip(squares, values, strict=True)):
        row, column = divmod(at, columns)
        x, y = edge + size * column, 4 + size * row
        place = f'x="{x}" y="{y}" width="{size - 2}" height="{size - 2}"'
        said = f"<title>{escape(square)}: {100 * value:.3g} %</title>"
        parts.append(f'<rect {place} fill="var(--rule)"/>')
        parts.append(f'<rect {place} fill="var(--accent)" opacity="{0.85 * value / most:.3f}">{said}</rect>')
        middle = f'x="{x + size / 2 - 1}" y="{y + size / 2 + 4}"'
        parts.append(f'<text {middle} text-anchor="middle">{_percent(value)}</text>')
    for row in range(rows):  # squares are named by column and row: a1
        name = escape(squares[row * columns][1:])
        place = f'x="{edge - 6}" y="{4 + size * row + size / 2 + 4}"'
        parts.append(f'<text {place} text-anchor="end">{name}</text>')
    for column in range(columns):
        name = escape(squares[column][:1])
        place = f'x="{edge + size * column + size / 2}" y="{size * rows + 18}"'
        parts.append(f'<text {place} text-anchor="middle">{name}</text>')
    drawn = svg(title, edge + size * columns + 4, size * rows + 26, "".join(parts))
    return f'<figure class="small"><figcaption>{escape(title)}</figcaption>{drawn}</figure>'


def _percent(value: float) -> str:
    return f"{100 * value:.0f}" if value >= 0.0995 else f"{100 * value:.1f}"


def svg(title: str, width: int, height: int, inside: str) -> str:
    """An SVG that scales with the page, with a title for those who do not see it."""
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{inside}</svg>"
    )


class _Axis:
    """Maps values onto pixels; `low` is at pixel `start`, `high` at pixel `end`."""

    def __init__(self, low: float, high: float, start: float, end: float, logarithmic: bool = False) -> None:
        self.logarithmic, self.start, self.end = logarithmic, start, end
        self.low, self.high = (
            (math.log10(low), math.log10(high)) if logarithmic else (float(low), float(high))
        )
        if self.high - self.low < 1e-12 * max(1.0, abs(self.high)):
            pad = 0.05 * abs(self.high) or 0.5
            self.low, self.high = self.low - pad, self.high + pad

    def __call__(self, value: float) -> float:
        at = math.log10(value) if self.logarithmic else float(value)
        return self.start + (at - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About `count` round values within the axis."""
        if self.logarithmic:
            found = [
                k * 10.0**power
                for power in range(math.floor(self.low), math.ceil(self.high) + 1)
                for k in (1, 2, 5)
            ]
            found = [value for value in found if self.low <= math.log10(value) <= self.high]
            return found[:: max(1, len(found) // count)]
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(k * power for k in (1, 2, 2.5, 5, 10) if k * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [round(at * step, 12) for at in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _finite(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    x = np.array(curve.x, np.float64)
    y = np.array([math.nan if value is None else value for value in curve.y], np.float64)
    good = np.isfinite(x) & np.isfinite(y)
    return x[good], y[good]


def _grid(x_axis: _Axis, y_axis: _Axis, x_name: str, count: int = 6) -> str:
    bottom, left = y_axis.start, x_axis.start
    parts = []
    for tick in y_axis.ticks(count):
        y = y_axis(tick)
        parts.append(f'<line x1="{left}" x2="{x_axis.end}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    for tick in x_axis.ticks(count):
        if x_name == "step" and not float(tick).is_integer():
            continue
        parts.append(
            f'<text x="{x_axis(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{_short(tick)}</text>'
        )
    middle = (left + x_axis.end) / 2
    parts.append(f'<text x="{middle:.1f}" y="{bottom + 36}" text-anchor="middle">{escape(x_name)}</text>')
    return "".join(parts)


def _short(value: float) -> str:
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        digits, power = f"{value:.3e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    if abs(value) >= 1000:
        return f"{value / 1000:g}k"
    return f"{value:g}"

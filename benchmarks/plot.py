"""Plots as SVG, written by hand: bars, and lines over axes that may be logarithmic. Nothing to install."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH = 720
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f", "#bcbd22", "#e377c2")
_BOLD = 'font-family="sans-serif" font-size="15" font-weight="bold" fill="#222"'
_TEXT = 'font-family="sans-serif" font-size="12" fill="#222"'


def bars(title: str, unit: str, values: Mapping[str, tuple[float, float, float]], ours: str) -> str:
    """One bar a name, longest first, with its range. ``values``: (median, least, most). ``ours`` stands out."""
    ordered = sorted(values.items(), key=lambda each: -each[1][0])
    longest = max((most for _, (_, _, most) in ordered), default=1.0) or 1.0
    left, top, step = 190, 40, 26
    space = WIDTH - left - 90
    parts = [_heading(title)]
    for row, (name, (median, least, most)) in enumerate(ordered):
        y = top + row * step
        length, low, high = (space * value / longest for value in (median, least, most))
        colour = COLOURS[0] if name == ours else "#9aa5b1"
        weight = ' font-weight="bold"' if name == ours else ""
        parts += [
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end" {_TEXT}{weight}>{escape(name)}</text>',
            f'<rect x="{left}" y="{y}" width="{length:.1f}" height="18" fill="{colour}"/>',
            f'<path d="M{left + low:.1f} {y + 9}H{left + high:.1f}" stroke="#222"/>',
            f'<text x="{left + high + 6:.1f}" y="{y + 13}" {_TEXT}>{number(median)}</text>',
        ]
    height = top + len(ordered) * step + 24
    parts.append(
        f'<text x="{left}" y="{height - 8}" {_TEXT}>{escape(unit)}; the thin line is the range of the runs</text>'
    )
    return _svg(height, parts)


@dataclass
class Axis:
    """What runs along one side, and how."""

    label: str
    logarithmic: bool = False
    least: float | None = None
    most: float | None = None
    ticks: list[float] = field(default_factory=list)

    def settle(self, values: Sequence[float]) -> None:
        """Choose the ends, where they are not given, and the ticks."""
        low, high = min(values), max(values)
        if self.logarithmic:
            first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
            last = max(last, first + 1)
            self.least, self.most = self.least or 10.0**first, self.most or 10.0**last
            self.ticks = [10.0**power for power in range(first, last + 1) if self.least <= 10.0**power <= self.most]
        else:
            self.least = 0.0 if self.least is None else self.least
            self.most = self.most or round_up(high)
            self.ticks = [self.least + (self.most - self.least) * part / 5 for part in range(6)]

    def place(self, value: float) -> float:
        """0 to 1."""
        assert self.least is not None and self.most is not None
        if self.logarithmic:
            span = math.log10(self.most) - math.log10(self.least)
            return (math.log10(value) - math.log10(self.least)) / span
        return (value - self.least) / (self.most - self.least)


Points = Sequence[tuple[float, float]]


def lines(title: str, across: Axis, up: Axis, series: Mapping[str, Points], dots: bool = True) -> str:
    """One line a name. What lies beyond a given end of an axis is cut off."""
    points = [point for each in series.values() for point in each]
    across.settle([x for x, _ in points])
    up.settle([y for _, y in points])
    left, top, width, height = 66, 40, WIDTH - 66 - 190, 280
    x_of: Callable[[float], float] = lambda value: left + width * across.place(value)  # noqa: E731
    y_of: Callable[[float], float] = lambda value: top + height * (1 - up.place(value))  # noqa: E731
    parts = [
        _heading(title),
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#999"/>',
    ]
    for tick in across.ticks:
        parts.append(f'<path d="M{x_of(tick):.1f} {top}V{top + height}" stroke="#e3e3e3"/>')
        label = f'<text x="{x_of(tick):.1f}" y="{top + height + 18}" text-anchor="middle" {_TEXT}>{number(tick)}</text>'
        parts.append(label)
    for tick in up.ticks:
        parts.append(f'<path d="M{left} {y_of(tick):.1f}H{left + width}" stroke="#e3e3e3"/>')
        parts.append(f'<text x="{left - 6}" y="{y_of(tick) + 4:.1f}" text-anchor="end" {_TEXT}>{number(tick)}</text>')
    for row, (name, each) in enumerate(series.items()):
        colour = COLOURS[row % len(COLOURS)]
        within = [(x_of(x), y_of(y)) for x, y in each if 0 <= across.place(x) <= 1 and up.place(y) <= 1.0001]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in within)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if dots:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in within]
        y = top + 8 + 20 * row
        parts.append(f'<rect x="{left + width + 12}" y="{y - 8}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{left + width + 30}" y="{y + 2}" {_TEXT}>{escape(name)}</text>')
    middle = left + width / 2
    parts.append(
        f'<text x="{middle}" y="{top + height + 40}" text-anchor="middle" {_TEXT}>{escape(across.label)}</text>'
    )
    parts.append(f'<text x="{left}" y="{top - 6}" {_TEXT}>{escape(up.label)}</text>')
    return _svg(top + height + 56, parts)


def distribution(values: Sequence[float]) -> Points:
    """Of each value the share, in percent, that does not exceed it."""
    ordered = sorted(values)
    return [(value, 100 * (place + 1) / len(ordered)) for place, value in enumerate(ordered)]


def number(value: float) -> str:
    """Three figures that matter."""
    if value == 0:
        return "0"
    if abs(value) >= 1_000_000:
        return f"{value / 1_000_000:g}M"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _heading(title: str) -> str:
    return f'<text x="10" y="20" {_BOLD}>{escape(title)}</text>'


def _svg(height: float, parts: Sequence[str]) -> str:
    size = f'width="{WIDTH}" height="{height:.0f}" viewBox="0 0 {WIDTH} {height:.0f}"'
    paper = f'<rect width="{WIDTH}" height="{height:.0f}" fill="white"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', paper, *parts, "</svg>", ""])


def round_up(value: float) -> float:
    """To 1, 2 or 5 with zeros."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.5, 2, 3, 5, 7.5, 10) if step * power >= value * 0.999)

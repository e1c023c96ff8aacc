"""Curves and a map as inline SVG: drawn by the browser, so that they are sharp, follow light and dark, and run
nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from zoo.report.markup import text

WIDTH, HEIGHT = 440, 210  # of a chart, in its own units: pixels where there is room
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 8, 26
POINTS = 240  # of a line; more are averaged, and couldn't be told apart
SIDE, EDGE = 560, 70  # of a map; how near its border a name would be cut off
# Tableau's ten: of middling lightness, so that they stand out from white and from black
COLOURS = ("#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#d8b322", "#b07aa1", "#ff8fa3", "#9c755f", "#8c8c8c")
NAMED = 20  # classes whose names still fit onto a map


@dataclass
class Series:
    """A named line of points (x, y), by x. `second` is drawn in the other colour, and with a mark at each point if
    `marks`.
    """

    name: str
    points: list[tuple[float, float]]
    second: bool = False
    marks: bool = False


def lines(title: str, about: str, series: list[Series], ground: float | None = None) -> str:
    """A figure of one or more lines over the steps. The axis reaches down to `ground` if that is given."""
    series = [Series(s.name, thinned(s.points), s.second, s.marks) for s in series]
    x, y = zip(*(point for s in series for point in s.points), strict=True)
    right, (low, high) = max(x), _range(y, ground)
    ticks_y, ticks_x = _ticks(low, high, 5), _ticks(0, right, 4)

    def at(point: tuple[float, float]) -> tuple[float, float]:
        across = point[0] / right if right else 0.5
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - (point[1] - low) / (high - low) * (
            HEIGHT - TOP - BOTTOM
        )

    parts = []
    for tick in ticks_y:
        level = at((0, tick))[1]
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{level:.1f}" y2="{level:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{level + 4:.1f}" text-anchor="end">{tick:,g}</text>'
        )
    for tick in ticks_x:
        place, anchor = at((tick, low))[0], "start" if tick == 0 else "middle"
        parts.append(
            f'<text x="{min(place, WIDTH - RIGHT - 8):.1f}" y="{HEIGHT - 7}" text-anchor="{anchor}">{tick:,.0f}</text>'
        )
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    for s in series:
        css = " second" if s.second else ""
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in map(at, s.points))
        parts.append(f'<polyline class="line{css}" points="{path}"/>')
        if s.marks or len(s.points) == 1:
            parts += [f'<circle class="dot{css}" cx="{px:.1f}" cy="{py:.1f}" r="2.4"/>' for px, py in map(at, s.points)]
    names = (
        ", ".join(f'<span class="stroke{" second" if s.second else ""}"></span>{text(s.name)}' for s in series)
        if len(series) > 1
        else ""
    )
    caption = f"<b>{text(title)}</b>{text(about)}{' ' if about else ''}{names}"
    return (
        f'<figure><figcaption>{caption}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{text(title)} over steps, '
        f'{y[0]:.4g} at first and {y[-1]:.4g} at last">{"".join(parts)}</svg></figure>'
    )


def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most POINTS points, each the mean of as many neighbours."""
    group = math.ceil(len(points) / POINTS)
    parts = [points[start : start + group] for start in range(0, len(points), group)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _range(values: tuple[float, ...], ground: float | None) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return (low - room if ground is None else min(ground, low)), high + room


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from low to high."""
    from matplotlib.ticker import MaxNLocator

    return [
        float(f"{tick:.12g}")
        for tick in MaxNLocator(about, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        if low <= tick <= high
    ]


def colours(classes: int) -> list[str]:
    """A colour for each class; of more than ten, hues around the circle, light and dark by turns."""
    if classes <= len(COLOURS):
        return list(COLOURS[:classes])
    return [f"hsl({360 * number / classes:.0f} 60% {(42, 62)[number % 2]}%)" for number in range(classes)]


def scatter(points: list[tuple[float, float]], labels: list[int] | None, classes: tuple[str, ...]) -> str:
    """A map of points (x, y), coloured by class, up to twenty of which are named where the middle of their points
    is.
    """
    x, y = zip(*points, strict=True)
    wide = max(max(x) - min(x), max(y) - min(y)) or 1.0
    middle = (max(x) + min(x)) / 2, (max(y) + min(y)) / 2
    placed = [
        (SIDE / 2 + (px - middle[0]) / wide * (SIDE - 44), SIDE / 2 - (py - middle[1]) / wide * (SIDE - 44))
        for px, py in points
    ]
    if labels is None:
        return _svg(f'<g fill="{COLOURS[0]}" fill-opacity=".8">{_dots(placed)}</g>')
    groups, names = [], []
    for number, (name, colour) in enumerate(zip(classes, colours(len(classes)), strict=True)):
        inside = [point for point, label in zip(placed, labels, strict=True) if label == number]
        if inside:
            groups.append(f'<g fill="{colour}" fill-opacity=".85"><title>{text(name)}</title>{_dots(inside)}</g>')
            px, py = _middle(inside)
            anchor = "start" if px < EDGE else "end" if px > SIDE - EDGE else "middle"
            names.append(f'<text class="halo" x="{px:.1f}" y="{py + 4:.1f}" text-anchor="{anchor}">{text(name)}</text>')
    return _svg("".join(groups) + ("".join(names) if len(classes) <= NAMED else ""))


def _middle(points: list[tuple[float, float]]) -> tuple[float, float]:
    """The point that lies nearest to the median of all, which itself may lie where there is none."""
    median = [sorted(values)[len(points) // 2] for values in zip(*points, strict=True)]
    return min(points, key=lambda point: math.dist(point, median))


def _dots(points: list[tuple[float, float]]) -> str:
    return "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>' for x, y in points)


def _svg(inside: str) -> str:
    return f'<svg viewBox="0 0 {SIDE} {SIDE}" role="img" aria-label="Map of test pictures">{inside}</svg>'


def legend(classes: tuple[str, ...]) -> str:
    """Names of classes beside their colours; folded up where they are too many to be told apart by colour."""
    names = [
        f'<li><span class="swatch" style="background:{colour}"></span>{text(name)}</li>'
        for name, colour in zip(classes, colours(len(classes)), strict=True)
    ]
    inside = "\n".join(['<ul class="legend">', *names, "</ul>"])
    return inside if len(classes) <= NAMED else f"<details><summary>{len(classes)} classes</summary>{inside}</details>"

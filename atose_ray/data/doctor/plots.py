"""Plots as SVG text, drawn here and not by scripts: histograms, bars and a heat map. Styled by the page."""

import html
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

WIDTH, HEIGHT = 380, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 12, 40
BINS = 30
WARM, COLD = "178, 24, 43", "33, 102, 172"


def histogram(values: Sequence[float], unit: str) -> str:
    """How many values lie where: equal bins from the least to the greatest."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(values, bins=BINS, range=(low, high))
    bars = [(float(edges[i]), float(edges[i + 1]), int(count)) for i, count in enumerate(counts)]
    return _bars(bars, (low, high), ticks(low, high, 5), unit, lambda a, b: f"{a:.4g} to {b:.4g}")


def bar_chart(counts: Mapping[int, int], unit: str) -> str:
    """A bar for every value that occurs, side by side."""
    values = sorted(counts)
    bars = [(i + 0.1, i + 0.9, counts[value]) for i, value in enumerate(values)]
    step = math.ceil(len(values) / 8) or 1
    marks = [(i + 0.5, f"{value:,}" if value < 1000 else f"{value}") for i, value in enumerate(values)][::step]
    return _bars(bars, (0.0, float(len(values) or 1)), marks, unit, lambda a, b: f"{values[int(a)]}")


def ticks(low: float, high: float, count: int) -> list[tuple[float, str]]:
    """Round numbers between two, with their text."""
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(k * unit for k in (1, 2, 5, 10) if k * unit >= rough * 0.999)
    places = [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return [(place, f"{place:.6g}") for place in places]


def _bars(
    bars: list[tuple[float, float, int]],
    span: tuple[float, float],
    marks: list[tuple[float, str]],
    unit: str,
    name: Callable[[float, float], str],
) -> str:
    """bars: (from, to, count). name: (from, to) -> text of the tooltip."""
    bottom, most = HEIGHT - BOTTOM, max((count for *_, count in bars), default=0) or 1

    def x(value: float) -> float:
        return LEFT + (value - span[0]) / (span[1] - span[0]) * (WIDTH - LEFT - RIGHT)

    def y(count: float) -> float:
        return bottom - count / most * (bottom - TOP)

    parts = []
    for place, text in ticks(0, most, 3):
        if place == round(place):
            parts.append(
                f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y(place):.1f}' y2='{y(place):.1f}'/>"
            )
            parts.append(f"<text x='{LEFT - 6}' y='{y(place) + 4:.1f}' text-anchor='end'>{text}</text>")
    for start, end, count in bars:
        if count:
            width = max(x(end) - x(start) - 1, 1)
            shape = f"x='{x(start):.1f}' y='{y(count):.1f}' width='{width:.1f}' height='{bottom - y(count):.1f}'"
            parts.append(f"<rect class='bar' {shape}><title>{name(start, end)}: {count}</title></rect>")
    parts.append(f"<line class='axis' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{bottom}' y2='{bottom}'/>")
    parts += [f"<text x='{x(at):.1f}' y='{bottom + 16}' text-anchor='middle'>{text}</text>" for at, text in marks]
    parts.append(
        f"<text class='ink' x='{WIDTH - RIGHT}' y='{bottom + 33}' text-anchor='end'>{html.escape(unit)}</text>"
    )
    return _svg(parts, WIDTH, HEIGHT, "100%", unit)


def heat_map(names: Sequence[str], matrix_CC: Sequence[Sequence[float]]) -> str:
    """A symmetric matrix in [-1, 1]: red above zero, blue below; the diagonal is left grey."""
    shown = [html.escape(name if len(name) <= 22 else f"{name[:21]}…") for name in names]
    cell = max(9, min(32, 640 // len(names)))
    room = 14 + int(6.4 * max(len(name) if len(name) <= 22 else 22 for name in names))
    side, size = room + cell * len(names), min(11.0, cell)
    parts = []
    for row, name in enumerate(shown):
        at = room + (row + 0.5) * cell + size * 0.35
        font = f"class='ink' style='font-size:{size}px'"
        parts.append(f"<text {font} x='{room - 5}' y='{at:.1f}' text-anchor='end'>{name}</text>")
        parts.append(f"<text {font} transform='translate({at:.1f} {room - 5}) rotate(-90)'>{name}</text>")
        for column, value in enumerate(matrix_CC[row]):
            place = f"x='{room + column * cell}' y='{room + row * cell}' width='{cell}' height='{cell}'"
            if row == column or not math.isfinite(value):
                parts.append(f"<rect class='track' {place}/>")
                continue
            color = f"rgba({WARM if value > 0 else COLD}, {abs(value):.2f})"
            tip = f"{html.escape(names[row])}, {html.escape(names[column])}: {value:+.2f}"
            parts.append(f"<rect fill='{color}' {place}><title>{tip}</title></rect>")
    return _svg(parts, side, side, str(side), "Correlation of the tags")


def _svg(parts: list[str], width: int, height: int, shown: str, label: str) -> str:
    box = f"viewBox='0 0 {width} {height}' width='{shown}' role='img' aria-label='{html.escape(label)}'"
    return f"<svg {box}>{''.join(parts)}</svg>"

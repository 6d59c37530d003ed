"""The measured table of docs/COMPARISON.md and docs/comparison.svg, from results/beside.jsonl.

python -m benchmarks.beside.page
"""

from __future__ import annotations

import ast
import io
import math
import statistics
import tokenize
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.beside.measure import MARK
from benchmarks.beside.run import CONTENDERS, HERE, ROOT, lines

PAGE, FIGURE = ROOT / "docs" / "COMPARISON.md", ROOT / "docs" / "comparison.svg"
BEGIN, END = "<!-- measured: python -m benchmarks.beside.page -->", "<!-- end -->"
TITLES = {"optuna": "Optuna, own loop", "ray_tune": "Ray Tune", "lightning": "Lightning + Optuna", "ours": "atose_ray"}
COLOURS = {"optuna": "#2a7f9e", "ray_tune": "#b8860b", "lightning": "#7a4fa3", "ours": "#b3261e"}
COMMANDS = 2  # of ours: prepare and tune
AT_CPU_S = (40, 80, 150, 300)  # where the best score so far is read from the curves
SHORT, LONG = 80.0, 300.0  # budgets of the race


def written(path: Path) -> int:
    """Lines that a user writes: without blank lines, comments, docstrings and what only measures."""
    text = path.read_text()
    rows = text.splitlines()
    if path.suffix != ".py":
        return sum(1 for row in rows if row.strip() and not row.strip().startswith("#"))
    told: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            told.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    code: set[int] = set()
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in silent:
            code.update(range(token.start[0], token.end[0] + 1))
    return len([row for row in code - told if MARK not in rows[row - 1]])


def lines_of(name: str) -> str:
    """What a contender's user writes."""
    if name == "ours":
        return f"{written(HERE / 'ours.yaml')} of YAML, {COMMANDS} commands"
    return str(written(HERE / f"with_{name}.py") + written(HERE / "clips.py"))


def of(what: str, name: str, budget: float = SHORT) -> list[dict[str, Any]]:
    """The lines of one kind and contender; of the race those of one budget."""
    return [line for line in lines(what) if (line.get("contender"), line.get("budget_cpu_s", budget)) == (name, budget)]


def spread(values: Iterable[float | None], digits: int) -> str:
    """Median (lower to upper quartile); of fewer than three values these."""
    known = [value for value in values if value is not None]
    if len(known) < 3:
        return ", ".join(f"{value:.{digits}f}" for value in known) or "none"
    low, middle, high = (float(np.quantile(known, q)) for q in (0.25, 0.5, 0.75))
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def killed(name: str) -> str:
    """What the kill cost."""
    found = of("kill", name)
    if not found:
        return "not run"
    one = found[-1]
    again = ", ".join(f"{last} → {first}" for last, first in one["goes_on"].values()) or "no trial went on"
    left = f"{one['processes_left']} processes left, which trained {one['epochs_of_those_left']} more epochs"
    twice = f"{one['trained_twice']} of {one['epochs_before']} epochs trained twice"
    return f"{twice}; {left}; trials went on, epoch before → first after: {again}"


def decoding(name: str) -> str:
    """Where the files are decoded, and how long that takes."""
    took = lines("data")[-1]
    if name == "ours":
        return f"once, by `prepare`, not on our clock: {took['ours_prepare_s']:.0f} s with its examination"
    return f"at every start, on its clock: {took['others_decode_s']:.1f} s"


def rows() -> list[tuple[str, Callable[[str], str]]]:
    """Name and cell of every measured row."""

    def race(key: str, digits: int, budget: float = SHORT) -> Callable[[str], str]:
        return lambda name: spread((line[key] for line in of("race", name, budget)), digits)

    def both(key: str) -> Callable[[str], str]:
        return lambda name: "; ".join(race(key, 0, budget)(name) for budget in (SHORT, LONG))

    def overhead(key: str) -> Callable[[str], str]:
        return lambda name: f"{of('overhead', name)[-1][key]:.2f} s" if of("overhead", name) else "not run"

    def pace(name: str) -> str:
        left = ((line["epochs"] - 1, line["cpu_s"] - line["first_epoch_cpu_s"]) for line in of("race", name))
        return spread((10 * epochs / seconds for epochs, seconds in left), 1)

    def best_at(at: float) -> tuple[str, Callable[[str], str]]:
        budget = SHORT if at <= SHORT else LONG
        title = f"best validation score after {at} CPU seconds, {len(of('race', 'ours', budget))} seeds"
        return title, lambda name: spread((best_by(line["curve"], 1, at) for line in of("race", name, budget)), 4)

    return [
        *map(best_at, AT_CPU_S),
        ("CPU seconds until the first epoch is over", race("first_epoch_cpu_s", 1)),
        ("seconds by the clock until then", race("first_epoch_s", 0)),
        ("epochs trained in 80 CPU seconds, in 300", both("epochs")),
        ("epochs in 10 CPU seconds, from the first one on", pace),
        ("trials begun that ended an epoch, in 80 and in 300", both("trials")),
        ("seconds by the clock for 80 CPU seconds, for 300", both("wall_s")),
        ("CPU seconds per trial beside its training", overhead("cpu_s")),
        ("the same by the clock, two at a time", overhead("s")),
        ("decoding, by the clock", decoding),
        ("lines written", lines_of),
        ("kill -9 of the driver, the same command again", killed),
    ]


def table() -> str:
    """Markdown: the measured rows, and under which load."""
    head = "| | " + " | ".join(TITLES[name] for name in CONTENDERS) + " |\n" + "|---" * (len(CONTENDERS) + 1) + "|\n"
    body = "".join(f"| {title} | {' | '.join(map(cell, CONTENDERS))} |\n" for title, cell in rows())
    races = [line for name in CONTENDERS for budget in (SHORT, LONG) for line in of("race", name, budget)]
    load = [value for line in races for value in line["load"]]
    one = next(line for line in reversed(races) if line["contender"] == "lightning")
    versions = ", ".join(f"{name} {number}" for name, number in one["versions"].items())
    note = (
        f"{one['cpus']} cores, load average {min(load):.0f} to {max(load):.0f} (median {statistics.median(load):.0f}) "
        f"while the searches ran; Python {one['python']}, {versions}."
    )
    return head + body + "\n" + note + "\n"


def best_by(curve: Sequence[Sequence[float]], axis: int, at: float) -> float:
    """The best score known at a time, by the clock (axis 0) or in CPU seconds (1); 0 before a first score."""
    return max((point[2] for point in curve if point[axis] <= at), default=0.0)


def medians(name: str, axis: int, grid: Sequence[float]) -> list[tuple[float, float, float]]:
    """Quartiles over the seeds of the best score known at each time; 0 before a first score. axis: 0 clock, 1 CPU."""
    of_seeds = []
    for line in of("race", name, LONG):
        of_seeds.append([best_by(line["curve"], axis, now) for now in grid])
    low, middle, high = np.quantile(np.array(of_seeds), (0.25, 0.5, 0.75), axis=0)
    return list(zip(low.tolist(), middle.tolist(), high.tolist(), strict=True))


def panel(axis: int, left: float, title: str) -> str:
    """One of the two drawings: best score against one clock."""
    width, height, top = 400.0, 290.0, 30.0
    races = [line for name in CONTENDERS for line in of("race", name, LONG)]
    last: float = races[0]["budget_cpu_s"] if axis else max(line["wall_s"] for line in races)
    grid = [last * step / 200 for step in range(201)]
    ceiling: float = max(line["best"] or 0.0 for line in races) * 1.03

    floor = math.floor(10 * min(line["curve"][0][2] for line in races)) / 10

    def x(at: float) -> float:
        return float(left + width * at / last)

    def y(value: float) -> float:
        return float(top + height * (ceiling - max(value, floor)) / (ceiling - floor))

    parts = [f'<text x="{left}" y="{top - 12}">{title}</text>']
    for step in range(6):
        at, value = last * step / 5, floor + (ceiling - floor) * step / 5
        parts.append(f'<text x="{x(at):.1f}" y="{top + height + 18}" text-anchor="middle">{at:.0f}</text>')
        parts.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2f}</text>')
        parts.append(f'<path d="M{left} {y(value):.1f}h{width}" stroke="#ddd"/>')
    for name in CONTENDERS:
        quartiles = medians(name, axis, grid)
        known = [(at, quartile) for at, quartile in zip(grid, quartiles, strict=True) if quartile[1] > 0]
        lower = [f"{x(at):.1f},{y(low):.1f}" for at, (low, _, _) in known]
        upper = [f"{x(at):.1f},{y(high):.1f}" for at, (_, _, high) in reversed(known)]
        middle = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, (_, value, _) in known)
        parts.append(f'<polygon points="{" ".join([*lower, *upper])}" fill="{COLOURS[name]}" opacity="0.13"/>')
        parts.append(f'<polyline points="{middle}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>')
    return "".join(parts)


def figure() -> str:
    """Best score so far against CPU seconds and against the clock: median and quartiles of the seeds."""
    legend = "".join(
        f'<rect x="{60 + 190 * index}" y="372" width="14" height="4" fill="{COLOURS[name]}"/>'
        f'<text x="{80 + 190 * index}" y="378">{TITLES[name]}</text>'
        for index, name in enumerate(CONTENDERS)
    )
    seeds = min(len(of("race", name, LONG)) for name in CONTENDERS)
    counted = f"{seeds} seeds: median, quartiles" if seeds > 1 else "one seed"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 940 390" font-family="sans-serif" font-size="13">'
        '<rect width="940" height="390" fill="white"/>'
        + panel(1, 50, f"best score by CPU seconds ({counted})")
        + panel(0, 520, "the same by the clock, others at work")
        + legend
        + "</svg>\n"
    )


def main() -> None:
    """Write both."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{table()}{END}{after}")
    FIGURE.write_text(figure())


if __name__ == "__main__":
    main()

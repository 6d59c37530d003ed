"""How soon do 1 to 256 workers find a good configuration? Searches simulated over two recorded tables.

    python -m benchmarks.search_scale run demo             # over results/search_table.jsonl
    python -m benchmarks.search_scale run instruments      # over results/search_table_instruments.jsonl
    python -m benchmarks.search_scale tables [--figure]    # what was found, as Markdown, and docs/search_scale.svg

`run` goes on where it was. Time is counted in whole trainings (the table's median). benchmarks/simulation.py says what
is simulated. The top shares of a surrogate are those of 20,000 of its configurations drawn at random.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atose_ray.config import StudyConfig
from atose_ray.search.space import load_study
from benchmarks.search_quality import quiet, rows_of
from benchmarks.simulation import Answer, Seen, Surrogate, simulate, slowest, table_answer, training_of

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "search_scale.jsonl"
FIGURE = HERE.parent / "docs" / "search_scale.svg"
TABLES = {  # study file, recorded table
    "demo": (HERE / "search_quality.yaml", HERE / "results" / "search_table.jsonl"),
    "instruments": (HERE / "search_instruments.yaml", HERE / "results" / "search_table_instruments.jsonl"),
}
SIDES = [(sampler, pruner) for sampler in ("random", "tpe", "cmaes") for pruner in ("none", "halving", "hyperband")]
SEEDS = {  # answer, workers; the most telling first, as `run` may end before it is through
    ("table", 4): 20, ("surrogate", 64): 10, ("surrogate", 256): 5,
    ("table", 16): 20, ("table", 1): 20, ("surrogate", 16): 20,
}  # fmt: skip
RUNGS = ((1, 2), (1, 3), (1, 4), (2, 2), (2, 3), (2, 4), (3, 2))  # grace_epochs, reduction_factor: TPE with halving
OF_RUNGS: tuple[tuple[str, int], ...] = (("table", 4), ("surrogate", 16))
LIMITS = {
    1: 60,
    4: 25,
    16: 8,
    64: 4,
    256: 1.5,
}  # workers -> after so many whole trainings, one after another, a run ends
MANY, DRAWS = 256, 20_000  # workers from which the best of a thousand is a goal too


def goals_of(rows: Sequence[dict[str, Any]], answer: Answer, workers: int) -> dict[float, float]:
    """Share of the configurations -> the score of the worst of them."""
    shares = (0.05, 0.01, 0.001) if workers >= MANY else (0.05, 0.01)
    best_N = answer.drawn(DRAWS) if isinstance(answer, Surrogate) else [max(row["valid"], default=0.0) for row in rows]
    return {share: float(np.quantile(best_N, 1 - share)) for share in shares}


def reach(course: Iterator[Seen], goals: Mapping[float, float], limit_s: float) -> dict[float, Any]:
    """Share -> seconds, epochs and trials until a score of it was seen; those alone that were within the limit."""
    found: dict[float, tuple[float, int, int]] = {}
    for epochs, seen in enumerate(course, 1):
        if seen.time_s > limit_s:
            break
        for share, goal in goals.items():
            if seen.best >= goal:
                found.setdefault(share, (seen.time_s, epochs, seen.trials))
        if len(found) == len(goals):
            break
    return found


def quartiles(values: Sequence[float], digits: int) -> list[float | None]:
    """First quartile, median and third; None where it is that of a search that did not come so far."""
    found = [float(np.quantile(values, q, method="nearest")) for q in (0.25, 0.5, 0.75)]
    return [round(value, digits or None) if math.isfinite(value) else None for value in found]


def measure(
    study: StudyConfig, rows: Sequence[dict[str, Any]], answer: Answer, workers: int, seeds: int, side: tuple[str, str]
) -> dict[str, Any]:
    """What one side, (sampler, pruner), took."""
    began = time.process_time()
    goals, limit_s = goals_of(rows, answer, workers), slowest(rows)
    unit_s = float(np.median([one.epoch_s * len(one.curve) for one in (training_of(row, limit_s) for row in rows)]))
    last_s = LIMITS[workers] * unit_s
    chosen = range(1000, 1000 + seeds)
    runs = [reach(simulate(study, answer, workers, seed, *side), goals, last_s) for seed in chosen]
    line: dict[str, Any] = {"seeds": seeds, "unit_s": round(unit_s, 1), "limit": LIMITS[workers], "goals": {}}
    for share, goal in goals.items():
        far = [run.get(share, (math.inf, math.inf, math.inf)) for run in runs]
        line["goals"][str(share)] = {
            "score": round(goal, 4),
            "reached": sum(share in run for run in runs),
            "trainings": quartiles([one[0] / unit_s for one in far], 2),
            "epochs": quartiles([one[1] for one in far], 0),
            "trials": quartiles([one[2] for one in far], 0),
        }
    return {**line, "cpu_s": round(time.process_time() - began, 1)}


def run(name: str, minutes: float, workers_alone: int | None) -> None:
    """Add the lines that are missing, or those of so many workers alone, as long as `minutes` are not over."""
    quiet()
    study, rows, started = load_study(str(TABLES[name][0])), rows_of(TABLES[name][1]), time.time()
    answers: dict[str, Answer] = {"table": table_answer(rows), "surrogate": Surrogate(study, rows)}
    settings = study.search.pruner
    own = (settings.grace_epochs, settings.reduction_factor)
    wanted = [(*at, side, own, seeds) for at, seeds in SEEDS.items() for side in SIDES]
    wanted += [(*at, ("tpe", "halving"), rungs, SEEDS[at]) for at in OF_RUNGS for rungs in RUNGS]
    keys = ("space", "configurations", "answer", "workers", "sampler", "pruner", "grace_epochs", "reduction_factor")
    done = {tuple(line[key] for key in keys) for line in rows_of(RESULTS)}
    for kind, workers, side, rungs, seeds in wanted:
        key = (name, len(rows), kind, workers, *side, *rungs)
        if key in done or time.time() - started > 60 * minutes or workers_alone not in (None, workers):
            continue
        done.add(key)
        pruner = settings.model_copy(update=dict(zip(("grace_epochs", "reduction_factor"), rungs, strict=True)))
        tried = study.model_copy(update={"search": study.search.model_copy(update={"pruner": pruner})})
        line: dict[str, Any] = dict(zip(keys, key, strict=True))
        answer = answers[kind]
        if isinstance(answer, Surrogate):
            line |= {"r2": round(answer.r2, 3), "spearman": round(answer.spearman, 3)}
        line |= measure(tried, rows, answer, workers, seeds, side)
        with RESULTS.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        print(line, flush=True)


def shown(goal: Mapping[str, Any], of: str) -> str:
    """Median and quartiles of a goal; `-` where that share of the runs did not come so far."""
    low, middle, high = ("-" if value is None else f"{value:g}" for value in goal[of])
    return f"{middle} ({low} to {high})"


def tables(lines: Sequence[Mapping[str, Any]]) -> str:
    """The lines as Markdown: a table per space and answer, a row per side, the time and the epochs of each goal."""
    parts, lines = [], sorted(lines, key=lambda line: (line["space"], line["answer"] != "table", line["workers"]))
    for space, answer in dict.fromkeys((line["space"], line["answer"]) for line in lines):
        part = [line for line in lines if (line["space"], line["answer"]) == (space, answer)]
        parts.append(f"\n**{space}, {answer}**\n")
        parts.append(
            "| workers | sampler | pruner | top 5 %: trainings | epochs | top 1 %: trainings | epochs | top 0.1 % |"
        )
        parts.append("|---|---|---|---|---|---|---|---|")
        for line in part:
            rungs = f" {line['grace_epochs']}, {line['reduction_factor']:g}" * (line["pruner"] != "none")
            cells = [line["workers"], line["sampler"], line["pruner"] + rungs]
            for share in ("0.05", "0.01"):
                cells += [shown(line["goals"][share], of) for of in ("trainings", "epochs")]
            cells.append(shown(line["goals"]["0.001"], "trainings") if "0.001" in line["goals"] else "")
            parts.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(parts)


def figure(lines: Sequence[Mapping[str, Any]]) -> str:
    """Whole trainings until the top 1 % was seen, by the number of workers: medians, a panel per space and answer."""
    colours = {"random": "#767676", "tpe": "#b3261e", "cmaes": "#2a7f9e"}
    dashes = {"none": "7 4", "halving": "", "hyperband": "2 3"}
    lines = sorted(lines, key=lambda line: (line["space"], line["answer"] != "table", line["workers"]))
    panels = list(dict.fromkeys((line["space"], line["answer"]) for line in lines))
    width, high, wide = 760, 250, 300
    parts = []
    for index, (space, answer) in enumerate(panels):
        part = [line for line in lines if (line["space"], line["answer"]) == (space, answer)]
        workers = sorted({line["workers"] for line in part})
        left, top = 60 + index % 2 * (wide + 70), 40 + index // 2 * (high + 60)
        found = [v for line in part for v in line["goals"]["0.01"]["trainings"][1:2] if v]
        low, top_value = min(found, default=0.5) / 1.2, max(found, default=2.0) * 1.2

        def x(count: float, workers: list[int] = workers, left: int = left) -> float:
            return left + 20 + (wide - 40) * math.log(count / workers[0]) / math.log(max(2, workers[-1] / workers[0]))

        def y(value: float, low: float = low, top_value: float = top_value, top: int = top) -> float:
            return top + high * math.log(top_value / value) / math.log(top_value / low)

        parts.append(f'<rect x="{left}" y="{top}" width="{wide}" height="{high}" fill="none" stroke="#ccc"/>')
        parts.append(f'<text x="{left}" y="{top - 8}" font-weight="bold">{space}, {answer}</text>')
        for count in workers:
            parts.append(f'<text x="{x(count):.1f}" y="{top + high + 16}" text-anchor="middle">{count}</text>')
        for value in (0.2, 0.5, 1, 2, 5, 10, 20, 50):
            if low < value < top_value:
                parts.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
                parts.append(f'<path d="M{left} {y(value):.1f}h{wide}" stroke="#eee"/>')
        for sampler, pruner in SIDES:
            own = [line for line in part if (line["sampler"], line["pruner"]) == (sampler, pruner)]
            own = list({line["workers"]: line for line in reversed(own)}.values())  # that of the study's own rungs
            at = sorted((line["workers"], line["goals"]["0.01"]["trainings"][1]) for line in own)
            points = " ".join(f"{x(count):.1f},{y(value):.1f}" for count, value in at if value)
            style = f'fill="none" stroke="{colours[sampler]}" stroke-width="2" stroke-dasharray="{dashes[pruner]}"'
            parts.append(f'<polyline points="{points}" {style}/>')
    bottom = 40 + (len(panels) + 1) // 2 * (high + 60)
    keys = [(name, colours[name], "") for name in colours] + [(name, "#333", dashes[name]) for name in dashes]
    for index, (name, colour, dash) in enumerate(keys):
        style = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
        parts.append(f'<path d="M{60 + 112 * index} {bottom}h28" {style}/>')
        parts.append(f'<text x="{94 + 112 * index}" y="{bottom + 4}">{name}</text>')
    note = "workers; median time to the top 1 %, in whole trainings; none where half of the searches did not see it"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 40}" font-family="sans-serif" '
        f'font-size="13"><rect width="{width}" height="{bottom + 40}" fill="white"/>{"".join(parts)}'
        f'<text x="{width / 2}" y="{bottom + 28}" text-anchor="middle">{note}</text></svg>\n'
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("run", "tables"))
    parser.add_argument("space", nargs="?", choices=tuple(TABLES))
    parser.add_argument("--workers", type=int, help="the lines of so many alone")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which `run` begins nothing else")
    parser.add_argument("--figure", action="store_true", help="with `tables`: docs/search_scale.svg too")
    options = parser.parse_args()
    if options.mode == "run":
        run(options.space or "demo", options.minutes, options.workers)
    else:
        print(tables(rows_of(RESULTS)))
        if options.figure:
            FIGURE.write_text(figure(rows_of(RESULTS)), encoding="utf-8")

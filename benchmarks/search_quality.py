"""Does the search find good configurations sooner than chance does?

    python benchmarks/search_quality.py record --store STORE --configurations 256   # once: hours on a laptop
    python benchmarks/search_quality.py race --append                               # minutes, on the recorded table

`record` draws configurations of the demo space at random, trains each one to its end (no pruning) and appends a line
with its parameters and its validation score after every epoch to `results/search_table.jsonl`; it goes on where it was.

`race` lets searches look their trainings up in that table: a configuration that is suggested is answered by the
recorded one that is nearest to it (the same choices first, then the nearest numbers). What is counted is epochs, and
the goal is a score of the table's top 5 %. All sides draw from the same space and run two trials at a time: random
search trains everything to its end, TPE with successive halving is what `python -m atose_ray.tune` runs (its sampler,
its pruner); the two between them show which of the two does it. Epochs of all configurations count the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from atose_ray.config import StudyConfig
from atose_ray.data.shards import load_manifest
from atose_ray.methods.base import MethodConfig
from atose_ray.search.parameters import asked_of
from atose_ray.search.ranking import RANKED, RUNG, rung_of
from atose_ray.search.space import compose, load_study, longest_run, walk
from atose_ray.storage import Store
from atose_ray.training.loop import fit
from atose_ray.training.run import Job, open_run, resolve, use_threads

TABLE = Path(__file__).parent / "results" / "search_table.jsonl"
RESULTS = TABLE.with_name("search_quality.jsonl")
FIGURE = Path(__file__).resolve().parents[1] / "docs" / "search_quality.svg"
SPACE = str(Path(__file__).with_suffix(".yaml"))  # the demo, as it was when the runs of the table were trained
SIDES = {  # sampler, pruner
    "random": ("random", "none"),
    "random + halving": ("random", "asha"),
    "tpe": ("tpe", "none"),
    "tpe + halving": ("tpe", "asha"),
}
SLOTS, TOP = 2, 0.95


def record(study: StudyConfig, store_uri: str, wanted: int, table: Path, minutes: float = math.inf) -> None:
    """Train what the table lacks, as long as `minutes` are not over; one line per configuration. Its seconds are those
    of the clock; cpu_seconds, of this process alone, are the better ones where others work on the same machine."""
    store, started = Store(store_uri), time.time()
    manifest = load_manifest(store, compose(study, {}).data.dataset)
    done = {row["number"] for row in rows_of(table)}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for number in range(wanted):
        if number in done:
            continue
        if time.time() - started > 60 * minutes:
            return
        sampler = optuna.samplers.RandomSampler(seed=number)
        trial = optuna.create_study(sampler=sampler).ask()
        run = resolve(compose(study, walk(asked_of(trial), study.space), number), store, manifest)
        began, began_cpu = time.time(), time.process_time()
        with tempfile.TemporaryDirectory() as scratch:
            opened = open_run(Job(run, store_uri, scratch))
            result = fit(opened.run, opened.method, opened.batches, opened.folder, device=opened.device)
            valid = [round(epoch.valid[study.search.metric], 5) for epoch in opened.folder.epochs()]
        row = {"number": number, "params": trial.params, "valid": valid, "state": result.state}
        row["seconds"] = round(time.time() - began, 1)
        row["cpu_seconds"] = round(time.process_time() - began_cpu, 2)
        with table.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        print(number, row["seconds"], row["cpu_seconds"], max(valid, default=None), flush=True)


def rows_of(table: Path) -> list[dict[str, Any]]:
    """What is recorded so far."""
    return [json.loads(line) for line in table.read_text().splitlines()] if table.exists() else []


def nearest(rows: Sequence[dict[str, Any]], trial: optuna.trial.Trial | optuna.trial.FrozenTrial) -> dict[str, Any]:
    """The recorded configuration with the most choices in common, and of those the one with the nearest numbers."""
    params, distributions = trial.params, trial.distributions  # copied at every access

    def distance(row: dict[str, Any]) -> tuple[int, float]:
        apart, far = len(set(row["params"]) - set(params)), 0.0
        for name, value in params.items():
            kind, other = distributions[name], row["params"].get(name)
            if isinstance(kind, optuna.distributions.CategoricalDistribution) or other is None:
                apart += other != value
            elif kind.log:
                far += (math.log(value / other) / math.log(kind.high / kind.low)) ** 2
            else:
                far += ((value - other) / (kind.high - kind.low)) ** 2
        return apart, far

    return min(rows, key=distance)


@dataclasses.dataclass(eq=False)
class Running:
    """A trial that is under way: what Optuna asked for, and the recorded curve that answers."""

    asked: optuna.trial.Trial
    curve: list[float]
    trial_id: str
    method: MethodConfig
    epoch: int = 0


def course(study: StudyConfig, rows: Sequence[dict[str, Any]], seed: int, epochs: int) -> Iterator[float]:
    """The best score known after each epoch of a search with SLOTS trials at a time."""
    from atose_ray.runtime.schedulers import scheduler
    from atose_ray.search.samplers import sampler

    pruner = scheduler(study, [])
    pruner.set_search_properties(study.search.metric, "max")
    made = optuna.create_study(direction="maximize", sampler=sampler(study.search, seed))
    slots: list[Running | None] = [None] * SLOTS
    best = 0.0
    for turn in range(epochs):
        trial = slots[turn % SLOTS]
        if trial is None:
            asked = made.ask()
            method = compose(study, walk(asked_of(asked), study.space)).method
            curve = nearest(rows, asked)["valid"] or [0.0]
            trial = slots[turn % SLOTS] = Running(asked, curve, str(asked.number), method)
            pruner.on_trial_add(None, trial)
        trial.epoch += 1
        best = max(best, *trial.curve[: trial.epoch])
        yield best
        result, value = line_of(study, trial), max(trial.curve[: trial.epoch])
        verdict = pruner.on_trial_result(None, trial, result)
        if verdict == "STOP" or trial.epoch >= len(trial.curve):
            made.tell(trial.asked, value)
            pruner.on_trial_complete(None, trial, result)
            slots[turn % SLOTS] = None


def line_of(study: StudyConfig, trial: Running) -> dict[str, Any]:
    """What Tune is told of a trial's last epoch."""
    so_far, told = (
        trial.curve[: trial.epoch],
        {"epoch": trial.epoch, study.search.metric: max(trial.curve[: trial.epoch])},
    )
    rungs = [rung_of(trial.method, epoch) for epoch in range(1, trial.epoch + 1)]
    if not rungs[-1]:
        return {**told, RUNG: 0}
    return {**told, RUNG: rungs[-1], RANKED: max(v for v, rung in zip(so_far, rungs, strict=True) if rung)}


def whole_course(study: StudyConfig, rows: Sequence[dict[str, Any]], epochs: int, seed: int) -> list[float]:
    """A course to its end."""
    return list(course(study, rows, seed, epochs))


def quiet() -> None:
    """No word of Optuna's about every trial, nor about what it calls experimental."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def race(
    study: StudyConfig, rows: Sequence[dict[str, Any]], seeds: int, epochs: int, processes: int = 1
) -> list[dict[str, Any]]:
    """A line per side: epochs until a score of the top 5 % was seen, over `seeds` seeds, and the course of the best."""
    goal = float(np.quantile([max(row["valid"], default=0.0) for row in rows], TOP))
    lines = []
    for name, (kind, pruner) in SIDES.items():
        change = {"sampler": kind, "pruner": study.search.pruner.model_copy(update={"kind": pruner})}
        side = study.model_copy(update={"search": study.search.model_copy(update=change)})
        one = functools.partial(whole_course, side, rows, epochs)
        chosen = range(1000, 1000 + seeds)
        if processes == 1:
            quiet()
            best_SE = np.array([one(seed) for seed in chosen])
        else:
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(processes, mp_context=spawn, initializer=quiet) as pool:
                best_SE = np.array(list(pool.map(one, chosen, chunksize=5)))
        reached = best_SE >= goal
        needed = np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, np.inf)
        at = sorted({round(step) for step in np.linspace(1, epochs, 60)})
        low, middle, high = (np.quantile(best_SE, q, axis=0)[[step - 1 for step in at]] for q in (0.25, 0.5, 0.75))
        quartiles = [number(np.quantile(needed, q, method="nearest")) for q in (0.25, 0.5, 0.75)]
        lines.append(
            {
                "side": name,
                "pruner": side.search.pruner.model_dump(mode="json"),
                "configurations": len(rows),
                "goal": round(goal, 4),
                "seeds": seeds,
                "reached": int(reached.any(axis=1).sum()),
                "epochs_quartiles": quartiles,
                "curve": {
                    "epochs": at,
                    **{k: rounded(v) for k, v in (("low", low), ("median", middle), ("high", high))},
                },
            }
        )
        print(name, "epochs to the top 5 % (quartiles):", quartiles, f"reached by {lines[-1]['reached']} of {seeds}")
    return lines


def number(value: float) -> int | None:
    """A count of epochs; None where the goal was not reached."""
    return int(value) if math.isfinite(value) else None


def rounded(values: Any) -> list[float]:
    """Four digits are enough for a curve."""
    return [round(float(value), 4) for value in values]


def figure(lines: Sequence[dict[str, Any]]) -> str:
    """The courses with their quartiles as SVG."""
    width, height, left, top = 720, 400, 60, 20
    colours = ("#767676", "#b8860b", "#2a7f9e", "#b3261e")
    last = max(line["curve"]["epochs"][-1] for line in lines)
    values = [value for line in lines for value in (*line["curve"]["low"], *line["curve"]["high"])]
    floor, ceiling = min(values), max(values)

    def x(epoch: float) -> float:
        return float(left + (width - left - 20) * epoch / last)

    def y(value: float) -> float:
        return float(top + (height - top - 50) * (ceiling - value) / max(ceiling - floor, 1e-9))

    def points(line: dict[str, Any], name: str) -> list[str]:
        return [f"{x(e):.1f},{y(v):.1f}" for e, v in zip(line["curve"]["epochs"], line["curve"][name], strict=True)]

    parts = []
    for index, (line, colour) in enumerate(zip(lines, colours, strict=True)):
        band = " ".join([*points(line, "low"), *reversed(points(line, "high"))])
        parts.append(f'<polygon points="{band}" fill="{colour}" opacity="0.15"/>')
        parts.append(
            f'<polyline points="{" ".join(points(line, "median"))}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        label = f"{line['side']}: {line['epochs_quartiles'][1] or 'not within ' + str(last)} epochs"
        parts.append(f'<text x="{width - 270}" y="{height - 140 + 20 * index}" fill="{colour}">{label}</text>')
    goal = y(lines[0]["goal"])
    ticks = [floor + (ceiling - floor) * k / 4 for k in range(5)]
    parts += [f'<text x="{left - 8}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.3f}</text>' for v in ticks]
    steps = [last * k // 5 for k in range(6)]
    parts += [f'<text x="{x(e):.1f}" y="{height - 30}" text-anchor="middle">{e}</text>' for e in steps]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13">'
        f'<rect width="{width}" height="{height}" fill="white"/>'
        f'<line x1="{left}" x2="{width - 20}" y1="{goal:.1f}" y2="{goal:.1f}" stroke="#999" stroke-dasharray="4 4"/>'
        f'<text x="{left + 4}" y="{goal - 5:.1f}" fill="#666">top 5 % of the recorded configurations</text>'
        f'{"".join(parts)}<text x="{width / 2}" y="{height - 8}" text-anchor="middle">'
        f"epochs trained; best validation score so far, median and quartiles of {lines[0]['seeds']} seeds</text>"
        "</svg>\n"
    )


def main(options: argparse.Namespace) -> None:
    """Record, or race and write what came of it."""
    if options.mode == "record":
        use_threads(1)
        study = load_study(options.space, ("base.data.residency=host",))
        record(study, options.store, options.configurations, options.table, options.minutes)
        return
    study, rows = load_study(options.space), rows_of(options.table)
    lines = race(study, rows, options.seeds, options.epochs or 30 * longest_run(study), options.processes)
    if options.append:
        with RESULTS.open("a") as stream:
            stream.write("".join(json.dumps({**line, "time": time.time()}) + "\n" for line in lines))
        FIGURE.write_text(figure(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("record", "race"))
    parser.add_argument("--store")
    parser.add_argument("--space", default=SPACE, help="the study file of the table")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which `record` begins no other training")
    parser.add_argument("--configurations", type=int, default=256)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--processes", type=int, default=2, help="in which a race's seeds run")
    parser.add_argument("--epochs", type=int, help="length of a race (default: 30 whole trainings)")
    parser.add_argument("--append", action="store_true", help=f"add to {RESULTS.name} and draw {FIGURE.name}")
    main(parser.parse_args())

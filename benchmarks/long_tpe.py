"""Does TPE that looks at a part of a long study (`PartTPE`) find as well as Optuna's, which looks at all of it?

    python -m benchmarks.long_tpe [--seeds 3] [--trials 2000]

Searches of 16 workers over the surrogates of benchmarks/search_scale.py, without pruning: up to 500 finished trials
both suggest the same. A line per space, seed and sampler in results/long_tpe.jsonl: the best score, how many trials
since the five hundredth were of the top 1 and 0.1 % of the space, CPU seconds. `run` goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from optuna.samplers import TPESampler

from atose_ray.search import samplers
from atose_ray.search.space import load_study
from benchmarks.search_quality import quiet, rows_of
from benchmarks.search_scale import MANY, TABLES, goals_of
from benchmarks.simulation import Surrogate, simulate

RESULTS = Path(__file__).parent / "results" / "long_tpe.jsonl"
WORKERS, FIRST, SHARES = 16, samplers.NEWEST, (0.01, 0.001)


def measure(name: str, seed: int, trials: int, kind: str, model: Surrogate, goals: list[float]) -> dict[str, Any]:
    """One search until so many trials have begun. goals: the scores of SHARES."""
    part = samplers.PartTPE
    if kind == "whole":
        vars(samplers)["PartTPE"] = TPESampler
    began, best = time.process_time(), np.zeros(trials + WORKERS)
    try:
        for seen in simulate(model.study, model, WORKERS, seed, "tpe", "none"):
            if seen.trials > trials:
                break
            best[seen.trial] = max(best[seen.trial], seen.score)
    finally:
        vars(samplers)["PartTPE"] = part
    line = {"space": name, "seed": seed, "sampler": kind, "trials": trials, "workers": WORKERS}
    line |= {f"best_{at}": round(float(best[:at].max()), 4) for at in (FIRST, trials // 2, trials)}
    line |= {f"top_{share}": int((best[FIRST:] >= goal).sum()) for share, goal in zip(SHARES, goals, strict=True)}
    return {**line, "goals": [round(goal, 4) for goal in goals], "cpu_s": round(time.process_time() - began, 1)}


def main() -> None:
    """What is missing, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=2000)
    options = parser.parse_args()
    quiet()
    done = {(one["space"], one["seed"], one["sampler"], one["trials"]) for one in rows_of(RESULTS)}
    models = {name: Surrogate(load_study(str(study)), rows_of(table)) for name, (study, table) in TABLES.items()}
    scores = {name: goals_of([], model, MANY) for name, model in models.items()}
    for seed in range(2000, 2000 + options.seeds):
        for name, model in models.items():
            for kind in ("part", "whole"):
                if (name, seed, kind, options.trials) not in done:
                    line = measure(name, seed, options.trials, kind, model, [scores[name][share] for share in SHARES])
                    with RESULTS.open("a") as stream:
                        stream.write(json.dumps(line) + "\n")
                    print(line, flush=True)


if __name__ == "__main__":
    main()

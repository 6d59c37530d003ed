"""`python -m atose_ray.status [STUDY]`: how far a search is; read from the store, so it works from any machine."""

import argparse
import json
import time
from typing import Any

from atose_ray import cli
from atose_ray.evaluation.protocols import CLIP
from atose_ray.search.progress import Progress, last_sign, measure, read_study
from atose_ray.search.record import TrialRecord, study_store
from atose_ray.storage import Store

STATES = ("running", "complete", "pruned", "diverged", "failed", "infeasible")
CLEAR = "\033[H\033[J"


def arguments() -> argparse.ArgumentParser:
    """The command line of this command."""
    parser = cli.parser(
        "status",
        "Show how far a search is: trials by state, the best, rate, forecast and what was used. Without a study: all\n"
        "studies of the store, one line each.",
        "  python -m atose_ray.status demo --watch 5\n  python -m atose_ray.status",
    )
    parser.add_argument("study", nargs="?", help="name of the study folder")
    parser.add_argument("--watch", type=cli.at_least_one, metavar="SECONDS", help="show it again every so often")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Read, show; again until Ctrl-C with --watch."""
    options = arguments().parse_args(argv)
    store = cli.open_store(options)
    while True:
        text = of_study(store, options.study, options.json) if options.study else of_all(store, options.json)
        print(CLEAR + text if options.watch else text, flush=True)
        if not options.watch:
            return
        time.sleep(options.watch)


def of_all(store: Store, as_json: bool) -> str:
    """One line per study of a store."""
    studies = {}
    for name in store.child("studies").names():
        if study_store(store, name).exists("study.json"):
            study, trials = read_study(store, name)
            studies[name] = (study, measure(trials, study.search.trials, time.time()))
    if as_json:
        return json.dumps({name: as_dict(found, study.search.metric) for name, (study, found) in studies.items()})
    if not studies:
        return f"the store {store.uri} holds no study; begin one with: python -m atose_ray.tune demo"
    width = max(len(name) for name in studies)
    lines = []
    for name, (study, found) in studies.items():
        best = "-" if found.best is None else f"{found.best.value:.4f}"
        running = f", {found.counts['running']} running" if found.counts.get("running") else ""
        lines.append(f"{name:<{width}}  {found.ended}/{found.wanted} trials{running}  {study.search.metric} {best}")
    return "\n".join(lines)


def of_study(store: Store, name: str, as_json: bool) -> str:
    """One study: the summary, and a line per running trial."""
    study, trials = read_study(store, name)
    now = time.time()
    found, metric = measure(trials, study.search.trials, now), study.search.metric
    if as_json:
        return json.dumps(as_dict(found, metric))
    counts = ", ".join(f"{found.counts[state]} {state}" for state in STATES if found.counts.get(state))
    lines = [f"study {name}: {found.ended} of {found.wanted} trials ended ({counts or 'none begun'})"]
    if found.best is not None:
        epoch = found.best.epochs[-1].epoch
        lines.append(
            f"best   {found.best.name}  valid {metric} {found.best.value:.4f} [{CLIP.name}] after {epoch} epochs"
        )
    rate = "no forecast before three trials ended"
    if found.trials_per_hour is not None and found.seconds_left is not None:
        left = duration(found.seconds_left) if found.ended < found.wanted else "none"
        rate = f"{found.trials_per_hour:.1f} trials an hour; left: {left}"
    hours = ((found.cpu_hours, "CPU"), (found.gpu_hours, "GPU"))
    used = [
        f"{duration(found.busy_s)} of training",
        *(f"{amount:.2f} {kind} hours" for amount, kind in hours if amount),
    ]
    lines += [f"rate   {rate}", f"used   {', '.join(used)}"]
    running = [trial for trial in trials if trial.state == "running"]
    if running:
        lines.append(f"running ({len(running)}):")
        lines += [f"  {line_of(trial, now, trial in found.silent)}" for trial in running]
    return "\n".join(lines)


def line_of(trial: TrialRecord, now: float, silent: bool) -> str:
    """A running trial in one line."""
    best = "no epoch yet"
    if trial.epochs:
        last = trial.epochs[-1]
        best = f"epoch {last.epoch}, best {last.objective:.4f}, {last.seconds:.1f} s an epoch"
    age = now - last_sign(trial)
    sign = f"; NO SIGN for {duration(age)}: stopped, or waiting" if silent else f"; {duration(age)} ago"
    return f"{trial.name}  {best}{sign}"


def duration(seconds: float) -> str:
    """Seconds in two units at most."""
    whole = round(seconds)
    for unit, name, small, of in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // small} {of}"
    return f"{whole} s"


def as_dict(found: Progress, metric: str) -> dict[str, Any]:
    """The figures as JSON types."""
    best = found.best
    shown = best and {"number": best.number, "name": best.name, metric: best.value, "protocol": CLIP.name}
    return {**vars(found), "best": shown, "silent": [trial.name for trial in found.silent]}


if __name__ == "__main__":
    cli.run(main)

"""`python -m atose_ray.status [STUDY]`: how far a search is; read from the store, so it works from any machine."""

import argparse
import json
import time
from typing import Any

from atose_ray import cli
from atose_ray.evaluation.names import CLIP_NAME
from atose_ray.search.progress import Progress, bound, duration, last_sign, measure, read_search
from atose_ray.search.record import TrialRecord, study_store
from atose_ray.storage import Store
from atose_ray.storage.lease import STUDY_LEASE, is_dead, read_lease

STATES = ("running", "stopped", "complete", "pruned", "diverged", "failed", "infeasible")
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
            search, trials = read_search(store, name)
            found = measure(trials, search["trials"], time.time(), is_searched(store, name))
            studies[name] = (search["metric"], found)
    if as_json:
        return json.dumps({name: as_dict(found, metric) for name, (metric, found) in studies.items()})
    if not studies:
        return f"the store {store.uri} holds no study; begin one with: python -m atose_ray.tune demo"
    width = max(len(name) for name in studies)
    lines = []
    for name, (metric, found) in studies.items():
        best = "-" if found.best is None else f"{found.best.value:.4f}"
        states = (state for state in ("running", "stopped") if found.counts.get(state))
        unfinished = "".join(f", {found.counts[state]} {state}" for state in states)
        lines.append(f"{name:<{width}}  {found.ended}/{found.wanted} trials{unfinished}  {metric} {best}")
    return "\n".join(lines)


def of_study(store: Store, name: str, as_json: bool) -> str:
    """One study: the summary, and a line per running trial."""
    search, trials = read_search(store, name)
    now, searched = time.time(), is_searched(store, name)
    found, metric = measure(trials, search["trials"], now, searched), search["metric"]
    if as_json:
        return json.dumps(as_dict(found, metric))
    counts = ", ".join(f"{found.counts[state]} {state}" for state in STATES if found.counts.get(state))
    lines = [f"study {name}: {found.ended} of {found.wanted} trials ended ({counts or 'none begun'})"]
    if found.best is not None:
        epoch = found.best.epochs[-1].epoch
        lines.append(
            f"best   {found.best.name}  valid {metric} {found.best.value:.4f} [{CLIP_NAME}] after {epoch} epochs"
        )
    rate = "no forecast before three trials ended"
    if found.at_most_s and found.seconds_left is None:
        rate += f"; left: {bound(found.at_most_s)}"
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
    if running and not searched:
        lines.append(f"stopped ({len(running)}), they go on where they were with the same command (tune):")
        lines += [f"  {line_of(trial, now, False)}" for trial in running]
    elif running:
        lines.append(f"running ({len(running)}):")
        lines += [f"  {line_of(trial, now, trial in found.silent)}" for trial in running]
    return "\n".join(lines)


def is_searched(store: Store, name: str) -> bool:
    """Whether a driver is at work on a study, as far as can be told from here: its trials that have not ended run."""
    owner = read_lease(study_store(store, name), STUDY_LEASE)
    return owner is not None and not is_dead(owner)


def line_of(trial: TrialRecord, now: float, silent: bool) -> str:
    """A running trial in one line."""
    best = "no epoch yet"
    if trial.epochs:
        last = trial.epochs[-1]
        best = f"epoch {last.epoch}, best {last.objective:.4f}, {last.seconds:.1f} s an epoch"
    age = now - last_sign(trial)
    sign = f"; NO SIGN for {duration(age)}: stopped, or waiting" if silent else f"; {duration(age)} ago"
    return f"{trial.name}  {best}{sign}"


def as_dict(found: Progress, metric: str) -> dict[str, Any]:
    """The figures as JSON types."""
    best = found.best
    shown = best and {"number": best.number, "name": best.name, metric: best.value, "protocol": CLIP_NAME}
    return {**vars(found), "best": shown, "silent": [trial.name for trial in found.silent]}


if __name__ == "__main__":
    cli.run(main)

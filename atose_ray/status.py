"""`python -m atose_ray.status [STUDY]`: how far a search is; read from the store, so it works from any machine."""

import argparse
import dataclasses
import json
import time
from typing import Any

from atose_ray import cli
from atose_ray.evaluation.protocols import CLIP
from atose_ray.search.progress import Progress, last_sign, measure, read_study
from atose_ray.search.record import TrialRecord, study_store
from atose_ray.storage import Store

STATES = ("running", "complete", "pruned", "diverged", "failed")
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
    lines += [f"rate   {rate_of(found)}", f"used   {used_by(found)}"]
    running = [trial for trial in trials if trial.state == "running"]
    if running:
        lines.append(f"running ({len(running)}):")
        lines += [f"  {line_of(trial, now, trial in found.silent)}" for trial in running]
    return "\n".join(lines)


def rate_of(found: Progress) -> str:
    """Trials an hour and the forecast, for a person."""
    if found.trials_per_hour is None or found.seconds_left is None:
        return "no forecast before three trials ended"
    left = duration(found.seconds_left) if found.ended < found.wanted else "none"
    return f"{found.trials_per_hour:.1f} trials an hour; left: {left}"


def used_by(found: Progress) -> str:
    """What the trials took so far, for a person."""
    parts = [f"{duration(found.busy_s)} of training"]
    for hours, kind in ((found.cpu_hours, "CPU"), (found.gpu_hours, "GPU")):
        if hours:
            parts.append(f"{hours:.2f} {kind} hours")
    return ", ".join(parts)


def line_of(trial: TrialRecord, now: float, silent: bool) -> str:
    """A running trial in one line."""
    epochs = len(trial.epochs)
    best = "no epoch yet" if trial.value is None else f"epoch {trial.epochs[-1].epoch}, best {trial.value:.4f}"
    pace = f", {trial.epochs[-1].seconds:.1f} s an epoch" if epochs else ""
    age = now - last_sign(trial)
    sign = f"; NO SIGN for {duration(age)}: stopped, or waiting" if silent else f"; {duration(age)} ago"
    return f"{trial.name}  {best}{pace}{sign}"


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
    fields = {key: getattr(found, key) for key in (f.name for f in dataclasses.fields(found))}
    fields["best"] = best and {"number": best.number, "name": best.name, metric: best.value, "protocol": CLIP.name}
    fields["silent"] = [trial.name for trial in found.silent]
    return fields


if __name__ == "__main__":
    cli.run(main)

"""`python -m atose_ray.report STUDY`: write a study's report.html again, also while the search runs."""

import argparse
import time

import torch

from atose_ray import cli
from atose_ray.search.importance import MIN_TRIALS, Importance, parameter_importances
from atose_ray.search.record import StudyRecord, best_trial, load_examples, load_study_record, study_store, trial_store
from atose_ray.search.report import render_report
from atose_ray.storage import Store
from atose_ray.training.examples import write_examples, write_trial_examples

WATCH_S = 30
GROWTH = 1.1  # importances take seconds: while the search runs they are computed anew when it has so many more trials
REPORT = "report.html"


def arguments() -> argparse.ArgumentParser:
    """The command line of this command."""
    parser = cli.parser(
        "report",
        "Write the report of a study: one self-contained HTML file that opens offline.",
        "  python -m atose_ray.report demo\n"
        "  python -m atose_ray.report demo --watch 10\n"
        "  python -m atose_ray.report demo --score 17",
    )
    parser.add_argument("study", help="name of the study folder")
    text = f"write it again every so often (default: {WATCH_S} s) until the search has ended; Ctrl-C stops"
    parser.add_argument("--watch", type=cli.at_least_one, nargs="?", const=WATCH_S, metavar="SECONDS", help=text)
    text = "score these trials (by number) tag by tag on the validation split, for their pages"
    parser.add_argument("--score", type=int, nargs="+", default=[], metavar="TRIAL", help=text)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Read the study folder, score what was asked for, render, write; again until the end with --watch."""
    options = arguments().parse_args(argv)
    store = cli.open_store(options)
    record = load_study_record(store, options.study)
    if options.score:
        record = score(store, record, options.score)
    if options.watch:
        watch(store, record, options.watch)
    else:
        write(store, record)
        print(study_store(store, record.name).child(REPORT).uri)


def write(
    store: Store, record: StudyRecord, live_s: int | None = None, importances: tuple[Importance, ...] | None = None
) -> None:
    """Render and write; a reader sees the old page or the new one."""
    study_store(store, record.name).write(REPORT, render_report(record, live_s, importances).encode())


def watch(store: Store, record: StudyRecord, every_s: int) -> None:
    """Write the report again whenever the study has changed, until the search has ended or Ctrl-C; then once more, as a
    page that does not wait for another."""
    print(f"{study_store(store, record.name).child(REPORT).uri} is written every {every_s} s; Ctrl-C stops", flush=True)
    shown: StudyRecord | None = None
    importances: tuple[Importance, ...] = ()
    judged = 0  # trials that had ended when the importances were computed
    try:
        while not has_ended(record):
            ended = sum(trial.state != "running" for trial in record.trials)
            if ended >= MIN_TRIALS and ended >= GROWTH * judged:
                importances, judged = parameter_importances(record.trials), ended
            if record != shown:
                write(store, record, every_s, importances or None)
                shown = record
            time.sleep(every_s)
            record = load_study_record(store, record.name, before=record)
        print("the search has ended")
    except KeyboardInterrupt:
        print("stopped")
    write(store, record)


def has_ended(record: StudyRecord) -> bool:
    """Whether no trial runs, all that are wanted were tried (or as many as a budget allows), and the best is chosen."""
    settings = record.config["search"]
    ended = all(trial.state != "running" for trial in record.trials)
    tried = len(record.trials) >= settings["trials"] or (settings.get("budget") is not None and record.best is not None)
    best = best_trial(record.trials)
    chosen = best is None or (record.best is not None and record.best.number == best.number)
    return ended and tried and chosen


def score(store: Store, record: StudyRecord, numbers: list[int]) -> StudyRecord:
    """Score trials on the validation split for their pages, and read the study again.

    Raises ValueError for a number that is no trial, or a trial that finished no epoch.
    """
    folder = study_store(store, record.name)
    trials = {trial.number: trial for trial in record.trials}
    unknown = sorted(set(numbers) - set(trials))
    if unknown:
        raise ValueError(
            f"--score takes numbers of this study's trials, 0 to {max(trials, default=0)}, but got {unknown[0]}"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for number in numbers:
        if record.best is not None and record.best.number == number:
            write_examples(folder.child("best"), store, device)
        else:
            run = trial_store(folder, trials[number])
            write_trial_examples(run, folder.child("examples"), f"{number}.json", store, device)
        found = load_examples(folder)[number]
        metric = record.metric
        print(f"trial {number}: valid {metric} {found['metrics'][metric]:.4f} [{found['protocol']}]", flush=True)
    return load_study_record(store, record.name, before=record)


if __name__ == "__main__":
    cli.run(main)

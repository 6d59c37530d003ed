"""`python -m atose_ray.promote STUDY`: the best trials with other seeds: is the winner better, or was it lucky?"""

import argparse
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from atose_ray import cli
from atose_ray.data.shards import load_manifest
from atose_ray.evaluation.protocols import CLIP
from atose_ray.search.plan import make_plan
from atose_ray.search.progress import duration, read_study
from atose_ray.search.promotion import alone, choose, failures_of, judge, without_failed
from atose_ray.search.record import PROMOTION, best_trial, load_study_record, study_store
from atose_ray.search.report import render_report
from atose_ray.storage import Store, StoreError
from atose_ray.training.record import RunFolder
from atose_ray.training.run import Job


def arguments() -> argparse.ArgumentParser:
    """The command line of this command."""
    parser = cli.parser(
        "promote",
        "Train a study's winner, and the trials next to it, again with other seeds; compare them on the same\n"
        "validation clips (paired bootstrap); then score the test split with the winner's\n"
        "trainings. Killed, it goes on.",
        "  python -m atose_ray.promote demo --seeds 5\n  python -m atose_ray.promote mtat --trial 17 --top 2",
    )
    add, number = parser.add_argument, cli.at_least_one
    add("study", help="name of the study folder")
    add("--trial", type=int, help="number of the trial to promote (default: the best)")
    add("--seeds", type=number, default=5, help="trainings of each (default: 5)")
    add("--top", type=number, default=3, help="trials that are compared (default: 3); 1: it alone")
    add("--baseline", type=int, help="a further trial to compare with (default: trial 0, the first one)")
    cli.add_cluster(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Choose, train, compare, score the test split, write the report again."""
    options = arguments().parse_args(argv)
    store = cli.open_store(options)
    study, trials = read_study(store, options.study)
    best, folder, metric = best_trial(trials), study_store(store, options.study), study.search.metric
    if best is None:
        raise ValueError(f"no trial of the study {options.study!r} finished an epoch, so there is nothing to promote")
    first = best.number if options.trial is None else options.trial
    load_manifest(store, best.config["data"]["dataset"], best.config["data"]["content_hash"])
    folder.check_writable()

    from atose_ray.runtime.cluster import cluster, cluster_nodes
    from atose_ray.runtime.nodes import check_nodes
    from atose_ray.runtime.promote import score_test, train_all, valid_scores

    baseline = options.baseline
    if baseline is None and options.top > 1:
        baseline = min((trial.number for trial in trials if trial.value is not None), default=None)
    chosen = choose(trials, first, baseline, options.top, options.seeds, folder, store, study.search.workers_per_trial)
    jobs = [job for candidate in chosen for job in candidate.jobs]
    with alone(folder), cluster(options.cpus, options.address):
        search = study.search.model_copy(update={"trials": len(jobs)})
        plan = make_plan(search, best.config["execution"]["ingest"] == "ray_data", cluster_nodes())
        check_nodes(store, folder, best.config["data"]["dataset"])
        print(f"promote {options.study}: {len(chosen)} trials x {options.seeds} seeds")
        print("\n".join(plan.lines()), flush=True)
        failed: dict[str, str] = {}
        began = epochs_done(jobs), time.monotonic()
        with saying(lambda: how_far(jobs, *began)):
            for count, (job, reason) in enumerate(train_all(jobs, study.search, plan), 1):
                failed |= {job.folder_uri: reason} if reason else {}
                print(f"[{count}/{len(jobs)}] {job.about['name']}{f' FAILED: {reason}' if reason else ''}", flush=True)
        trained = without_failed(chosen, failed)
        if not any(candidate.jobs for candidate in trained):
            raise ValueError(f"all {len(jobs)} trainings failed, the last one with: {[*failed.values()][-1]}")
        found = judge(trained, [valid_scores(candidate, plan) for candidate in trained], metric)
        for row, candidate in zip(found["trials"], chosen, strict=True):
            row["failed"] = failures_of(candidate, failed)
        folder.write_json(PROMOTION, found)
        found["test"] = score_test(trained[0], metric, plan)
        folder.write_json(PROMOTION, found)
    folder.write("report.html", render_report(load_study_record(store, options.study)).encode())
    print("\n".join([*verdict(found), f"report: {folder.child('report.html').uri}"]))


def epochs_done(jobs: Sequence[Job]) -> int:
    """Epochs that the trainings have finished, all together."""
    return sum(len(RunFolder(Store(job.folder_uri)).epochs()) for job in jobs)


def how_far(jobs: Sequence[Job], before: int, since: float) -> str:
    """Epochs so far, and the time left at the rate since then. before: epochs of all at `since`, of time.monotonic."""
    done, wanted = epochs_done(jobs), sum(job.run.method.epochs for job in jobs)
    text = f"epoch {done} of {wanted}"
    if before < done < wanted:
        text += f"; left: about {duration((wanted - done) * (time.monotonic() - since) / (done - before))}"
    return text


@contextmanager
def saying(text: Callable[[], str], every_s: float = 10.0) -> Iterator[None]:
    """Print what `text` says every so often, where it is something else than before."""
    over = threading.Event()

    def tell() -> None:
        last = text()
        while not over.wait(every_s):
            with suppress(OSError, StoreError):  # a store that is away: the next time
                said, last = last, text()
                if last != said:
                    print(last, flush=True)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def verdict(found: dict[str, Any]) -> list[str]:
    """What came of it, a line per trial and per comparison."""
    lines, names = [], {row["number"]: row["name"] for row in found["trials"]}
    for row in found["trials"]:
        lost = f"; {row['diverged']} diverged" if row["diverged"] else ""
        failed = row.get("failed", [])
        lost += f"; {len(failed)} failed, the last one: {failed[-1]['reason']}" if failed else ""
        lines.append(f"{row['role']:<8} {row['name']}  valid {found['metric']} {interval(row)}{lost}")
    for row in found["comparisons"]:
        sure = "decided" if row["low"] > 0 or row["high"] < 0 else "not decided by these clips"
        lines.append(
            f"{names[row['a']]} minus {names[row['b']]}: {row['difference']:+.4f} "
            f"[{row['low']:+.4f}, {row['high']:+.4f}] on the same clips, ahead in "
            f"{row['better']:.0%} of {row['resamples']} resamples: {sure}"
        )
    fewest = min((len(row["valid"]) for row in found["trials"] if row["valid"]), default=3)
    if fewest == 2:
        lines.append(
            "two seeds: an interval of a mean has 1 degree of freedom, so it is wide, and says little of how much is "
            "luck; three or more are needed to tell (--seeds 3; what is trained is kept)"
        )
    elif fewest < 2:
        lines.append(
            "fewer than two seeds: nothing says how much is luck; three or more are needed to tell (--seeds 3)"
        )
    if found["test"]:
        lines.append(f"test {found['metric']} of the winner, scored once each: {interval(found['test'])} [{CLIP.name}]")
    return lines


def interval(row: dict[str, Any]) -> str:
    """Mean and interval of some trainings."""
    values = row.get("valid", row.get("values")) or []
    if not values:
        return "no training finished an epoch"
    return f"{row['mean']:.4f} [{row['low']:.4f}, {row['high']:.4f}] over {len(values)} seeds"


if __name__ == "__main__":
    cli.run(main)

"""What the commands share: the store option, and errors a person can act on instead of a traceback."""

import argparse
import os
import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # help imports nothing that takes time
    from atose_ray.storage import Store
    from atose_ray.training.record import EpochRecord
    from atose_ray.training.run import Job

CONSOLE = "atose-ray"  # the console command of pyproject.toml


def parser(command: str, summary: str, example: str, store: bool = True) -> argparse.ArgumentParser:
    """A parser for `python -m atose_ray.<command>` with an example that works, and --store unless it needs none."""
    result = argparse.ArgumentParser(
        prog=f"{CONSOLE} {command}" if Path(sys.argv[0]).name == CONSOLE else f"python -m atose_ray.{command}",
        description=summary,
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if store:
        text = "where all data, runs and studies live: a path, file://, s3:// or gs:// (default: ATOSE_STORE, "
        result.add_argument("--store", metavar="URI", help=text + "else ./atose_store)")
    return result


def add_overrides(arguments: Any, example: str) -> None:
    """--set PATH=VALUE, repeatable."""
    text = f"change one value, validated; repeatable (example: {example})"
    arguments.add_argument("--set", action="append", default=[], dest="overrides", metavar="PATH=VALUE", help=text)


def add_listening(group: Any) -> None:
    """--hop, --left, --right, --threshold and --set: how a recording is heard along its time, and what events are."""
    group.add_argument(
        "--hop", type=float, default=1.0, metavar="SECONDS", help="from one score to the next (default 1)"
    )
    around = "seconds that are heard {} a hop (default: the model's own length, with the hop in its middle)"
    group.add_argument("--left", type=float, metavar="SECONDS", help=around.format("before"))
    group.add_argument("--right", type=float, metavar="SECONDS", help=around.format("behind"))
    text = (
        "score from which on an event begins: a number, or a rule by which every tag's was fitted on validation, f1 or "
    )
    text += "precision (default: f1 where the model has it, else 0.5)"
    group.add_argument("--threshold", metavar="RULE", help=text)
    add_overrides(group, "smoothing_s=3, of apps/timeline.py")


def add_cluster(arguments: argparse.ArgumentParser) -> None:
    """--address and --cpus."""
    arguments.add_argument("--address", help="Ray cluster to join (default: RAY_ADDRESS, else one on this machine)")
    arguments.add_argument("--cpus", type=at_least_one, help="CPUs of a Ray started here (default: all of the machine)")


def add_workers(arguments: argparse.ArgumentParser) -> None:
    """--workers of a training, and where its cluster is."""
    arguments.add_argument(
        "--workers", type=none_or_more, default=0, help="DDP workers on Ray; 0: in this process, without Ray"
    )
    add_cluster(arguments)


def train(
    job: "Job",
    options: argparse.Namespace,
    report: "Callable[[EpochRecord], None]",
    again: str = "the same command goes on from there",
) -> None:
    """Train a job to its end, in this process or in as many workers on Ray as `add_workers` was given. report: hears of
    every epoch. Raises PlanError where the workers have no place. A batch system that ends this process with SIGTERM
    finds it saved within seconds, with exit code 143 and what to do `again`."""
    from atose_ray.training.notice import Notice, StoppedError, stopped_by_sigterm

    if options.workers:
        from atose_ray.config import SearchConfig
        from atose_ray.runtime.train import train_alone
        from atose_ray.storage import Store
        from atose_ray.training.record import RunFolder

        train_alone(job, SearchConfig(trials=1, workers_per_trial=options.workers), options.cpus, options.address)
        for record in RunFolder(Store(job.folder_uri)).epochs():
            report(record)
        return
    from atose_ray.search.promotion import train_one

    notice = Notice()
    try:
        with stopped_by_sigterm(notice):
            train_one(job, None, report, notice)
    except StoppedError as error:
        print(f"{error}; {again}", file=sys.stderr)
        sys.exit(143)


def none_or_more(text: str) -> int:
    """An argument that counts something. Raises ArgumentTypeError for what is no whole number of 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of 0 or more, but got {text!r}")
    return int(text)


def at_least_one(text: str) -> int:
    """An argument that counts something. Raises ArgumentTypeError below 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, but got {text!r}")
    return int(text)


def open_store(options: argparse.Namespace) -> "Store":
    """The store of --store, ATOSE_STORE or ./atose_store."""
    from atose_ray.storage import Store, default_store_uri

    return Store(options.store or default_store_uri())


def run(main: Callable[[list[str] | None], None]) -> None:
    """Run a command. A ValueError (ours: bad input, with a hint) is printed and ends with exit code 2. Where nobody
    reads any more (`... | head`) it ends without a word, with 141, as other programs do."""
    try:
        main(None)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        if not any(event & select.POLLERR for _, event in poll.poll(0)):  # the pipe's other end is open
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python still holds goes nowhere
        sys.exit(141)

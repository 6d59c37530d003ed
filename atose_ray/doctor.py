"""`python -m atose_ray.doctor NAME`: examine a prepared data set before anything is trained on it."""

import argparse
import json
import sys

from atose_ray import cli
from atose_ray.data.doctor.checks import QUARANTINE, as_json, as_lines, examine, summary
from atose_ray.data.doctor.page import PAGE, write_examination
from atose_ray.data.shards import data_store


def arguments() -> argparse.ArgumentParser:
    """The command line of this command."""
    parser = cli.parser(
        "doctor",
        "Examine a prepared data set: broken, truncated, silent, clipped, doubled and wrong-rate files, leaks between\n"
        f"splits, tags that cannot be learned. Writes {PAGE} and {QUARANTINE} beside its shards.\n"
        "Exit code: 0 training may start (there may be warnings), 1 it must not, 2 the data set cannot be examined.",
        "  python -m atose_ray.doctor demo\n  python -m atose_ray.doctor mtat --store s3://bucket/atose --json",
    )
    parser.add_argument("dataset", help="name of the prepared data set")
    parser.add_argument("--json", action="store_true", help="print what was found as one JSON object instead of text")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Examine, write the page and the list, print; exit with 1 where training must not start."""
    options = arguments().parse_args(argv)
    store = cli.open_store(options)
    found = examine(store, options.dataset)
    write_examination(store, found)
    if options.json:
        print(json.dumps(as_json(found), ensure_ascii=False))
    else:
        folder = data_store(store, options.dataset)
        print("\n".join([summary(found), *as_lines(found)]))
        print(f"page: {folder.child(PAGE).uri}\nlist: {folder.child(QUARANTINE).uri}")
    if not found.may_train:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)

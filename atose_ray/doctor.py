"""`python -m atose_ray.doctor NAME`: examine a prepared data set before anything is trained on it."""

import json
import sys

from atose_ray import cli
from atose_ray.data.doctor.checks import QUARANTINE, as_json, as_lines, examine, summary
from atose_ray.data.doctor.page import PAGE, write_examination
from atose_ray.data.shards import data_store


def main(argv: list[str] | None = None) -> None:
    """Examine, write the page and the list, print; exit with 1 where training must not start."""
    options = cli.command("doctor").parse_args(argv)
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

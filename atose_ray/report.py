"""`python -m atose_ray.report STUDY`: write a study's report.html again, also while the search runs."""

from __future__ import annotations

import argparse

from atose_ray import cli
from atose_ray.search.record import load_study_record, study_store
from atose_ray.search.report import render_report


def arguments() -> argparse.ArgumentParser:
    """The command line of this verb."""
    parser = cli.parser(
        "report",
        "Write the report of a study: one self-contained HTML file that opens offline.",
        "  python -m atose_ray.report demo",
    )
    parser.add_argument("study", help="name of the study folder")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Read the study folder, render, write."""
    options = arguments().parse_args(argv)
    store = cli.open_store(options)
    page = render_report(load_study_record(store, options.study))
    folder = study_store(store, options.study)
    folder.write("report.html", page.encode())
    print(folder.child("report.html").uri)


if __name__ == "__main__":
    cli.run(main)

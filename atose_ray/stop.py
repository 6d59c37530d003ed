"""`python -m atose_ray.stop STUDY`: end a running search in good order, from any machine that reaches the store."""

import argparse

from atose_ray import cli
from atose_ray.search.record import existing_study


def arguments() -> argparse.ArgumentParser:
    """The command line of this command."""
    parser = cli.parser(
        "stop",
        "Ask a running search to stop: no further trial begins, those that run finish their epoch. The command of the\n"
        "search ends with exit code 130, as after Ctrl-C, which does the same; given again, it goes on from there.",
        "  python -m atose_ray.stop demo --wait",
    )
    parser.add_argument("study", help="name of the study folder")
    parser.add_argument("--wait", action="store_true", help="return when the search has stopped")
    parser.add_argument("--now", action="store_true", help="do not wait for the epochs that run; they are done again")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Ask, and wait if that is wanted."""
    options = arguments().parse_args(argv)
    folder = existing_study(cli.open_store(options), options.study)

    from atose_ray.search.session import ask_to_stop, wait_for_end

    token = ask_to_stop(folder, options.study, options.now)
    print(f"asked the search of {options.study} to stop; the same command goes on", flush=True)
    if options.wait:
        print(wait_for_end(folder, token))


if __name__ == "__main__":
    cli.run(main)

"""`python -m atose_ray.stop STUDY`: end a running search in good order, from any machine that reaches the store."""

from atose_ray import cli
from atose_ray.search.record import existing_study


def main(argv: list[str] | None = None) -> None:
    """Ask, and wait if that is wanted."""
    options = cli.command("stop").parse_args(argv)
    folder = existing_study(cli.open_store(options), options.study)

    from atose_ray.search.session import ask_to_stop, wait_for_end

    token = ask_to_stop(folder, options.study, options.now)
    print(f"asked the search of {options.study} to stop; the same command goes on", flush=True)
    if options.wait:
        print(wait_for_end(folder, token))


if __name__ == "__main__":
    cli.run(main)

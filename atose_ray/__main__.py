"""`python -m atose_ray` lists the commands."""

from atose_ray.cli import COMMANDS


def main() -> None:
    """Print the commands and how to begin."""
    print("atose_ray: distributed hyper-parameter search for audio tagging\n")
    for command, about in COMMANDS.items():
        print(f"  python -m atose_ray.{command:<8} {about['line']}")
    print("\nEach takes --help. To begin: python -m atose_ray.prepare demo && python -m atose_ray.tune demo")


if __name__ == "__main__":
    main()

"""`python -m atose_ray.reproduce [SYSTEM]`: what was published of five systems, row by row, beside ours."""

import argparse
import contextlib
import importlib
import io
import sys
import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, TextIO

from atose_ray import cli
from atose_ray.reproduction import page, record
from atose_ray.reproduction.claims import SCALES, ClaimRow, MeasuredRow, ParametersRow, RecipeRow, ScoreRow, VectorsRow
from atose_ray.reproduction.claims import claims as all_claims
from atose_ray.reproduction.record import Figure, Result
from atose_ray.storage import Store

if TYPE_CHECKING:  # the commands bring PyTorch; a finished table is shown without it
    from atose_ray.reproduction.commands import Commands

SYSTEMS = ("atose", "jetatag", "zero_shot", "coala", "audiotagger")
PAGE = "reproduce.html"
MANY = 8  # figures of a row that are told one by one


def arguments() -> argparse.ArgumentParser:
    """The command line of this command."""
    parser = cli.parser(
        "reproduce",
        "Hold what was published of each system against this package: parameter counts, recipes, numbers of the\n"
        "published code, claims and scores. Each row passes, fails, or says why it is not run and how it would be.\n"
        "Rows that have run are kept in the store: the same command goes on. Exit code 1 where a row fails.",
        "  python -m atose_ray.reproduce --scale laptop\n"
        "  python -m atose_ray.reproduce coala --parity DIR\n"
        "  python -m atose_ray.reproduce jetatag --scale full --store s3://bucket/store",
    )
    parser.add_argument("system", nargs="?", choices=SYSTEMS, help="one of the five (default: all)")
    text = (
        "smoke: what needs no training; laptop: also small trainings on rendered sound, some minutes; full: also the "
    )
    text += "published trainings whose data set is prepared in the store, hours each (default: smoke)"
    parser.add_argument("--scale", choices=SCALES, default="smoke", help=text)
    text = "a folder of .npz files with numbers that the published code computed (docs/REPRODUCE.md)"
    parser.add_argument("--parity", metavar="DIR", help=text)
    text = "measure this row anew, or all whose names begin so; repeatable"
    parser.add_argument("--again", action="append", default=[], metavar="ROW", help=text)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Take each row from the store or measure it, print the table, write the page. Exit code 1 where one fails."""
    options = arguments().parse_args(argv)
    store, systems = cli.open_store(options), all_claims().systems
    folder = record.place_of(store, options.scale)
    rows = {name: system.measured() for name, system in systems.items()}
    chosen = [row for name in rows if options.system in (None, name) for row in rows[name]]
    check_again(options.again, chosen)
    folder.check_writable()
    results = {row.name: record.read(folder, row) for of in rows.values() for row in of}
    done = {row.name for row in chosen if kept(results[row.name], row, options.again)}
    waiting = [row for row in chosen if row.name not in done]
    if waiting:
        commands = commands_of(options, store)
    for row in waiting:
        began = time.monotonic()
        found = measured(row, commands, options.parity)
        seconds = time.monotonic() - began
        results[row.name] = record.write(folder, row, found, seconds)
        if found.status != "NOT RUN":
            print(f"{found.status:<8} {row.name}  {seconds:.1f} s", file=sys.stderr, flush=True)
    folder.write(PAGE, page.render(options.scale, systems, rows, results).encode())
    ended = [(row, result) for row in chosen if (result := results[row.name])]
    print(f"{as_text(ended)}\npage: {folder.uri_of(PAGE)}")
    if any(result.status == "FAIL" for _, result in ended):
        sys.exit(1)


def kept(result: Result | None, row: MeasuredRow, again: list[str]) -> bool:
    """Whether a row need not be measured: it has run, and is not asked for again."""
    ran = result is not None and result.status != "NOT RUN"
    return ran and not any(row.name.startswith(name) for name in again)


def check_again(again: list[str], chosen: list[MeasuredRow]) -> None:
    """Raises ValueError for a name that no chosen row begins with."""
    for name in again:
        if not any(row.name.startswith(name) for row in chosen):
            raise ValueError(f"--again {name}: no row begins so; they are {', '.join(row.name for row in chosen)}")


def commands_of(options: argparse.Namespace, store: Store) -> "Commands":
    """The commands that rows are made of, on this store. At scale `full` a training's epochs are shown."""
    from atose_ray.reproduction.commands import Commands

    def tell(words: list[str]) -> str:
        """Run a command in this process, as `atose-ray` does -> what it printed."""
        printed = Told(sys.stderr if options.scale == "full" and words[0] == "train" else None)
        with contextlib.redirect_stdout(printed):
            importlib.import_module(f"atose_ray.{words[0]}").main(words[1:])
        return printed.getvalue()

    return Commands(store, tell, options.scale)


class Told(io.StringIO):
    """Keeps what is printed, and shows it elsewhere too, if there is an elsewhere."""

    def __init__(self, shown: TextIO | None) -> None:
        super().__init__()
        self.shown = shown

    def write(self, text: str) -> int:
        if self.shown is not None:
            self.shown.write(text)
        return super().write(text)


def measured(row: MeasuredRow, commands: "Commands", parity: str | None) -> Result:
    """A row, measured. What a command refuses, or breaks at, is a failure with its words."""
    from atose_ray.reproduction.commands import claim, score
    from atose_ray.reproduction.computed import parameters, recipe, value
    from atose_ray.reproduction.vectors import vectors

    try:
        if isinstance(row, ClaimRow):
            return claim(row, commands)
        if isinstance(row, ScoreRow):
            return score(row, commands)
        if isinstance(row, VectorsRow):
            return vectors(row, parity)
        if isinstance(row, ParametersRow):
            return parameters(row)
        return recipe(row) if isinstance(row, RecipeRow) else value(row)
    except (ValueError, RuntimeError, OSError, LookupError) as error:
        return Result("FAIL", reason=f"it ended with {type(error).__name__}: {error}")


def as_text(ended: list[tuple[MeasuredRow, Result]]) -> str:
    """A line per row: its status, its name, and below what was published and ours, or why not; of a table's rows that
    are not run for one reason one line. Then how many of each, by system."""
    lines, groups = [], defaultdict(list)
    for row, result in ended:
        of_table = row.kind == "score" and result.status == "NOT RUN"
        groups[(row.name.rpartition(".")[0], result.reason) if of_table else (row.name,)].append((row, result))
    for (name, *_), some in groups.items():
        row, result = some[0]
        lines.append(f"{result.status:<8} {row.name if len(some) == 1 else f'{name}.* ({len(some)} rows)'}")
        lines += [f"           {line}" for line in details(result)]
    lines.append(f"{'':<14}" + "".join(f"{status:>9}" for status in record.STATUSES))
    for system in dict.fromkeys([*(row.name.partition(".")[0] for row, _ in ended), ""]):
        counts = Counter(result.status for row, result in ended if row.name.startswith(system))
        lines.append(f"{system or 'all':<14}" + "".join(f"{counts[status]:>9}" for status in record.STATUSES))
    return "\n".join(lines)


def details(result: Result) -> list[str]:
    """The figures of a row that ran: all of a few, of many those that are not as published; and the reason."""
    told = result.figures if result.status != "NOT RUN" else ()
    figures = [one for one in told if one.ok is False or len(told) <= MANY]
    lines = [f"{one.name}: published {one.published}, ours {one.ours}{tolerance(one)}" for one in figures]
    if len(told) > MANY:
        lines.append(f"{len(told) - len(figures)} of {len(told)} values as published")
    return [*lines, *([result.reason] if result.reason else [])]


def tolerance(figure: Figure) -> str:
    """How far it may be off, where that is not nothing."""
    return f" (tolerance {figure.tolerance:g})" if figure.tolerance else ""


if __name__ == "__main__":
    cli.run(main)

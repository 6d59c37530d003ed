"""`python -m atose_ray.find`: sounds of a folder by words, or by another sound."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from atose_ray import cli
from atose_ray.apps.index import IndexInfo, begin_index, fill_index, open_index
from atose_ray.apps.retrieve import Found, find, parse
from atose_ray.data.pages import offline_page
from atose_ray.storage import Store


def index_arguments() -> argparse.ArgumentParser:
    """The command line of `find index`."""
    parser = cli.parser(
        "find index",
        "Embed every audio file below a folder, for `find`. Stopped, the same command goes on; called again later, it\n"
        "embeds what is new.",
        "  python -m atose_ray.find index atose_store/studies/demo/best recordings/ recordings.index",
        store=False,
    )
    parser.add_argument("model", help="a model folder: `best` of a study or of a run")
    parser.add_argument("folder", help="folder of sounds: a path, s3:// or gs://")
    parser.add_argument("index", help="folder of the index to make, or to go on with: a path, s3:// or gs://")
    text = "seconds between windows (default: a window after the other)"
    parser.add_argument("--hop", type=float, metavar="SECONDS", help=text)
    return parser


def arguments() -> argparse.ArgumentParser:
    """The command line of this command."""
    parser = cli.parser(
        "find",
        "Rank the sounds of an index (find index --help) by words, by another sound, or by both. Words are tags of\n"
        "the model, or any words where its method reads tag vectors; several are separated by commas, with a weight\n"
        "after a colon and a minus before what is not wanted.",
        "  python -m atose_ray.find recordings.index 'slow cello, piano:0.5, -drums'\n"
        "  python -m atose_ray.find recordings.index --like rain.wav --top 20",
        store=False,
    )
    parser.add_argument("index", help="folder that `find index` made")
    parser.add_argument("words", nargs="?", default="", help="what to look for")
    parser.add_argument("--like", metavar="FILE", help="a sound to be near to")
    parser.add_argument("--top", type=cli.at_least_one, default=10, help="how many files (default 10)")
    parser.add_argument("--json", action="store_true", help="one JSON object per file")
    parser.add_argument("--html", metavar="PAGE", help="also write a page with players")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Make an index, or ask one."""
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["index"]:
        make(index_arguments().parse_args(given[1:]))
        return
    options = arguments().parse_args(given)
    if not options.words.strip() and not options.like:
        raise ValueError("expected words to look for, or --like FILE; example: 'slow cello, -drums'")
    store, info, model = open_index(options.index)
    terms = parse(options.words) if options.words.strip() else []
    found = find(store, model, terms, options.like, options.top)
    for rank, one in enumerate(found, start=1):
        print(
            json.dumps(dataclasses.asdict(one), ensure_ascii=False) if options.json else as_text(rank, one), flush=True
        )
    if options.html:
        Path(options.html).write_text(page(found, info, options.words, options.like), encoding="utf-8")
        if not options.json:
            print(f"page: {options.html}")


def make(options: argparse.Namespace) -> None:
    """`find index`."""
    if options.hop is not None and not options.hop > 0:
        raise ValueError(f"--hop is a number of seconds above 0, but got {options.hop:g}")
    store, folder = Store(options.index), Store(options.folder)
    model = begin_index(store, Store(options.model), IndexInfo(folder.uri, options.hop))
    done = skipped = 0
    for done, total, why in fill_index(store, model, folder, options.hop):
        skipped += bool(why)
        if why:
            print(f"left out: {why}", file=sys.stderr)
        if done % 100 == 0 or done == total:
            print(f"{done} of {total} files", flush=True)
    more = f"; {skipped} left out" if skipped else ""
    print(f"index: {store.uri}{more}" if done else f"index: {store.uri} (nothing new in {folder.uri})")


def as_text(rank: int, found: Found) -> str:
    """A file for a person."""
    terms = ", ".join(f"{name} {score:.3f}" for name, score in found.terms.items())
    return f"{rank:>3}  {found.score:7.3f}  {found.path}  ({terms}; best at {found.start_s:.1f} s)"


def page(found: list[Found], info: IndexInfo, words: str, like: str | None) -> str:
    """A page with a player for each file; a folder in object storage has no players, as a browser cannot read it."""
    folder = Store(info.folder).local_path
    rows = [
        {**dataclasses.asdict(one), "sound": None if folder is None else (folder / one.path).absolute().as_uri()}
        for one in found
    ]
    title = ", ".join(filter(None, [words.strip(), f"like {like}" if like else ""]))
    return offline_page("atose_ray.apps", "find.html", title, ["find.js"], {"folder": info.folder, "found": rows})


if __name__ == "__main__":
    cli.run(main)

"""`python -m atose_ray.embed MODEL FILE|FOLDER... --out x.parquet`: sounds as vectors."""

import argparse
import sys

from atose_ray import cli


def arguments() -> argparse.ArgumentParser:
    """The command line of this command."""
    parser = cli.parser(
        "embed",
        "Write the embedding of every sound to a Parquet file: path, size, mtime_ns, start_s, end_s, embedding.\n"
        "Stopped, the same command goes on; called again, it embeds what is new or changed.",
        "  python -m atose_ray.embed atose_store/studies/demo/best recordings/ --out scenes.parquet\n"
        "  python -m atose_ray.embed MODEL song.mp3 --timestamps 0.05 --out song.parquet",
        store=False,
    )
    parser.add_argument("model", help="a model folder, a run folder, or a study, by path, URI or name")
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio or video in any format, or a folder of them")
    parser.add_argument("--out", required=True, metavar="FILE", help="the Parquet file: a path, s3:// or gs://")
    text = "a row every so many seconds, of what sounds around it (1 where no number is given); default: one a sound"
    parser.add_argument("--timestamps", nargs="?", type=float, const=1.0, metavar="SECONDS", help=text)
    parser.add_argument("--trial", type=int, metavar="NUMBER", help="of a study: this trial instead of its best one")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Embed every file; one that is no sound is reported, and the others go on."""
    options = arguments().parse_args(argv)
    from atose_ray.apps.embedding_table import Table
    from atose_ray.apps.model import load_model
    from atose_ray.apps.recordings import sounds_below
    from atose_ray.storage import Store, folder_of, is_uri

    if options.timestamps is not None and not options.timestamps > 0:
        raise ValueError(f"--timestamps is a number of seconds above 0, but got {options.timestamps:g}")
    folder, name = folder_of(options.out)
    store = Store(folder or ("/" if options.out.startswith("/") else "."))
    files = [file for file, _ in sounds_below(options.files)]
    if missing := [file for file in files if is_uri(file) or file == "-"]:
        raise ValueError(f"embed reads files and folders of this machine, but got {missing[0]}; fetch it first")
    model = load_model(options.model, trial=options.trial)
    store.check_writable()
    done = failed = 0
    for done, (file, why) in enumerate(Table(store, name, model.trained, options.timestamps).fill(files), start=1):
        failed += bool(why)
        if why:
            print(f"error: {file}: {why}", file=sys.stderr)
        if done % 100 == 0:
            print(f"{done} files", flush=True)
    new = f"{done - failed} new, {len(files) - done} there already" if done else "nothing new"
    print(f"embeddings: {store.uri_of(name)} ({new}{f'; {failed} left out' if failed else ''})")
    if failed:
        raise SystemExit(2)


if __name__ == "__main__":
    cli.run(main)

"""`python -m atose_ray.tag BEST FILE...`: the top tags of any audio file."""

import argparse
import dataclasses
import json
import sys

from atose_ray import cli
from atose_ray.apps.predict import Tagging, tag_file
from atose_ray.audio.io import AudioError
from atose_ray.training.checkpoint import load_model


def arguments() -> argparse.ArgumentParser:
    """The command line of this command."""
    parser = cli.parser(
        "tag",
        "Print the top tags of audio files with a model that tune or train chose.",
        "  python -m atose_ray.tag atose_store/studies/demo/best song.mp3\n"
        "  python -m atose_ray.tag atose_store/studies/demo/best --json *.wav",
        store=False,
    )
    parser.add_argument("model", help="a model folder: `best` of a study or of a run")
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio in any format")
    parser.add_argument("--top", type=cli.at_least_one, default=5, help="how many tags to print (default 5)")
    parser.add_argument("--json", action="store_true", help="one JSON object per file, with the scores of all tags")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Load the model once, tag every file; a file that is not sound is reported and the others go on."""
    options = arguments().parse_args(argv)
    model = load_model(options.model)
    failed = 0
    for file in options.files:
        try:
            tagging = tag_file(model, file)
        except AudioError as error:
            failed += 1
            print(f"error: {file}: {error}", file=sys.stderr)
            continue
        line = json.dumps({**dataclasses.asdict(tagging), "scores": dict(tagging.scores)}, ensure_ascii=False)
        print(line if options.json else as_text(tagging, options.top), flush=True)
    if failed:
        raise SystemExit(2)


def as_text(tagging: Tagging, top: int) -> str:
    """The file and its top tags, one per line."""
    lines = [f"{tagging.file} ({tagging.seconds:.1f} s)"]
    return "\n".join([*lines, *(f"  {score:.3f}  {tag}" for tag, score in tagging.scores[:top])])


if __name__ == "__main__":
    cli.run(main)

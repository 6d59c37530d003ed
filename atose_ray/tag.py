"""`python -m atose_ray.tag BEST FILE...`: the top tags of any audio file."""

import argparse
import dataclasses
import json
import sys

from atose_ray import cli
from atose_ray.apps.predict import Tagging, tag_file
from atose_ray.audio.io import AudioError
from atose_ray.training.checkpoint import Model, load_model
from atose_ray.training.sources import tags_with_vectors
from atose_ray.types import TagSet


def arguments() -> argparse.ArgumentParser:
    """The command line of this command."""
    parser = cli.parser(
        "tag",
        "Print the top tags of audio files with a model that tune or train chose.",
        "  python -m atose_ray.tag atose_store/studies/demo/best song.mp3\n"
        "  python -m atose_ray.tag atose_store/studies/demo/best --json *.wav\n"
        "  python -m atose_ray.tag MODEL street.wav --tags 'sitar, rain, door slam'",
        store=False,
    )
    parser.add_argument("model", help="a model folder: `best` of a study or of a run")
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio in any format")
    parser.add_argument("--top", type=cli.at_least_one, default=5, help="how many tags to print (default 5)")
    words = "score these instead of the model's own, with commas between; a model with tag vectors knows any word"
    parser.add_argument("--tags", metavar="WORDS", help=words)
    parser.add_argument("--json", action="store_true", help="one JSON object per file, with the scores of all tags")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Load the model once, tag every file; a file that is not sound is reported and the others go on."""
    options = arguments().parse_args(argv)
    model = load_model(options.model)
    tags = None if options.tags is None else asked_for(model, options.tags)
    failed = 0
    for file in options.files:
        try:
            tagging = tag_file(model, file, tags=tags)
        except AudioError as error:
            failed += 1
            print(f"error: {file}: {error}", file=sys.stderr)
            continue
        line = json.dumps({**dataclasses.asdict(tagging), "scores": dict(tagging.scores)}, ensure_ascii=False)
        print(line if options.json else as_text(tagging, options.top), flush=True)
    if failed:
        raise SystemExit(2)


def asked_for(model: Model, words: str) -> TagSet:
    """The tags of a line like `sitar, door slam`, with their vectors; says how those were made that are no plain word.
    Raises ValueError where none is given, or the model or its source of vectors does not know one."""
    names = tuple(dict.fromkeys(" ".join(word.split()) for word in words.split(",") if word.strip()))
    if not names:
        raise ValueError(f"--tags takes words with commas between, such as 'sitar, door slam', but got {words!r}")
    tags = tags_with_vectors(model, names)
    if tags.vectors_CV is not None and model.run.tag_vectors is not None:
        for found in model.run.tag_vectors.report(names):
            if found.tokens != (found.name.lower(),):
                print(f"note: {found}", file=sys.stderr)
    return tags


def as_text(tagging: Tagging, top: int) -> str:
    """The file and its top tags, one per line."""
    lines = [f"{tagging.file} ({tagging.seconds:.1f} s)"]
    return "\n".join([*lines, *(f"  {score:.3f}  {tag}" for tag, score in tagging.scores[:top])])


if __name__ == "__main__":
    cli.run(main)

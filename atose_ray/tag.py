"""`python -m atose_ray.tag BEST FILE...`: the top tags of any audio file."""

import argparse
import dataclasses
import json
import sys
from typing import Any

from atose_ray import cli
from atose_ray.apps.clips import Review
from atose_ray.apps.predict import Tagging, tag_file
from atose_ray.apps.published_tagger import rule_for, second_scores, srt_text, summary_text, with_vggish
from atose_ray.apps.recordings import (
    Listening,
    opened,
    outputs,
    sounds_below,
    timeline_config,
    timeline_of,
    write_outputs,
)
from atose_ray.apps.writers import WRITERS
from atose_ray.audio.io import AudioError
from atose_ray.storage import Store
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
        "  python -m atose_ray.tag MODEL street.wav --tags 'sitar, rain, door slam'\n"
        "  python -m atose_ray.tag MODEL recordings/ --timeline srt,html --threshold 0.3 --set join_gap_s=2",
        store=False,
    )
    parser.add_argument("model", help="a model folder: `best` of a study or of a run")
    text = "audio or video in any format, a folder of them, or - for raw int16 samples from standard input"
    parser.add_argument("files", nargs="+", metavar="FILE", help=text)
    parser.add_argument("--top", type=cli.at_least_one, default=5, help="how many tags to print (default 5)")
    words = "score these instead of the model's own, with commas between; a model with tag vectors knows any word"
    parser.add_argument("--tags", metavar="WORDS", help=words)
    text = "weights of VGGish and its PCA, for a model of its stored features: .npz or .safetensors"
    parser.add_argument("--vggish", metavar="FILE", help=text)
    parser.add_argument("--json", action="store_true", help="one JSON object per file, with the scores of all tags")
    add_timeline(parser.add_argument_group("what sounds when"))
    return parser


def main(argv: list[str] | None = None) -> None:
    """Load the model once, tag every file; a file that is not sound is reported and the others go on."""
    options = arguments().parse_args(argv)
    model = load_model(options.model)
    if options.vggish:
        model = with_vggish(model, options.vggish)
    if options.published:
        published(model, options)
        return
    tags = None if options.tags is None else asked_for(model, options.tags)
    if options.timeline:
        timelines(model, tags, options)
        return
    if options.clips:
        raise ValueError("--clips cuts out the events of a timeline: say in which format that is kept, --timeline csv")
    failed = 0
    for file, _ in sounds_below(options.files):
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


def add_timeline(group: Any) -> None:
    """The options of timelines."""
    known = ", ".join(WRITERS)
    group.add_argument("--timeline", metavar="FORMATS", help=f"write timelines, with commas between: {known}")
    cli.add_listening(group)
    text = "score a hop by the whole window around it, or by its own frames (default: frames where the model has them)"
    group.add_argument("--scores", choices=("window", "frame"), default="auto", help=text)
    group.add_argument("--out", metavar="FOLDER", help="where timelines are written (default: beside the sound)")
    text = "cut the events out as sound files, with review.csv to accept or reject each (apps/clips.py)"
    group.add_argument("--clips", metavar="FOLDER", help=text)
    group.add_argument("--again", action="store_true", help="also recordings whose timelines are there already")
    group.add_argument(
        "--rate", type=cli.at_least_one, default=16000, metavar="HZ", help="of raw samples (default 16000)"
    )
    text = "with --timeline srt: AudioTagger's own windows, rule, names and text (apps/published_tagger.py)"
    group.add_argument("--published", action="store_true", help=text)
    text = "with --published: keep the tags Speech and Music"
    group.add_argument("--show-music-speech", action="store_true", help=text)
    group.add_argument("--channels", type=cli.at_least_one, default=1, help="of raw samples (default 1)")


def timelines(model: Model, tags: TagSet | None, options: argparse.Namespace) -> None:
    """Score every recording along its time and write what was asked for. Those that are done are left out, one that was
    cut goes on, one that is no sound is reported."""
    formats = [name.strip() for name in options.timeline.split(",")]
    if unknown := [name for name in formats if name not in WRITERS]:
        raise ValueError(f"--timeline knows {', '.join(WRITERS)}, but got {', '.join(unknown)}")
    config = timeline_config(model, tags, options.threshold, options.overrides)
    config.check(tags.names if tags is not None else model.spec.tags)
    listening = Listening(options.hop, options.left, options.right, config, options.scores)
    review = Review(options.clips) if options.clips else None
    files, failed = sounds_below(options.files), 0
    if review is not None:
        files = review.to_cut(files)
    for number, (file, name) in enumerate(files, start=1):
        places = outputs(name if file == "-" else file, name, options.out, formats)
        done = all(place.exists() for place in places.values()) and (review is None or name in review.heard())
        if file != "-" and done and not options.again:
            print(f"{number}/{len(files)} {file}: there already (--again writes it anew)", flush=True)
            continue
        first = next(iter(places.values()))
        partial = first.with_name(f".{first.stem}.partial.npz")
        try:
            with opened(file, options.rate, options.channels) as (where, raw):
                timeline = timeline_of(model, where, listening, options.model, tags=tags, partial=partial, source=raw)
                if review is not None:
                    review.add(timeline, name, raw or where, model.spec.audio.sample_rate_hz)
        except AudioError as error:
            failed += 1
            print(f"error: {file}: {error}", file=sys.stderr)
            continue
        write_outputs(timeline, places)
        said = f"{len(timeline.events)} events in {timeline.seconds:.1f} s" + (
            f", cut out into {options.clips}" if review else ""
        )
        print(f"{number}/{len(files)} {file}: {said}; {', '.join(map(str, places.values()))}", flush=True)
    if failed:
        raise SystemExit(2)
    if review is not None:
        print(review.next_step(), flush=True)


def published(model: Model, options: argparse.Namespace) -> None:
    """Subtitles as AudioTagger writes them, and its summary of every file. Raises ValueError for what it cannot do."""
    left, right = (
        default if seconds is None else seconds for seconds, default in ((options.left, 10), (options.right, 0))
    )
    whole = min(left, right) >= 0 and left == int(left) and right == int(right)
    if options.timeline != "srt" or options.tags is not None or options.hop != 1 or options.overrides or not whole:
        raise ValueError(
            "--published writes what AudioTagger wrote: --timeline srt, with --threshold, --left, --right (whole "
            "seconds) and --show-music-speech, and no other setting; leave it out for those"
        )
    try:
        threshold = 0.05 if options.threshold is None else float(options.threshold)
    except ValueError:
        raise ValueError(f"--threshold of --published is a number, but got {options.threshold!r}") from None
    rule, failed = rule_for(model.spec.tags, threshold, options.show_music_speech), 0
    for file, name in sounds_below(options.files):
        place = outputs(name if file == "-" else file, name, options.out, ["srt"])["srt"]
        try:
            with opened(file, options.rate, options.channels) as (where, raw):
                prob_SC = second_scores(model, raw or where, int(left), int(right), where)
        except AudioError as error:
            failed += 1
            print(f"error: {file}: {error}", file=sys.stderr)
            continue
        Store(str(place.parent)).write(place.name, srt_text(prob_SC, rule).encode())
        print(summary_text(prob_SC.mean(axis=0), rule) if len(prob_SC) else f"{file}: shorter than 0.975 s", flush=True)
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

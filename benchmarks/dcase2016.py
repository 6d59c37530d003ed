"""From isolated sounds to events with times: DCASE 2016 task 2, whose scenes are mixed anew from held-out sounds.

    python -m benchmarks.dcase2016 --data DIR [--append] [--seeds 3] [--epochs 80] [--keep FOLDER]

DIR holds `events/` (10 sounds of 0.3 to 3.3 s for each of 11 classes) and `annotation/` (onset, offset and class of 18
scenes of two minutes). Per seed, 6 sounds of a class are trained on, 2 are for validation, 2 for test. A scene is pink
noise with a test sound of the class at every annotated onset; its truth ends where that sound does. Every sound is
scaled to the event-to-background ratio in the scene's name (-6, 0 or 6 dB), RMS to RMS; sounds have the level that
training sounds have in the middle. Six scenes of validation sounds, their classes shuffled, are for fitting.

Trainings: clips padded with silence; with data.noise; with data.noise whose share `blank` is noise alone.
Readings of a model, none of which saw a test sound or a test scene:
    published   AudioTagger's window (the ten seconds before) and rule (3 to 5 tags a second, 0.05); seconds with one
                tag in a row are one event
    plain       `tag --timeline` without a setting but --threshold 0.5: a score a second
    clips       the same, every tag's threshold fitted on the validation clips (`--threshold f1`, tag's own default)
    clips, fine the same, a score every 0.1 s
    ours        a score every 0.1 s; thresholds, smoothing, hysteresis, gap and least duration fitted on the six scenes,
                once for the F1 of segments, once for that of events
`--append` adds a JSON line per seed to benchmarks/results/dcase2016.jsonl. `--keep` leaves scenes and models in a
folder, for `tag --timeline` and `evaluate --recordings`.
"""

from __future__ import annotations

import argparse
import itertools
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from atose_ray.apps.published_tagger import Rule, window_rows
from atose_ray.apps.recordings import Listening, timeline_config, timeline_of
from atose_ray.apps.sound_events import annotated, read_lines, scored
from atose_ray.apps.timeline import Timeline, TimelineConfig, active, events_of, joined, smoothed
from atose_ray.config import run_config
from atose_ray.data.noise import pink
from atose_ray.data.prepare import prepare
from atose_ray.data.shards import load_manifest
from atose_ray.datasets import dataset_config
from atose_ray.evaluation.sound_events import Marked, Tally, count_events, count_segments
from atose_ray.storage import Store
from atose_ray.training.checkpoint import Model, load_model
from atose_ray.training.loop import fit
from atose_ray.training.run import Job, finish_run, open_run, resolve
from atose_ray.types import Array
from benchmarks.timing import append

RATE_HZ, SECONDS = 16_000, 120
CROPS = 8  # of every sound in an epoch
TRAINED, VALID = 6, 2  # sounds of a class; the rest is for test
NOISES: dict[str, dict[str, float] | None] = {
    "silence": None,
    "noise": {"low_db": -70, "high_db": -20},
    "noise and blank": {"low_db": -70, "high_db": -20, "blank": 0.25},
}
GRID = {
    "smoothing_s": (0.0, 0.5, 0.9),
    "hysteresis": (0.0, 0.1, 0.2),
    "min_duration_s": (0.0, 0.3, 0.5),
    "join_gap_s": (0.0, 0.3),
}
THRESHOLDS = np.concatenate([[0.02, 0.05], np.arange(0.1, 1, 0.1), [0.95, 0.98, 0.99]])
FIGURES = {"segment": ("f1_micro", "error_rate"), "event": ("f1_micro", "error_rate"), "frame": ("frame_map",)}


def class_of(path: Path) -> str:
    """The tag of a sound's file, as the annotations name it."""
    return {"keysDrop": "keys"}.get(name := re.sub(r"\d+$", "", path.stem), name)


def split_sounds(events: Path, seed: int) -> dict[str, dict[str, list[Path]]]:
    """Split -> class -> its sounds."""
    rng = np.random.default_rng(seed)
    split: dict[str, dict[str, list[Path]]] = {"train": {}, "valid": {}, "test": {}}
    for name, group in itertools.groupby(sorted(events.glob("*.flac")), class_of):
        sounds = list(group)
        order = [sounds[at] for at in rng.permutation(len(sounds))]
        split["train"][name], split["valid"][name] = order[:TRAINED], order[TRAINED : TRAINED + VALID]
        split["test"][name] = order[TRAINED + VALID :]
    return split


def rms(audio_T: Array) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(audio_T, dtype=np.float64))))


def mix(marks: list[Marked], sounds: dict[str, list[Path]], ebr_db: float, level: float, seed: int) -> Any:
    """Audio [T] of a scene, and what sounds when in it. level: RMS of every sound."""
    rng = np.random.default_rng(seed)
    noise_T = pink(seed, 2 * SECONDS * RATE_HZ)[: SECONDS * RATE_HZ]  # of a longer one, whose ends do not meet
    scene_T, truth = noise_T * level * 10 ** (-ebr_db / 20), []
    for mark in marks:
        audio_T, _ = soundfile.read(sounds[mark.tag][rng.integers(len(sounds[mark.tag]))], dtype="float32")
        start = round(mark.start_s * RATE_HZ)
        audio_T = audio_T[: len(scene_T) - start]
        scene_T[start : start + len(audio_T)] += audio_T * (level / rms(audio_T))
        truth.append(Marked(mark.start_s, round(mark.start_s + len(audio_T) / RATE_HZ, 3), mark.tag))
    return scene_T, truth


def write_scenes(data: Path, folder: Path, split: dict[str, dict[str, list[Path]]], part: str, seed: int) -> None:
    """Scenes and their annotations. Of validation one for each of the six timings."""
    level = float(np.median([rms(soundfile.read(path)[0]) for group in split["train"].values() for path in group]))
    folder.mkdir(parents=True)
    files = sorted((data / "annotation").glob("*.txt"))
    if part == "valid":
        files = [file for number, file in enumerate(sorted(files, key=timing)) if number % 3 == number // 3 % 3]
    for number, file in enumerate(files):
        marks = read_lines(file)
        if part == "valid":
            tags = np.random.default_rng((seed, number)).permutation([mark.tag for mark in marks])
            marks = [mark._replace(tag=str(tag)) for mark, tag in zip(marks, tags, strict=True)]
        ebr_db = float(file.stem.split("_")[3])
        audio_T, truth = mix(marks, split[part], ebr_db, level, 1000 * (seed + 1) + number + 500 * (part == "valid"))
        soundfile.write(folder / f"{file.stem}.flac", np.clip(audio_T, -1, 1), RATE_HZ, "PCM_16")
        rows = (f"{mark.start_s:g}\t{mark.end_s:g}\t{mark.tag}\n" for mark in truth)
        (folder / f"{file.stem}.txt").write_text("".join(rows))


def timing(file: Path) -> str:
    """What annotations of one timing at three ratios share."""
    return file.stem.split("_nec_")[1]


def train(store: Store, noise: dict[str, float] | None, seed: int, place: Path, args: Any) -> Model:
    """One training with its thresholds fitted on the validation clips."""
    tree = {
        "data": {
            "dataset": "sounds",
            "crop_seconds": args.crop,
            "batch_size": 32,
            "crops_per_clip": CROPS,
            "noise": noise,
        },
        "encoder": {"kind": args.encoder, "channels": args.channels},
        "method": {"kind": "supervised", "stages": [{"name": "classify", "epochs": args.epochs}]},
        "optim": {"kind": "adam", "lr": args.lr, "schedule": "cosine", "warmup_steps": 50},
        "metric": "pr_auc_macro",
        "seed": seed,
        "execution": {"threads": args.threads, "device": args.device, "eval_batch_size": 64},
    }
    manifest = load_manifest(store, "sounds")
    job = Job(resolve(run_config(tree), store, manifest), store.uri, str(place), {})
    opened = open_run(job)
    fit(opened.run, opened.method, opened.batches, opened.folder, device=opened.device)
    finish_run(job, Store(str(place / "best")))
    return load_model(str(place / "best"))


Heard = list[tuple[Timeline, list[Marked]]]


def heard(model: Model, scenes: Path, listening: Listening) -> Heard:
    """The timelines of a folder of scenes, with their truth."""
    truth = annotated([str(scenes)], None)
    return [(timeline_of(model, file, listening, ""), marks) for file, marks in truth.items()]


def with_events(lines: Heard, config: TimelineConfig) -> Heard:
    """The same scores with the events of other settings."""
    found = []
    for line, marks in lines:
        events = events_of(line.scores_SC, line.tags, line.hop_s, line.seconds, config)
        found.append((Timeline(**{**vars(line), "events": events}), marks))
    return found


def published_events(lines: Heard) -> Heard:
    """What AudioTagger's window and rule make of scores that come once a second."""
    found = []
    for line, marks in lines:
        rule = Rule(line.tags)
        prob_SC = line.scores_SC[window_rows(len(line.scores_SC), 10, 0)].mean(axis=1)
        shown_SC = np.zeros_like(prob_SC)
        for second, prob_C in enumerate(prob_SC):
            shown_SC[second, rule.shown(prob_C)] = 1
        events = events_of(shown_SC, line.tags, line.hop_s, line.seconds, TimelineConfig())
        found.append((Timeline(**{**vars(line), "scores_SC": prob_SC, "events": events}), marks))
    return found


def fitted(lines: Heard, protocol: str) -> TimelineConfig:
    """The settings of GRID, with a threshold for every tag, that have the highest F1 of a protocol over all tags."""
    tags, hop_s = lines[0][0].tags, lines[0][0].hop_s
    best: tuple[float, TimelineConfig] = (-1.0, TimelineConfig())
    for width_s in GRID["smoothing_s"]:
        smooth = [smoothed(line.scores_SC, round(width_s / hop_s), "median") for line, _ in lines]
        for hold, least_s, gap_s in itertools.product(*(GRID[key] for key in list(GRID)[1:])):
            chosen, right, all_of = {}, 0, 0
            for column, tag in enumerate(tags):
                counts = []
                for threshold in THRESHOLDS:
                    tally = Tally((tag,))
                    for (line, marks), smooth_SC in zip(lines, smooth, strict=True):
                        runs = joined(active(smooth_SC[:, column], threshold, hold), gap_s / hop_s)
                        long = [(first, end) for first, end in runs if (end - first) * hop_s >= least_s - 1e-9]
                        marked = [Marked(first * hop_s, min(end * hop_s, line.seconds), tag) for first, end in long]
                        truth = [mark for mark in marks if mark.tag == tag]
                        if protocol == "segment":
                            count_segments(tally, truth, marked, line.seconds)
                        else:
                            count_events(tally, truth, marked)
                    counts.append((tally.overall.figures()["f1"] or 0.0, float(threshold), tally.overall))
                f1, chosen[tag], of_best = max(counts, key=lambda one: one[0])
                right, all_of = right + of_best.right, all_of + of_best.annotated + of_best.found
            settings: dict[str, Any] = dict(zip(GRID, (width_s, hold, least_s, gap_s), strict=True))
            if (f1 := 2 * right / all_of) > best[0] + 1e-9:
                best = f1, TimelineConfig(**settings, thresholds=chosen)
    return best[1]


def read_all(model: Model, scenes: Path, valid: Path) -> dict[str, dict[str, float]]:
    """Every reading of a model -> its figures."""
    seconds = heard(model, scenes, Listening(1.0, timeline=TimelineConfig()))
    fine, to_fit = (heard(model, place, Listening(0.1)) for place in (scenes, valid))
    readings = {
        "published": published_events(seconds),
        "plain": seconds,
        "clips": with_events(seconds, timeline_config(model, None, "f1", ())),
        "clips, fine": with_events(fine, timeline_config(model, None, "f1", ())),
    }
    rows: dict[str, dict[str, float]] = {}
    for name, lines in readings.items():
        rows[name] = {f"{p}_{f}": scored(lines, p)["metrics"][f] for p, names in FIGURES.items() for f in names}
    rows["ours"] = {"frame_frame_map": scored(fine, "frame")["metrics"]["frame_map"]}
    for protocol in ("segment", "event"):
        config = fitted(to_fit, protocol)
        print(protocol, config.model_dump(mode="json"), flush=True)
        metrics = scored(with_events(fine, config), protocol)["metrics"]
        rows["ours"] |= {f"{protocol}_{name}": metrics[name] for name in FIGURES[protocol]}
    return rows


def main() -> None:
    """Mix, train, read, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="DIR", type=Path, required=True)
    parser.add_argument("--append", action="store_true")
    parser.add_argument("--keep", metavar="FOLDER", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--noises", nargs="+", choices=NOISES, default=list(NOISES))
    parser.add_argument("--encoder", default="mel_cnn")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--crop", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    args.batch, args.rounds = 32, args.seeds
    torch.set_num_threads(args.threads)
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory(prefix="dcase2016-") as scratch:
            folder = args.keep / str(seed) if args.keep else Path(scratch)
            rows = one_seed(folder, seed, args)
        if args.append:
            settings = {name: getattr(args, name) for name in ("encoder", "channels", "crop", "epochs", "lr")}
            append("dcase2016", args, rows, seed=seed, **settings)
        for arm, row in rows.items():
            found.setdefault(arm, []).append(row)
    for arm, every in found.items():
        print(arm, {name: f"{np.mean([one[name] for one in every]):.3f}" for name in every[0]}, flush=True)


def one_seed(folder: Path, seed: int, args: Any) -> dict[str, dict[str, float]]:
    """Everything of one seed -> the figures of every training and reading."""
    found = {}
    split = split_sounds(args.data / "events", seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{p.name},{part},{tag}" for part, of in split.items() for tag, paths in of.items() for p in paths]
    (folder / "tags.csv").write_text("\n".join(["path,split,tags", *rows]) + "\n")
    store, source = Store(str(folder / "store")), str((args.data / "events").absolute())
    table = str((folder / "tags.csv").absolute())
    prepare(dataset_config("folder", source=source, csv=table, sample_rate_hz=RATE_HZ), store, name="sounds")
    for part in ("valid", "test"):
        write_scenes(args.data, folder / part, split, part, seed)
    for name in args.noises:
        start = time.perf_counter()
        model = train(store, NOISES[name], seed, folder / name.replace(" ", "-"), args)
        test = model.metrics["test"]["pr_auc_macro"]
        print(f"seed {seed} {name}: clips' pr_auc_macro {test:.3f}, {time.perf_counter() - start:.0f} s", flush=True)
        for reading, row in read_all(model, folder / "test", folder / "valid").items():
            found[f"{name}, {reading}"] = row
            print(f"  {reading}: { {key: round(value, 3) for key, value in row.items()} }", flush=True)
        print(f"  {time.perf_counter() - start:.0f} s", flush=True)
    return found


if __name__ == "__main__":
    main()

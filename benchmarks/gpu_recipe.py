"""The published HarmonicCNN joint-embedding recipe on an MTAT-like set: seconds of its epochs, and of the whole.

Clips of 29.1 s at 16 kHz with 50 tags, written as WAV files of noise and tones, prepared as any folder is. Of every
phase of the recipe a few epochs are trained, resident and streamed; the whole recipe at MTAT's 15,247 training clips is
reckoned from their seconds: what trains and what validates grows with the clips (the splits are as large as MTAT's);
what is left of an epoch, and what the first one of a phase takes beyond the others (recording, compiling), does not. Of
the second stage 16 epochs encode, and the others read what was encoded.
`benchmarks/gpu_ladder.py` runs it.
"""

from __future__ import annotations

import csv
import statistics
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from atose_ray.config import RunConfig, apply_overrides, run_config
from atose_ray.data.prepare import prepare
from atose_ray.data.shards import load_manifest
from atose_ray.datasets import dataset_config
from atose_ray.evaluation.protocols import CLIP
from atose_ray.search.space import load_tree
from atose_ray.storage import Store
from atose_ray.training import loop
from atose_ray.training.folds import begin
from atose_ray.training.run import Job, resolve
from benchmarks.timing import seconds

MTAT_CLIPS, RATE_HZ, TAGS = 15_247, 16_000, 50
CROPS, CROPS_HERE = 16, 2  # of every clip that the second stage encodes: as published here, and in what is measured


def write_clips(folder: Path, clips: int, seconds_each: float) -> None:
    """WAV files and tags.csv: every tag is a tone, about one in ten clips has it; splits as large as MTAT's: ten clips
    are trained on for each one that validates and three that test."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    time_T = np.arange(int(seconds_each * RATE_HZ)) / RATE_HZ
    tones_CT = np.sin(2 * np.pi * np.geomspace(80, 6000, TAGS)[:, None] * time_T[: 4 * RATE_HZ]).astype(np.float32)
    with (folder / "tags.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "tags", "split"])
        for number in range(clips):
            has_C = rng.random(TAGS) < 0.1
            has_C[number % 6 :: 6] = True  # so that training clips have every tag, however few they are
            audio_T = 0.05 * rng.standard_normal(len(time_T), np.float32)
            start = rng.integers(0, max(1, len(audio_T) - tones_CT.shape[1]))
            part_T = audio_T[start : start + tones_CT.shape[1]]
            part_T += 0.1 * tones_CT[has_C].sum(axis=0)[: len(part_T)]
            name = f"{number:05d}.wav"
            with wave.open(str(folder / name), "wb") as out:
                out.setnchannels(1)
                out.setsampwidth(2)
                out.setframerate(RATE_HZ)
                out.writeframes((np.clip(audio_T, -1, 1) * 32767).astype("<i2").tobytes())
            split = "train" if number % 14 < 10 else "valid" if number % 14 == 10 else "test"
            table.writerow([name, "|".join(f"tag{tag}" for tag in np.flatnonzero(has_C)), split])


def recipe(residency: str, args: Any) -> RunConfig:
    """The published recipe with few epochs in each phase."""
    overrides = ["encoder.kind=harmonic_cnn", "method.kind=joint_embedding", "data.dataset=ladder"]
    overrides += [f"data.residency={residency}", f"execution.device={args.device}"]
    overrides += ["execution.precision=auto"]
    if args.quick:
        overrides += ["encoder.channels=4", "method.latent=8"]
    tree = apply_overrides(load_tree("published_mtat", overrides), overrides)
    run = run_config(tree)
    stages = tuple(
        stage.model_copy(update={"epochs": args.epochs, **({"cache": CROPS_HERE} if stage.cache == CROPS else {})})
        for stage in run.method.stages
    )
    return run.model_copy(update={"method": run.method.model_copy(update={"stages": stages})})


class Seconds(NamedTuple):
    """Of an epoch: what grows with the clips, and what does not."""

    grows: float
    stays: float

    def at(self, scale: float) -> float:
        """With `scale` times as many clips."""
        return self.grows * scale + self.stays


def middle(epochs: Sequence[Seconds]) -> Seconds:
    """The median of both."""
    return Seconds(*(statistics.median(column) for column in zip(*epochs, strict=True)))


def reckoned(published: RunConfig, phases: Sequence[Sequence[Seconds]], scale: float) -> float:
    """Seconds of the whole recipe, with `scale` times as many clips. phases: the measured epochs."""
    total, encoding, recalled = 0.0, list[Seconds](), list[Seconds]()
    for stage, measured in zip(published.method.stages, phases, strict=True):
        if stage.cache == CROPS:
            first = CROPS_HERE - len(encoding)
            encoding, recalled = [*encoding, *measured[:first]], [*recalled, *measured[first:]]
            continue
        each = middle(measured[1:] or measured)
        total += max(0.0, measured[0].at(1) - each.at(1)) + stage.epochs * each.at(scale)
    epochs = sum(stage.epochs for stage in published.method.stages if stage.cache == CROPS)
    return total + CROPS * middle(encoding).at(scale) + (epochs - CROPS) * middle(recalled).at(scale)


@contextmanager
def timed(device: str) -> Iterator[list[float]]:
    """Seconds of everything that trains or validates meanwhile, in turns."""
    found = list[float]()

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **named: Any) -> Any:
            start = seconds(device)
            result = function(*args, **named)
            found.append(seconds(device) - start)
            return result

        return run

    protocol = type(CLIP)
    trains = mock.patch.object(loop, "train_epoch", wrapped(loop.train_epoch))
    with trains, mock.patch.object(protocol, "evaluate", wrapped(protocol.evaluate)):
        yield found


def measure(args: Any, folder: Path) -> Iterator[dict[str, Any]]:
    """Prepare once; then a row for each way to feed it."""
    start = time.perf_counter()
    write_clips(folder / "audio", args.clips, args.seconds)
    written = time.perf_counter() - start
    store = Store(str(folder / "store"))
    config = dataset_config("folder", source=str(folder / "audio"))
    prepare(config, store, name="ladder")
    prepared = time.perf_counter() - start - written
    yield {"what": "data", "clips": args.clips, "written_s": written, "prepared_s": prepared}
    manifest = load_manifest(store, "ladder")
    overrides = ["method.kind=joint_embedding"]
    published = run_config(apply_overrides(load_tree("published_mtat", overrides), overrides))
    resident = "device" if args.device == "cuda" else "host"
    for residency in (resident, "stream"):
        run = resolve(recipe(residency, args), store, manifest)
        with timed(args.device) as spans:
            opened, epochs = begin(Job(run, store.uri, str(folder / residency)))
            records = list(epochs)
        trained = manifest.data_spec.counts["train"]
        parts = list(zip(spans[::2], spans[1::2], strict=True))
        each = [
            Seconds(train + valid, max(0.0, record.seconds - train - valid))
            for record, (train, valid) in zip(records, parts, strict=True)
        ]
        phases = [each[at : at + args.epochs] for at in range(0, len(each), args.epochs)]
        notes = [event["text"] for event in opened.events() if event.get("event") == "note"]
        yield {
            "what": f"recipe, {residency}",
            "train_clips": trained,
            "train_s": [train for train, _ in parts],
            "valid_s": [valid for _, valid in parts],
            "rest_s": [one.stays for one in each],
            "clips_per_s": [
                trained / statistics.median(train for train, _ in parts[at : at + args.epochs])
                for at in range(0, len(parts), args.epochs)
            ],
            "whole_recipe_s": reckoned(published, phases, MTAT_CLIPS / trained),
            "losses": [record.train_loss for record in records],
            "valid": records[-1].valid[run.metric],
            "precision": opened.about()["precision"],
            "notes": notes,
        }


def line_of(row: dict[str, Any]) -> str:
    """One row for a person."""
    if row["what"] == "data":
        return f"{row['clips']} clips written in {row['written_s']:.1f} s, prepared in {row['prepared_s']:.1f} s"
    speeds = ", ".join(f"{speed:.0f}" for speed in row["clips_per_s"])
    return (
        f"{row['what']}: trains {speeds} clips/s by phase; the whole recipe at {MTAT_CLIPS} clips is reckoned at "
        f"{row['whole_recipe_s']:.0f} s; {row['precision']}; {'; '.join(row['notes']) or 'no notes'}"
    )

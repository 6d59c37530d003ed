"""Stage 2 of the published recipe: the head on cached embeddings against the head behind the frozen encoder.

    python -m benchmarks.stage_two [--append] [--rounds 3] [--clips 32] [--threads 2] [--encoders harmonic_cnn ...]

Published sizes: full-width encoder, float32, batch 16, classifier of 256 units, 200 epochs, 16 crops cached. Both sides
run in this process, in turns: an epoch of training and its validation without the cache, one that fills the cache, one
that reads it. The 200 epochs of the stage are reckoned from these: 200 uncached, against 16 filling and 184 reading.
Validation is a quarter of the clips, heard in every epoch without the cache and once with it.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import tempfile
from collections.abc import Iterator

import torch

from atose_ray.config import RunConfig, run_config
from atose_ray.data.batches import BatchSource
from atose_ray.evaluation.protocols import CLIP
from atose_ray.storage import Store
from atose_ray.training.cached import CachedEmbeddings, cached_span
from atose_ray.training.loop import train_epoch
from atose_ray.training.precision import prepare_for
from atose_ray.training.record import RunFolder
from atose_ray.training.resume import Position
from atose_ray.training.step import Pieces, Step
from atose_ray.types import AudioInput, Batch, DataSpec, Split
from benchmarks.timing import append, arguments, seconds, show

EPOCHS, CROPS, TAGS = 200, 16, 50
ENCODERS = {"harmonic_cnn": {"kind": "harmonic_cnn"}, "sample_cnn rese": {"kind": "sample_cnn", "block": "rese"}}


class Noise:
    """A BatchSource of `clips` clips of noise with random tags; the crop of an epoch differs in its first samples."""

    def __init__(self, clips: int, samples: int, batch: int) -> None:
        self.batch = batch
        self.audio_NT, self.tags_NC = 0.1 * torch.randn(clips, samples), (torch.rand(clips, TAGS) < 0.3).float()
        self.tags_NC[:2] = torch.tensor([0.0, 1.0])[:, None]

    def batches(self, clips: int) -> Iterator[Batch]:
        for first in range(0, clips, self.batch):
            rows = torch.arange(first, min(first + self.batch, clips))
            yield Batch(self.audio_NT[rows], self.tags_NC[rows], rows)

    def train(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        return itertools.islice(self.batches(len(self.audio_NT)), first, None)

    @property
    def sizes(self) -> list[int]:
        return [min(self.batch, len(self.audio_NT) - first) for first in range(0, len(self.audio_NT), self.batch)]

    def steps(self) -> int:
        return -(-len(self.audio_NT) // self.batch)

    def evaluate(self, split: Split) -> Iterator[Batch]:
        return self.batches(max(4, len(self.audio_NT) // 4))


def config(encoder: str) -> RunConfig:
    """The published stage 2."""
    stage = {"name": "classify", "epochs": EPOCHS, "cache": CROPS}
    tree = {
        "encoder": ENCODERS[encoder],
        "method": {"kind": "joint_embedding", "stages": [stage]},
        "optim": {"kind": "keras_adam", "lr": 1e-4},
        "execution": {"precision": "float32"},
    }
    run = run_config(tree)
    data = run.data.model_copy(update={"crop_seconds": run.encoder.published_length / 16_000})
    return run.model_copy(update={"data": data})


def measure(encoder: str, clips: int, rounds: int, batch: int, device: torch.device) -> dict[str, float]:
    """Median seconds of the three kinds of epoch, and the ratio of the whole stage with its range over the rounds."""
    torch.manual_seed(0)
    run = config(encoder)
    samples = run.encoder.published_length
    audio = AudioInput(sample_rate_hz=16_000, clip_samples=samples)
    spec = DataSpec(input=audio, tags=tuple(map(str, range(TAGS))), exclusive=False)
    method = run.build(spec)
    prepare_for(method.to(device), run.execution, device)
    stage = run.method.stages[0]
    optimizer = stage.optimizer_under(run.optim).build(method.train_only(run.method.trained_parts(stage)))
    step = Step(method, optimizer, stage.name, Pieces(RunFolder(Store(tempfile.mkdtemp()))))
    source, span = Noise(clips, samples, batch), cached_span(run.method, 0)
    assert span is not None
    cache = CachedEmbeddings(method, source, dataclasses.replace(span, crops=rounds + 1), 0, device)

    def epoch(feed: BatchSource, number: int) -> float:
        start = seconds(device.type)
        method.train_only(run.method.trained_parts(stage))
        train_epoch(run, stage, step, feed, Position(number), 0, device)
        CLIP.evaluate(method, feed.evaluate("valid"), "classify", device)
        return seconds(device.type) - start

    epoch(source, 0)
    epoch(cache, 0)  # encodes validation, which is kept
    pairs = [(epoch(source, number), epoch(cache, number)) for number in range(1, rounds + 1)]
    timed = [(*pair, epoch(cache, rounds + 1 + number)) for number, pair in enumerate(pairs)]
    stages = [(EPOCHS * plain, CROPS * fill + (EPOCHS - CROPS) * read) for plain, fill, read in timed]
    ratios = [plain / cached for plain, cached in stages]
    plain_s, fill_s, read_s = (statistics.median(column) for column in zip(*timed, strict=True))
    return {
        "slow_s": statistics.median(plain for plain, _ in stages),
        "fast_s": statistics.median(cached for _, cached in stages),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "uncached_epoch_s": plain_s,
        "filling_epoch_s": fill_s,
        "reading_epoch_s": read_s,
    }


def main() -> None:
    """Measure, print, and append a line to the results."""
    parser = arguments(__doc__, rounds=3, batch=16, threads=2)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {}
    for name in options.encoders:
        results[name] = measure(name, options.clips, options.rounds, options.batch, torch.device(options.device))
        show(f"stage 2, {name}", results[name], options.rounds)
    if options.append:
        append("stage_two", options, results, clips=options.clips)


if __name__ == "__main__":
    main()

"""What the published AudioTagger makes of a recording, with its rules as they are: `tag --timeline srt --published`.

Source: ZhicunXu/AudioTagger, 2019: VGGish features of every second, ten of them to multi-level attention, a cue a
second. Its peculiarities, all of them only here:

- Of every second the last 0.04 s are cut out, and what is left is put together before the log-mel spectrogram.
- The default window, ten seconds before and none behind, is eleven rows of which the first ten are taken: from the
  tenth second on, the current second is not heard. A window of fewer rows is repeated until it has ten.
- Three tags at least, five at most, else one fewer than reach the threshold; Silence silences the others; Speech and
  Music are left out afterwards.
- A name that contains a comma is cut at it, behind its opening quote: `"Male speech`.
- Cues begin a millisecond late, are never merged, and their clock goes round after 24 h.

Departures: any format and any number of channels is read (the published code fails on mono), samples have their true
scale, and a recording is a stream in bounded memory. Other rates become 16 kHz as by resampy 0.2, of its time."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np
import torch

from atose_ray.apps.predict import PART_S
from atose_ray.audio.io import decode_parts
from atose_ray.audio.kaiser import KaiserBest
from atose_ray.audio.mel import VGGISH
from atose_ray.config import ConfigError, InitFrom
from atose_ray.encoders import VGGishConfig
from atose_ray.encoders.vggish import FRAMES, VGGish
from atose_ray.methods.multi_level_attention import MultiLevelAttention
from atose_ray.storage import read_uri
from atose_ray.training.checkpoint import Model
from atose_ray.training.sources import read_tensors
from atose_ray.types import Array, AudioInput, FrameInput

RATE_HZ = 16_000
ROWS = 10  # of a window: what the model was trained on
KEPT = 0.96  # of every second
LEAST, MOST, FEW = 3, 5, 4  # tags of a second; up to FEW over the threshold, LEAST are shown
EXAMPLE_HOP = FRAMES * VGGISH.hop_samples
EXAMPLE = VGGISH.samples_for(FRAMES)
DAY_S = 24 * 3600


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which tags are shown. silence: the tag that stands alone; spoken: those that are left out; None and () where the
    model has no such tag."""

    names: tuple[str, ...]
    threshold: float = 0.05
    silence: int | None = None
    spoken: tuple[int, ...] = ()

    def shown(self, prob_C: Array) -> list[int]:
        """Probabilities of a second -> its tags, the likeliest first."""
        order = first_tags(prob_C, self.threshold)
        if self.silence is not None and self.silence in order:
            return [self.silence]
        return [tag for tag in order if tag not in self.spoken]


def rule_for(names: tuple[str, ...], threshold: float, show_music_speech: bool) -> Rule:
    """The published rule for tags with AudioSet's names."""
    row = {name: index for index, name in enumerate(names)}
    spoken = () if show_music_speech else tuple(row[name] for name in ("Speech", "Music") if name in row)
    return Rule(names, threshold, row.get("Silence"), spoken)


def first_tags(prob_C: Array, threshold: float) -> list[int]:
    """The likeliest tags: 3 where up to 4 reach the threshold, else one fewer than do, and 5 at most."""
    count = int((prob_C >= threshold).sum())
    shown = LEAST if count <= FEW else min(MOST, count - 1)
    return [int(tag) for tag in np.argsort(-prob_C, kind="stable")[:shown]]


def published_name(name: str) -> str:
    """A name as the published code cuts it out of its line of the class file, where all names stand in quotes."""
    return f'"{name}"'.split(",")[0]


def window_rows(seconds: int, left: int, right: int) -> Array:
    """int64 [seconds, 10]: which second's features stand where in the window of each second."""
    rows = []
    for second in range(seconds):
        window = range(max(0, second - left), min(seconds, second + 1 + right))
        rows.append([window[at % len(window)] for at in range(ROWS)])
    return np.array(rows, np.int64).reshape(-1, ROWS)


def timing(second: int) -> str:
    """The line of a cue's times."""
    return f"{_clock(second)},001 --> {_clock(second + 1)},000"


def _clock(second: int) -> str:
    second %= DAY_S
    return f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"


def srt_text(prob_SC: Array, rule: Rule) -> str:
    """Probabilities of all seconds -> the subtitles."""
    cues = []
    for second, prob_C in enumerate(prob_SC):
        tags = "--".join(published_name(rule.names[tag]) for tag in rule.shown(prob_C))
        cues.append(f"{second + 1}\n{timing(second)}\n{tags}\n\n")
    return "".join(cues)


def summary_text(prob_C: Array, rule: Rule) -> str:
    """Mean probabilities of a recording -> what the published code prints of it; shares of what is shown, in percent.
    Silence is a tag like the others here."""
    tags = [tag for tag in first_tags(prob_C, rule.threshold) if tag not in rule.spoken]
    total = sum(prob_C[tag] for tag in tags)
    lines = ["Tagging for the whold clip."]
    for tag in tags:
        lines += [published_name(rule.names[tag]), "-" * 16 + str(np.round(100 * prob_C[tag] / total, 2))]
    return "\n".join(lines) + "\n"


def spliced(pieces: Iterable[Array], rate_hz: int) -> Iterator[Array]:
    """[T] after [T] -> the same without the last 0.04 s of every second but the last, which may be a part of one."""
    kept, held_T = int(KEPT * rate_hz), np.zeros(0, np.float32)
    for piece_T in pieces:
        held_T = np.concatenate([held_T, piece_T])
        while len(held_T) > rate_hz:
            yield held_T[:kept]
            held_T = held_T[rate_hz:]
    if len(held_T):
        yield held_T


def examples(pieces: Iterable[Array], rate_hz: int) -> Iterator[Array]:
    """The audio of a recording -> float32 [15600] at 16 kHz of every example."""
    held_T = np.zeros(0, np.float32)
    for piece_T in resampled(spliced(pieces, rate_hz), rate_hz):
        held_T = np.concatenate([held_T, piece_T])
        while len(held_T) >= EXAMPLE:
            yield held_T[:EXAMPLE]
            held_T = held_T[EXAMPLE_HOP:]


def resampled(pieces: Iterable[Array], rate_hz: int) -> Iterator[Array]:
    """[T] after [T] at 16 kHz, by the resampler of 2018."""
    if rate_hz == RATE_HZ:
        yield from pieces
        return
    stream = KaiserBest(rate_hz, RATE_HZ)
    for piece_T in pieces:
        yield stream.push(piece_T)
    yield stream.finish()


def samples_of(source: str | BinaryIO, name: str | None) -> tuple[int, Iterator[Array]]:
    """The rate of a recording, and its samples, mono, in pieces. Raises AudioError, maybe after some."""
    first = next(decode_parts(source, sample_rate_hz=RATE_HZ, max_seconds=1.0, name=name))
    rate_hz = first.source_rate_hz
    parts = decode_parts(source, sample_rate_hz=rate_hz, max_seconds=PART_S / 10, name=name)
    return rate_hz, (part.audio_T for part in parts)


@torch.no_grad()
def second_scores(
    model: Model, source: str | BinaryIO, left: int = 10, right: int = 0, name: str | None = None
) -> Array:
    """A recording -> float32 [seconds, C]. In memory: a minute of sound, and 128 and C numbers a second.

    Raises ValueError for a model that has no VGGish or no attention (`check`), AudioError for what is no sound."""
    method, encoder = check(model)
    rate_hz, pieces = samples_of(source, name)
    rows: list[torch.Tensor] = []
    waiting: list[Array] = []
    size = model.run.execution.eval_batch_size

    def embed() -> None:
        audio_BT = torch.from_numpy(np.stack(waiting))
        rows.append(encoder.sequence(encoder.front_end(audio_BT))[:, 0])
        waiting.clear()

    for example_T in examples(pieces, rate_hz):
        waiting.append(example_T)
        if len(waiting) == size:
            embed()
    if waiting:
        embed()
    embed_SE = torch.cat(rows) if rows else torch.zeros(0, encoder.embed_dim)
    scores = [np.zeros((0, len(model.spec.tags)), np.float32)]
    windows = torch.from_numpy(window_rows(len(embed_SE), left, right))
    for first in range(0, len(windows), size):
        window_BE = embed_SE[windows[first : first + size]].flatten(1)
        scores.append(method.probabilities(window_BE, model.stage).float().numpy())
    return np.concatenate(scores)


def check(model: Model) -> tuple[MultiLevelAttention, VGGish]:
    """The parts that are needed. Raises ValueError where the model has others."""
    method = model.method
    if not isinstance(method, MultiLevelAttention) or not isinstance(method.encoder, VGGish):
        stored = isinstance(method, MultiLevelAttention) and isinstance(model.spec.input, FrameInput)
        hint = "say where VGGish's weights are: --vggish FILE" if stored else "train multi_level_attention on vggish"
        raise ValueError(
            f"--published needs a multi_level_attention model that hears by vggish, but this is {model.run.method.kind}"
            f" on {model.run.encoder.kind}; {hint}"
        )
    if model.spec.audio.sample_rate_hz != RATE_HZ:
        raise ValueError(
            f"VGGish hears at {RATE_HZ} Hz, but the model was trained at {model.spec.audio.sample_rate_hz}"
        )
    return method, method.encoder


def with_vggish(model: Model, uri: str) -> Model:
    """A model of stored bytes of VGGish, which then hears: audio of 16 kHz, by the weights in a file of tensors.

    The file holds the nine layers under their published names, `pca_eigen_vectors` and `pca_means`. AudioSet's stored
    features were made with a ReLU behind the last layer. Raises ConfigError for a file, or a model, that does not fit.
    """
    frames = model.spec.input
    config = VGGishConfig(final_relu=True, postprocess="quantised")
    if not isinstance(frames, FrameInput) or (frames.bins, frames.dtype) != (config.embedding, "uint8"):
        raise ConfigError(f"--vggish is for models of stored bytes of VGGish (128 bins), but this one takes {frames}")
    samples = max(frames.frames * RATE_HZ, (frames.frames - 1) * EXAMPLE_HOP + EXAMPLE)
    spec = model.spec.model_copy(update={"input": AudioInput(sample_rate_hz=RATE_HZ, clip_samples=samples)})
    vggish = config.build(spec)
    content = read_uri(uri)
    try:
        vggish.load_state_dict(read_tensors(InitFrom(uri=uri), content))
    except RuntimeError as error:
        raise ConfigError(f"{uri} does not hold VGGish and its PCA: {error}") from error
    model.method.encoder, model.method.spec = vggish.eval(), spec
    data = model.run.data.model_copy(update={"crop_seconds": samples / RATE_HZ})
    return dataclasses.replace(model, spec=spec, run=model.run.model_copy(update={"encoder": config, "data": data}))

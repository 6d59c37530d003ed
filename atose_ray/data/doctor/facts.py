"""What is known about every clip: measured while it is decoded (`facts.jsonl`), or from the shards of an older store.

A fact is a number, never a judgement: those are in `checks.py`.
"""

import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from atose_ray.audio.io import INT16_PEAK, Decoded, clipped_share
from atose_ray.data.sampling import RowGroup
from atose_ray.data.shards import Manifest, ShardFile, from_file, read_row_group, unit_of
from atose_ray.storage import Store, StoreError
from atose_ray.types import DataSpec, Input, Split

FACTS = "facts.jsonl"
QUIET = 33  # of int16 at full scale, -60 dB: what is below it at either end of a clip is trimmed before comparing
SILENT_LEVEL = 1e-3  # -60 dB
SHAPE_SAMPLES, SHAPE_STEP, SHAPE_BINS = 1 << 14, 256, 12

Pcm = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class ClipFacts:
    """One clip's facts. Levels are of the stored audio, 1 is full scale, except `source_peak`; samples counts units.

    Of frames, peak is the highest value less the lowest, rms the deviation from the mean, shape empty, clipped 0.

    fingerprint: of the samples as stored. shape: of the strongest frequencies of the trimmed audio, the same at another
    level and with other silence around it. The source's rate, channels and peak are None where they were not recorded.
    """

    clip_id: int
    samples: int
    peak: float
    rms: float
    mean: float
    clipped: float
    fingerprint: str
    shape: str
    source_rate_hz: int | None = None
    channels: int | None = None
    source_peak: float | None = None


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip of a store: what the shards say, its facts, and where its audio lies."""

    name: str
    split: Split
    group: str | None
    tags: tuple[int, ...]
    facts: ClipFacts
    place: RowGroup
    silent: bool

    @property
    def loudness(self) -> float:
        """The highest magnitude as it was in the file, where that is known."""
        return self.facts.peak if self.facts.source_peak is None else self.facts.source_peak


class Audio(NamedTuple):
    """Stored samples; audio = pcm_T * scale."""

    pcm_T: Pcm
    scale: float


def measure(clip_id: int, pcm_T: Pcm, scale: float, decoded: Decoded | None = None) -> ClipFacts:
    """The facts of a clip as it is stored; those of its source only from what decoding gave."""
    audio_T = pcm_T.astype(np.float32)
    peak = float(max(pcm_T.max(initial=0), -int(pcm_T.min(initial=0))))
    size, scale = max(len(pcm_T), 1), float(np.float32(scale))  # as the shards hold it
    return ClipFacts(
        clip_id=clip_id,
        samples=len(pcm_T),
        peak=_digits(peak * scale),
        rms=_digits(float(np.sqrt(np.dot(audio_T, audio_T) / size)) * scale),
        mean=_digits(float(audio_T.sum(dtype=np.float64)) / size * scale),
        clipped=_digits(clipped_share(audio_T[:, None] / INT16_PEAK) if decoded is None else decoded.clipped),
        fingerprint=hashlib.sha256(pcm_T.astype("<i2").tobytes()).hexdigest()[:24],
        shape=shape_of(pcm_T),
        source_rate_hz=decoded.source_rate_hz if decoded else None,
        channels=decoded.channels if decoded else None,
        source_peak=_digits(decoded.source_peak) if decoded else None,
    )


def measure_frames(clip_id: int, stored_FM: npt.NDArray[Any]) -> ClipFacts:
    """The facts of a matrix as it is stored."""
    return ClipFacts(
        clip_id=clip_id,
        samples=len(stored_FM),
        peak=_digits(float(stored_FM.max()) - float(stored_FM.min())),
        rms=_digits(float(stored_FM.std(dtype=np.float64))),
        mean=_digits(float(stored_FM.mean(dtype=np.float64))),
        clipped=0.0,
        fingerprint=hashlib.sha256(stored_FM.tobytes()).hexdigest()[:24],
        shape="",
    )


def is_silent(facts: ClipFacts, about: Input) -> bool:
    """Audio below -60 dB, in the file or, where its channels cancel, as their mean; frames that are all one value."""
    if about.kind == "frames":
        return facts.peak == 0
    return min(facts.peak if facts.source_peak is None else facts.source_peak, facts.peak) < SILENT_LEVEL


def _digits(value: float) -> float:
    return float(f"{value:.6g}")


def trim(pcm_T: Pcm) -> Pcm:
    """The clip without the near-silence at its ends; empty where all of it is."""
    loud_T = np.abs(pcm_T) > QUIET
    if not loud_T.any():
        return pcm_T[:0]
    return pcm_T[int(loud_T.argmax()) : len(pcm_T) - int(loud_T[::-1].argmax())]


def shape_of(pcm_T: Pcm) -> str:
    """A hash of the strongest frequencies at the beginning of the trimmed clip; empty for silence."""
    part_T = trim(pcm_T)[:SHAPE_SAMPLES]
    part_T = part_T[: len(part_T) // SHAPE_STEP * SHAPE_STEP]
    if not len(part_T):
        return ""
    strength_F = np.abs(np.fft.rfft(part_T))[1:]
    strongest = np.sort(np.argpartition(strength_F, -SHAPE_BINS)[-SHAPE_BINS:]).astype("<i4")
    return hashlib.blake2b(strongest.tobytes(), digest_size=8).hexdigest()


def alike(a: Audio, b: Audio) -> bool:
    """Whether two clips, trimmed, are one recording: correlation of at least 0.99 at a shift of at most 2 samples."""
    x_T, y_T = (trim(one.pcm_T).astype(np.float64) for one in (a, b))
    if not len(x_T) or not len(y_T) or abs(len(x_T) - len(y_T)) > 0.02 * max(len(x_T), len(y_T)):
        return False
    for shift in range(-2, 3):
        left, right = x_T[max(shift, 0) :], y_T[max(-shift, 0) :]
        size = min(len(left), len(right))
        left, right = left[:size], right[:size]
        if np.dot(left, right) >= 0.99 * np.sqrt(np.dot(left, left) * np.dot(right, right)) > 0:
            return True
    return False


def write_facts(folder: Store, facts: Iterable[ClipFacts]) -> None:
    """One JSON line per clip."""
    with folder.writing(FACTS) as file:
        for one in facts:
            file.write((json.dumps(asdict(one)) + "\n").encode())


def load_clips(folder: Store, manifest: Manifest) -> tuple[Clip, ...]:
    """Every clip of a data set in the order of the listing. Reads audio only where facts.jsonl has not its facts.
    Raises StoreError when a shard is missing or is not what the manifest says."""
    recorded = _read_facts(folder)
    clips = [clip for shard in manifest.shards for clip in _clips_of(folder, shard, manifest.data_spec, recorded)]
    return tuple(sorted(clips, key=lambda clip: clip.facts.clip_id))


def _read_facts(folder: Store) -> dict[int, ClipFacts]:
    if not folder.exists(FACTS):
        return {}
    try:
        facts = [ClipFacts(**json.loads(line)) for line in folder.read(FACTS).splitlines()]
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"{folder.uri}/{FACTS} must hold one clip's facts on every line, but cannot be read: {error}; "
            "delete it, and the facts are measured from the shards"
        ) from error
    return {one.clip_id: one for one in facts}


def _clips_of(folder: Store, shard: ShardFile, spec: DataSpec, recorded: dict[int, ClipFacts]) -> list[Clip]:
    """The clips of one file; those whose facts are missing, or are of other audio, are measured."""
    try:
        columns = ["clip_id", "name", "group", "tags", "n_samples"]
        size, table = from_file(folder, shard.name, lambda file: (file.size(), pq.read_table(file, columns=columns)))
        rows = table.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"cannot read {folder.uri}/{shard.name}: {error}. Prepare the data set again") from error
    if len(rows) != sum(shard.row_groups) or size != shard.bytes:
        raise StoreError(
            f"{folder.uri}/{shard.name} has {len(rows)} clips in {size} bytes where the manifest says "
            f"{sum(shard.row_groups)} in {shard.bytes}: the shards were changed after prepare; prepare again"
        )
    clips, first = [], 0
    for place in shard.places():
        part = rows[first : first + place.clips]
        facts = [recorded.get(row["clip_id"]) for row in part]
        if any(one is None or one.samples != row["n_samples"] for one, row in zip(facts, part, strict=True)):
            facts = list(_measure_group(folder, place, spec))
        for row, one in zip(part, facts, strict=True):
            assert one is not None
            silent = is_silent(one, spec.input)
            clips.append(Clip(row["name"], shard.split, row["group"], tuple(row["tags"]), one, place, silent))
        first += place.clips
    return clips


def _measure_group(folder: Store, place: RowGroup, spec: DataSpec) -> list[ClipFacts]:
    clips = read_row_group(folder, place, len(spec.tags), unit_of(spec.input))
    if spec.input.kind == "frames":
        return [measure_frames(*of_clip) for of_clip in zip(clips.clip_id_N.tolist(), clips.stored_N, strict=True)]
    rows = zip(clips.clip_id_N.tolist(), clips.stored_N, clips.scale_N.tolist(), strict=True)
    return [measure(clip_id, pcm_T, scale) for clip_id, pcm_T, scale in rows]


def read_audio(folder: Store, clips: Collection[Clip], n_tags: int) -> dict[int, Audio]:
    """The stored audio of some clips, by clip id. Reads each row group once."""
    wanted = {clip.facts.clip_id for clip in clips}
    found: dict[int, Audio] = {}
    for place in dict.fromkeys(clip.place for clip in clips):
        group = read_row_group(folder, place, n_tags)
        for clip_id, pcm_T, scale in zip(group.clip_id_N.tolist(), group.stored_N, group.scale_N.tolist(), strict=True):
            if clip_id in wanted:
                found[clip_id] = Audio(pcm_T.copy(), scale)
    return found

"""One task of `prepare`: decode some clips, write them as a shard, and leave beside it what that gave."""

import contextlib
import dataclasses
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from atose_ray.audio.io import AudioError, decode_parts, to_pcm16
from atose_ray.data.doctor.facts import ClipFacts, measure, measure_frames
from atose_ray.data.shard_writer import ClipRow, ShardWriter, little_endian
from atose_ray.data.shards import ShardFile, SkippedClip, unit_of
from atose_ray.datasets.base import SourceError
from atose_ray.datasets.frames import matrix_pieces, read_matrix
from atose_ray.datasets.remote import open_source
from atose_ray.storage import SPOOL_BYTES, Store
from atose_ray.types import ClipRef, FrameInput, Input, Split

MAX_SHARD_BYTES = 256 << 20
PART_SHIFT = 32
PARTS = "parts"


@dataclass(frozen=True)
class ShardJob:
    """What one task decodes and writes: everything a worker needs, picklable, without credentials. longest: what the
    clips hold; a longer one becomes several."""

    folder_uri: str
    name: str
    split: Split
    clips: tuple[ClipRef, ...]
    clip_ids: tuple[int, ...]
    tags: tuple[str, ...]
    longest: Input
    peak_normalize: bool
    fold: int | None = None


@dataclass
class ShardResult:
    """What a job gave, counted while its rows go by. files: one, none when no clip could be decoded, more when its
    clips are too long for one.

    clips: rows written. sources, source_bytes: what was read. facts: of every row; left in `parts/` where many results
    are in memory at a time."""

    split: Split
    fold: int | None = None
    files: tuple[ShardFile, ...] = ()
    skipped: list[SkippedClip] = field(default_factory=list)
    tag_counts: Counter[str] = field(default_factory=Counter)
    longest_samples: int = 0
    clips: int = 0
    sources: int = 0
    source_bytes: int = 0
    facts: list[ClipFacts] = field(default_factory=list)

    def skip(self, clip: ClipRef, error: Exception) -> None:
        """A clip that cannot be read. Its name may be bytes that are no UTF-8; the reason is text that is."""
        reason = str(error).encode("utf-8", "backslashreplace").decode()
        self.skipped.append(SkippedClip(name=clip.name, split=clip.split, reason=reason, fold=clip.fold))


RESULT = TypeAdapter(ShardResult)


def write_shard(job: ShardJob) -> ShardResult:
    """Do a job, unless an earlier prepare of the same inputs did. The result comes without its facts."""
    folder = Store(job.folder_uri)
    if folder.exists(part_name(job.name)):
        done = read_part(folder, job.name)
        if all(folder.exists(file.name) for file in done.files):
            return dataclasses.replace(done, facts=[])
    result = decode_shard(job)
    folder.write_json(part_name(job.name), RESULT.dump_python(result, mode="json"))
    return dataclasses.replace(result, facts=[])


def part_name(job: str) -> str:
    """Where the result of a job lies."""
    return f"{PARTS}/{job}.json"


def read_part(folder: Store, job: str) -> ShardResult:
    """The result of a job that was done."""
    return RESULT.validate_python(folder.read_json(part_name(job)))


def decode_shard(job: ShardJob) -> ShardResult:
    """Decode the clips of a job and write them. A clip that cannot be decoded is skipped with its reason."""
    result = ShardResult(job.split, job.fold, sources=len(job.clips))
    result.files = write_rows(Store(job.folder_uri), job, decode_rows(job, result))
    return result


def write_rows(folder: Store, job: ShardJob, rows: Iterator[ClipRow]) -> tuple[ShardFile, ...]:
    """Rows -> files of at most MAX_SHARD_BYTES: NAME.parquet, and NAME-1.parquet ... for what it cannot hold."""
    files: list[ShardFile] = []
    row = next(rows, None)
    while row is not None:
        name = f"{job.name}-{len(files)}.parquet" if files else f"{job.name}.parquet"
        with folder.writing(name) as file:
            writer = ShardWriter(file)
            while row is not None and (writer.bytes == 0 or writer.bytes + row.stored.nbytes <= MAX_SHARD_BYTES):
                writer.add(row)
                row = next(rows, None)
            files.append(writer.finish(name, job.split, job.fold))
    return tuple(files)


def decode_rows(job: ShardJob, result: ShardResult) -> Iterator[ClipRow]:
    """The rows of a job. A file of several clips that follow one another is opened, or fetched, once."""
    numbered = zip(job.clip_ids, job.clips, strict=True)
    for place, members in itertools.groupby(numbered, key=lambda pair: pair[1].source):
        with contextlib.ExitStack() as opened:
            try:
                source, size = opened.enter_context(open_source(place))
            except (SourceError, OSError) as error:
                for _, clip in members:
                    result.skip(clip, error)
                continue
            result.source_bytes += size
            for number, clip in members:
                yield from clip_rows(source, number, clip, job, result)


def clip_rows(
    source: str | bytes | BinaryIO, number: int, clip: ClipRef, job: ShardJob, result: ShardResult
) -> Iterator[ClipRow]:
    """The rows of a file. Those of a long one wait, on the disk where they are many, for its end to be sound."""
    tags, unit = tuple(sorted(job.tags.index(tag) for tag in clip.tags)), unit_of(job.longest)
    parts: list[tuple[float, float, ClipFacts]] = []
    with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES) as spool:
        try:
            for start_s, stored, scale, fact in stored_parts(source, clip, job):
                spool.write(little_endian(stored).tobytes())
                fact = dataclasses.replace(fact, clip_id=number | len(parts) << PART_SHIFT)
                parts.append((start_s, scale, fact))
        except (AudioError, SourceError, OSError) as error:
            result.skip(clip, error)
            return
        result.tag_counts.update({tag: len(parts) for tag in clip.tags})
        spool.seek(0)
        for start_s, scale, fact in parts:
            name = clip.name
            if len(parts) > 1:
                name += f"#t={start_s:g},{start_s + fact.samples / job.longest.rate_hz:g}"
            result.facts.append(fact)
            result.clips += 1
            result.longest_samples = max(result.longest_samples, fact.samples)
            stored = np.frombuffer(spool.read(unit.itemsize * fact.samples), unit)
            yield ClipRow(fact.clip_id, name, clip.group, tags, scale, stored)


def stored_parts(
    source: str | bytes | BinaryIO, clip: ClipRef, job: ShardJob
) -> Iterator[tuple[float, npt.NDArray[Any], float, ClipFacts]]:
    """The clips of a file: where each begins in it, int16 [T] or [F, M], scale, facts. Raises AudioError or
    SourceError, maybe after some."""
    longest = job.longest
    if isinstance(longest, FrameInput):
        for start_s, stored in matrix_pieces(read_matrix(source, clip), longest, clip):
            yield start_s, stored, 1.0, measure_frames(0, stored)
        return
    for decoded in decode_parts(
        source,
        name=None if isinstance(source, (str, bytes)) else str(clip.source),
        sample_rate_hz=longest.sample_rate_hz,
        start_s=clip.start_s,
        end_s=clip.end_s,
        max_seconds=longest.length / longest.rate_hz,
    ):
        pcm_T, scale = to_pcm16(decoded.audio_T, job.peak_normalize)
        yield decoded.start_s, pcm_T, scale, measure(0, pcm_T, scale, decoded)

"""One task of `prepare`: decode some clips, write them as a shard, and leave beside it what that gave."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, cast

import numpy as np
from pydantic import TypeAdapter

from atose_ray.audio.io import AudioError, decode_parts, to_pcm16
from atose_ray.data.doctor.facts import ClipFacts, measure
from atose_ray.data.shard_writer import ClipRow, ShardWriter
from atose_ray.data.shards import ShardFile, SkippedClip
from atose_ray.storage import SPOOL_BYTES, Store, folder_of, is_uri
from atose_ray.types import ClipRef, Split

MAX_SHARD_BYTES = 256 << 20
PART_SHIFT = 32
PARTS = "parts"


@dataclass(frozen=True)
class ShardJob:
    """What one task decodes and writes: everything a worker needs, picklable, without credentials."""

    folder_uri: str
    name: str
    split: Split
    clips: tuple[ClipRef, ...]
    clip_ids: tuple[int, ...]
    tags: tuple[str, ...]
    sample_rate_hz: int
    max_clip_seconds: float
    peak_normalize: bool


@dataclass(frozen=True)
class ShardResult:
    """What a job gave. files: one, none when no clip could be decoded, more when its clips are too long for one.

    clips: rows written. sources, source_bytes: what was read. facts: of every row; left in `parts/` where many results
    are held at a time.
    """

    split: Split
    files: tuple[ShardFile, ...]
    skipped: tuple[SkippedClip, ...]
    tag_counts: dict[str, int]
    longest_samples: int
    clips: int
    sources: int
    source_bytes: int
    facts: tuple[ClipFacts, ...]


RESULT = TypeAdapter(ShardResult)


def write_shard(job: ShardJob) -> ShardResult:
    """Do a job, unless an earlier prepare of the same inputs did. The result comes without its facts."""
    folder = Store(job.folder_uri)
    if folder.exists(part_name(job.name)):
        done = read_part(folder, job.name)
        if all(folder.exists(file.name) for file in done.files):
            return dataclasses.replace(done, facts=())
    result = decode_shard(job)
    folder.write_json(part_name(job.name), RESULT.dump_python(result, mode="json"))
    return dataclasses.replace(result, facts=())


def part_name(job: str) -> str:
    """Where the result of a job lies."""
    return f"{PARTS}/{job}.json"


def read_part(folder: Store, job: str) -> ShardResult:
    """The result of a job that was done."""
    return RESULT.validate_python(folder.read_json(part_name(job)))


def decode_shard(job: ShardJob) -> ShardResult:
    """Decode the clips of a job and write them. A clip that cannot be decoded is skipped with its reason."""
    tally = _Tally()
    files = write_rows(Store(job.folder_uri), job, decode_rows(job, tally))
    return ShardResult(
        split=job.split,
        files=files,
        skipped=tuple(tally.skipped),
        tag_counts=dict(tally.tags),
        longest_samples=max((one.samples for one in tally.facts), default=0),
        clips=len(tally.facts),
        sources=len(job.clips),
        source_bytes=tally.source_bytes,
        facts=tuple(tally.facts),
    )


@dataclass
class _Tally:
    """What is counted while the rows of a job go by."""

    facts: list[ClipFacts] = field(default_factory=list)
    skipped: list[SkippedClip] = field(default_factory=list)
    tags: Counter[str] = field(default_factory=Counter)
    source_bytes: int = 0


def write_rows(folder: Store, job: ShardJob, rows: Iterator[ClipRow]) -> tuple[ShardFile, ...]:
    """Rows -> files of at most MAX_SHARD_BYTES: NAME.parquet, and NAME-1.parquet ... for what it cannot hold."""
    files: list[ShardFile] = []
    row = next(rows, None)
    while row is not None:
        name = f"{job.name}-{len(files)}.parquet" if files else f"{job.name}.parquet"
        with folder.writing(name) as file:
            writer = ShardWriter(file)
            while row is not None and (writer.bytes == 0 or writer.bytes + row.pcm_T.nbytes <= MAX_SHARD_BYTES):
                writer.add(row)
                row = next(rows, None)
            files.append(writer.finish(name, job.split))
    return tuple(files)


def decode_rows(job: ShardJob, tally: _Tally) -> Iterator[ClipRow]:
    """The rows of a job. The clips of a long file wait, on the disk where they are many, for its end to be sound."""
    index = {tag: i for i, tag in enumerate(job.tags)}
    for number, clip in zip(job.clip_ids, job.clips, strict=True):
        tags = tuple(sorted(index[tag] for tag in clip.tags))
        with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES) as spool:
            try:
                with open_source(clip.source) as (source, size):
                    facts = [*spool_parts(cast(BinaryIO, spool), source, number, clip, job)]
            except (AudioError, OSError) as error:
                tally.skipped.append(SkippedClip(name=clip.name, split=clip.split, reason=legible(str(error))))
                continue
            tally.source_bytes += size
            tally.tags.update({tag: len(facts) for tag in clip.tags})
            spool.seek(0)
            for start_s, scale, fact in facts:
                name = clip.name
                if len(facts) > 1:
                    name += f"#t={start_s:g},{start_s + fact.samples / job.sample_rate_hz:g}"
                tally.facts.append(fact)
                pcm_T = np.frombuffer(spool.read(2 * fact.samples), "<i2")
                yield ClipRow(fact.clip_id, name, clip.group, tags, scale, pcm_T)


def legible(text: str) -> str:
    """A message about a file whose name is not UTF-8, as text that can be."""
    return text.encode("utf-8", "backslashreplace").decode()


def spool_parts(
    spool: BinaryIO, source: str | bytes | BinaryIO, number: int, clip: ClipRef, job: ShardJob
) -> Iterator[tuple[float, float, ClipFacts]]:
    """Decode a file's clips into `spool` as int16. Gives where each begins in the file, its scale and its facts.

    Raises AudioError, maybe after some.
    """
    parts = decode_parts(
        source,
        name=None if isinstance(source, (str, bytes)) else str(clip.source),
        sample_rate_hz=job.sample_rate_hz,
        start_s=clip.start_s,
        end_s=clip.end_s,
        max_seconds=job.max_clip_seconds,
    )
    for part, decoded in enumerate(parts):
        pcm_T, scale = to_pcm16(decoded.audio_T, job.peak_normalize)
        spool.write(pcm_T.astype("<i2", copy=False).tobytes())
        yield decoded.start_s, scale, measure(number | part << PART_SHIFT, pcm_T, scale, decoded)


@contextlib.contextmanager
def open_source(source: str | bytes) -> Iterator[tuple[str | bytes | BinaryIO, int]]:
    """What the decoder reads, and its bytes; a file in object storage is fetched first, with the store's patience.

    Raises AudioError where there is none, StoreError where the storage does not answer.
    """
    if isinstance(source, bytes):
        yield source, len(source)
    elif is_uri(source):
        folder_uri, name = folder_of(source)
        try:
            with source_store(folder_uri).reading(name) as file:
                yield file, file.seek(0, os.SEEK_END)
        except FileNotFoundError as error:
            raise AudioError(f"{source}: no such file; check the path, or upload the file") from error
    else:
        yield source, os.path.getsize(source) if os.path.exists(source) else 0


source_store = functools.lru_cache(maxsize=64)(Store)  # a file system of its own for every file would be slow

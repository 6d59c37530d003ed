"""Listing -> shards, facts.jsonl and manifest: plan the shards, decode and write each (anywhere), then commit the
manifest. What only decoding knows about a file goes into facts.jsonl, which the doctor reads.

The plan depends on the listing alone, so the shards are the same whatever runs them and however parallel. Beside every
finished shard stands what writing it gave (`parts/`), until the manifest is there: a killed prepare goes on with the
shards that lack it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from atose_ray.audio.io import AudioError, decode, to_pcm16
from atose_ray.data.doctor_facts import ClipFacts, measure, write_facts
from atose_ray.data.shards import MANIFEST, ClipRow, Manifest, ShardFile, SkippedClip, data_store, encode_shard
from atose_ray.datasets.base import DatasetConfig
from atose_ray.store import Store
from atose_ray.types import SPLITS, ClipRef, DataSpec, Listing, Split

FORMAT_VERSION = 1
MAX_SHARD_CLIPS = 128
MIN_SHARD_CLIPS = 16
INPUTS, PARTS = "inputs.json", "parts"


class PrepareError(ValueError):
    """A data set that cannot become shards: the message says what was found and the way out."""


@dataclass(frozen=True)
class ShardJob:
    """One shard to write: everything a worker needs, picklable, without credentials."""

    folder_uri: str
    name: str
    split: Split
    clips: tuple[ClipRef, ...]
    clip_ids: tuple[int, ...]
    tags: tuple[str, ...]
    sample_rate_hz: int
    peak_normalize: bool


@dataclass(frozen=True)
class ShardResult:
    """What writing a shard gave. file is None when no clip of it could be decoded. facts: of every clip written."""

    file: ShardFile | None
    skipped: tuple[SkippedClip, ...]
    tag_counts: dict[str, int]
    longest_samples: int
    clips: int
    seconds: float
    facts: tuple[ClipFacts, ...]


RunJobs = Callable[[list[ShardJob]], Iterable[ShardResult]]


def run_here(jobs: list[ShardJob]) -> Iterable[ShardResult]:
    """Write the shards one after the other in this process."""
    return map(write_shard, jobs)


def prepare(config: DatasetConfig, store: Store, run_jobs: RunJobs = run_here) -> tuple[Manifest, bool]:
    """Write a data set's shards and manifest. Returns the manifest and whether anything was written.

    Raises PrepareError when no clip can be decoded, ValueError (DatasetError, StoreError) for a bad source or store.
    """
    listing = config.list_clips()
    folder = data_store(store, listing.name)
    inputs_hash = hash_inputs(config, listing)
    if folder.exists(MANIFEST):
        old = folder.read_json(MANIFEST)
        if old.get("inputs_hash") == inputs_hash:
            return Manifest.model_validate(old), False
    folder.check_writable()
    if not (folder.exists(INPUTS) and folder.read_json(INPUTS) == inputs_hash):
        folder.delete(MANIFEST)
        for name in folder.names():
            folder.delete(name)
        folder.write_json(INPUTS, inputs_hash)
    for name in folder.names():
        if name.endswith(".partial"):  # a write that was cut short
            folder.delete(name)
    results = list(run_jobs(plan_shards(listing, config.sample_rate_hz, folder.uri)))
    manifest = assemble(config, listing, results, inputs_hash)
    write_facts(folder, [facts for result in results for facts in result.facts])
    folder.write_json(MANIFEST, manifest.model_dump(mode="json"))
    folder.delete(PARTS)
    folder.delete(INPUTS)
    return manifest, True


def plan_shards(listing: Listing, sample_rate_hz: int, folder_uri: str) -> list[ShardJob]:
    """Clips -> shard jobs: every split on its own, its clips in a fixed random order, so that a row group is a mixture.

    Clip ids are positions in the listing.
    """
    jobs: list[ShardJob] = []
    for split in SPLITS:
        ids = np.array([i for i, clip in enumerate(listing.clips) if clip.split == split], np.int64)
        ids = np.random.default_rng(len(ids)).permutation(ids)
        size = min(MAX_SHARD_CLIPS, max(MIN_SHARD_CLIPS, len(ids) // 16))
        for number, first in enumerate(range(0, len(ids), size)):
            members = tuple(ids[first : first + size].tolist())
            jobs.append(
                ShardJob(
                    folder_uri=folder_uri,
                    name=f"{split}-{number:05d}.parquet",
                    split=split,
                    clips=tuple(listing.clips[i] for i in members),
                    clip_ids=members,
                    tags=listing.tags,
                    sample_rate_hz=sample_rate_hz,
                    peak_normalize=listing.peak_normalize,
                )
            )
    return jobs


def write_shard(job: ShardJob) -> ShardResult:
    """Decode the clips of one shard and write it, unless an earlier prepare of the same inputs did."""
    folder, part = Store(job.folder_uri), f"{PARTS}/{job.name}.json"
    adapter = TypeAdapter(ShardResult)
    if folder.exists(part):
        done: ShardResult = adapter.validate_python(folder.read_json(part))
        if done.file is None or folder.exists(done.file.name):
            return done
    result = decode_shard(job)
    folder.write_json(part, adapter.dump_python(result, mode="json"))
    return result


def decode_shard(job: ShardJob) -> ShardResult:
    """Decode the clips of one shard and write it. A clip that cannot be decoded is skipped with its reason."""
    index = {tag: i for i, tag in enumerate(job.tags)}
    rows: list[ClipRow] = []
    facts: list[ClipFacts] = []
    skipped: list[SkippedClip] = []
    for clip_id, clip in zip(job.clip_ids, job.clips, strict=True):
        try:
            decoded = decode(clip.source, sample_rate_hz=job.sample_rate_hz, start_s=clip.start_s, end_s=clip.end_s)
        except AudioError as error:
            skipped.append(SkippedClip(name=clip.name, split=clip.split, reason=str(error)))
            continue
        pcm_T, scale = to_pcm16(decoded.audio_T, job.peak_normalize)
        tags = tuple(sorted(index[tag] for tag in clip.tags))
        rows.append(ClipRow(clip_id, clip.name, clip.group, tags, scale, pcm_T))
        facts.append(measure(clip_id, pcm_T, scale, decoded))
    counts = Counter(job.tags[tag] for row in rows for tag in row.tags)
    longest = max((len(row.pcm_T) for row in rows), default=0)
    seconds = sum(len(row.pcm_T) for row in rows) / job.sample_rate_hz
    file = _commit(job, rows)
    return ShardResult(file, tuple(skipped), dict(counts), longest, len(rows), seconds, tuple(facts))


def _commit(job: ShardJob, rows: list[ClipRow]) -> ShardFile | None:
    if not rows:
        return None
    content, row_groups = encode_shard(rows)
    Store(job.folder_uri).write(job.name, content)
    digest = hashlib.sha256(content).hexdigest()
    return ShardFile(name=job.name, split=job.split, row_groups=row_groups, bytes=len(content), sha256=digest)


def assemble(config: DatasetConfig, listing: Listing, results: list[ShardResult], inputs_hash: str) -> Manifest:
    """The manifest of finished shards. Raises PrepareError when nothing could be decoded."""
    shards = sorted((r.file for r in results if r.file is not None), key=lambda shard: shard.name)
    skipped = sorted((s for r in results for s in r.skipped), key=lambda clip: clip.name)
    if not shards:
        reasons = "\n  ".join(f"{clip.name}: {clip.reason}" for clip in skipped[:5]) or "the listing is empty"
        raise PrepareError(
            f"none of the {len(listing.clips)} clips of {listing.name!r} could be decoded; first reasons:\n"
            f"  {reasons}\ncheck that --source is the folder that the annotations' paths start from"
        )
    counts: dict[str, dict[Split, int]] = {tag: dict.fromkeys(SPLITS, 0) for tag in listing.tags}
    clips: Counter[Split] = Counter()
    for result in results:
        if result.file is not None:
            clips[result.file.split] += result.clips
            for tag, count in result.tag_counts.items():
                counts[tag][result.file.split] += count
    digest = hashlib.sha256("".join(f"{shard.name}:{shard.sha256}\n" for shard in shards).encode()).hexdigest()
    return Manifest(
        dataset=config.model_dump(mode="json"),
        data_spec=DataSpec(
            sample_rate_hz=config.sample_rate_hz,
            clip_samples=max(result.longest_samples for result in results),
            tags=listing.tags,
            exclusive=listing.exclusive,
            peak_normalize=listing.peak_normalize,
            counts={split: clips[split] for split in SPLITS},
        ),
        shards=tuple(shards),
        tag_counts=counts,
        skipped=tuple(skipped),
        left_out=dict(listing.left_out),
        inputs_hash=inputs_hash,
        content_hash=digest,
    )


def hash_inputs(config: DatasetConfig, listing: Listing) -> str:
    """SHA-256 of everything the shards depend on: settings, the listing, and each file's size and modification time."""
    digest = hashlib.sha256(f"{FORMAT_VERSION} {config.model_dump_json()}".encode())
    for clip in listing.clips:
        digest.update(json.dumps([clip.name, clip.tags, clip.split, clip.group, clip.start_s, clip.end_s]).encode())
        if isinstance(clip.source, bytes):
            digest.update(hashlib.sha256(clip.source).digest())
            continue
        path = Path(clip.source)
        stat = path.stat() if path.exists() else None
        digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode() if stat else b"absent")
    return digest.hexdigest()

"""Listing -> shards, facts.jsonl and manifest: plan the shards, decode and write each (anywhere), then commit the
manifest. What only decoding knows about a file goes into facts.jsonl, which the doctor reads.

The plan depends on the listing alone, so the shards are the same whatever runs them and however parallel. Beside the
shards of a finished job stands what writing them gave (`parts/`), until the manifest is there: a killed prepare goes on
with the jobs that lack it.

Memory does not grow with the length of the files: a file longer than `max_clip_seconds` becomes several clips
(`long.wav#t=600,1200`, with the tags of the file), decoded in blocks, and a shard that is full goes on in another file.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from atose_ray.data.doctor.facts import write_facts
from atose_ray.data.shard_job import PARTS, ShardJob, ShardResult, read_part, write_shard
from atose_ray.data.shards import MANIFEST, Manifest, data_store
from atose_ray.datasets.base import DatasetConfig
from atose_ray.datasets.remote import list_source
from atose_ray.storage import Store, is_uri
from atose_ray.types import SPLITS, DataSpec, Input, Listing, Split

FORMAT_VERSION = 3  # 3: resampled by libsoxr; what an older one prepared stays valid, and prepare makes it anew
MAX_SHARD_CLIPS, MIN_SHARD_CLIPS = 128, 16
INPUTS = "inputs.json"


class PrepareError(ValueError):
    """A data set that cannot become shards: the message says what was found, and what to do."""


RunJobs = Callable[[list[ShardJob]], Iterable[ShardResult]]


def run_here(jobs: list[ShardJob]) -> Iterable[ShardResult]:
    """Write the shards one after the other in this process."""
    return map(write_shard, jobs)


def prepare(config: DatasetConfig, store: Store, run_jobs: RunJobs = run_here) -> tuple[Manifest, bool]:
    """Write a data set's shards and manifest. Returns the manifest and whether anything was written. Raises
    PrepareError when no clip can be decoded, ValueError (DatasetError, StoreError) for a bad source or store."""
    listing = list_source(config)
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
    drop_partial(folder)
    longest = config.longest_clip(listing.clips)
    jobs = plan_shards(listing, longest, folder.uri)
    results = list(run_jobs(jobs))
    drop_partial(folder)  # a node that was lost on the way may have left some
    manifest = assemble(config, listing, longest, results, inputs_hash)
    write_facts(folder, (facts for job in jobs for facts in read_part(folder, job.name).facts))
    folder.write_json(MANIFEST, manifest.model_dump(mode="json"))
    folder.delete(PARTS)
    folder.delete(INPUTS)
    return manifest, True


def drop_partial(folder: Store) -> None:
    """Remove what writes that were cut short left."""
    for name in folder.names():
        if name.endswith(".partial"):
            folder.delete(name)


def plan_shards(listing: Listing, longest: Input, folder_uri: str) -> list[ShardJob]:
    """Clips -> shard jobs: every split on its own, its clips in a fixed random order, so that a row group is a mixture.
    Clip ids are positions in the listing; those of a file's further clips have their number in the upper 32 bits."""
    jobs: list[ShardJob] = []
    for split in SPLITS:
        ids = np.array([i for i, clip in enumerate(listing.clips) if clip.split == split], np.int64)
        ids = np.random.default_rng(len(ids)).permutation(ids)
        size = min(MAX_SHARD_CLIPS, max(MIN_SHARD_CLIPS, len(ids) // 16))
        for number, first in enumerate(range(0, len(ids), size)):
            members = tuple(ids[first : first + size].tolist())
            clips, name = tuple(listing.clips[i] for i in members), f"{split}-{number:05d}"
            jobs.append(
                ShardJob(folder_uri, name, split, clips, members, listing.tags, longest, listing.peak_normalize)
            )
    return jobs


def assemble(
    config: DatasetConfig, listing: Listing, longest: Input, results: list[ShardResult], inputs_hash: str
) -> Manifest:
    """The manifest of finished shards. Raises PrepareError when nothing could be decoded."""
    shards = sorted((file for result in results for file in result.files), key=lambda shard: shard.name)
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
        clips[result.split] += result.clips
        for tag, count in result.tag_counts.items():
            counts[tag][result.split] += count
    digest = hashlib.sha256("".join(f"{shard.name}:{shard.sha256}\n" for shard in shards).encode()).hexdigest()
    return Manifest(
        name=listing.name,
        dataset=config.model_dump(mode="json"),
        data_spec=DataSpec(
            input=longest.of_length(max(result.longest_samples for result in results)),
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
    remote: dict[str, str] = {}
    if config.source is not None and is_uri(config.source):
        source = Store(config.source)
        remote = {source.uri_of(*one.name.split("/")): f"{one.size} {one.mtime_ns}" for one in source.files()}
    for clip in listing.clips:
        digest.update(json.dumps([clip.name, clip.tags, clip.split, clip.group, clip.start_s, clip.end_s]).encode())
        if isinstance(clip.source, bytes):
            digest.update(hashlib.sha256(clip.source).digest())
        else:
            digest.update((remote.get(clip.source, "absent") if is_uri(clip.source) else _stamp(clip.source)).encode())
    return digest.hexdigest()


def _stamp(path: str) -> str:
    try:
        stat = Path(path).stat()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return "absent"
    return f"{stat.st_size} {stat.st_mtime_ns}"

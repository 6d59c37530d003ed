"""Listing -> shards, facts.jsonl and manifest: plan the shards, decode and write each (anywhere), then commit the
manifest. What only decoding knows about a file goes into facts.jsonl, which the doctor reads.

A prepared set is never changed and never deleted by a later prepare: it stands in a folder named after its content, and
`current.json` says which content the set's name means. What is not finished stands in `preparing-<inputs>/`.

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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from atose_ray.data.doctor.facts import write_facts
from atose_ray.data.shard_job import ShardJob, ShardResult, read_part, write_shard
from atose_ray.data.shards import CURRENT, MANIFEST, Fold, Manifest, folder_name
from atose_ray.datasets.base import DatasetConfig
from atose_ray.datasets.remote import list_source
from atose_ray.storage import Store, is_uri
from atose_ray.types import SPLITS, DataSpec, Input, Listing, Split

FORMAT_VERSION = 4  # 3: resampled by libsoxr; 4: folds. What an older one prepared stays valid; prepare makes it anew
MAX_SHARD_CLIPS, MIN_SHARD_CLIPS = 128, 16
PREPARING = "preparing-"
MOVES = 8  # shards that are moved at a time


class PrepareError(ValueError):
    """A data set that cannot become shards: the message says what was found, and what to do."""


RunJobs = Callable[[list[ShardJob]], Iterable[ShardResult]]


def run_here(jobs: list[ShardJob]) -> Iterable[ShardResult]:
    """Write the shards one after the other in this process."""
    return map(write_shard, jobs)


def prepare(
    config: DatasetConfig, store: Store, run_jobs: RunJobs = run_here, name: str | None = None
) -> tuple[Manifest, bool]:
    """Write a data set's shards and manifest under a name (default: the listing's), and let the name mean them. Returns
    the manifest and whether anything was written. Raises PrepareError when no clip can be decoded, ValueError
    (DatasetError, StoreError) for a bad source or store."""
    listing = list_source(config)
    place = store.child("data", name or listing.name)
    inputs_hash = hash_inputs(config, listing)
    found = prepared_before(place, inputs_hash)
    if found is not None:
        return found, False
    place.check_writable()
    work = place.child(f"{PREPARING}{folder_name(inputs_hash)}")
    drop_partial(work)
    longest = config.longest_clip(listing.clips)
    jobs = plan_shards(listing, longest, work.uri)
    results = list(run_jobs(jobs))
    drop_partial(work)  # a node that was lost on the way may have left some
    manifest = assemble(config, listing, longest, results, inputs_hash)
    manifest = manifest.model_copy(update={"name": name or listing.name})
    commit(manifest, jobs, work, place)
    return manifest, True


def prepared_before(place: Store, inputs_hash: str) -> Manifest | None:
    """The manifest of these inputs, if they were prepared already; the set's name then means it (again)."""
    now = place.read_json(CURRENT) if place.exists(CURRENT) else {"folder": "", "inputs_hash": ""}
    finished = [name for name in place.names() if place.exists(f"{name}/{MANIFEST}") and not name.startswith(PREPARING)]
    for name in finished:
        tree = place.read_json(f"{name}/{MANIFEST}")
        if inputs_hash == (now["inputs_hash"] if name == now["folder"] else tree["inputs_hash"]):
            if name != now["folder"]:
                place.write_json(CURRENT, {"folder": name, "inputs_hash": inputs_hash})
            return Manifest.model_validate(tree)
    return None


def commit(manifest: Manifest, jobs: list[ShardJob], work: Store, place: Store) -> None:
    """Move the shards from where they were written to the folder of their content, and let the name mean it. Where that
    content is there already (from files of other dates), nothing of it is touched."""
    folder = place.child(folder_name(manifest.content_hash))
    if not folder.exists(MANIFEST):
        with ThreadPoolExecutor(MOVES) as pool:
            list(pool.map(lambda shard: work.move(shard.name, folder), manifest.shards))
        write_facts(folder, (facts for job in jobs for facts in read_part(work, job.name).facts))
        folder.write_json(MANIFEST, manifest.model_dump(mode="json"))
    place.write_json(CURRENT, {"folder": folder_name(manifest.content_hash), "inputs_hash": manifest.inputs_hash})
    place.delete(f"{PREPARING}{folder_name(manifest.inputs_hash)}")


def drop_partial(folder: Store) -> None:
    """Remove what writes that were cut short left."""
    for name in folder.names():
        if name.endswith(".partial"):
            folder.delete(name)


def plan_shards(listing: Listing, longest: Input, folder_uri: str) -> list[ShardJob]:
    """Clips -> shard jobs: every split, or fold, on its own, its clips in a fixed random order, so that a row group is
    a mixture. Clip ids are positions in the listing; those of a file's further clips have their number in the upper 32
    bits."""
    parts: dict[tuple[Split, int | None], list[int]] = {(split, None): [] for split in SPLITS}
    for index, clip in enumerate(listing.clips):
        parts.setdefault((clip.split, clip.fold), []).append(index)
    jobs: list[ShardJob] = []
    for (split, fold), members in parts.items():
        ids = np.random.default_rng(len(members)).permutation(np.array(members, np.int64))
        size = min(MAX_SHARD_CLIPS, max(MIN_SHARD_CLIPS, len(ids) // 16))
        about = (listing.tags, longest, listing.peak_normalize, fold)
        for number, first in enumerate(range(0, len(ids), size)):
            chosen = tuple(ids[first : first + size].tolist())
            name = f"{split if fold is None else f'fold{fold}'}-{number:05d}"
            jobs.append(ShardJob(folder_uri, name, split, tuple(listing.clips[i] for i in chosen), chosen, *about))
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
    spec = DataSpec(
        input=longest.of_length(max(result.longest_samples for result in results)),
        tags=listing.tags,
        exclusive=listing.exclusive,
        peak_normalize=listing.peak_normalize,
        counts={split: clips[split] for split in SPLITS},
    )
    facts = spec.model_dump_json() + "".join(f"{s.name}:{s.split}:{s.fold}:{s.sha256}\n" for s in shards)
    return Manifest(
        name=listing.name,
        dataset=config.model_dump(mode="json"),
        data_spec=spec,
        shards=tuple(shards),
        tag_counts=counts,
        folds=folds_of(listing.tags, results),
        skipped=tuple(skipped),
        left_out=dict(listing.left_out),
        inputs_hash=inputs_hash,
        content_hash=hashlib.sha256(facts.encode()).hexdigest(),
    )


def folds_of(tags: tuple[str, ...], results: list[ShardResult]) -> tuple[Fold, ...]:
    """What each fold holds; nothing where the set has none."""
    folds = []
    for number in sorted({result.fold for result in results if result.fold is not None}):
        of_fold = [result for result in results if result.fold == number]
        counts = sum((result.tag_counts for result in of_fold), Counter[str]())
        clips = sum(result.clips for result in of_fold)
        folds.append(Fold(number=number, clips=clips, tag_counts={tag: counts[tag] for tag in tags}))
    return tuple(folds)


def hash_inputs(config: DatasetConfig, listing: Listing) -> str:
    """SHA-256 of everything the shards depend on: settings, the listing, and each file's size and modification time."""
    digest = hashlib.sha256(f"{FORMAT_VERSION} {config.model_dump_json()}".encode())
    remote: dict[str, str] = {}
    if config.source is not None and is_uri(config.source):
        source = Store(config.source)
        remote = {source.uri_of(*one.name.split("/")): f"{one.size} {one.mtime_ns}" for one in source.files()}
    for clip in listing.clips:
        about = [clip.name, clip.tags, clip.split, clip.fold, clip.group, clip.start_s, clip.end_s]
        digest.update(json.dumps(about).encode())
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

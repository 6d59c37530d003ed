"""The doctor's checks of tags, groups and splits: they need no audio."""

import re
from collections.abc import Iterator

import numpy as np

from atose_ray.data.batches import check_trainable
from atose_ray.data.doctor.facts import Clip
from atose_ray.data.doctor.findings import OWN_SPLITS, Finding, finding, kind_of
from atose_ray.data.doctor.words import Count, first_few, share
from atose_ray.data.shards import Manifest
from atose_ray.storage import StoreError
from atose_ray.types import SPLITS

SYNONYM_OVERLAP = 0.95  # of the clips that carry one of two tags, how many carry both
FEW_CLIPS = 5  # with fewer clips, two tags may coincide by chance
RARE = 10
TAG_ROWS = 1 << 13
NEARLY_ALL = 0.95
IMBALANCE = 10


def examine_splits(manifest: Manifest, clips: tuple[Clip, ...]) -> Iterator[Finding]:
    """Splits too small to train on, groups in two of them, and tags that cannot be learned or scored."""
    try:
        check_trainable(manifest.model_copy(update={"tag_counts": {}}), 1)
    except StoreError as error:
        yield finding("split too small", reason=error)
    yield from _groups(manifest, clips)
    yield from _never_positive(manifest)
    yield from _counts(manifest)
    yield from _synonyms(manifest, clips_with_both(manifest, clips))
    untagged = sum(not clip.tags for clip in clips)
    if untagged:
        yield finding("no tags", clips=share(untagged, len(clips)))
    for reason, count in manifest.left_out.items():
        yield finding("left out", clips=Count(count), reason=reason)


def tag_matrix(manifest: Manifest, clips: tuple[Clip, ...]) -> np.ndarray:
    """{0, 1} [N, C] of all clips."""
    tags_NC = np.zeros((len(clips), len(manifest.data_spec.tags)))
    for row, clip in enumerate(clips):
        tags_NC[row, list(clip.tags)] = 1
    return tags_NC


def _groups(manifest: Manifest, clips: tuple[Clip, ...]) -> Iterator[Finding]:
    splits_of: dict[str, set[str]] = {}
    for clip in clips:
        if clip.group is not None:
            splits_of.setdefault(clip.group, set()).add(clip.split)
    divided = {group: splits for group, splits in splits_of.items() if len(splits) > 1}
    if not divided:
        return
    some = first_few([f"{group} ({', '.join(s for s in SPLITS if s in divided[group])})" for group in divided], 5)
    name = "group in two splits" if kind_of(manifest) in OWN_SPLITS else "group in two published splits"
    yield finding(name, groups=share(len(divided), len(splits_of)), some=some)


def _never_positive(manifest: Manifest) -> Iterator[Finding]:
    for split in SPLITS:
        never = [tag for tag, counts in manifest.tag_counts.items() if not counts.get(split)]
        if never and manifest.data_spec.counts.get(split):
            tags = share(len(never), len(manifest.tag_counts))
            yield finding(f"never positive in {split}", split=split, tags=tags, some=first_few(never, 8))


def _counts(manifest: Manifest) -> Iterator[Finding]:
    clips = manifest.data_spec.counts.get("train", 0)
    train = {tag: counts.get("train", 0) for tag, counts in manifest.tag_counts.items()}
    rare = [f"{tag} ({count})" for tag, count in sorted(train.items(), key=lambda pair: pair[1]) if 0 < count < RARE]
    if rare:
        yield finding("rare tags", tags=Count(len(rare)), least=RARE, some=first_few(rare, 8))
    common = [tag for tag, count in train.items() if clips and count >= NEARLY_ALL * clips]
    if common and len(train) > 1:
        yield finding("nearly always positive", tags=Count(len(common)), some=first_few(common, 8))
    least, most = min(train.values()), max(train.values())
    if manifest.data_spec.exclusive and most >= IMBALANCE * max(least, 1):
        yield finding("imbalance", most=most, least=least)


def clips_with_both(manifest: Manifest, clips: tuple[Clip, ...]) -> np.ndarray:
    """How many clips carry both of two tags, [C, C]; of millions of clips some thousand at a time."""
    parts = (clips[first : first + TAG_ROWS] for first in range(0, len(clips), TAG_ROWS))
    both_CC = np.zeros((len(manifest.data_spec.tags),) * 2)
    for tags_nC in (tag_matrix(manifest, part) for part in parts):
        both_CC += tags_nC.T @ tags_nC
    return both_CC


def _synonyms(manifest: Manifest, both_CC: np.ndarray) -> Iterator[Finding]:
    tags = manifest.data_spec.tags
    count_C = np.diag(both_CC)
    either_CC = count_C[:, None] + count_C[None, :] - both_CC
    pairs = []
    for a in range(len(tags)):
        for b in range(a + 1, len(tags)):
            overlap = both_CC[a, b] / max(either_CC[a, b], 1)
            if folded(tags[a]) == folded(tags[b]):
                pairs.append(f"{tags[a]} and {tags[b]} (spelling)")
            elif overlap >= SYNONYM_OVERLAP and min(count_C[a], count_C[b]) >= FEW_CLIPS:
                pairs.append(f"{tags[a]} and {tags[b]} ({overlap:.0%} of their clips in common)")
    if pairs:
        yield finding("synonyms", pairs=Count(len(pairs)), some=first_few(pairs, 8))


def folded(tag: str) -> str:
    """A tag without what spelling alone changes: case, hyphens, spaces, the s of a plural."""
    words = re.split(r"[-_\s]+", tag.casefold())
    return "".join(word[:-1] if len(word) > 3 and re.search("[^s]s$", word) else word for word in words)

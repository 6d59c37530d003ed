"""The doctor's checks of tags, groups and splits: they need no audio."""

import re
from collections.abc import Iterator

import numpy as np

from atose_ray.data.batches import check_trainable
from atose_ray.data.doctor.facts import Clip
from atose_ray.data.doctor.findings import OWN_SPLITS, Finding, counted, first_few, kind_of, share
from atose_ray.data.shards import Manifest
from atose_ray.storage import StoreError
from atose_ray.types import SPLITS

SYNONYM_OVERLAP = 0.95  # of the clips that carry one of two tags, how many carry both
FEW_CLIPS = 5  # with fewer clips, two tags may coincide by chance
RARE = 10
NEARLY_ALL = 0.95
IMBALANCE = 10


def examine_splits(manifest: Manifest, clips: tuple[Clip, ...]) -> Iterator[Finding]:
    """Splits too small to train on, groups in two of them, and tags that cannot be learned or scored."""
    try:
        check_trainable(manifest.model_copy(update={"tag_counts": {}}), 1)
    except StoreError as error:
        yield Finding("error", "split too small", str(error), "put clips into that split and prepare again")
    yield from _groups(manifest, clips)
    yield from _never_positive(manifest)
    yield from _counts(manifest)
    tags_NC = tag_matrix(manifest, clips)
    yield from _synonyms(manifest, tags_NC)
    untagged = int((tags_NC.sum(axis=1) == 0).sum())
    if untagged:
        what = f"no tag is on {share(untagged, len(clips))} clips"
        yield Finding("note", "no tags", what, "check that this means that none applies, not that nobody looked")
    for reason, count in manifest.left_out.items():
        what = f"{counted(count, 'annotated clip', 'are')} not listed: {reason}"
        yield Finding("note", "left out", what, "nothing, if this is meant")


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
    how_many = share(len(divided), len(splits_of))
    what = f"{how_many} groups (artist, speaker, recording) are in more than one split: {some}"
    if kind_of(manifest) in OWN_SPLITS:
        hint = "keep each group in one split, or leave the split column out, and prepare again; scores are too high"
        yield Finding("warning", "group in two splits", what, hint)
    else:
        yield Finding("note", "group in two splits", what, "nothing: the published split is so; say it with the scores")


def _never_positive(manifest: Manifest) -> Iterator[Finding]:
    for split in SPLITS:
        never = [tag for tag, counts in manifest.tag_counts.items() if not counts.get(split)]
        if not never or not manifest.data_spec.counts.get(split):
            continue
        what = f"no clip in {split} carries {share(len(never), len(manifest.tag_counts))} tags: {first_few(never, 8)}"
        if split == "train":
            hint = "remove the tag from the annotations, or move a clip that has it into train, and prepare again"
            yield Finding("error", f"never positive in {split}", what, hint)
        else:
            hint = f"move clips into {split}, or know that these tags do not count in its scores"
            yield Finding("warning", f"never positive in {split}", what, hint)


def _counts(manifest: Manifest) -> Iterator[Finding]:
    clips = manifest.data_spec.counts.get("train", 0)
    train = {tag: counts.get("train", 0) for tag, counts in manifest.tag_counts.items()}
    rare = [f"{tag} ({count})" for tag, count in sorted(train.items(), key=lambda pair: pair[1]) if 0 < count < RARE]
    if rare:
        what = f"{counted(len(rare), 'tag', 'have')} fewer than {RARE} clips in train: {first_few(rare, 8)}"
        hint = "expect little of these tags; get more clips, or join them with others"
        yield Finding("note", "rare tags", what, hint)
    common = [tag for tag, count in train.items() if clips and count >= NEARLY_ALL * clips]
    if common and len(train) > 1:
        what = f"{counted(len(common), 'tag', 'are')} on nearly every clip of train: {first_few(common, 8)}"
        hint = "remove them: they tell clips apart as little as rare ones"
        yield Finding("note", "nearly always positive", what, hint)
    least, most = min(train.values()), max(train.values())
    if manifest.data_spec.exclusive and most >= IMBALANCE * max(least, 1):
        what = f"the largest class has {most} clips in train, the smallest {least}"
        yield Finding("note", "imbalance", what, "read the scores per class, and not the accuracy alone")


def _synonyms(manifest: Manifest, tags_NC: np.ndarray) -> Iterator[Finding]:
    tags = manifest.data_spec.tags
    both_CC = tags_NC.T @ tags_NC
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
        what = f"{counted(len(pairs), 'pair')} of tags with one meaning: {first_few(pairs, 8)}"
        yield Finding("warning", "synonyms", what, "join each pair under one name in the annotations and prepare again")


def folded(tag: str) -> str:
    """A tag without what spelling alone changes: case, hyphens, spaces, the s of a plural."""
    words = re.split(r"[-_\s]+", tag.casefold())
    return "".join(word[:-1] if len(word) > 3 and re.search("[^s]s$", word) else word for word in words)

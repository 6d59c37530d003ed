"""Seen, held-out and unseen tags; tracks dealt by the published rule (zsl_splits.npz), by ours, and from files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_TAGS, tiny_tree
from parity_vectors import load

from atose_ray.config import ConfigError, RunConfig, run_config
from atose_ray.data.shards import Manifest, read_tags
from atose_ray.data.tag_splits import published_tracks
from atose_ray.data.views import (
    TagSplit,
    TrackSplit,
    ViewConfig,
    ViewError,
    clip_names,
    split_tracks,
    view_of,
    write_split,
)
from atose_ray.storage import Store
from atose_ray.training.run import make_batches, resolve
from atose_ray.types import SPLITS

DATA = {"dataset": "folder", "crop_seconds": 0.3, "batch_size": 4, "eval_crops": 1}
METHOD = {"kind": "zero_shot", "stages": [{"name": "align", "epochs": 2}]}
WORDS = {"tag_vectors": {"kind": "random", "size": 6}, "method": METHOD}


def test_published_splits_are_the_vectors() -> None:
    arrays = {key: value.numpy() for key, value in load("zsl_splits").items()}
    tags = tuple(map(str, range(21)))
    seed = int(arrays["python_random_seed_tag_split"][0])
    drawn = TagSplit(seen_share=0.8, seed=seed, draw="published").split(tags)
    for names, keys in zip(drawn, ("train_tag_keys", "test_tag_keys"), strict=True):
        assert sorted(map(int, names)) == sorted(arrays[keys])
    tags_NC, seen_C = arrays["tag_by_track"].T, np.isin(np.arange(21), arrays["train_tag_keys"])
    dealt = published_tracks(tags_NC, seen_C, int(arrays["python_random_seed_track_split"][0]))
    for name in ("AB", "B", "A"):
        for part in ("train", "valid"):
            assert dealt[f"{name} {part}"] == arrays[f"{name}_{part}_tracks"].tolist(), (name, part)
    assert dealt["C"] == arrays["C_tracks"].tolist() and dealt["none"] == arrays["tracks_in_no_split"].tolist()
    for count in (1126, 157, 50):
        split = TagSplit(seen_share=0.8).split(tuple(map(str, range(count))))
        assert [len(part) for part in split] == arrays[f"tag_split_sizes_{count}"].tolist()


def test_the_published_rule_drops_clips_and_overlaps_where_ours_does_not() -> None:
    arrays = {key: value.numpy() for key, value in load("zsl_splits").items()}
    tags_NC, seen_C = arrays["tag_by_track"].T, np.isin(np.arange(21), arrays["train_tag_keys"])
    dealt, ours = published_tracks(tags_NC, seen_C, 6), split_tracks(tags_NC, seen_C)
    assert (sum(one.astype(int) for one in ours.values()) == 1).all()  # every clip is in one group
    assert dealt["none"] and set(dealt["AB train"]) & set(dealt["B valid"])
    assert dealt["AB valid"] != sorted(dealt["A valid"] + dealt["B valid"])
    assert set(np.flatnonzero(ours["A"])) - set(dealt["A train"] + dealt["A valid"]) <= set(dealt["none"])


@pytest.mark.parametrize("draw", ["numpy", "published"])
@pytest.mark.parametrize("seed", range(8))
def test_held_out_tags_are_seen_ones(seed: int, draw: str, tmp_path: Path) -> None:
    tags = tuple(f"t{i}" for i in range(20 + seed))
    split = TagSplit(seen_share=0.7, seed=seed, draw=draw, valid_share=0.2)
    (seen, unseen), held_out = split.split(tags), split.held_out_of(tags)
    assert len(held_out) == int(0.2 * len(seen)) and set(held_out) < set(seen) and not set(unseen) & set(seen)
    assert TagSplit(seen_share=0.7, seed=seed, draw=draw).split(tags) == (seen, unseen)  # moves no other tag
    split.write(tags, tmp_path / "split.json")
    again = TagSplit.model_validate({"file": str(tmp_path / "split.json")})
    assert (again.split(tags), again.held_out_of(tags)) == ((seen, unseen), held_out)
    assert TagSplit.model_validate(again.model_dump(mode="json")) == again  # the run's config holds the lists


def test_tag_splits_that_cannot_be(tmp_path: Path) -> None:
    tags = ("a", "b", "c")
    for message, split in (
        ("holds out 0 of 2", TagSplit(seen_share=0.7, valid_share=0.1)),
        ("holds out 2 of 2", TagSplit(unseen=("c",), held_out=("a", "b"))),
        (r"held_out names c, but the tags are a, b", TagSplit(unseen=("c",), held_out=("c",))),
        (r"unseen names x, but the tags are a, b, c", TagSplit(unseen=("x",))),
    ):
        with pytest.raises(ViewError, match=message):
            split.held_out_of(tags)
    with pytest.raises(ValueError, match=r"drawn .valid_share. or listed"):
        TagSplit(seen_share=0.5, valid_share=0.5, held_out=("a",))
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(ValueError, match="must be JSON with the lists unseen, held_out"):
        TagSplit.model_validate({"file": str(tmp_path / "bad.json")})
    with pytest.raises(ValueError, match="cannot read the split file"):
        TagSplit.model_validate({"file": str(tmp_path / "none.json")})
    for data, message in (
        ({"track_split": {}}, "track_split needs a tag split"),
        ({"track_split": {}, "tag_split": {"unseen": ["a"]}}, "deals the tracks A, B or AB.*but data.tracks is all"),
        ({"track_split": {"test": []}, "tag_split": {"unseen": ["a"]}, "tracks": "A"}, "groups that are scored"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_config({"data": data})


def run_of(store: Store, manifest: Manifest, **data: object) -> RunConfig:
    return resolve(run_config({**tiny_tree(), "data": {**DATA, **data}, **WORDS}), store, manifest)


def names_of(store: Store, manifest: Manifest, config: ViewConfig) -> dict[str, list[str]]:
    view, found = view_of(manifest, config, store), {}
    for split in SPLITS:
        names = np.array(clip_names(manifest.folder(store), view.manifest, split), dtype=object)
        found[split] = names[view.rows[split]].tolist()
        assert len(found[split]) == view.manifest.data_spec.counts[split]
        sums = zip(view.manifest.data_spec.tags, view.tags(store, split).sum(axis=0).tolist(), strict=True)
        assert dict(sums) == {tag: counts[split] for tag, counts in view.manifest.tag_counts.items()}
    return found


def test_clips_dealt_anew(tiny_store: Store, tiny_manifest: Manifest, tmp_path: Path) -> None:
    folder = tiny_manifest.folder(tiny_store)
    every = np.concatenate([read_tags(folder, tiny_manifest, split) for split in SPLITS]).astype(bool)
    names = [name for split in SPLITS for name in clip_names(folder, tiny_manifest, split)]
    unseen = tiny_manifest.data_spec.tags.index("steady")
    seen_C = np.arange(4) != unseen
    for tracks, test in (("A", ["B", "C"]), ("B", ["B", "C"]), ("AB", ["A", "B", "C"])):
        data = {"tag_split": {"unseen": ["steady"]}, "tracks": tracks, "track_split": {"seed": 3, "test": test}}
        run = run_of(tiny_store, tiny_manifest, **data)
        found = names_of(tiny_store, tiny_manifest, run.data)
        dealt = published_tracks(every, seen_C, 3)
        for part in ("train", "valid"):
            assert sorted(found[part]) == sorted(names[i] for i in dealt[f"{tracks} {part}"])
        groups = split_tracks(every, seen_C)
        tested_N = np.any([groups[one] for one in test], axis=0)
        tested_N[dealt["none"]] = False
        assert sorted(found["test"]) == sorted(np.array(names)[tested_N].tolist())
        batches = make_batches(run, tiny_manifest, tiny_store.uri)
        for device in (None, torch.device("cpu")):
            kept = make_batches(run, tiny_manifest, tiny_store.uri, device=device)
            assert sum(len(batch.inputs) for batch in kept.train(0)) == len(found["train"])
        assert sum(len(batch.inputs) for batch in batches.evaluate("test")) == len(found["test"])
        write_split(view_of(tiny_manifest, run.data, tiny_store), tiny_store, tmp_path / "clips.json")
        listed = {"tag_split": {"unseen": ["steady"]}, "track_split": {"file": str(tmp_path / "clips.json")}}
        again = run_of(tiny_store, tiny_manifest, **listed)
        assert names_of(tiny_store, tiny_manifest, again.data) == found
        assert again.data.track_split.sha256 and again.signature() != run.signature()
    lists = json.loads((tmp_path / "clips.json").read_text())
    (tmp_path / "clips.json").write_text(json.dumps({**lists, "train": [*lists["train"], "gone.wav"]}))
    with pytest.raises(ViewError, match="was changed since"):
        view_of(tiny_manifest, again.data, tiny_store)
    fresh = TrackSplit.model_validate({"file": str(tmp_path / "clips.json")})
    with pytest.raises(ViewError, match=r"names 1 clips that the set has not, such as gone\.wav"):
        view_of(tiny_manifest, again.data.model_copy(update={"track_split": fresh}), tiny_store)


def test_a_seen_tag_without_a_clip_is_named_with_a_way_out(
    tiny_store: Store, tiny_manifest: Manifest, tmp_path: Path
) -> None:
    """Every clip is high or low, so none of track A can be loud; of the clips that a file lists none is steady."""
    unseen = {"tag_split": {"unseen": ["high", "low"]}}
    with pytest.raises(
        ViewError, match=r"A leaves no clip of loud, steady .*as all of them carry.*take data.tracks=AB"
    ):
        run_of(tiny_store, tiny_manifest, tracks="A", **unseen)
    run_of(tiny_store, tiny_manifest, tracks="AB", **unseen)
    with pytest.raises(ViewError, match=r"A leaves no clip of loud, steady to train on; .* another data.track_split"):
        run_of(tiny_store, tiny_manifest, tracks="A", track_split={}, **unseen)
    names = [f"clip_{index:03d}.wav" for index in range(60)]
    few = {"train": [name for index, name in enumerate(names) if not index // 4 % 2], "valid": names[4:8], "test": []}
    (tmp_path / "few.json").write_text(json.dumps(few))
    data = {"tag_split": {"unseen": ["high"]}, "track_split": {"file": str(tmp_path / "few.json")}}
    with pytest.raises(ViewError, match="file lists no clip of steady under train"):
        run_of(tiny_store, tiny_manifest, **data)


def test_a_view_with_held_out_tags(tiny_store: Store, tiny_manifest: Manifest) -> None:
    split = {"unseen": ["steady"], "held_out": ["loud"]}
    run = run_of(tiny_store, tiny_manifest, tag_split=split, tracks="A")
    view = view_of(tiny_manifest, run.data, tiny_store)
    spec = view.manifest.data_spec
    assert set(spec.tags) == set(TINY_TAGS) - {"steady"} and spec.held_out == ("loud",)
    at = spec.tags.index("loud")
    assert not view.tags(tiny_store, "train")[:, at].any() and view.tags(tiny_store, "valid")[:, at].any()
    plain = tiny_manifest.data_spec
    assert "held_out" not in plain.model_dump(mode="json") and "held_out" in spec.model_dump(mode="json")
    one = run_of(tiny_store, tiny_manifest, tag_split={"unseen": ["steady"]})
    assert set(one.model_dump(mode="json")["data"]["tag_split"]) == {
        "seen_share",
        "seed",
        "unseen",
    }  # identity as it was

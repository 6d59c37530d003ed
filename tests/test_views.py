"""The laws of views (folds, tag splits, track splits, shares) and of class-balanced draws; both trained on for real."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import RATE, render_tiny, tiny_tree

from atose_ray.config import RunConfig, run_config
from atose_ray.data.batches import LocalBatches
from atose_ray.data.prepare import prepare
from atose_ray.data.sampling import ClassQueue, balanced_draws, chosen_share, class_queue
from atose_ray.data.shards import Manifest, read_index, read_tags
from atose_ray.data.views import TagSplit, ViewConfig, ViewError, of_fold, of_tags, split_tracks, view_of
from atose_ray.datasets import dataset_config
from atose_ray.storage import Store, StoreError
from atose_ray.training.loop import fit
from atose_ray.training.run import Job, make_batches, open_run, resolve
from atose_ray.types import SPLITS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Manifest]:
    """The tiny set with a column `fold` (0 to 3) instead of its splits."""
    source = render_tiny(tmp_path_factory.mktemp("folds"), 48)
    lines = (source / "tags.csv").read_text().splitlines()
    header = lines[0].split(",")
    rows = [dict(zip(header, line.split(","), strict=True)) for line in lines[1:]]
    table = [f"{row['path']},{number // 4 % 4},{row['tags']}" for number, row in enumerate(rows)]
    (source / "tags.csv").write_text("\n".join(["path,fold,tags", *table]) + "\n")
    store = Store(str(tmp_path_factory.mktemp("store")))
    return store, prepare(dataset_config("folder", source=str(source), sample_rate_hz=RATE), store, name="folded")[0]


def clips_of(batches: LocalBatches, split) -> list[int]:
    return [int(one) for batch in batches.evaluate(split) for one in batch.clip_id_B]


def folded_run(**data: int) -> RunConfig:
    return run_config(tiny_tree(data={"dataset": "folded", "crop_seconds": 0.3, "batch_size": 8, **data}))


def test_every_clip_is_tested_in_one_fold_and_no_view_has_a_clip_twice(folded) -> None:
    store, manifest = folded
    tested: list[int] = []
    for fold in (0, 1, 2, 3):
        run = resolve(folded_run(fold=fold, eval_crops=1), store, manifest)
        batches = make_batches(run, manifest, store.uri)
        of_split = {split: clips_of(batches, split) for split in SPLITS}
        trained = {int(one) for batch in batches.train(0) for one in batch.clip_id_B}
        assert trained == set(of_split["train"]) and sum(map(len, of_split.values())) == 48
        assert len(set().union(*map(set, of_split.values()))) == 48  # complete and disjoint
        assert {split: len(clips) for split, clips in of_split.items()} == of_fold(manifest, fold).data_spec.counts
        tested += of_split["test"]
    assert sorted(tested) == list(range(48))


def test_what_a_fold_counts_is_what_its_shards_hold(folded) -> None:
    store, manifest = folded
    for fold in (0, 2):
        view = of_fold(manifest, fold)
        for split in SPLITS:
            counted = read_tags(view.folder(store), view, split).sum(axis=0).astype(int).tolist()
            assert counted == [view.tag_counts[tag][split] for tag in view.data_spec.tags]
    assert of_fold(manifest, 0) == manifest == of_fold(manifest, None)
    assert view_of(manifest, ViewConfig(fold=2), store).without_test().manifest.folds == ()


def test_a_run_without_a_fold_is_one_of_the_first(folded) -> None:
    choices: tuple[dict[str, int], ...] = ({}, {"fold": 0}, {"fold": 1})
    first, named, other = (resolve(folded_run(**more), *folded) for more in choices)
    assert first == named and first.data.fold == 0 and first.signature() != other.signature()


def test_folds_that_cannot_be(folded, tiny_manifest, tmp_path) -> None:
    with pytest.raises(ViewError, match=r"data.fold is one of 0, 1, 2, 3, but got 7"):
        of_fold(folded[1], 7)
    with pytest.raises(ViewError, match="has no folds; leave it out, or prepare a set that has some"):
        of_fold(tiny_manifest, 1)
    for table, message in (
        ("path,fold,tags\na.wav,1,x\nb.wav,2,x\n", "needs three folds or more .*has 2: 1, 2"),
        ("path,fold,tags\na.wav,one,x\n", "line 2: fold must be a whole number, but got 'one'"),
        ("path,fold,split,tags\na.wav,1,train,x\n", "both a column split and a column fold"),
        (
            "path,fold,tags,group\na.wav,1,x,g\nb.wav,2,x,g\nc.wav,3,x,h\n",
            "group 'g' in folds 1 and 2, so that what is tested would be known",
        ),
    ):
        (tmp_path / "tags.csv").write_text(table)
        with pytest.raises(ValueError, match=message):
            dataset_config("folder", source=str(tmp_path)).list_clips()


@pytest.mark.parametrize("seed", range(20))
def test_seen_and_unseen_tags_are_all_tags(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, share = int(rng.integers(2, 30)), float(rng.uniform(0.05, 0.95))
    tags = tuple(f"t{i}" for i in range(count))
    split = TagSplit(seen_share=share, seed=seed)
    if not 0 < int(share * count) < count:
        with pytest.raises(ViewError, match="both need one"):
            split.split(tags)
        return
    seen, unseen = split.split(tags)
    assert len(seen) == int(share * count) and sorted(seen + unseen) == sorted(tags) and not set(seen) & set(unseen)
    assert split.split(tags) == (seen, unseen) == TagSplit(unseen=unseen).split(tags)


def test_tag_splits_that_cannot_be() -> None:
    for wrong in ({}, {"seen_share": 0.5, "unseen": ["a"]}):
        with pytest.raises(ValueError, match=r"drawn \(seen_share, seed\) or listed \(unseen\)"):
            TagSplit.model_validate(wrong)
    with pytest.raises(ViewError, match="unseen names c, but the tags are a, b"):
        TagSplit(unseen=("c",)).split(("a", "b"))
    with pytest.raises(ValueError, match=r"data.tracks=A needs a tag split"):
        ViewConfig(tracks="A")


@pytest.mark.parametrize("seed", range(20))
def test_tracks_a_b_and_c_are_all_tracks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    clips, tags = int(rng.integers(1, 40)), int(rng.integers(2, 8))
    tags_NC, seen_C = rng.random((clips, tags)) < 0.3, np.arange(tags) < tags // 2 + (tags == 1)
    groups = split_tracks(tags_NC, seen_C)
    assert (sum(one.astype(int) for one in groups.values()) == 1).all()
    for clip in range(clips):
        seen, unseen = tags_NC[clip, seen_C].any(), tags_NC[clip, ~seen_C].any()
        assert groups["A" if seen and not unseen else "B" if seen else "C"][clip]


def test_a_tag_split_is_trained_on_and_scored_on_seen_tags_only(tiny_store, tiny_manifest, tiny_run, tmp_path) -> None:
    tags = tiny_manifest.data_spec.tags
    data = {"dataset": "folder", "crop_seconds": 0.3, "batch_size": 4, "eval_crops": 1}
    every = {split: read_tags(tiny_manifest.folder(tiny_store), tiny_manifest, split) for split in SPLITS}
    unseen = tags[1]
    for tracks in ("all", "A", "B"):
        split = {"tag_split": {"unseen": [unseen]}, "tracks": tracks}
        run = resolve(tiny_run(data={**data, **split}), tiny_store, tiny_manifest)
        view = view_of(tiny_manifest, run.data, tiny_store)
        assert view.manifest.data_spec.tags == tuple(tag for tag in tags if tag != unseen)
        for device in (None, CPU):  # streamed, and kept in memory
            batches = list(make_batches(run, tiny_manifest, tiny_store.uri, device=device).train(0))
            seen = torch.cat([batch.tags_BC for batch in batches])
            has = every["train"][:, 1].astype(bool)
            others = np.delete(every["train"], 1, axis=1)
            keep = {"all": has | ~has, "A": ~has & others.any(axis=1), "B": has & others.any(axis=1)}[tracks]
            assert len(seen) == keep.sum() == view.manifest.data_spec.counts["train"] > 4
            assert seen.sum(dim=0).tolist() == others[keep].sum(axis=0).tolist()
            assert list(view.tags(tiny_store, "train").sum(axis=0)) == seen.sum(dim=0).tolist()
    opened = open_run(Job(run, tiny_store.uri, str(tmp_path / "run")))
    fit(opened.run, opened.method, opened.batches, opened.folder, device=CPU)
    assert opened.method.spec.tags == view.manifest.data_spec.tags and len(opened.folder.epochs()) > 0


def test_of_exclusive_tags_a_clip_without_a_seen_one_is_in_no_split(tiny_manifest) -> None:
    spec = tiny_manifest.data_spec.model_copy(update={"exclusive": True})
    manifest = tiny_manifest.model_copy(update={"data_spec": spec})
    eye = np.eye(len(spec.tags))
    view = of_tags(manifest, TagSplit(unseen=(spec.tags[0],)), "all", lambda _, __: eye)
    assert all(rows.tolist() == [False, *[True] * (len(spec.tags) - 1)] for rows in view.rows.values())


@pytest.mark.parametrize("seed", range(20))
def test_balanced_draws_take_every_class_equally_often(seed: int) -> None:
    rng = np.random.default_rng(seed)
    clips, tags = int(rng.integers(4, 60)), int(rng.integers(1, 6))
    tags_NC = (np.arange(clips)[:, None] % tags == np.arange(tags)) & (rng.random((clips, 1)) < 0.9)  # one tag, or none
    chosen_N = rng.random(clips) < 0.8
    classes = [tags_NC[:, i] & chosen_N for i in range(tags)] + [~tags_NC.any(axis=1) & chosen_N]
    classes = [one for one in classes if one.any()]
    total = np.zeros(clips, int)
    for epoch in range(7):
        times_N = balanced_draws(tags_NC, chosen_N, seed, epoch)
        assert times_N.sum() == chosen_N.sum() and not times_N[~chosen_N].any()
        assert (times_N == balanced_draws(tags_NC, chosen_N, seed, epoch)).all()
        of_class = [times_N[one].sum() for one in classes]
        assert not of_class or max(of_class) - min(of_class) <= 1
        total += times_N
        of_class = [total[one].sum() for one in classes]
        assert not of_class or max(of_class) - min(of_class) <= 1  # over the whole training too
    for one in classes:
        assert total[one].max() - total[one].min() <= 1  # and so do the clips of a class


def balanced(tiny_run, **more):
    data = {"dataset": "folder", "crop_seconds": 0.3, "batch_size": 8, "sampling": "class_balanced", "eval_crops": 1}
    return tiny_run(data={**data, **more})


def test_class_balanced_batches_keep_the_laws_of_sampling(tiny_store, tiny_manifest, tiny_run) -> None:
    run = balanced(tiny_run)
    one = make_batches(run, tiny_manifest, tiny_store.uri)
    kept = make_batches(run, tiny_manifest, tiny_store.uri, device=CPU)
    for epoch in (0, 3):
        streamed, resident = list(one.train(epoch)), list(kept.train(epoch))
        assert len(streamed) == one.steps()
        for a, b in zip(streamed, resident, strict=True):  # the same batches, however the data is read
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        clips = torch.cat([batch.clip_id_B for batch in streamed])
        crops = torch.cat([batch.inputs for batch in streamed])
        repeated = [clip for clip in clips.unique() if (clips == clip).sum() > 1]
        assert repeated  # rare classes are drawn again, each time another crop
        for clip in repeated:
            assert len(crops[clips == clip].unique(dim=0)) == (clips == clip).sum()
        tags_NC = read_tags(tiny_manifest.folder(tiny_store), tiny_manifest, "train")
        times_N = balanced_draws(tags_NC, np.ones(len(tags_NC), bool), run.seed, epoch)
        assert len(clips) == times_N.sum()
        both = [make_batches(run, tiny_manifest, tiny_store.uri, LocalBatches, rank, 2) for rank in (0, 1)]
        halves = [torch.cat([batch.clip_id_B for batch in half.train(epoch)]) for half in both]
        assert len(halves[0]) == len(halves[1]) and sorted(torch.cat(halves).tolist()) == sorted(clips.tolist())
    assert run.signature() != tiny_run(data={**run.data.model_dump(), "sampling": "uniform"}).signature()


def test_batches_of_the_published_queue(tiny_store, tiny_manifest, tiny_run) -> None:
    """Those of the stream, epoch after epoch, whichever is asked for first, however the data is read, on any rank."""
    run = balanced(tiny_run, sampling="class_queue", batch_size=6)
    tags_NC = read_tags(tiny_manifest.folder(tiny_store), tiny_manifest, "train")
    groups = tiny_manifest.row_groups("train")
    ids_N = np.concatenate([read_index(tiny_manifest.folder(tiny_store), one, 4).clip_id_N for one in groups])
    stream = class_queue(tags_NC, 6, run.seed)
    one = make_batches(run, tiny_manifest, tiny_store.uri)
    late = make_batches(run, tiny_manifest, tiny_store.uri)
    kept = make_batches(run, tiny_manifest, tiny_store.uri, device=CPU)
    both = [make_batches(run, tiny_manifest, tiny_store.uri, LocalBatches, rank, 2) for rank in (0, 1)]
    wanted = {epoch: [next(stream) for _ in range(one.steps())] for epoch in range(3)}
    assert one.steps() * 6 >= len(ids_N) > (one.steps() - 1) * 6
    for epoch in (2, 0, 1):
        found = list(late.train(epoch))
        for batch, same, resident, clip_B in zip(
            found, one.train(epoch), kept.train(epoch), wanted[epoch], strict=True
        ):
            assert np.array_equal(batch.clip_id_B.numpy(), ids_N[clip_B])
            for other in (same, resident):
                assert all(torch.equal(x, y) for x, y in zip(batch, other, strict=True))
        crops, clips = (torch.cat([getattr(batch, name) for batch in found]) for name in ("inputs", "clip_id_B"))
        again = [clip for clip in clips.unique() if (clips == clip).sum() > 1]
        assert again and all(len(crops[clips == c].unique(dim=0)) == (clips == c).sum() for c in again)
        for batch, *halves in zip(found, *(half.train(epoch) for half in both), strict=True):
            ids = [half.clip_id_B for half in halves]
            assert len(ids[0]) == len(ids[1]) and torch.equal(torch.stack(ids, dim=1).ravel(), batch.clip_id_B)
    assert run.signature() != balanced(tiny_run, batch_size=6).signature()


def test_a_class_with_too_few_clips_makes_the_batch_shorter(tiny_store, tiny_manifest, tiny_run) -> None:
    """And a training goes through it; one of which hardly anything is left is refused, as are crops and caches."""
    run = balanced(tiny_run, sampling="class_queue", batch_size=24)
    batches = make_batches(run, tiny_manifest, tiny_store.uri)
    tags_NC = np.zeros((len(batches.chosen_N), 4), np.uint8)
    tags_NC[:3, 0], tags_NC[3:, 1] = 1, 1
    of_all = (24, run.seed, batches.steps())
    batches.queue = ClassQueue(tags_NC, batches.chosen_N, *of_all)
    rows = [len(batch.clip_id_B) for batch in batches.train(0)]
    assert len(rows) == batches.steps() and max(rows) < 24 and max(rows) > 2
    tags_NC[1:] = 0
    batches.queue = ClassQueue(tags_NC, batches.chosen_N, *of_all)
    with pytest.raises(StoreError, match="passes over classes without a clip, and left a batch of fewer than 2"):
        next(batches.train(0))
    for more in ({"crops_per_clip": 2}, {}):
        with pytest.raises(ValueError, match="class_queue draws single crops in batches of its own"):
            tree = run.model_dump()
            tree["data"] |= more
            if not more:
                tree["method"] = {"kind": "probe"}
            RunConfig.model_validate(tree)


def test_a_share_of_a_view_is_one_of_its_clips() -> None:
    rows_N = np.arange(40) % 4 > 0
    half, all_of_it = (chosen_share(3, 40, share, rows_N) for share in (0.5, 1.0))
    assert half.sum() == 15 and (all_of_it == rows_N).all() and not (half & ~rows_N).any()

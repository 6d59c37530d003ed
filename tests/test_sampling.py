"""Laws of data order and crops."""

import itertools

import numpy as np
import pytest

from atose_ray.data import sampling
from atose_ray.data.sampling import (
    RowGroup,
    batch_sizes,
    chosen_share,
    crop_starts,
    eval_share,
    eval_starts,
    train_buffers,
    uniform,
)

GROUPS = [
    RowGroup(f"train-{i}.parquet", g, size, 0)
    for i, sizes in enumerate([(8, 8, 3), (8, 5), (1,)])
    for g, size in enumerate(sizes)
]
CLIPS = sum(group.clips for group in GROUPS)


def places(buffers):
    return [(b.groups[g], r) for b in buffers for g, r in zip(b.group_N.tolist(), b.row_N.tolist(), strict=True)]


@pytest.mark.parametrize("mix", [1, 2, 100])
def test_an_epoch_is_a_permutation(mix: int) -> None:
    everything = {(group, row) for group in GROUPS for row in range(group.clips)}
    epoch = places(train_buffers(GROUPS, seed=3, epoch=5, mix=mix))
    assert len(epoch) == CLIPS and set(epoch) == everything
    assert epoch == places(train_buffers(GROUPS, seed=3, epoch=5, mix=mix))
    assert epoch != places(train_buffers(GROUPS, seed=3, epoch=6, mix=mix))
    assert epoch != places(train_buffers(GROUPS, seed=4, epoch=5, mix=mix))


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_share_nothing_and_have_equally_many(world: int) -> None:
    shares = [places(train_buffers(GROUPS, 1, 2, 2, rank, world)) for rank in range(world)]
    assert {len(share) for share in shares} == {CLIPS // world}
    assert len({place for share in shares for place in share}) == world * (CLIPS // world)


@pytest.mark.parametrize("world", [1, 2])
def test_a_share_holds_the_same_clips_in_every_epoch_and_on_any_ranks(world: int) -> None:
    chosen_N = chosen_share(1, CLIPS, 0.4)
    every = [(group, row) for group in GROUPS for row in range(group.clips)]
    wanted = {place for place, chosen in zip(every, chosen_N, strict=True) if chosen}
    assert len(wanted) == round(0.4 * CLIPS)
    for epoch in (0, 3):
        shares = [places(train_buffers(GROUPS, 1, epoch, 2, rank, world, chosen_N)) for rank in range(world)]
        delivered = {place for share in shares for place in share}
        assert delivered <= wanted and len(delivered) == world * (len(wanted) // world)


def test_shares_are_nested_random_and_at_least_two() -> None:
    masks = [chosen_share(3, 1000, share) for share in (1e-6, 0.1, 0.5, 1.0)]
    assert [int(mask.sum()) for mask in masks] == [2, 100, 500, 1000]
    assert all((small <= large).all() for small, large in itertools.pairwise(masks))
    assert (masks[2] != chosen_share(4, 1000, 0.5)).any()
    halves = masks[2][:500].sum()
    assert 200 < halves < 300


def test_the_whole_as_a_share_is_the_whole() -> None:
    whole = places(train_buffers(GROUPS, 1, 2, 2))
    assert places(train_buffers(GROUPS, 1, 2, 2, times_N=chosen_share(1, CLIPS, 1.0))) == whole


@pytest.mark.parametrize("world", [1, 2])
def test_several_crops_of_every_clip_are_mixed_and_differ(world: int) -> None:
    once = train_buffers(GROUPS, 3, 5, 2)
    seen: dict[tuple[RowGroup, int], set[int]] = {}
    for rank in range(world):
        for buffer in train_buffers(GROUPS, 3, 5, 2, rank, world, crops=4):
            assert buffer.crops == 4
            for g, r, draw in zip(
                *(part.tolist() for part in (buffer.group_N, buffer.row_N, buffer.draw_N)), strict=True
            ):
                seen.setdefault((buffer.groups[g], r), set()).add(draw)
            if len(buffer) > 8:
                assert buffer.row_N[:4].tolist() != [buffer.row_N[0]] * 4, "the crops of a clip do not stand together"
    assert len(seen) == world * (CLIPS // world) and all(draws == {0, 1, 2, 3} for draws in seen.values())
    assert places(train_buffers(GROUPS, 3, 5, 2, crops=1)) == places(once)
    ids, lengths = np.arange(50), np.full(50, 5000)
    starts = [crop_starts(0, 3 * 4 + np.full(50, draw), ids, lengths, 1000) for draw in range(4)]
    assert all((a != b).any() for a, b in itertools.combinations(starts, 2))
    assert (starts[2] == crop_starts(0, 14, ids, lengths, 1000)).all()


def test_a_buffer_reads_only_its_own_row_groups() -> None:
    for buffer in train_buffers(GROUPS, 0, 0, 2):
        assert len(buffer.groups) <= 2
        assert set(buffer.group_N.tolist()) == set(range(len(buffer.groups)))


def test_evaluation_drops_nothing() -> None:
    for world in (1, 2, 3, 7):
        shares = [eval_share(GROUPS, rank, world) for rank in range(world)]
        assert sorted((g for share in shares for g in share), key=repr) == sorted(GROUPS, key=repr)


def test_uniform_is_uniform_and_depends_on_all_three() -> None:
    ids = np.arange(20_000)
    u = uniform(1, 2, ids)
    assert u.min() >= 0 and u.max() < 1
    assert np.abs(np.histogram(u, 20)[0] / 1000 - 1).max() < 0.12
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.02
    for other in (uniform(1, 3, ids), uniform(2, 2, ids), uniform(2, 1, ids)):
        assert abs(np.corrcoef(u, other)[0, 1]) < 0.02


def test_crops_lie_inside_the_clip_or_pad_it() -> None:
    ids = np.arange(3000)
    longer = crop_starts(0, 1, ids, np.full(3000, 150), 100)
    assert longer.min() == 0 and longer.max() == 50
    shorter = crop_starts(0, 1, ids, np.full(3000, 70), 100)
    assert shorter.min() == -30 and shorter.max() == 0
    assert (crop_starts(0, 1, ids, np.full(3000, 100), 100) == 0).all()
    assert (crop_starts(0, 1, ids[7:9], np.array([150, 150]), 100) == longer[7:9]).all()


def test_eval_crops_are_evenly_spaced() -> None:
    assert eval_starts(100, 40, 4) == [0, 20, 40, 60]
    assert eval_starts(100, 40, 1) == [30]
    assert eval_starts(30, 40, 4) == [-5]
    assert eval_starts(40, 40, 4) == [0]


def test_batches_are_as_equal_as_can_be() -> None:
    assert batch_sizes(33, 16) == [11, 11, 11]
    assert batch_sizes(32, 16) == [16, 16]
    assert batch_sizes(0, 16) == []
    for clips in range(1, 90):
        sizes = batch_sizes(clips, 16)
        assert sum(sizes) == clips and max(sizes) <= 16 and max(sizes) - min(sizes) <= 1


def test_no_batch_is_of_one_clip() -> None:
    assert batch_sizes(3, 2) == [3] and batch_sizes(5, 2) == [3, 2] and batch_sizes(1, 2) == [1]
    for clips, size in itertools.product(range(2, 60), range(1, 9)):
        sizes = batch_sizes(clips, size)
        assert sum(sizes) == clips and min(sizes) > 1 and max(sizes) - min(sizes) <= 1
        assert max(sizes) <= max(size, 3)


def test_members_of_tags_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the columns of the whole matrix have them, however many rows are looked through at a time."""
    rng = np.random.default_rng(0)
    tags_NC, chosen_N = (rng.random((50, 6)) < 0.2).astype(np.uint8), rng.random(50) < 0.7
    tags_NC[:, 4] = 0
    wanted = [np.flatnonzero(column_N & chosen_N) for column_N in tags_NC.T.astype(bool)]
    wanted.append(np.flatnonzero(chosen_N & ~tags_NC.any(axis=1)))
    for rows in (7, 50, 1000):
        monkeypatch.setattr(sampling, "TAG_ROWS", rows)
        found = sampling.members_of(tags_NC, chosen_N)
        assert len(found) == 7 and all(map(np.array_equal, found, wanted))

"""Which clips a run trains on, and what a batch of them is."""

from typing import Annotated, Literal

from pydantic import Field

from atose_ray.data.augment import AugmentConfig
from atose_ray.data.memory import Residency
from atose_ray.data.noise import NoiseConfig
from atose_ray.data.sampling import Sampling
from atose_ray.data.views import ViewConfig


class DataConfig(ViewConfig):
    """dataset: name of a prepared set in the store. What of it is trained on: the fields of ViewConfig.

    crop_seconds: length of a clip in a forward pass; None is the encoder's published length, or the longest clip
        where that is shorter; `published` is the encoder's in any case. Shorter clips are zero-padded.
    batch_size: crops per optimizer step over all workers together.
    crops_per_clip: random crops of every clip in an epoch of training: so many from each time a clip is read.
    eval_crops: evenly spaced crops per clip whose scores are averaged at evaluation.
    shuffle_row_groups: how many Parquet row groups, drawn at random, are mixed clip by clip.
    sampling: `uniform` draws every clip once in an epoch, `class_balanced` every tag equally often, `class_queue` as
        AudioTagger does, every batch of all tags: from all over the set, which is slow where clips are not in memory.
    noise: below the crops that are trained on, for clips that were cut out of silence (data/noise.py).
    augment: what else is done to them (data/augment.py).
    residency: where the samples of train and valid are kept (data/memory.py says when `auto` picks which). It changes
        speed, not one bit of a batch, so it is no part of a run's identity.
    content_hash: of the shards; filled in when a run starts, so that other data is another run."""

    dataset: str = "demo"
    crop_seconds: Annotated[float, Field(gt=0, le=600)] | Literal["published"] | None = None
    batch_size: int = Field(default=16, ge=2, le=65_536)
    crops_per_clip: int = Field(default=1, ge=1, le=256)
    eval_crops: int = Field(default=4, ge=1, le=256)
    shuffle_row_groups: int = Field(default=8, ge=1, le=4096)
    sampling: Sampling = "uniform"
    noise: NoiseConfig | None = None
    augment: AugmentConfig | None = None
    residency: Residency = "auto"
    content_hash: str | None = None

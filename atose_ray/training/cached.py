"""A head on a frozen encoder: every crop is encoded once, and the head trains on the embeddings.

The published recipe runs the frozen encoder over a fresh crop of every clip in each of 200 epochs. Here the first K
epochs are those very epochs, and their embeddings are kept; from then on a clip's embedding is drawn among its K. A
stage of at most K epochs is thus the uncached stage to the last bit of the encoder's arithmetic.

Under DDP every rank embeds its share of an epoch, and the ranks exchange their embeddings, so that each holds the
table: clips x K x E float32 (MTAT's train split, K = 8, E = 1024: 0.5 GB per rank)."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from atose_ray.config import RunConfig
from atose_ray.data.batches import BatchSource
from atose_ray.data.memory import free_device_bytes, free_host_bytes
from atose_ray.data.sampling import uniform
from atose_ray.evaluation.parts import Parts
from atose_ray.methods import Method, MethodConfig
from atose_ray.ranks import local_world, rank, world
from atose_ray.training.feed import train_batches
from atose_ray.types import AnyBatch, Array, EmbeddedBatch, Split

CROP_SALT = 0x5EED
ROOM = 0.8  # of the free memory, which embeddings may fill


@dataclass(frozen=True)
class Span:
    """Consecutive stages that share one frozen encoder and so one table. first_epoch: of the run, from 0."""

    first_epoch: int
    crops: int


def cached_span(method: MethodConfig, index: int) -> Span | None:
    """The span that stage `index` belongs to, or None where it keeps no embeddings."""
    crops = method.cached_crops(index)
    if not crops:
        return None
    first, last = index, index + 1
    while first > 0 and method.cached_crops(first - 1) == crops:
        first -= 1
    while last < len(method.stages) and method.cached_crops(last) == crops:
        last += 1
    epochs = [stage.epochs for stage in method.stages]
    return Span(sum(epochs[:first]), min(crops, sum(epochs[first:last])))


def check_room(run: RunConfig, method: Method, sizes: Sequence[int], device: torch.device) -> None:
    """Raises ValueError when a stage would keep more embeddings than this rank's share of the memory holds. sizes: of a
    rank's batches in an epoch."""
    free = free_device_bytes(device) if device.type == "cuda" else free_host_bytes() // local_world(world())
    width, tags, each = method.encoder.embed_dim, len(method.spec.tags), sum(sizes)
    valid = -(-method.spec.counts.get("valid", 0) * run.data.eval_crops // world()) * 4 * (width + tags)
    for index, stage in enumerate(run.method.stages):
        span = cached_span(run.method, index)
        if span is None:
            continue
        need = each * world() * span.crops * (4 * width + tags) + valid
        need += each * width * 4 if world() > 1 else 0  # a rank's own part of an epoch, before all ranks have it
        if need > ROOM * free:
            raise ValueError(
                f"stage {stage.name!r} would keep {need / 1e9:.3g} GB of embeddings ({span.crops} crops of every clip, "
                f"{width} numbers each), but {free / 1e9:.3g} GB are free; give it a smaller `cache`, or `cache: off`"
            )


class CachedEmbeddings:
    """BatchSource of EmbeddedBatch over another source: inputs until each crop was encoded once, then the table.

    The order of an epoch is that of the source while it is encoded, then a permutation of (seed, epoch). The encoder
    must be in eval mode, as Method.train_only leaves it in a stage that does not train it."""

    def __init__(self, method: Method, source: BatchSource, span: Span, seed: int, device: torch.device) -> None:
        self.method, self.source, self.span, self.seed, self.device = method, source, span, seed, device
        self.sizes, self.in_parts = source.sizes, Parts()
        self.embed_RE: torch.Tensor | None = None  # made once, whole, and filled in place: no crop is there twice
        self.encoded: list[tuple[Array, torch.Tensor]] = []  # clip ids and tags (bool) of the epochs that are in it
        self.valid: dict[Split, list[EmbeddedBatch]] = {}
        self.table: Table | None = None

    def steps(self) -> int:
        return self.source.steps()

    def evaluate(self, split: Split) -> Iterator[EmbeddedBatch]:
        """The split's crops, encoded; once for the whole stage."""
        if split not in self.valid:
            self.valid[split] = [self._encode(batch) for batch in self.source.evaluate(split)]
        yield from self.valid[split]

    def train(self, epoch: int, first: int = 0) -> Iterator[EmbeddedBatch]:
        """As many embeddings of every clip as the source has crops of it in an epoch."""
        yield from itertools.islice(self._train(epoch), first, None)  # what is skipped is encoded all the same

    def _train(self, epoch: int) -> Iterator[EmbeddedBatch]:
        position = epoch - self.span.first_epoch
        while len(self.encoded) < min(position, self.span.crops) and self.table is None:  # a run that was resumed
            list(self._encode_epoch(self.span.first_epoch + len(self.encoded)))
        if position < self.span.crops:
            yield from self._encode_epoch(epoch)
            return
        if self.table is None:
            assert self.embed_RE is not None
            self.table, self.encoded = Table(self.embed_RE, self.encoded), []
        yield from self._recall(self.table, epoch)

    def _encode_epoch(self, epoch: int) -> Iterator[EmbeddedBatch]:
        rows, width = sum(self.sizes), self.method.encoder.embed_dim
        if self.embed_RE is None:
            self.embed_RE = torch.empty(self.span.crops * rows * world(), width, device=self.device)
        place = self.embed_RE[(epoch - self.span.first_epoch) * rows * world() :][: rows * world()]
        mine = place if world() == 1 else torch.empty(rows, width, device=self.device)
        ids, tags, first = list[torch.Tensor](), list[torch.Tensor](), 0
        for batch in train_batches(self.source, epoch, self.device):
            encoded = self._encode(batch)
            mine[first : first + len(encoded.clip_id_B)] = encoded.embed_BE
            first += len(encoded.clip_id_B)
            ids.append(encoded.clip_id_B)
            tags.append(encoded.tags_BC.bool())
            yield encoded
        if world() > 1:
            dist.all_gather(list(place.view(world(), rows, width).unbind()), mine)
        clip_id_N = over_all_ranks(torch.cat(ids)).cpu().numpy()
        self.encoded.append((clip_id_N, over_all_ranks(torch.cat(tags))))

    @torch.no_grad()
    def _encode(self, batch: AnyBatch) -> EmbeddedBatch:
        parts = list(self.in_parts(batch, lambda part: self.method.embed(part.to(self.device))))
        return parts[0] if len(parts) == 1 else EmbeddedBatch(*(torch.cat(rows) for rows in zip(*parts, strict=True)))

    def _recall(self, table: "Table", epoch: int) -> Iterator[EmbeddedBatch]:
        clips = len(table.clip_id_N)
        order_N = np.random.default_rng((self.seed, epoch)).permutation(clips * table.per_epoch)
        mine_N = order_N[rank() * (len(order_N) // world()) :]
        mine_N = mine_N[: sum(self.sizes)]
        drawn = table.draw(mine_N % clips, self.seed, epoch * table.per_epoch + mine_N // clips)
        for some in zip(*(torch.split(rows, self.sizes) for rows in drawn), strict=True):
            yield table.batch(*some)


class Table:
    """embed_RE float32: a row for every encoded crop, epoch after epoch; row_NK: which of them are the K crops of N
    clips; has_NK: which were encoded (under W ranks an epoch leaves up to W - 1 clips out); tags_NC; clip_id_N
    ascending; per_epoch: crops of a clip in an epoch. encoded: clip ids and tags (bool) of the rows of each epoch."""

    def __init__(self, embed_RE: torch.Tensor, encoded: Sequence[tuple[Array, torch.Tensor]]) -> None:
        self.embed_RE, device = embed_RE, embed_RE.device
        self.clip_id_N = np.unique(np.concatenate([ids for ids, _ in encoded]))
        rows = [np.searchsorted(self.clip_id_N, ids) for ids, _ in encoded]
        self.per_epoch = max(int(np.bincount(row_N).max()) for row_N in rows)
        clips, crops, first = len(self.clip_id_N), len(encoded) * self.per_epoch, 0
        self.tags_NC = torch.zeros(clips, encoded[0][1].shape[1], device=device)
        self.has_NK, self.row_NK = np.zeros((clips, crops), bool), np.zeros((clips, crops), np.int64)
        for epoch, (row_N, (_, tags)) in enumerate(zip(rows, encoded, strict=True)):
            column_N = epoch * self.per_epoch + _occurrence(row_N)
            self.has_NK[row_N, column_N] = True
            self.row_NK[row_N, column_N] = first + np.arange(len(row_N))
            self.tags_NC[torch.from_numpy(row_N).to(device)] = tags.float()
            first += len(row_N)
        self.first_N = self.has_NK.argmax(axis=1)

    def draw(self, row_B: Array, seed: int, epoch: int | Array) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One of the encoded crops of each clip, drawn by (seed, epoch, clip id): rows of embed_RE, of tags_NC, and
        the clips' ids, where the embeddings lie."""
        clip_id_B = self.clip_id_N[row_B]
        crop_B = (uniform(seed ^ CROP_SALT, epoch, clip_id_B) * self.has_NK.shape[1]).astype(np.int64)
        crop_B = np.where(self.has_NK[row_B, crop_B], crop_B, self.first_N[row_B])
        crops, clips, ids = (
            torch.from_numpy(rows_B).to(self.embed_RE.device)
            for rows_B in (self.row_NK[row_B, crop_B], row_B, clip_id_B)
        )
        return crops, clips, ids

    def batch(self, crop_B: torch.Tensor, row_B: torch.Tensor, clip_id_B: torch.Tensor) -> EmbeddedBatch:
        """What was drawn."""
        return EmbeddedBatch(self.embed_RE[crop_B], self.tags_NC[row_B], clip_id_B)


def _occurrence(row_N: Array) -> Array:
    """How many times each entry stood before it: [4, 2, 4, 4] -> [0, 0, 1, 2]."""
    order_N = np.argsort(row_N, kind="stable")
    first_N = np.searchsorted(row_N[order_N], row_N[order_N])
    occurrence_N: Array = np.empty_like(row_N)
    occurrence_N[order_N] = np.arange(len(row_N)) - first_N
    return occurrence_N


def over_all_ranks(mine: torch.Tensor) -> torch.Tensor:
    """The rows of all ranks, each of which has equally many."""
    if world() == 1:
        return mine
    parts = [torch.empty_like(mine) for _ in range(world())]
    dist.all_gather(parts, mine.contiguous())
    return torch.cat(parts)

"""The downstream probe of a training: what a small classifier finds in its embeddings of another prepared set.

The protocol is that of `python -m atose_ray.probe` (evaluation/probe.py), on one split. Every rank embeds its share of
the clips; rank 0 fits, the others take its scores. Memory holds N x E numbers beside one batch."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch

from atose_ray.config import ConfigError, RunConfig
from atose_ray.data.batches import LocalBatches
from atose_ray.data.downstream import OF_PROBE, DownstreamConfig
from atose_ray.data.shards import Manifest, load_manifest
from atose_ray.data.views import ViewConfig, fold_numbers, view_of
from atose_ray.evaluation.metrics import NonFiniteError
from atose_ray.evaluation.parts import Parts
from atose_ray.evaluation.probe import MULTI_LABEL, Embedded, average_by_clip, repeated
from atose_ray.evaluation.significance import wilson
from atose_ray.methods import Method, StageConfig
from atose_ray.ranks import from_every_rank, is_main
from atose_ray.storage import Store
from atose_ray.types import AnyBatch, Array, DataSpec, Input, Split


class Downstream:
    """The probe of a run. batches: of its set, this rank's share; exclusive: whether its clips have one tag each."""

    def __init__(self, run: RunConfig, batches: LocalBatches, exclusive: bool) -> None:
        assert run.probe is not None
        self.run, self.config, self.batches, self.exclusive = run, run.probe, batches, exclusive

    def after(
        self, epoch: int, stage: StageConfig, end: int, last: Mapping[str, float], method: Method, device: torch.device
    ) -> dict[str, float]:
        """The scores after an epoch: those of the epoch before where the encoder has not changed, or no probe is due.
        end: the last epoch of the stage; last: all scores of the epoch before."""
        trains = "encoder" in self.run.method.trained_parts(stage)
        if epoch > 1 and not (trains and self.config.due(epoch, end)):
            return {name: last[name] for name in OF_PROBE if name in last}
        return self.scores(method, device)

    @torch.no_grad()
    def scores(self, method: Method, device: torch.device, split: Split = "valid") -> dict[str, float]:
        """Fitted on train, scored on `split`, the same on every rank. Raises NonFiniteError where an embedding is NaN
        or infinite."""
        method.eval()

        def encode(batch: AnyBatch) -> torch.Tensor:
            return method.embed(batch.to(device)).embed_BE

        train, tested = (of_all_ranks(embedded(self.batches.evaluate(one), encode)) for one in ("train", split))
        for one in (train, tested):
            broken = int((~np.isfinite(one.embed_NE)).any(axis=1).sum())
            if broken:
                raise NonFiniteError(
                    f"embeddings must be finite, but {broken} of {len(one.embed_NE)} clips of the probe's set "
                    f"{self.config.dataset!r} have NaN or inf"
                )
        found: dict[str, float] = {}
        if is_main():
            values = repeated([(train, tested)], self.config.classifier, range(self.config.seeds), self.exclusive)
            found = {f"probe_{name}": float(np.mean(of_seeds)) for name, of_seeds in values.items()}
        return dict(from_every_rank(found)[0])

    def intervals(self, scores: Mapping[str, float], split: Split) -> dict[str, list[float]]:
        """95 % interval of an accuracy on the clips of a split (Wilson; of several fits, that of their mean)."""
        clips, name = self.batches.manifest.data_spec.counts[split], "probe_accuracy"
        return {name: wilson(round(scores[name] * clips), clips)} if name in scores else {}


def embedded(batches: Iterator[AnyBatch], encode: Callable[[AnyBatch], torch.Tensor]) -> Embedded | None:
    """Every clip once, the mean of its windows' embeddings; None where there is no clip."""
    in_parts, rows = Parts(), list[tuple[Array, Array, Array]]()
    for batch in batches:
        for part in in_parts(batch, lambda part: (encode(part), part.tags_BC, part.clip_id_B)):
            embed_BE, tags_BC, clip_id_B = (one.cpu().numpy() for one in part)
            rows.append((embed_BE, tags_BC.astype(np.float64), clip_id_B))
    return average_by_clip(*map(np.concatenate, zip(*rows, strict=True))) if rows else None


def of_all_ranks(mine: Embedded | None) -> Embedded:
    """The clips of all ranks, in the order of their ids."""
    parts = [part for part in from_every_rank(mine) if part is not None]
    columns = ((part.embed_NE, part.tags_NC, part.clip_id_N) for part in parts)
    whole = Embedded(*map(np.concatenate, zip(*columns, strict=True)))
    return whole.at(np.argsort(whole.clip_id_N))


def with_probe(probe: DownstreamConfig, run: RunConfig, spec: DataSpec, store: Store) -> DownstreamConfig:
    """The probe with the fold and the content of its set filled in. spec: of the training's data. Raises ConfigError
    where the set does not fit the model or the metric, StoreError where it is not prepared."""
    manifest = load_manifest(store, probe.dataset, probe.content_hash)
    own, metric = run.data.fold if probe.dataset == run.data.dataset else None, run.metric
    if own is not None and (own == "all" or probe.fold not in (None, own)):
        raise ConfigError(
            f"probe.dataset={probe.dataset} is the training's own, so its clips of other folds than data.fold={own} "
            "are trained on; leave probe.fold out, with one fold in data.fold"
        )
    first = fold_numbers(manifest)[0] if manifest.folds else None
    fold = probe.fold if probe.fold is not None else first if own is None else own
    set_ = view_of(manifest, ViewConfig(fold=fold), store).manifest
    check_input(spec.input, manifest, "this run's model")
    exclusive, tags = set_.data_spec.exclusive, set_.data_spec.tags
    names = ("probe_accuracy",) if exclusive else tuple(f"probe_{name}" for name in MULTI_LABEL)
    if metric in OF_PROBE and metric not in names:
        raise ConfigError(
            f"metric {metric} is not one of probe.dataset={probe.dataset}, whose clips carry "
            f"{'one tag each' if exclusive else 'several tags'}; take {' or '.join(names)}"
        )
    for split in ("train", "valid"):
        carried = [tag for tag in tags if set_.tag_counts[tag].get(split)]
        if not carried or (split == "train" and len(carried) < (2 if exclusive else 1)):
            raise ConfigError(
                f"probe.dataset={probe.dataset} has {set_.data_spec.counts.get(split, 0)} clips with "
                f"{len(carried)} tags in its {split} split; a probe is fitted on train and scored on valid: prepare a "
                "set with clips of several tags in both"
            )
    return probe.model_copy(update={"fold": fold, "content_hash": manifest.content_hash})


def check_input(here: Input, manifest: Manifest, model: str) -> None:
    """Raises ConfigError where a set holds other clips than a model takes. model: what the message calls it."""
    there = manifest.data_spec.input
    if (here.kind, here.rate_hz, here.bins) != (there.kind, there.rate_hz, there.bins):
        raise ConfigError(
            f"{model} takes {here}, but {manifest.name!r} holds {there}; prepare it so (of audio by --option "
            "sample_rate_hz=...)"
        )

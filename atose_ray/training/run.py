"""Everything between a config and the loop: what it leaves open, data, model, folder, device. The same for a run in
this process, in a trial's actor and in a DDP worker."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from atose_ray.config import ConfigError, DataConfig, RunConfig
from atose_ray.data.augment import changes_of
from atose_ray.data.batches import CropSettings, LocalBatches, share_of_batch
from atose_ray.data.resident import SharedClips, batches_of, kept_in
from atose_ray.data.sampling import Windows
from atose_ray.data.shards import Manifest, load_manifest, unit_of
from atose_ray.data.views import View, fold_numbers, view_of
from atose_ray.encoders import PretrainedConfig
from atose_ray.evaluation.card import CARD, model_card
from atose_ray.evaluation.protocols import CLIP
from atose_ray.evaluation.scoring import Average, ClipScores, score_clips, tag_facts
from atose_ray.evaluation.significance import score_intervals
from atose_ray.evaluation.thresholds import thresholds_by_rule
from atose_ray.methods import Method
from atose_ray.storage import Store
from atose_ray.training.checkpoint import Model, best_model, copy_kept, save_model
from atose_ray.training.downstream import Downstream, with_probe
from atose_ray.training.precision import prepare_for, prepare_to_score
from atose_ray.training.record import RunFolder, test_scorings
from atose_ray.training.sources import begin_with, from_model, tag_set, weigh_tags, with_hash, with_vectors
from atose_ray.types import Split, TagSet


def resolve(run: RunConfig, store: Store, manifest: Manifest) -> RunConfig:
    """The config that is trained: what it leaves open is filled in, once, by the data, a trained encoder, weights to
    begin with, tag vectors and a probe's set. The result is the run's identity; all that it depends on has a hash.

    manifest: of the whole set. Raises ConfigError when metric, encoder or files do not fit, ViewError where the set has
    not what is asked for, StoreError where a file cannot be read."""
    if run.data.fold is None and manifest.folds:
        run = run.model_copy(update={"data": run.data.model_copy(update={"fold": fold_numbers(manifest)[0]})})
    view = view_of(manifest, run.data, store)
    spec = view.manifest.data_spec
    if isinstance(run.encoder, PretrainedConfig):
        run = from_model(run, run.encoder.model, spec)
    if run.metric == "accuracy" and not spec.exclusive:
        raise ConfigError(
            "metric 'accuracy' needs exclusive tags, but clips of this set carry several; use pr_auc_macro (or, of a "
            "folder whose clips have one tag each, prepare it with --option exclusive=true)"
        )
    if run.data.fold == "all" and run.method.stages[-1].patience is not None:
        raise ConfigError(
            "data.fold=all trains all folds epoch by epoch, so none of them may end before the others; leave the "
            "stage's patience out"
        )
    if run.data.noise is not None:
        run.data.noise.check(spec)
    if run.data.augment is not None:
        run.data.augment.check(spec)
    seconds = run.data.crop_seconds
    if seconds == "published":
        seconds = run.encoder.published_length / spec.input.rate_hz
    elif seconds is None:
        seconds = min(run.encoder.published_length, spec.input.length) / spec.input.rate_hz
    data = run.data.model_copy(update={"crop_seconds": seconds, "content_hash": manifest.content_hash})
    run = run.model_copy(update={"data": data})
    run.model_spec(spec)  # or it says why the encoder cannot be built
    init, vectors, probe = run.init_from, run.tag_vectors, run.probe
    if init is not None:
        init = with_hash(init)
    if vectors is not None:
        vectors = with_vectors(vectors, store, view) if run.method.reads_vectors else None
    if probe is not None:
        probe = with_probe(probe, run, spec, store)
    return run.model_copy(update={"init_from": init, "tag_vectors": vectors, "probe": probe})


@dataclass(frozen=True)
class Job:
    """A run to do, picklable and without credentials. run: resolved. about: what the run folder says of it."""

    run: RunConfig
    store_uri: str
    folder_uri: str
    about: dict[str, Any] = field(default_factory=dict)

    def on_device(self, gpus: float) -> "Job":
        """The job for a process with so many GPUs: one without a GPU of its own must not take one."""
        if gpus > 0 or self.run.execution.device != "auto":
            return self
        execution = self.run.execution.model_copy(update={"device": "cpu"})
        return dataclasses.replace(self, run=self.run.model_copy(update={"execution": execution}))


@dataclass
class OpenRun:
    """A run ready for `fit`."""

    run: RunConfig
    method: Method
    batches: LocalBatches
    folder: RunFolder
    device: torch.device
    probe: Downstream | None = None


Reader = Callable[..., LocalBatches]


def open_run(
    job: Job,
    reader: Reader = LocalBatches,
    rank: int = 0,
    world: int = 1,
    lent: SharedClips | None = None,
    note: str | None = None,
) -> OpenRun:
    """Build what a run needs on one rank; rank 0 writes the head of the run folder, with the `note`, if there is one.

    lent: clips in shared memory, for a run that leaves it open where its clips are kept. What comes out cannot read the
    test split: neither its labels nor the names of its files are in it.
    Raises StoreError or ConfigError when the data or the config does not allow it."""
    store = Store(job.store_uri)
    view = view_for(job.run, store)
    torch.manual_seed(job.run.seed)
    tags = tag_set(view.manifest.data_spec.tags, job.run.tag_vectors, store)
    method = job.run.build(view.manifest.data_spec, tags)
    weigh_tags(method, view.manifest)
    if job.run.init_from is not None:
        begin_with(method, job.run.init_from)
    device = pick_device(job.run)
    precision = prepare_for(method, job.run.execution, device)
    folder = RunFolder(Store(job.folder_uri))
    batches = batches_in(view.without_test(), job.run, store.uri, reader, rank, world, device, lent)
    if rank == 0:
        parameters = sum(parameter.numel() for parameter in method.parameters())
        about = {"device": device_name(device), "parameters": parameters, **job.about}
        about |= {"note": note} if note else {}
        about |= {"residency": kept_in(batches), "precision": precision, "threads": torch.get_num_threads()}
        before = folder.about()  # it may be opened again after its end, by a process that Tune had begun for it too
        about["opened"] = before.get("opened", time.time())  # what was before was waiting for resources
        about |= {"latency_ms": before["latency_ms"]} if "latency_ms" in before else {}
        folder.start(job.run, method.spec, about)
    return OpenRun(job.run, method, batches, folder, device, probe_of(job.run, store, rank, world))


def trained_on(run: RunConfig, store: Store) -> Manifest:
    """The prepared set that a run was resolved with. Raises StoreError where the store has that content no more."""
    return load_manifest(store, run.data.dataset, run.data.content_hash)


def view_for(run: RunConfig, store: Store) -> View:
    """What a resolved run sees of its data. Raises StoreError where the store has it no more."""
    return view_of(trained_on(run, store), run.data, store)


def make_batches(run: RunConfig, manifest: Manifest, store_uri: str, *rest: Any, **more: Any) -> LocalBatches:
    """`batches_in` the view of a prepared set that a run asks for."""
    return batches_in(view_of(manifest, run.data, Store(store_uri)), run, store_uri, *rest, **more)


def batches_in(
    view: View,
    run: RunConfig,
    store_uri: str,
    reader: Reader = LocalBatches,
    rank: int = 0,
    world: int = 1,
    device: torch.device | None = None,
    lent: SharedClips | None = None,
) -> LocalBatches:
    """The batches of one rank. `data.batch_size` is shared out over the ranks.

    device: what trains on them, so that `data.residency` holds; None reads little (one split, once) and streams.
    lent: clips in shared memory, for `data.residency=auto`.
    Raises ValueError when the batch size cannot be shared out, or the clips cannot be kept where the config says."""
    spec, folder = run.model_spec(view.manifest.data_spec), view.manifest.folder(Store(store_uri))
    crops = (view.stored, spec.input.length, run.seed, unit_of(spec.input), view.columns)
    return batches_of(
        reader,
        run.data.residency if device else "stream",
        device or torch.device("cpu"),
        view.manifest,
        lent if device else None,
        settings=CropSettings(folder.uri, *crops),
        batch_size=share_of_batch(run.data.batch_size, world),
        eval_crops=run.data.eval_crops,
        eval_batch_size=run.execution.eval_batch_size,
        mix=run.data.shuffle_row_groups,
        rank=rank,
        world=world,
        rows=view.rows,
        train_share=run.data.train_share,
        sampling=run.data.sampling,
        crops_per_clip=run.data.crops_per_clip,
        change=changes_of(run.data.noise, run.data.augment, run.seed, spec.exclusive),
    )


def probe_of(run: RunConfig, store: Store, rank: int = 0, world: int = 1, test: bool = False) -> Downstream | None:
    """The downstream probe of a resolved run, if it has one; its clips are cut as those of the run are. test: whether
    it can read the test split. Raises StoreError where the store has that content no more."""
    if run.probe is None:
        return None
    cut = {name: getattr(run.data, name) for name in ("crop_seconds", "batch_size", "eval_crops")}
    data = DataConfig(dataset=run.probe.dataset, fold=run.probe.fold, content_hash=run.probe.content_hash, **cut)
    of_set = run.model_copy(update={"data": data})
    view = view_for(of_set, store)
    batches = batches_in(view if test else view.without_test(), of_set, store.uri, rank=rank, world=world)
    return Downstream(run, batches, view.manifest.data_spec.exclusive)


def pick_device(run: RunConfig) -> torch.device:
    """The device of this process. Raises ValueError when CUDA is asked for and absent."""
    available = torch.cuda.is_available()
    if run.execution.device == "cuda" and not available:
        raise ValueError("execution.device is cuda, but PyTorch sees no CUDA device here; use auto or cpu")
    return torch.device("cuda" if available and run.execution.device != "cpu" else "cpu")


def device_name(device: torch.device) -> str:
    """What the report calls a device."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"CPU, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"


def use_threads(count: int | None) -> None:
    """Limit PyTorch's threads in this process."""
    if count:
        torch.set_num_threads(count)


def score_split(
    model: Model,
    view: View,
    store_uri: str,
    split: Split,
    windows: Windows,
    device: torch.device | None = None,
    tags: TagSet | None = None,
    average: Average = "scores",
) -> ClipScores:
    """The scores of a model on the windows of a split's clips. device: None is that of the run's config. tags, average:
    of `score_clips`; the view has these tags."""
    device = device or pick_device(model.run)
    prepare_to_score(model.method.to(device), model.run.execution, device)
    batches = batches_in(view, model.run, store_uri).evaluate(split, windows)
    return score_clips(model.method, batches, model.stage, device, tags, average)


def finish_run(job: Job, best: Store) -> dict[str, Any]:
    """Score the test split with the best epoch, fit thresholds on the validation split, and write the model folder
    `best`; returns the metrics.

    `best` may hold the winner before this one: then the test split was scored before, and `test_scorings` goes on."""
    model = best_model(RunFolder(Store(job.folder_uri)))
    view = view_for(job.run, Store(job.store_uri))
    valid, scores = (score_split(model, view, job.store_uri, split, CLIP.windows) for split in ("valid", "test"))
    test = CLIP.metrics(scores, model.spec.exclusive)
    bounds = score_intervals(scores.scores_NC, scores.tags_NC, test)
    probe = probe_of(job.run, Store(job.store_uri), test=True)
    if probe is not None:
        found = probe.scores(model.method, pick_device(job.run), "test")
        test, bounds = {**test, **found}, {**bounds, **probe.intervals(found, "test")}
    metrics = {**model.metrics, "protocol": CLIP.name, "test": test, "test_intervals": bounds}
    metrics |= tag_facts(model.method, scores)
    metrics["thresholds"] = thresholds_by_rule(model.spec.tags, valid.scores_NC, valid.tags_NC)
    metrics["test_scorings"] = scorings_with(best, metrics["number"], job.run.metric, test)
    if kept := copy_kept(RunFolder(Store(job.folder_uri)), model.stage, best):
        metrics["kept_epochs"] = kept
    save_model(best, model.method.cpu(), job.run, model.spec, metrics)
    best.write(CARD, model_card(job.run, model.spec, metrics).encode())
    return metrics


def scorings_with(best: Store, number: int, metric: str, test: Mapping[str, float]) -> list[dict[str, Any]]:
    """The scorings of the test split that a model folder knows of, and this one (`record.test_scorings`)."""
    earlier = test_scorings(best.read_json("metrics.json")) if best.exists("metrics.json") else []
    now = {"number": number, "time": time.time(), "metric": metric, "value": test[metric], "protocol": CLIP.name}
    return [*earlier, now]

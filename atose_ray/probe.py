"""`python -m atose_ray.probe MODEL DATASET...`: what a small classifier finds in a model's embeddings of other data."""

import argparse
import json
from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import torch

from atose_ray import cli
from atose_ray.audio.mfcc import MFCC
from atose_ray.config import RunConfig, run_config
from atose_ray.data.downstream import Classifier
from atose_ray.data.sampling import eval_starts
from atose_ray.data.shards import Manifest, load_manifest
from atose_ray.data.views import fold_numbers, view_of
from atose_ray.encoders import Encoder
from atose_ray.encoders.coala_cnn import extent
from atose_ray.evaluation import probe as probes
from atose_ray.evaluation.probe import Embedded, Pair
from atose_ray.evaluation.published import published_figures
from atose_ray.methods import ProbeConfig
from atose_ray.search.space import load_tree
from atose_ray.storage import Store
from atose_ray.training.checkpoint import load_model
from atose_ray.training.downstream import check_input, embedded
from atose_ray.training.precision import prepare_encoder
from atose_ray.training.run import batches_in, pick_device, resolve
from atose_ray.training.sources import begin_with
from atose_ray.types import AudioInput, DataSpec, Split

PER_CLASS = {"nsynth": 2000}  # training notes of each family in the published study, which drew its own
Encode = Callable[[torch.Tensor], torch.Tensor]


def arguments() -> argparse.ArgumentParser:
    """The command line of this command."""
    parser = cli.parser(
        "probe",
        "Embed the clips of prepared data sets once, fit a small classifier on them, and print its test scores: mean\n"
        "and deviation over seeds, beside those of MFCCs, of the same encoder untrained, and of permuted tags. One of\n"
        "folds is tested fold by fold, another on its test split, without validation clips. Nothing is written.",
        "  python -m atose_ray.probe atose_store/studies/folder/best esc50 urbansound8k\n"
        "  python -m atose_ray.probe coala.yaml gtzan nsynth --published --json",
    )
    model = "a model folder, or the configuration of a training whose encoder and init_from are meant"
    parser.add_argument("model", help=model)
    parser.add_argument("dataset", nargs="+", help="names of prepared data sets")
    parser.add_argument("--classifier", choices=get_args(Classifier), default="mlp", help="one layer of 256, or none")
    whole = "embed each clip in one piece instead of averaging the model's evenly spaced crops"
    parser.add_argument("--whole", action="store_true", help=whole)
    published = "COALA's protocol: mlp, whole clips, GTZAN without the first clips of its lists, 2000 notes a family"
    parser.add_argument("--published", action="store_true", help=published)
    parser.add_argument("--seeds", type=cli.at_least_one, default=10, help="how often the classifier is fitted")
    parser.add_argument("--json", action="store_true", help="a JSON object for each data set")
    return parser


def main(argv: list[str] | None = None) -> None:
    """For each data set: embed it by every system, probe, print."""
    options = arguments().parse_args(argv)
    if options.published and options.classifier != "mlp":
        raise ValueError("--published is a protocol with classifier mlp; leave one of the two out")
    options.whole |= options.published
    store = cli.open_store(options)
    for name in options.dataset:
        found = probe_dataset(options, load_manifest(store, name), store)
        print(json.dumps(found, ensure_ascii=False) if options.json else as_text(found), flush=True)


@torch.no_grad()
def probe_dataset(options: argparse.Namespace, manifest: Manifest, store: Store) -> dict[str, Any]:
    """The scores of every system on one data set, and how they were taken."""
    run, encoder, spec = encoder_of(options.model, manifest, store)
    device, exclusive = pick_device(run), manifest.data_spec.exclusive
    data = run.data.model_copy(update={"dataset": manifest.name, "fold": None, "tag_split": None, "tracks": "all"})
    crop = manifest.data_spec.input.length if options.whole else spec.input.length
    data = data.model_copy(update={"crop_seconds": crop / spec.input.rate_hz, "track_split": None})
    run = run.model_copy(update={"data": data})
    systems: dict[str, Encode] = {"embeddings": on(device, run, encoder)}
    systems["untrained encoder"] = on(device, run, untrained(run, encoder, spec))
    if isinstance(spec.input, AudioInput):
        systems["MFCC"] = mfcc_of(spec.input.sample_rate_hz)
    pairs = {name: list(pairs_of(encode, run, manifest, store, options)) for name, encode in systems.items()}
    seeds, kind = range(options.seeds), options.classifier
    scores = {name: probes.repeated(pair, kind, seeds, exclusive) for name, pair in pairs.items()}
    scores["permuted tags"] = probes.repeated(pairs["embeddings"], kind, seeds, exclusive, permuted=True)
    kind_of_set = str(manifest.dataset.get("kind", manifest.name))
    figures = published_figures(kind_of_set, len(manifest.data_spec.tags), "test", protocol_of(options))
    return {
        "model": options.model,
        "dataset": manifest.name,
        "content_hash": manifest.content_hash,
        "protocol": protocol_of(options),
        "folds": len(manifest.folds),
        "clips": [[len(train.clip_id_N), len(test.clip_id_N)] for train, test in pairs["embeddings"]],
        "skipped": len(manifest.skipped),
        "seeds": options.seeds,
        "dimensions": {name: pair[0][0].embed_NE.shape[1] for name, pair in pairs.items()},
        "scores": {
            name: {metric: probes.mean_and_deviation(values) for metric, values in found.items()}
            for name, found in scores.items()
        },
        "published": figures.model_dump(include={"source", "metrics", "systems"}) if figures else None,
    }


def protocol_of(options: argparse.Namespace) -> str:
    """The name that the scores carry: two of different names are not to be compared."""
    if options.published:
        return "probe_coala"
    return f"probe_{options.classifier}{'_whole' if options.whole else ''}"


def encoder_of(source: str, manifest: Manifest, store: Store) -> tuple[RunConfig, Encoder, DataSpec]:
    """The encoder of a model folder, or of a configuration, and the clips it was built for. Raises ValueError where the
    data set has others."""
    if Store(source).exists("config.json"):
        model = load_model(source)
        run, encoder, spec = model.run, model.method.encoder, model.spec
    else:
        run = run_config(load_tree(source, []), source).model_copy(
            update={"method": ProbeConfig(), "tag_vectors": None, "probe": None}
        )
        data = run.data.model_copy(update={"dataset": manifest.name})
        run = resolve(run.model_copy(update={"data": data, "metric": "pr_auc_macro"}), store, manifest)
        torch.manual_seed(run.seed)
        method, spec = run.build(manifest.data_spec), run.model_spec(manifest.data_spec)
        if run.init_from is not None:
            begin_with(method, run.init_from)
        encoder = method.encoder
    check_input(spec.input, manifest, source)
    return run, encoder.eval(), spec


def untrained(run: RunConfig, trained: Encoder, spec: DataSpec) -> Encoder:
    """The same encoder as it begins; what was fitted on data before the training (a scaler) is kept."""
    torch.manual_seed(run.seed + 1)
    encoder, state = run.encoder.build(spec), trained.state_dict()
    running = ("running_mean", "running_var", "num_batches_tracked")
    fitted = {name for name, _ in trained.named_buffers() if not name.endswith(running)} & state.keys()
    encoder.load_state_dict({**encoder.state_dict(), **{name: state[name] for name in fitted}})
    return encoder.eval()


def on(device: torch.device, run: RunConfig, encoder: Encoder) -> Encode:
    """The encoder as a function of inputs on the CPU."""
    execution = run.execution.model_copy(update={"compile": False, "precision": "float32"})
    prepare_encoder(encoder.to(device), execution, device)
    return lambda inputs: encoder(inputs.to(device)).cpu()


def mfcc_of(sample_rate_hz: int) -> Encode:
    """[B, T] -> [B, 120], of each clip without the zeros around it."""
    mfcc = MFCC(sample_rate_hz)

    def encode(audio_BT: torch.Tensor) -> torch.Tensor:
        spans = zip(audio_BT, *(one.tolist() for one in extent(audio_BT != 0)), strict=True)
        return torch.from_numpy(np.stack([mfcc(audio_T[first : first + length]) for audio_T, first, length in spans]))

    return encode


def pairs_of(
    encode: Encode, run: RunConfig, manifest: Manifest, store: Store, options: argparse.Namespace
) -> Iterator[Pair]:
    """Train and test of every fold, or of the set's own splits, each clip encoded once."""

    def of(split: Split, fold: int | None = None) -> Embedded:
        data = run.data.model_copy(update={"fold": fold})
        return embed_split(encode, run.model_copy(update={"data": data}), manifest, store, split, options.whole)

    if manifest.folds:
        yield from probes.pairs_of_folds({number: of("test", number) for number in fold_numbers(manifest)})
        return
    train, test = of("train"), of("test")
    kind = str(manifest.dataset.get("kind"))
    if options.published and kind == "gtzan":
        train, test = probes.without_first(train), probes.without_first(test)
    if options.published and kind in PER_CLASS:
        train, test = probes.drawn_evenly(train, test, PER_CLASS[kind])
    yield train, test


def embed_split(
    encode: Encode, run: RunConfig, manifest: Manifest, store: Store, split: Split, whole: bool
) -> Embedded:
    """The clips of a split, each the mean of its windows' embeddings; whole: of one window, which begins it."""
    batches = batches_in(view_of(manifest, run.data, store), run, store.uri)
    clips = batches.evaluate(split, whole_clip if whole else eval_starts)
    found = embedded(clips, lambda batch: encode(batch.inputs))  # type: ignore[union-attr]
    if found is None:
        raise ValueError(f"{manifest.name!r} has no clips in its split {split}; prepare a set that has some")
    return found


def whole_clip(length: int, crop: int, crops: int) -> list[int]:
    """One window from the first unit on, as long as the longest clip."""
    return [0]


def as_text(found: dict[str, Any]) -> str:
    """Every system's mean and deviation, the published ones below; lines with scores end with the protocol."""
    mark, clips = f"[{found['protocol']}]", found["clips"]
    sizes = f"{clips[0][0]} train and {clips[0][1]} test clips" if found["folds"] == 0 else f"{found['folds']} folds"
    head = f"{found['model']} on {found['dataset']}: {sizes}, {found['skipped']} skipped, {found['seeds']} seeds"
    lines = [head]
    for name, scores in found["scores"].items():
        size = found["dimensions"].get(name, found["dimensions"]["embeddings"])
        for metric, one in scores.items():
            lines.append(f"  {name:<20} {size:>5} {metric:<14} {one['mean']:.4f} +- {one['deviation']:.4f}  {mark}")
    if found["published"]:
        lines.append(f"published: {found['published']['source']}")
        for name, (mean, deviation) in found["published"]["systems"].items():
            lines.append(f"  {name:<20} {'':>5} {'accuracy':<14} {mean:.4f} +- {deviation:.4f}  {mark}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)

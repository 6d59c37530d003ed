"""Rows of vectors: numbers that the published code computed, beside ours for the same weights and input.

They lie in a folder of .npz files that the user names (--parity DIR); none is part of this package. Each check gives
the largest difference over the peak of what is wanted. tests/test_parity_*.py hold far more, tensor by tensor."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from atose_ray.audio.mel import CHOI, LogMel
from atose_ray.audio.sinc import SincBank
from atose_ray.config import RunConfig
from atose_ray.data.sampling import class_queue
from atose_ray.encoders import FramesConfig
from atose_ray.encoders.coala_cnn import CoalaCNNConfig
from atose_ray.encoders.mel_cnn import DEVIATION, MEAN, MelCNNConfig
from atose_ray.evaluation.audioset import audioset_metrics
from atose_ray.evaluation.choi import row_numbers
from atose_ray.evaluation.jetatag import keras_auc
from atose_ray.methods import StageConfig
from atose_ray.methods.coala import CoalaConfig
from atose_ray.methods.heads import Projector
from atose_ray.methods.multi_level_attention import MultiLevelAttention, MultiLevelAttentionConfig
from atose_ray.methods.zero_shot import ZeroShotConfig, kernel_energy, ranking_terms, unit
from atose_ray.objectives import NTXentConfig, PairwiseMarginConfig, reconstruction_loss
from atose_ray.optim import KerasAdam, KerasSGDConfig
from atose_ray.reproduction.claims import VectorsRow
from atose_ray.reproduction.record import Figure, Result, judged
from atose_ray.tags.autoencoder import TagDecoder, TagEncoder
from atose_ray.types import AudioInput, Batch, DataSpec, FrameInput, TagSet

Tensors = dict[str, torch.Tensor]
Found = Iterator[tuple[str, Any, Any]]  # name, ours, wanted: numbers of one shape
NAMES = {"kernel": "weight", "gamma": "weight", "beta": "bias", "moving_mean": "running_mean"}
NAMES |= {"moving_variance": "running_var"}
KERNEL_AXES = {1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (3, 2, 0, 1)}


def vectors(row: VectorsRow, folder: str | None) -> Result:
    """Hold ours against the files of a folder. NOT RUN where there is none, or a file is not in it."""
    missing = [name for name in row.files if folder is None or not Path(folder, f"{name}.npz").is_file()]
    if missing:
        names = ", ".join(f"{name}.npz" for name in missing)
        why = f"{folder} has no {names}" if folder else f"needs {names}, numbers of the published code: --parity DIR"
        return Result("NOT RUN", reason=why, commands=("reproduce {system} --parity DIR",))
    found: dict[str, float] = {}
    for name, ours, wanted in CHECKS[row.check](
        *(load(Path(str(folder), f"{one}.npz")) for one in row.files), row.options
    ):
        found[name] = max(found.get(name, 0.0), error(ours, wanted))
    return judged([Figure(name, 0.0, one, row.tolerance, bool(one <= row.tolerance)) for name, one in found.items()])


def load(file: Path) -> Tensors:
    """All arrays of numbers of a file; nothing in it is unpickled."""
    with np.load(file, allow_pickle=False) as arrays:
        return {
            key: torch.from_numpy(np.atleast_1d(arrays[key])) for key in arrays.files if arrays[key].dtype.kind != "U"
        }


def below(arrays: Tensors, prefix: str) -> Tensors:
    """The arrays under `prefix/`, without it."""
    return {key.removeprefix(f"{prefix}/"): value for key, value in arrays.items() if key.startswith(f"{prefix}/")}


def to_torch(name: str, value: torch.Tensor) -> tuple[str, torch.Tensor]:
    """Name and layout in torch of a published weight, or of its gradient."""
    module, _, leaf = name.rpartition(".")
    if leaf == "kernel":
        value = value.permute(*KERNEL_AXES[value.dim()])
    return f"{module}.{NAMES.get(leaf, leaf)}", value


def load_weights(module: nn.Module, weights: Tensors) -> None:
    """Fill the whole module from published weights: nothing missing, nothing left over."""
    state = dict(to_torch(name, value) for name, value in weights.items())
    counters = {name: value for name, value in module.state_dict().items() if name.endswith("num_batches_tracked")}
    module.load_state_dict(state | counters, strict=True)


def error(got: Any, want: Any) -> float:
    """Largest difference over the peak of what is wanted; infinite where the shapes differ or ours is no number."""
    ours, theirs = (torch.as_tensor(one).detach().double() for one in (got, want))
    if ours.shape != theirs.shape:
        return float("inf")
    found = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))
    return found if found == found else float("inf")


def spec_of(clip_samples: int, rate_hz: int = 16_000, tags: int = 2) -> DataSpec:
    """Audio with so many tags."""
    about, names = AudioInput(sample_rate_hz=rate_hz, clip_samples=clip_samples), map("tag {}".format, range(tags))
    return DataSpec(input=about, tags=tuple(names), exclusive=False)


# ---- ATOSE


def stage_one(arrays: Tensors, options: dict[str, Any]) -> Found:
    """Adam 1e-4 for three steps, SGD 1e-3 for three, the same SGD at 1e-4 for two."""
    parts = nn.ModuleDict(
        {"projector": Projector(64, 16), "tag_encoder": TagEncoder(50, 16), "tag_decoder": TagDecoder(16, 50)}
    )
    for name, part in parts.items():
        load_weights(part, below(arrays, f"w0/{name}"))
    adam, sgd = KerasAdam(parts.parameters(), 1e-4), KerasSGDConfig(lr=1e-3).build(parts.parameters())
    for step, (features, labels) in enumerate(zip(arrays["features"], arrays["labels"], strict=True)):
        if step == 6:
            sgd.param_groups[0]["lr"] = 1e-4
        parts.zero_grad()
        tag_BD = parts["tag_encoder"](labels)
        terms = [reconstruction_loss(parts["tag_decoder"](tag_BD).sigmoid(), labels)]
        terms.append(PairwiseMarginConfig(margin=0.4).loss(tag_BD, parts["projector"](features), labels))
        losses = torch.stack([*terms, terms[0] + terms[1]])
        yield "losses", losses, arrays["stage1_losses_ae_pw_total"][step]
        losses[2].backward()  # type: ignore[no-untyped-call]
        (adam if step < 3 else sgd).step()


# ---- JETATAG


def encoder(arrays: Tensors, sound: Tensors, options: dict[str, Any]) -> Found:
    """What an encoder makes of two clips."""
    built = RunConfig(encoder=options).encoder.build(spec_of(sound["wave"].shape[1]))  # type: ignore[arg-type]
    load_weights(built, below(arrays, "w"))
    with torch.no_grad():
        yield "embedding", built.eval()(sound["wave"]), arrays["out"]


def sinc(arrays: Tensors, options: dict[str, Any]) -> Found:
    """TagSincNet's filters as initialised."""
    bank = SincBank(256, 2501, 22_050, published=True)
    yield "filters", bank().T, arrays["A_filters"]


def areas(arrays: Tensors, options: dict[str, Any]) -> Found:
    """Every crop alone, all tags in one ranking."""
    scores, labels = arrays["scores"].numpy(), arrays["labels"].numpy()
    found = keras_auc(scores, np.repeat(labels[:, None], scores.shape[1], axis=1))
    for name, value in zip(("roc", "pr"), found, strict=True):
        yield name, [value], arrays[f"keras_{name}_micro_crops"]


# ---- zero-shot tagging


def mel(arrays: Tensors, options: dict[str, Any]) -> Found:
    """The spectrogram of four seconds."""
    wave_BT = arrays["wave_int16"][None].float() / 32768
    yield "spectrogram", LogMel(CHOI, 22_050)(wave_BT)[0], arrays["mel"]


def zero_shot(arrays: Tensors, options: dict[str, Any]) -> Found:
    """Embeddings, cosines, and the hinge with the decay of the kernels."""
    of = spec_of(129 * 512, 22_050, len(arrays["pos_tag_vectors"]))
    tags = TagSet(of.tags, arrays["pos_tag_vectors"].float())
    method = ZeroShotConfig().build(MelCNNConfig().build(of), of, tags)
    layers = {**{f"am_conv_{n}": f"encoder.conv{n}" for n in range(1, 6)}, "word_dense": "towers.words"}
    weights = {
        f"{ours}.{leaf}": arrays[f"w/{name}/{leaf}"].float()
        for name, ours in layers.items()
        for leaf in ("kernel", "bias")
    }
    state = dict(to_torch(name, value) for name, value in weights.items())
    method.load_state_dict({**method.state_dict(), **state})
    audio_BD = method.encoder.pool(method.encoder.sequence((arrays["mel_raw"].float() - MEAN) / DEVIATION))
    words = [method.towers.words(arrays[f"{name}_tag_vectors"].float()) for name in ("pos", "neg")]
    cosines = [(unit(audio_BD) * unit(one)).sum(dim=1, keepdim=True) for one in words]
    yield "embedding", audio_BD, arrays["out/audio_embedding"]
    yield "cosines", torch.cat(cosines, dim=1), arrays["out/similarity"]
    loss = ranking_terms(cosines[0], cosines[1], "hinge", 0.4).sum() + 1e-5 * kernel_energy(method.encoder)
    yield "loss", loss[None], arrays["total_loss_margin0.4"]


def rankings(arrays: Tensors, options: dict[str, Any]) -> Found:
    """Unseen tags over the tracks of B and C, both ways."""
    rows = torch.cat([arrays[f"{name}_tracks"] for name in ("B_train", "B_valid", "C")])
    cells = np.ix_(arrays["test_tag_keys"].numpy(), rows.numpy())
    scores_CN = (1 + arrays["score_all_tags_by_all_tracks"].numpy()[cells].astype(np.float64)) / 2
    tags_CN = arrays["tag_by_track"].numpy()[cells]
    for way, pair in (("retrieval", (scores_CN, tags_CN)), ("annotation", (scores_CN.T, tags_CN.T))):
        found = row_numbers(*pair)
        for ours, theirs in (("auc", "auc"), ("map_zeros", "map_sklearn122"), ("ap_at_5_zeros", "map_at_5")):
            yield f"{way} {ours}", [found[ours]], arrays[f"B+C/test_tags/{way}_{theirs}"]


# ---- COALA


def coala(arrays: Tensors, options: dict[str, Any]) -> Found:
    """Embeddings, projections and reconstructions of four patches and their tags."""
    about = FrameInput(frames=96, bins=96, frame_hop_seconds=512 / 22_000)
    of = DataSpec(input=about, tags=tuple(map(str, range(40))), exclusive=False)
    config = CoalaConfig(hidden=24, stages=(StageConfig(name="ae_c", epochs=1),))
    built = config.build(CoalaCNNConfig(channels=8, scaler="none").build(of), of, TagSet(of.tags))
    weights = {
        key.partition("/")[2]: value.float()
        for key, value in below(arrays, "weights").items()
        if not key.startswith("cnn")
    }
    built.load_state_dict(built.from_published(weights), strict=False)
    patch_BFM = arrays["in/patch_B_mel_time"].float().transpose(1, 2).contiguous()
    with torch.no_grad():
        z_BE = built.eval().encoder(patch_BFM)
        tag_BE = built.tag_encoder(arrays["in/tags_BC"].float())
        yield "audio_z", z_BE, arrays["eval/audio_z"]
        yield "audio_z_d", built.audio_projection(z_BE), arrays["eval/audio_z_d"]
        yield "audio_recon", built.audio_decoder(z_BE), arrays["eval/audio_recon"]
        yield "tag_z_d", built.tag_projection(tag_BE), arrays["eval/tag_z_d"]
        yield "tag_recon", built.tag_decoder(tag_BE), arrays["eval/tag_recon"]


def contrast(arrays: Tensors, options: dict[str, Any]) -> Found:
    """Loss and gradients of six pairs."""
    for temperature in (0.05, 0.1, 0.5, 1.0):
        audio, tag = (arrays[f"contrastive/{side}_z_d_NE"].clone().requires_grad_() for side in ("audio", "tag"))
        want = below(arrays, f"contrastive/t{temperature}/f32")
        loss = NTXentConfig(temperature=temperature).loss(tag, audio, torch.eye(6))
        yield "loss", loss[None], want["loss"]
        for name, grad in zip(("audio", "tag"), torch.autograd.grad(loss, [audio, tag]), strict=True):
            yield "gradients", grad, want[f"grad_{name}"]


# ---- AudioTagger


def attention(arrays: Tensors, options: dict[str, Any]) -> Found:
    """Levels 2 3, 1 2 3 and 3."""
    about = FrameInput(frames=10, bins=128, frame_hop_seconds=1.0, dtype="uint8")
    of = DataSpec(input=about, tags=tuple(map(str, range(7))), exclusive=False)
    for tag in ("l23", "l123", "l3"):
        levels = tuple(arrays[f"{tag}/levels"].tolist())
        config = MultiLevelAttentionConfig(levels=levels, dropout=0.0, loss="clipped")
        widths = tuple(arrays["n_hid"].tolist())[: max(levels)]
        method = MultiLevelAttention(config, widths, FramesConfig().build(of), of).eval()
        load_weights(method.attention, below(arrays, f"{tag}/w"))
        inputs, tags_BC = arrays[f"{tag}/x_uint8"].flatten(0, 1).float(), arrays[f"{tag}/y"].flatten(0, 1).float()
        batch = Batch(inputs, tags_BC, torch.arange(len(inputs)))
        with torch.no_grad():
            yield "probabilities", method.score(batch, TagSet(of.tags), "attend"), arrays[f"{tag}/eval/prob"]
            first = Batch(*(one[:6] for one in batch))
            yield "loss", method(first, "attend")["loss"][None], arrays[f"{tag}/eval/loss_batch0"]


def sampler(arrays: Tensors, options: dict[str, Any]) -> Found:
    """Which clips every batch has, in four cases."""
    for case in "ABCD":
        tags_NC = arrays[f"{case}/y"].numpy()
        tags_NC = np.unpackbits(tags_NC, axis=1)[:, :527] if case == "D" else tags_NC
        draws = class_queue(tags_NC, int(arrays[f"{case}/batch_size"]), int(arrays[f"{case}/seed"]))
        for wanted, length in zip(arrays[f"{case}/indices"], arrays[f"{case}/batch_lengths"], strict=True):
            yield "clips", np.asarray(next(draws)), wanted[: int(length)]


def audioset(arrays: Tensors, options: dict[str, Any]) -> Found:
    """Three sets of scores."""
    tags_NC = np.unpackbits(arrays["y_packed_axis1"].numpy(), axis=1)[:, : int(arrays["n_classes"])].astype(float)
    for row, iteration in enumerate((0, 1000, 2000)):
        of = below(arrays, f"iter{iteration}")
        got = audioset_metrics(of["scores_times_256_uint8"].numpy().astype(float) / 256, tags_NC)
        yield "pr_auc_macro", [got["pr_auc_macro"]], of["mAP_returned_by_eval"]
        yield "roc_auc_macro", got["roc_auc_macro"], of["AUC"].mean()
        yield "d_prime", got["d_prime"], arrays["get_avg_stats/dprime_full"][row]


CHECKS: dict[str, Callable[..., Found]] = {
    one.__name__: one
    for one in (
        stage_one,
        encoder,
        sinc,
        areas,
        mel,
        zero_shot,
        rankings,
        coala,
        contrast,
        attention,
        sampler,
        audioset,
    )
}

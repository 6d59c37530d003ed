"""COALA gives the numbers of the published code: front end, nets, losses, training steps (shared/parity, coala_*)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from parity_vectors import FORWARD, GRADIENT, assert_close, below, load
from torch import nn
from torch.nn import functional

from atose_ray.encoders.coala_cnn import CoalaCNN, CoalaCNNConfig, loudest, window_sums
from atose_ray.methods.coala import Coala, CoalaConfig
from atose_ray.objectives import NTXentConfig, generalised_kl
from atose_ray.types import Batch, DataSpec, TagSet

RATE = 22_000
NETS = ("audio_encoder", "audio_decoder", "tag_encoder", "tag_decoder")
PUBLISHED = {"padding": "published", "last_patch": "drop", "scaler": "published"}


def spec(tags: int = 40, frames: bool = True) -> DataSpec:
    about = {"kind": "frames", "frames": 96, "bins": 96, "frame_hop_seconds": 512 / RATE}
    audio = {"kind": "audio", "sample_rate_hz": RATE, "clip_samples": 48_640}
    names = tuple(f"tag {i}" for i in range(tags))
    return DataSpec(input=about if frames else audio, tags=names, exclusive=False)


def stages(*names: str) -> list[dict[str, object]]:
    return [{"name": name, "epochs": 1} for name in names]


def method(
    weights: dict[str, torch.Tensor], channels: int = 8, hidden: int = 24, tags: int = 40, **more: object
) -> Coala:
    """The method on scaled patches, with the published nets' weights under their published names."""
    names = [f"{net}/" for net in NETS]
    parts = more.pop("stages", stages("ae_c"))
    of, config = spec(tags), CoalaCNNConfig(channels=channels, scaler="none")
    built = CoalaConfig(hidden=hidden, stages=parts, **more).build(config.build(of), of, TagSet(of.tags))
    named = {key.partition("/")[2]: value.float() for key, value in weights.items() if key.startswith(tuple(names))}
    state = built.from_published(named)
    assert len(state) == len(named), "a published tensor has no place"
    lacking, extra = built.load_state_dict(state, strict=False)
    assert not extra and all(key.endswith("num_batches_tracked") for key in lacking), lacking
    return built


def frames_of(patch_BMX: torch.Tensor) -> torch.Tensor:
    return patch_BMX.float().transpose(1, 2).contiguous()


def batch_of(arrays: dict[str, torch.Tensor], rows: slice = slice(None)) -> Batch:
    patch = arrays["in/patch_B_mel_time"] if "in/patch_B_mel_time" in arrays else arrays["in/patch_N_mel_time"]
    tags = arrays["in/tags_BC"] if "in/tags_BC" in arrays else arrays["in/tags_NC"]
    return Batch(frames_of(patch[rows]), tags[rows].float(), torch.arange(len(tags[rows])))


class Pattern(nn.Module):
    """A known dropout: of every four elements in order the last is zero."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = (torch.arange(x.numel()) % 4 != 3).view(x.shape)
        return x * kept * (4 / 3) if self.training else x


def drop_as(module: nn.Module, mode: str) -> None:
    """Of mode train_pattern the known dropout, else none."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Dropout):
                setattr(parent, name, Pattern() if "pattern" in mode else nn.Identity())


def outputs(built: Coala, batch: Batch) -> dict[str, torch.Tensor]:
    """Everything that the published nets give, and their losses without weights."""
    assert isinstance(built.encoder, CoalaCNN)
    z, _, patches, _ = built.encoder.with_patches(batch.inputs)
    tag_z = built.tag_encoder(batch.tags_BC)
    found = {"audio_z": z, "audio_z_d": built.audio_projection(z), "audio_recon": built.audio_decoder(z)}
    found |= {"tag_z": tag_z, "tag_z_d": built.tag_projection(tag_z), "tag_recon": built.tag_decoder(tag_z)}
    found["loss_audio"] = generalised_kl(found["audio_recon"][:, 0], patches[:, 0]).mean()[None]
    found["loss_tag"] = functional.binary_cross_entropy(found["tag_recon"], batch.tags_BC)[None]
    found["loss_contrastive"] = NTXentConfig().loss(found["tag_z_d"], found["audio_z_d"], batch.tags_BC)[None]
    return found


def assert_statistics(built: Coala, wanted: dict[str, torch.Tensor], tolerance: float = FORWARD) -> None:
    named = built.from_published({key.partition("/")[2]: value for key, value in wanted.items()})
    state = built.state_dict()
    assert named
    for key, want in named.items():
        assert_close(state[key].float().view(want.shape), want.float(), tolerance, key)


def hashed(shape: tuple[int, ...], salt: int, kind: int, shift: int) -> torch.Tensor:
    """The weights of the full-width nets, from their formula."""
    with np.errstate(over="ignore"):
        h = np.arange(int(np.prod(shape)), dtype=np.uint32) + np.uint32(salt * 0x9E3779B9 % 2**32)
        for by, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
            h = (h ^ (h >> np.uint32(by))) * np.uint32(factor)
    u = ((h >> np.uint32(21)).astype(np.float64) - 1024) / 1024
    return torch.from_numpy(((u / 2**shift) + (kind >= 2)).astype(np.float32)).view(shape)


@pytest.mark.parametrize("mode", ["eval", "train_nodrop", "train_pattern"])
def test_small_nets(mode: str) -> None:
    arrays = load("coala_nets_small")
    built = method(below(arrays, "weights"))
    drop_as(built, mode)
    got = outputs(built.train(mode != "eval"), batch_of(arrays))
    for name, value in got.items():
        assert_close(value, arrays[f"{mode}/{name}"], 1e-6 if "loss" in name else FORWARD, name)
    if mode != "eval":
        wanted = below(arrays, f"{mode}/stats")
        assert_statistics(built, {key: value for key, value in wanted.items() if not key.startswith("cnn")})


def test_block_by_block() -> None:
    arrays = load("coala_nets_small")
    built = method(below(arrays, "weights")).eval()
    x = batch_of(arrays).inputs.transpose(1, 2)[:, None]
    for name, net in (("audio_encoder", built.encoder.audio_encoder), ("audio_decoder", built.audio_decoder)):
        x, number = x.flatten(1) if name == "audio_decoder" else x, 0
        for layer in net:
            x = layer(x)
            if isinstance(layer, nn.ReLU | nn.Sigmoid):
                want = arrays[f"eval/{name}_block{number}_channel_means"]
                assert_close(x.mean(dim=(0, 2, 3)), want, FORWARD, f"{name} {number}")
                number += 1
        assert number == 5


@pytest.mark.parametrize("mode", ["eval", "train_nodrop", "train_pattern"])
def test_supervised_baseline(mode: str) -> None:
    arrays = load("coala_nets_small")
    of, config = spec(), CoalaCNNConfig(channels=8, scaler="none")
    built = CoalaConfig(stages=stages("cnn")).build(config.build(of), of, TagSet(of.tags))
    state = built.from_published({key: value.float() for key, value in below(arrays, "weights/cnn").items()})
    assert not built.load_state_dict(state, strict=False).unexpected_keys
    assert {name for name, _ in built.named_children()} == {"encoder", "classifier"}
    drop_as(built, mode)
    batch = batch_of(arrays)
    z = built.train(mode != "eval").encoder(batch.inputs)
    assert_close(z, arrays[f"{mode}/cnn_z"], FORWARD, "z")
    assert_close(built.probabilities(z, "cnn"), arrays[f"{mode}/cnn_y"], FORWARD, "y")


def test_full_width() -> None:
    arrays = load("coala_full_width")
    formula = below(arrays, "formula")
    of = spec(1000)
    every = CoalaConfig(stages=stages("ae_c", "cnn")).build(
        CoalaCNNConfig(scaler="none").build(of), of, TagSet(of.tags)
    )
    counts = {
        "audio_encoder": ("encoder", "audio_projection"),
        "audio_decoder": ("audio_decoder",),
        "tag_encoder": ("tag_encoder", "tag_projection"),
        "tag_decoder": ("tag_decoder",),
        "cnn": ("encoder", "classifier"),
    }
    for net, parts in counts.items():
        found = sum(p.numel() for part in parts for p in every.get_submodule(part).parameters())
        assert found == int(arrays[f"count/{net}"]), net
    assert sum(int(arrays[f"count/{net}"]) for net in NETS) == 7_499_451
    shapes = {key: value.shape for key, value in every.state_dict().items()}
    del every
    weights: dict[str, torch.Tensor] = {}
    for key, row in formula.items():
        net, _, name = key.partition("/")
        blank = CoalaBlank.names(name) if net != "cnn" else ""
        if net == "cnn":
            continue
        weights[key] = hashed(tuple(shapes[blank]), *(int(one) for one in row))
        want = arrays[f"check/{key}"]
        both = torch.stack([weights[key].double().sum(), weights[key].double().square().sum()])
        assert torch.allclose(both, want, rtol=1e-12, atol=1e-9), key
    built = method(weights, 128, 512, 1000)
    drop_as(built, "eval")
    for mode in ("eval", "train_nodrop"):
        with torch.no_grad():
            got = outputs(built.train(mode != "eval"), batch_of(arrays))
        for name, value in got.items():
            assert_close(value, arrays[f"{mode}/{name}"], 1e-6 if "loss" in name else FORWARD, f"{mode} {name}")
    wanted = below(arrays, "train_nodrop/stats")
    assert_statistics(built, {key: value for key, value in wanted.items() if not key.startswith("cnn")})


class CoalaBlank:
    """Where a published name stands in the method."""

    @staticmethod
    def names(name: str) -> str:
        head, _, rest = name.partition(".")
        ours = {"audio_encoder": "encoder.audio_encoder", "fc_audio": "audio_projection", "fc_tag": "tag_projection"}
        return f"{ours.get(head, head)}.{rest}"


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("width", ["f32", "f64"])
def test_contrastive_loss(temperature: float, width: str) -> None:
    arrays = load("coala_losses")
    dtype = torch.float64 if width == "f64" else torch.float32
    audio, tag = (arrays[f"contrastive/{side}_z_d_NE"].to(dtype).requires_grad_() for side in ("audio", "tag"))
    want = below(arrays, f"contrastive/t{temperature}/{width}")
    loss = NTXentConfig(temperature=temperature).loss(tag, audio, torch.eye(6, dtype=dtype))
    assert_close(loss[None].double(), want["loss"], 1e-6, "loss")
    loss.backward()
    assert_close(audio.grad, want["grad_audio"], GRADIENT, "audio")
    assert_close(tag.grad, want["grad_tag"], GRADIENT, "tag")


def test_corners_of_the_contrastive_loss() -> None:
    """Equal where the published loss is a number; where it is none, ours is."""
    corner = below(load("coala_losses"), "contrastive_corner")
    losses = load("coala_losses")
    eye, audio, tag = torch.eye(4), losses["contrastive/audio_z_d_NE"], losses["contrastive/tag_z_d_NE"]

    def loss(a: torch.Tensor, t: torch.Tensor, temperature: float = 0.1) -> float:
        return float(NTXentConfig(temperature=temperature).loss(t, a, torch.eye(len(a))))

    same = torch.ones(int(corner["all_equal_n"]), 5)
    found = {
        "all_equal_t0.1": loss(same, same),
        "perfect_pairs_orthogonal_t0.1": loss(eye, eye),
        "perfect_pairs_orthogonal_t0.02": loss(eye, eye, 0.02),
        "worst_pairs_t0.1": loss(eye, eye.roll(1, 0)),
        "opposite_pairs_t0.02": loss(eye, -eye, 0.02),
        "scaled_audio_x100_t0.1": loss(100 * audio, tag),
        "swapped_t0.1": loss(tag, audio),
        "batch_of_one_t0.1": loss(audio[:1], tag[:1]),
        "temperature_0.0114": loss(audio, tag, 0.0114),
    }
    for name, value in found.items():
        assert value == pytest.approx(float(corner[name]), rel=2e-6, abs=2e-6), name
    zero = audio.clone()
    zero[-1] = 0
    for name, value in (
        ("temperature_0.0112_overflows", loss(audio, tag, 0.0112)), ("one_zero_row_t0.1", loss(zero, tag))
    ):  # fmt: skip
        assert corner[name].isnan().all() and np.isfinite(value), name


def test_contrastive_loss_at_full_width() -> None:
    want = below(load("coala_losses"), "contrastive_128x1152")
    audio = hashed((128, 1152), 101, 0, 0)
    tag = hashed((128, 1152), 102, 0, 0) + audio / 2
    assert torch.equal(audio.flatten()[:8], want["audio_first8"]) and torch.equal(tag.flatten()[:8], want["tag_first8"])
    audio, tag = audio.double(), tag.double()  # in which their float32 loss is 1.1e-6 off, as ours is
    audio.requires_grad_(), tag.requires_grad_()
    loss = NTXentConfig().loss(tag, audio, torch.eye(128).double())
    assert_close(loss[None], want["loss_f32"], 2e-6, "loss")
    loss.backward()
    for name, grad in (("audio", audio.grad), ("tag", tag.grad)):
        assert_close(grad[:4].float(), want[f"grad_{name}_first4"], GRADIENT, name)
        assert_close(grad.double().norm(dim=1), want[f"grad_{name}_row_norms"], GRADIENT, name)


@pytest.mark.parametrize("width", ["f32", "f64"])
def test_reconstruction_losses(width: str) -> None:
    arrays = load("coala_losses")
    dtype = torch.float64 if width == "f64" else torch.float32
    y, x = (arrays[f"kl/{name}_B1_mel_time"][:, 0].to(dtype).requires_grad_() for name in ("target", "reconstruction"))
    loss = generalised_kl(x, y).mean()
    want = below(arrays, f"kl/{width}")
    assert_close(loss[None].double(), want["loss"], 1e-6, "loss")
    loss.backward()
    assert_close(x.grad, want["grad_reconstruction"][:, 0], GRADIENT, "reconstruction")
    assert_close(y.grad, want["grad_target"][:, 0], GRADIENT, "target")
    corner = below(arrays, "kl_corner")
    for value in ("-5e-06", "-2e-05"):
        target = y.detach().clone()
        target[1, 0, 0] = float(value)
        got, wanted = float(generalised_kl(x.detach(), target).mean()), float(corner[f"loss_with_one_target_{value}"])
        assert got == pytest.approx(wanted, rel=1e-6, nan_ok=True)
    assert float(generalised_kl(y, y).mean().detach()) == float(corner["loss_of_target_against_itself"]) == 0
    tags, guess = arrays["bce/tags_BC"], arrays["bce/reconstruction_BC"].requires_grad_()
    entropy = functional.binary_cross_entropy(guess, tags)
    assert_close(entropy[None].double(), arrays["bce/loss"], 1e-6, "bce")
    entropy.backward()
    assert_close(guess.grad, arrays["bce/grad_reconstruction"], GRADIENT, "bce")


CONFIGS = [("ae_c", "", 5.0), ("ae_c", "pattern/", 5.0), ("e_c", "", 0.0)]


@pytest.mark.parametrize(("which", "prefix", "weight"), CONFIGS, ids=["ae_c", "ae_c pattern", "e_c"])
def test_training_steps(which: str, prefix: str, weight: float) -> None:
    """Gradients of the first step, losses of each, weights and statistics after three, the losses of validation."""
    arrays = load(f"coala_train_{which}")
    assert float(arrays["config/audio_loss_weight"]) == float(arrays["config/tag_loss_weight"]) == weight
    built = method(below(arrays, "weights"), audio_weight=weight, tag_weight=weight).train()
    drop_as(built, prefix)
    optimizer = torch.optim.SGD(built.parameters(), lr=float(arrays["config/learning_rate"]))
    size, seen = int(arrays["config/batch_size"]), list[list[float]]()
    for step in range(3):
        batch = batch_of(arrays, slice(step * size, (step + 1) * size))
        optimizer.zero_grad()
        losses = built(batch, "ae_c")
        losses["loss"].backward()
        scale = {"audio": weight, "tags": weight, "alignment": 10.0}
        seen.append([float(losses[name]) / by if by else float("nan") for name, by in scale.items()])
        if step == 0:
            named = {key.partition("/")[2]: value for key, value in below(arrays, f"{prefix}step1/grad").items()}
            gradients = {name: parameter.grad for name, parameter in built.named_parameters()}
            wanted = built.from_published(named)
            assert wanted.keys() <= gradients.keys() and len(wanted) == len(named)
            for name, want in wanted.items():
                assert_close(gradients[name], want, GRADIENT, name)
            decoders = [grad for name, grad in gradients.items() if "decoder" in name]
            assert weight or not any(grad.any() for grad in decoders)
        optimizer.step()
        if step == 0 and not prefix:
            assert_statistics(built, below(arrays, "step1/state"))
    for column, name in enumerate(("audio", "tag", "contrastive")):
        got = torch.tensor([row[column] for row in seen], dtype=torch.float64)
        if weight or name == "contrastive":
            assert_close(got, arrays[f"{prefix}step3/loss_{name}_per_step"], 2e-6, name)
            if prefix == "":
                logged = {"audio": "audio_recon_loss", "tag": "tag_recon_loss"}.get(name, "contrastive_pairwise_loss")
                mean = got.sum() / int(arrays["step3/logged/dataset_length"]) * size
                assert_close(mean[None], arrays[f"step3/logged/{logged}/train"], 2e-6, "logged")
    assert_statistics(built, below(arrays, f"{prefix}step3/state"), 5e-5)
    batch = Batch(
        frames_of(arrays["in/validation_patch_B_mel_time"]).clamp_min(0),
        arrays["in/validation_tags_BC"].float(),
        torch.arange(size),
    )
    with torch.no_grad():
        got = outputs(built.eval(), batch)
    for name in ("loss_audio", "loss_tag", "loss_contrastive"):
        assert_close(got[name].double(), arrays[f"{prefix}validation/{name}"], 1e-5, name)
    negative = batch._replace(inputs=frames_of(arrays["in/validation_patch_B_mel_time"]))
    assert outputs(built, negative)["loss_audio"].isnan()  # published without its clamp
    assert built(negative, "ae_c")["loss"].isfinite()  # ours


def test_alignment_alone_moves_the_encoders_alike() -> None:
    """Stage e_c, and ae_c with two weights of zero: the same encoders, of which one has decoders that stand still."""
    arrays = load("coala_train_e_c")
    built = [method(below(arrays, "weights"), audio_weight=0, tag_weight=0)]
    weights = {key: value for key, value in below(arrays, "weights").items() if "decoder" not in key}
    built.append(method(weights, stages=stages("e_c")))
    for one, stage in zip(built, ("ae_c", "e_c"), strict=True):
        drop_as(one, "")
        optimizer = torch.optim.SGD(one.train().parameters(), lr=5e-3)
        one(batch_of(arrays, slice(0, 6)), stage)["loss"].backward()
        optimizer.step()
    first, second = (one.state_dict() for one in built)
    assert not any("decoder" in key for key in second)
    assert all(torch.allclose(first[key], value, atol=1e-7) for key, value in second.items())
    before = dict(method(below(arrays, "weights")).state_dict())
    moved = {key.rpartition(".")[2] for key in first if "decoder" in key and not torch.equal(first[key], before[key])}
    assert moved == {"running_mean", "running_var", "num_batches_tracked"}


@pytest.fixture
def waves() -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]]:
    arrays = load("coala_frontend")
    short_T = arrays["wave/short_int16"].float() / 32768
    yield arrays, short_T, short_T.repeat(int(arrays["wave/long_is_short_tiled"]))


def encoder(arrays: dict[str, torch.Tensor], **more: object) -> CoalaCNN:
    built = CoalaCNNConfig(channels=8, **{**PUBLISHED, **more}).build(spec(frames=False))
    weights = {key: value.float() for key, value in below(arrays, "weights/audio_encoder").items()}
    assert not built.load_state_dict(built.from_published(weights), strict=False).unexpected_keys
    built.noise_T = 5e-4 * arrays["wave/noise_uint16"].double() / 65536
    return built.eval()


def test_published_scaler(waves) -> None:
    arrays, *_ = waves
    built = encoder(arrays)
    assert torch.equal(built.scaler_2X, torch.stack([arrays["scaler/scale_96"], arrays["scaler/min_96"]]))
    by_data = 1 / (arrays["scaler/data_max_96"] - arrays["scaler/data_min_96"])
    assert_close(built.scaler_2X[0], by_data, 1e-6, "scale")


def test_published_clips(waves) -> None:
    """Noise up to ten seconds and none beyond; patches, embeddings and pooling, of both in one batch."""
    arrays, short_T, long_T = waves
    batch_BT = torch.zeros(2, len(long_T))
    batch_BT[0, : len(short_T)], batch_BT[1] = short_T, long_T
    built = encoder(arrays)
    with torch.no_grad():
        features_BFM, frames_B = built.framed(batch_BT)
        pooled_BE, z_BSE, patches_BSMX, weight_BS = built.embedded(batch_BT)
    assert frames_B.tolist() == [430, 538] and weight_BS.sum(dim=1).tolist() == [4, 5]
    for row, name, logmel in ((0, "short", "short_with_noise"), (1, "long", "long_unpadded")):
        count = int(arrays[f"embed/{name}/patches"])
        wanted_MF = arrays[f"logmel/{logmel}"][:, :537]  # the last frame reflects two zeros that end the long clip
        got_MF = features_BFM[row, : frames_B[row]].T[:, :537]
        assert (got_MF - wanted_MF).abs().max() < 2e-4
        assert_close(got_MF.exp(), wanted_MF.exp(), FORWARD, "linear")
        ends = patches_BSMX[row, [0, count - 1]]
        assert_close(
            ends, arrays[f"embed/{name}/patches_first_and_last_mel_time"], 2e-5, "patches"
        )  # 1.3e-5 are theirs
        assert_close(z_BSE[row, :count], arrays[f"embed/{name}/z_per_patch"], FORWARD, "z")
        assert_close(pooled_BE[row], arrays[f"embed/{name}/pooled_mean"], FORWARD, "pooled")
        want = arrays[f"embed/{name}/pooled_mean_plus_max"]
        with torch.no_grad():
            assert_close(encoder(arrays, pooling="mean_max")(batch_BT)[row], want, FORWARD, "mean and max")
    projection = arrays["weights/audio_encoder/fc_audio.0.weight"].float()
    assert_close(z_BSE[0, :4] @ projection.T, arrays["embed/short/z_d_per_patch"], FORWARD, "z_d")
    assert_close(z_BSE[0, :1], arrays["embed/short/first_patch_only_z"], FORWARD, "first patch")


def test_padding_without_noise_is_floor(waves) -> None:
    arrays, short_T, _ = waves
    built = encoder(arrays)
    built.noise_T = torch.zeros_like(built.noise_T)
    features_BFM = built.framed(short_T[None])[0]
    wanted = arrays["logmel/short_zero_noise_first_120_frames"]
    assert_close(features_BFM[0, :120].T.exp(), wanted.exp(), FORWARD, "without noise")
    assert float(features_BFM[0, -1].max()) == pytest.approx(float(arrays["logmel/short_zero_noise_floor"]), abs=1e-4)


def test_loudest_patch(waves) -> None:
    arrays, short_T, long_T = waves
    for name, wave_T in (("short", short_T), ("long", long_T)):
        want = below(arrays, f"energy_patch/{name}")
        features_BFM = encoder(arrays).framed(wave_T[None])[0]
        assert_close(window_sums(features_BFM)[0], want["sums_of_log_mel"], FORWARD, "sums")
        start = int(want["start_frame"])
        assert int(loudest(features_BFM)) == start
        assert (window_sums(features_BFM)[0].topk(3).indices * 12).tolist() == want["start_frames_of_top3"].tolist()
        chosen = encoder(arrays, train_patch="loudest").train().framed(wave_T[None])[0]
        assert torch.equal(chosen, features_BFM[:, start : start + 96])
        assert torch.equal(encoder(arrays, train_patch="loudest").framed(wave_T[None])[0], features_BFM)

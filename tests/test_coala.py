"""COALA beyond the published numbers: embeddings without padding or noise, the fitted scaler, the other objectives."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from atose_ray.audio.mel import COALA, LogMel
from atose_ray.config import ConfigError, run_config
from atose_ray.encoders import SampleCNNConfig
from atose_ray.encoders.coala_cnn import CoalaCNN, CoalaCNNConfig, extent, reflected
from atose_ray.methods.coala import Coala, CoalaConfig
from atose_ray.objectives import InfoNCEConfig, NTXentConfig
from atose_ray.training.loop import run_epochs
from atose_ray.training.run import Job, open_run, resolve
from atose_ray.types import Batch, DataSpec, TagSet

RATE = 22_000
TAGS = ("low", "high", "loud", "steady")


def spec(samples: int = 60_000, **more: object) -> DataSpec:
    return DataSpec(sample_rate_hz=RATE, clip_samples=samples, tags=TAGS, exclusive=False, **more)


def encoder(**config: object) -> CoalaCNN:
    torch.manual_seed(0)
    built = CoalaCNNConfig(**{"channels": 4, "scaler": "published", **config}).build(spec())
    for layer in built.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1), layer.running_var.uniform_(0.2, 1)
    return built.eval()


def clip(samples: int, seed: int = 0) -> torch.Tensor:
    return 0.3 * torch.randn(1, samples, generator=torch.Generator().manual_seed(seed))


def laid(clip_1T: torch.Tensor, before: int, behind: int) -> torch.Tensor:
    return nn.functional.pad(clip_1T, (before, behind))


@torch.no_grad()
@pytest.mark.parametrize("config", [{}, {"last_patch": "drop"}, {"hop_frames": 30, "pooling": "mean_max"}])
def test_an_embedding_depends_on_no_padding(config: dict[str, object]) -> None:
    """Zeros before and behind, in whatever batch: the numbers of the clip alone; published, they are part of it."""
    built, short, long = encoder(**config), clip(70_001), clip(150_000, 1)
    alone = built(short)
    assert torch.equal(built(short), alone)
    batch = torch.cat([laid(short, 30_000, 49_999), long, laid(short, 0, 79_999)])
    together = built(batch)
    assert torch.allclose(together[[0, 2]], alone.expand(2, -1), rtol=0, atol=1e-6)
    assert torch.allclose(together[1], built(long)[0], rtol=0, atol=1e-6)
    assert torch.allclose(built(laid(short, 0, 10_000_00)), alone, rtol=0, atol=1e-6)
    published = encoder(**config, padding="published")
    assert not torch.allclose(published(laid(short, 30_000, 0)), published(short), rtol=0, atol=1e-4)
    assert not torch.allclose(published(short), alone, rtol=0, atol=1e-4)
    assert torch.equal(published(short), published(short))  # the noise is drawn once


@torch.no_grad()
def test_frames_are_those_of_the_clip_with_reflected_ends() -> None:
    built, sound = encoder(), clip(60_123)
    wanted = LogMel(COALA, RATE)(sound)
    features_BFM, frames_B = built.framed(laid(sound, 777, 5_000))
    assert frames_B.tolist() == [wanted.shape[1]]
    assert torch.allclose(features_BFM[:, : wanted.shape[1]], wanted, atol=1e-5)
    assert (features_BFM[:, wanted.shape[1] :] == built.floor).all()
    padded_with_zeros = LogMel(COALA.model_copy(update={"padding": "zeros"}), RATE)(sound)
    assert (padded_with_zeros - wanted).abs().max() > 0.1


def test_reflected_places_and_extents() -> None:
    places = reflected(torch.arange(-3, 9), torch.tensor([[4], [1], [9]]))
    assert places.tolist() == [[3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1, 2], [0] * 12, [3, 2, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8]]
    first_B, length_B = extent(torch.tensor([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]]).bool())
    assert first_B.tolist() == [1, 0, 0] and length_B.tolist() == [3, 5, 1]


@torch.no_grad()
def test_last_patch_and_hop() -> None:
    """130 frames: one whole patch, and 34 frames that are dropped or kept, weighing as much as they hold."""
    sound = clip(129 * 512)
    keep, drop, overlap = encoder(), encoder(last_patch="drop"), encoder(hop_frames=20)
    for built, weights in ((keep, [1, 34 / 96]), (drop, [1]), (overlap, [1, 1, 90 / 96])):
        pooled_BE, seq_BSE, _, weight_BS = built.embedded(sound)
        assert weight_BS.tolist() == [pytest.approx(weights)]
        mean_E = (seq_BSE[0] * weight_BS[0][:, None]).sum(dim=0) / weight_BS.sum()
        assert torch.allclose(pooled_BE[0], mean_E, atol=1e-6)
    assert (keep.patches(keep.front_end(sound))[0, 1, :, 34:] == keep.floor).all()
    assert keep.hop_seconds == pytest.approx(96 * 512 / RATE) and overlap.hop_seconds == pytest.approx(20 * 512 / RATE)
    assert torch.equal(drop(sound), keep.pool(keep.sequence(keep.front_end(sound)[:, :96])))
    assert drop(clip(20_000)).isfinite().all()  # shorter than a patch: that one
    as_max = encoder(pooling="max")
    assert torch.equal(as_max(sound)[0], as_max.embedded(sound)[1][0].amax(dim=0))


def test_the_gradient_reaches_the_audio() -> None:
    sound = clip(50_000).requires_grad_()
    encoder()(laid(sound, 100, 900)).sum().backward()
    assert sound.grad is not None and sound.grad.isfinite().all() and sound.grad.abs().max() > 0


def test_scaler_is_fitted_on_train_and_kept_by_a_trained_encoder() -> None:
    built = encoder(scaler="fitted")
    assert torch.equal(built.scaler_2X, torch.tensor([[1.0], [0.0]]).expand(2, 96))
    batches = [torch.cat([clip(60_000, seed) for seed in seeds]) for seeds in ((1, 2), (3,))]
    built.fit(torch.stack([built.statistics(batch) for batch in batches]).sum(dim=0))
    patches = torch.cat([built.embedded(batch)[2] for batch in batches])
    assert torch.allclose(patches.amin(dim=(0, 1, 2)), torch.zeros(96), atol=1e-5)
    assert torch.allclose(patches.amax(dim=(0, 1, 2)), torch.ones(96), atol=1e-5)
    later = encoder(scaler="fitted")
    later.load_state_dict(built.state_dict())
    later.statistics(10 * batches[0])
    later.fit(torch.zeros(1))
    assert torch.equal(later.scaler_2X, built.scaler_2X)
    for scaler in ("none", "published"):
        fixed = encoder(scaler=scaler)
        before = fixed.scaler_2X.clone()
        fixed.load_state_dict(built.state_dict())
        fixed.fit(fixed.statistics(batches[0]))
        assert torch.equal(fixed.scaler_2X, before)


def test_frames_of_other_bins_are_refused() -> None:
    frames = {"kind": "frames", "frames": 96, "bins": 64, "frame_hop_seconds": 0.02}
    with pytest.raises(ValueError, match="frames of 96 mel bins, but those of the data set have 64"):
        CoalaCNNConfig().check(DataSpec(input=frames, tags=TAGS, exclusive=False))


def build(samples: int = 48_640, vectors: torch.Tensor | None = None, held_out: tuple[str, ...] = (), **more) -> Coala:
    torch.manual_seed(0)
    of = spec(samples, held_out=held_out)
    of_encoder = CoalaCNNConfig(channels=2).build(of)
    return CoalaConfig(hidden=8, **more).build(of_encoder, of, TagSet(TAGS, vectors))


def batch(samples: int = 48_640) -> Batch:
    tags_BC = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]]).float()
    return Batch(torch.cat([clip(samples, seed) for seed in range(4)]), tags_BC, torch.arange(4))


def test_widths_are_settings() -> None:
    built = build(latent=5)
    assert built.audio_projection[0].weight.shape == (5, 18) and built.tag_projection[0].weight.shape == (5, 18)
    assert built.tag_encoder[0].weight.shape == (8, 4)
    assert build(dropout=0.0).tag_encoder[3].p == 0 and built.tag_encoder[3].p == 0.25


def test_weights_and_stages() -> None:
    """Each weight multiplies its term; e_c has the alignment alone; several patches are reconstructed one by one."""
    whole = build()
    torch.manual_seed(1)
    base = whole(batch(), "ae_c")
    for name, term in (("audio_weight", "audio"), ("tag_weight", "tags"), ("contrast_weight", "alignment")):
        doubled = build(**{name: 2 * getattr(whole.config, name)})
        torch.manual_seed(1)
        twice = doubled(batch(), "ae_c")
        assert {key for key in base if not torch.allclose(base[key], twice[key])} == {"loss", term}
        assert torch.allclose(twice[term], 2 * base[term])
    alone = build(stages=[{"name": "e_c", "epochs": 1}])
    assert {name for name, _ in alone.named_children()} == {
        "encoder", "audio_projection", "tag_encoder", "tag_projection"
    }  # fmt: skip
    assert set(alone(batch(), "e_c")) == {"loss", "alignment"}
    assert build(100_000)(batch(100_000), "ae_c")["loss"].isfinite()


def test_patches_behind_the_clip_are_not_reconstructed() -> None:
    built = build()
    for layer in built.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    built.eval()
    padded = batch()._replace(inputs=laid(batch().inputs, 0, 3 * 48_640))
    one, four = (float(built(some, "ae_c")["audio"]) for some in (batch(), padded))
    assert four == pytest.approx(one, rel=1e-5)


def test_audio_is_reconstructed_from_patches_only() -> None:
    with pytest.raises(ValueError, match="reconstructs the patches of coala_cnn, which SampleCNN has not"):
        CoalaConfig().build(SampleCNNConfig(channels=4).build(spec()), spec(), TagSet(TAGS))
    for kind, stage in (("coala_cnn", "ae_c"), ("pretrained", "ae_c"), ("mel_cnn", "e_c")):
        CoalaConfig(stages=[{"name": stage, "epochs": 1}]).check_encoder(kind)
    with pytest.raises(ConfigError, match="which mel_cnn has not"):  # before a clip is read: no trial of it fails
        run_config({"encoder": {"kind": "mel_cnn"}, "method": {"kind": "coala"}})
    aligned = CoalaConfig(stages=[{"name": "e_c", "epochs": 1}])
    built = aligned.build(SampleCNNConfig(block="basic", channels=4).build(spec()), spec(), TagSet(TAGS))
    assert built(batch(60_000), "e_c")["loss"].isfinite()
    with pytest.raises(ValidationError, match="with a frozen one take e_c"):
        CoalaConfig(stages=[{"name": "ae_c", "epochs": 1, "trains": ["audio_decoder"]}])


def test_learned_temperature() -> None:
    fixed, learned = build(), build(learn_temperature=True, objective={"kind": "info_nce", "temperature": 0.2})
    assert fixed.audio_projection.log_temperature is None
    parameter = learned.audio_projection.log_temperature
    assert parameter is not None and float(parameter.detach().exp()) == pytest.approx(0.2)
    learned(batch(), "ae_c")["loss"].backward()
    assert parameter.grad is not None and parameter.grad.abs() > 0
    torch.manual_seed(1)
    before = learned(batch(), "ae_c")["alignment"]
    with torch.no_grad():
        parameter += 1
    torch.manual_seed(1)
    assert learned(batch(), "ae_c")["alignment"] != before


def test_duplicates_are_positives_where_asked() -> None:
    """Clips with one tag set: negatives as published, or positives; without any, both are the same."""
    torch.manual_seed(0)
    audio, tag = torch.randn(4, 6), torch.randn(4, 6)
    same, distinct = batch().tags_BC, torch.eye(4)
    published, positives = NTXentConfig(), NTXentConfig(duplicates="positives")
    assert torch.allclose(published.loss(tag, audio, distinct), positives.loss(tag, audio, distinct))
    assert torch.equal(published.loss(tag, audio, same), published.loss(tag, audio, distinct))
    assert not torch.allclose(positives.loss(tag, audio, same), published.loss(tag, audio, same))
    audio[2], tag[2] = audio[0], tag[0]  # a pair of equal clips: as positives nothing pushes them apart
    audio.requires_grad_()
    pulls = [torch.autograd.grad(one.loss(tag, audio, same), audio)[0][0].norm() for one in (published, positives)]
    assert pulls[1] != pulls[0]
    without = NTXentConfig(constant=0)
    assert without.loss(tag, audio, same) > published.loss(tag, audio, same)


def test_info_nce_has_no_negatives_of_its_own_kind() -> None:
    """Audio vectors that lie close to each other cost in nt_xent, and nothing more in info_nce."""
    tag, distinct = torch.eye(4, 8), torch.eye(4)
    apart = torch.eye(4, 8)
    close = apart + torch.cat([torch.zeros(4, 4), 3 * torch.ones(4, 4)], dim=1)
    lengths = close.norm(dim=1, keepdim=True)
    cross = InfoNCEConfig()
    alike = cross.loss(tag, close, distinct), cross.loss(tag, apart / lengths, distinct)
    rows = NTXentConfig().loss(tag, close, distinct) - NTXentConfig().loss(tag, apart, distinct)
    assert rows > 1 > alike[0] - alike[1]


def test_unseen_tags_are_scored_from_vectors_and_held_out_ones_are_not_trained_on() -> None:
    torch.manual_seed(5)
    vectors = torch.randn(4, 6)
    built = build(vectors=vectors, tag_side="vectors", held_out=("steady",), objective={"kind": "info_nce"})
    assert built.config.reads_vectors and built.config.scores_unseen
    assert not CoalaConfig().reads_vectors and not CoalaConfig().scores_unseen
    assert built.tag_decoder[-3].out_features == 3
    clips = batch()
    torch.manual_seed(1)
    before = built(clips, "ae_c")["loss"]
    with torch.no_grad():
        built.vectors_CV[3] += 1
    changed = clips._replace(tags_BC=clips.tags_BC * torch.tensor([1, 1, 1, 0.0]))
    for some in (clips, changed):
        torch.manual_seed(1)
        assert torch.equal(built(some, "ae_c")["loss"], before)
    built.eval()
    with torch.no_grad():
        scores_BC = built.score(clips, TagSet(("zither", "low"), torch.stack([torch.ones(6), vectors[0]])), "ae_c")
        assert scores_BC.shape == (4, 2) and (scores_BC >= 0).all() and (scores_BC <= 1).all()
        own = built.score(clips, TagSet(TAGS), "ae_c")
        assert torch.allclose(own[:, 0], scores_BC[:, 1], atol=1e-6)
        audio_BD, tag_BD = built.joint_embeddings(clips)
        assert torch.allclose(audio_BD.norm(dim=1), torch.ones(4)) and tag_BD.shape == audio_BD.shape
    with pytest.raises(ValueError, match="set tag_vectors"):
        run_config({"encoder": {"kind": "coala_cnn"}, "method": {"kind": "coala", "tag_side": "vectors"}})


def test_a_probe_of_the_frozen_encoder_is_a_stage(tiny_store, tiny_manifest, tmp_path) -> None:
    """Stage cnn with `trains: [classifier]`, after the alignment: what a search may score by."""
    stages = [{"name": "e_c", "epochs": 1}, {"name": "cnn", "epochs": 2, "trains": ["classifier"]}]
    tree = {
        "data": {"dataset": "folder", "crop_seconds": 0.6, "batch_size": 8, "eval_crops": 2},
        "encoder": {"kind": "coala_cnn", "channels": 2},
        "method": {"kind": "coala", "hidden": 8, "stages": stages},
    }
    run = resolve(run_config(tree), tiny_store, tiny_manifest)
    opened = open_run(Job(run, tiny_store.uri, str(tmp_path), {}))
    kept: dict[str, dict[str, torch.Tensor]] = {}
    for record in run_epochs(run, opened.method, opened.batches, opened.folder):
        kept[record.stage] = {key: value.clone() for key, value in opened.method.state_dict().items()}
    moved = {key.split(".")[0] for key, value in kept["cnn"].items() if not torch.equal(value, kept["e_c"][key])}
    assert moved == {"classifier"}
    with pytest.raises(ValueError, match="zither"):
        opened.method.score(batch(), TagSet(("zither",)), "cnn")

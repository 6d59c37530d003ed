"""What every encoder must do, whatever it is made of. A new encoder is one line in ENCODERS."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from atose_ray.audio.harmonic import HarmonicSTFT, frames_of, levels_of
from atose_ray.audio.sinc import FFT_FROM_TAPS
from atose_ray.encoders import (
    AnyEncoderConfig,
    CoalaCNNConfig,
    Encoder,
    EncoderConfig,
    HarmonicCNNConfig,
    MelCNNConfig,
    PannCNNConfig,
    SampleCNNConfig,
    TagSincNetConfig,
    VGGishConfig,
)
from atose_ray.encoders.harmonic_cnn import FRAME_POOLS, ROW_POOLS, pool_plan
from atose_ray.encoders.sample_cnn import blocks_for
from atose_ray.encoders.spec_augment import SpecAugmentConfig, spans
from atose_ray.types import DataSpec

ENCODERS: dict[str, EncoderConfig] = {
    "sample_cnn basic": SampleCNNConfig(block="basic", channels=8),
    "sample_cnn se": SampleCNNConfig(block="se", channels=8, se_ratio=2),
    "sample_cnn res": SampleCNNConfig(block="res", channels=8),
    "sample_cnn rese": SampleCNNConfig(block="rese", channels=8, se_ratio=2),
    "harmonic_cnn": HarmonicCNNConfig(channels=8),
    "harmonic_cnn harmonic": HarmonicCNNConfig(channels=8, layout="harmonic"),
    "mel_cnn": MelCNNConfig(channels=8, embedding=64, mels=32),
    "mel_cnn none": MelCNNConfig(channels=8, embedding=64, padding="none"),
    "pann_cnn": PannCNNConfig(channels=8, spec_augment={}),
    "pann_cnn cnn6": PannCNNConfig(channels=8, layout="cnn6", mels=40, pooling={"kind": "max"}),
    "coala_cnn": CoalaCNNConfig(channels=8),
    "coala_cnn overlap": CoalaCNNConfig(channels=8, hop_frames=40, pooling="mean_max", train_patch="loudest"),
    "coala_cnn published": CoalaCNNConfig(channels=8, padding="published", last_patch="drop"),
    "vggish": VGGishConfig(channels=4, hidden=32, embedding=64),
    "tag_sinc_net direct": TagSincNetConfig(channels=8, se_ratio=2, filters=12, filter_length=31),
    "tag_sinc_net fft": TagSincNetConfig(channels=8, se_ratio=2, filters=12, filter_length=255),
    "tag_sinc_net honest": TagSincNetConfig(
        block="basic", channels=8, filters=12, filter_length=255, published_filters=False
    ),
}
LENGTHS = (8000, 16000, 59049, 80000)


def spec(clip_samples: int, sample_rate_hz: int = 16000) -> DataSpec:
    return DataSpec(sample_rate_hz=sample_rate_hz, clip_samples=clip_samples, tags=("a", "b"), exclusive=False)


def build(config: EncoderConfig, clip_samples: int, sample_rate_hz: int = 16000) -> Encoder:
    torch.manual_seed(0)
    return config.build(spec(clip_samples, sample_rate_hz))


def noise_BT(clips: int, samples: int) -> torch.Tensor:
    return 0.3 * torch.randn(clips, samples, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=ENCODERS)
def config(request: pytest.FixtureRequest) -> EncoderConfig:
    return ENCODERS[request.param]


@pytest.mark.parametrize("samples", LENGTHS)
def test_shape_and_rows_are_independent(config: EncoderConfig, samples: int) -> None:
    samples = max(samples, config.least_length)
    encoder = build(config, samples).eval()
    audio_BT = noise_BT(3, samples)
    with torch.no_grad():
        embed_BE = encoder(audio_BT)
        alone_BE = torch.cat([encoder(row[None]) for row in audio_BT])
    assert embed_BE.shape == (3, encoder.embed_dim) and embed_BE.dtype == torch.float32
    assert encoder.embed_dim == (9 * 8 if config.kind == "coala_cnn" else 8 * 8)
    assert encoder.min_length <= samples
    peak = float(embed_BE.max())  # small where nine excitations halve the signal
    assert torch.allclose(embed_BE, alone_BE, rtol=0, atol=1e-5 * peak)
    assert (embed_BE[0] - embed_BE[1]).abs().max() > 1e-2 * peak  # it does hear


@pytest.mark.parametrize("samples", (8000, 59049))
def test_every_parameter_moves(config: EncoderConfig, samples: int) -> None:
    """A finite gradient everywhere, and none that is zero except behind a bias that a BatchNorm takes out again."""
    samples = max(samples, config.least_length)
    encoder = build(config, samples).train()
    embed_BE = encoder(noise_BT(4, samples))
    (embed_BE * torch.randn(embed_BE.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    one_step = config.kind == "pann_cnn" and samples == 8000  # there is nothing to weigh
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        cancelled = name.endswith("bias") and ("conv" in name or name == "fc.bias" or "audio_encoder" in name)
        cancelled |= name == "pooling.score.bias" or (one_step and name == "pooling.score.weight")
        assert cancelled or parameter.grad.abs().max() > 1e-7, name


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_silence_is_finite(config: EncoderConfig, mode: str) -> None:
    encoder = build(config, 16000).train(mode == "train")
    embed_BE = encoder(torch.zeros(3, 16000))
    embed_BE.square().sum().backward()
    assert embed_BE.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_longer_audio_than_built_for(config: EncoderConfig) -> None:
    encoder = build(config, 16000).eval()
    with torch.no_grad():
        assert encoder(noise_BT(2, 50_000)).shape == (2, encoder.embed_dim)
        assert encoder(noise_BT(2, encoder.min_length)).shape == (2, encoder.embed_dim)


def test_shorter_audio_than_built_for(config: EncoderConfig) -> None:
    encoder = build(config, 16000).eval()
    least = encoder.min_length
    with pytest.raises(ValueError, match=rf"at least {least} samples .or frames., but got {least - 1}; pad"):
        encoder(noise_BT(2, least - 1))


def test_shortest_clip(config: EncoderConfig) -> None:
    least = config.least_length
    with torch.no_grad():
        encoder = build(config, least).eval()
        assert encoder(noise_BT(2, least)).shape == (2, encoder.embed_dim)
    with pytest.raises(
        ValueError, match=rf"{config.kind} needs clips of at least {least} .* but got {least - 1}; use longer"
    ):
        config.check(spec(least - 1))


def test_same_seed_same_encoder(config: EncoderConfig) -> None:
    first, second = build(config, 16000).state_dict(), build(config, 16000).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_initialisation(config: EncoderConfig) -> None:
    """Uniform within sqrt(6 / fan_in) for 1-D convolutions, else sqrt(6 / (fan_in + fan_out)); biases are zero. COALA's
    are torch's own, as published."""
    if config.kind == "coala_cnn":
        return
    for name, layer in build(config, 59049).named_modules():
        if not isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            continue
        taps = math.prod(layer.weight.shape[2:])
        fan_out, fan_in = (size * taps for size in layer.weight.shape[:2])
        if name == "pooling.score":  # zero, so that it begins as the mean
            continue
        he = isinstance(layer, nn.Conv1d) and "sc_conv" not in name
        bound = math.sqrt(6 / fan_in) if he else math.sqrt(6 / (fan_in + fan_out))
        assert 0.8 * bound < layer.weight.abs().max() <= bound * 1.000001, name
        assert layer.bias is not None and not layer.bias.any(), name


def test_weights_do_not_depend_on_clip_length_of_harmonic_cnn() -> None:
    shapes = [
        {name: tuple(p.shape) for name, p in build(HarmonicCNNConfig(channels=4), n).named_parameters()}
        for n in LENGTHS
    ]
    assert all(shape == shapes[0] for shape in shapes)


@pytest.mark.parametrize(
    ("samples", "blocks"),
    [(81, 3), (242, 3), (243, 4), (8000, 7), (16000, 7), (19683, 8), (59048, 8), (59049, 9), (10**6, 9)],
)
def test_depth_of_sample_cnn(samples: int, blocks: int) -> None:
    assert blocks_for(samples) == blocks
    names = [name for name, _ in build(SampleCNNConfig(block="basic", channels=4), samples).named_children()]
    assert names == ["stem", *(f"block{i}" for i in range(1, blocks + 1)), "fc", "fc_bn"]


def test_pools_of_harmonic_cnn() -> None:
    assert pool_plan(312, FRAME_POOLS) == list(FRAME_POOLS)  # published: 80000 samples
    assert pool_plan(230, FRAME_POOLS) == [2, 2, 2, 2, 2, 3, 2]  # 59049 samples
    assert pool_plan(62, FRAME_POOLS) == [2, 2, 2, 2, 2, 1, 1]  # a second
    assert pool_plan(16, FRAME_POOLS) == [2, 2, 2, 2, 1, 1, 1]  # the shortest clip
    assert pool_plan(104, ROW_POOLS) == [2, 2, 2, 2, 2, 2, 1]  # 8 kHz


@pytest.mark.parametrize(("rate_hz", "levels"), [(8000, 104), (16000, 128), (22050, 140), (44100, 164), (48000, 166)])
def test_harmonics_stay_below_nyquist(rate_hz: int, levels: int) -> None:
    front = HarmonicSTFT(rate_hz)
    assert front.levels == levels_of(rate_hz) == levels
    assert front.centre_hz.max() < rate_hz / 2
    assert front(noise_BT(2, 8000)).shape == (2, 6, levels, frames_of(8000))
    with torch.no_grad():
        assert build(HarmonicCNNConfig(channels=4), 16000, rate_hz).eval()(noise_BT(2, 16000)).isfinite().all()


def test_harmonic_stft_refuses_a_rate_without_harmonics() -> None:
    assert levels_of(404) > 0
    with pytest.raises(ValueError, match=r"at least 404, .* but got 403; resample"):
        build(HarmonicCNNConfig(), 80000, 403)


@pytest.mark.parametrize("samples", [256, 511, 512, 4096, 79999])
def test_frames_of(samples: int) -> None:
    assert HarmonicSTFT(16000)(noise_BT(1, samples)).shape[3] == frames_of(samples)


def test_silence_has_a_gradient_through_the_front_end() -> None:
    front = HarmonicSTFT(16000)
    silence_BT = torch.zeros(2, 4096, requires_grad=True)
    out = front(silence_BT)
    assert torch.equal(out, torch.full_like(out, -50.0))
    out.sum().backward()
    assert silence_BT.grad is not None and silence_BT.grad.isfinite().all()
    assert front.bw_Q.grad is not None and front.bw_Q.grad.isfinite().all()


def test_a_tone_lights_its_own_filter() -> None:
    """Independent of the published numbers: the loudest filter of a pure tone is the one centred on it."""
    front = HarmonicSTFT(16000)
    level = 90  # of harmonic 1
    hz = float(front.centre_hz[level])
    tone_BT = torch.sin(2 * torch.pi * hz * torch.arange(16000) / 16000)[None]
    out = front(tone_BT)[0, :, :, 30]  # channel c of row a is filter 6 a + c
    loudest = int(out.T.flatten().argmax())
    assert abs(float(front.centre_hz[loudest]) - hz) < 40


def test_harmonics_of_a_tone_lie_in_its_channels() -> None:
    """Layout "harmonic": 440 Hz is harmonic 1 of the row nearest 440 Hz, harmonic 2 of the row nearest 220, ..."""
    front = HarmonicSTFT(16000, layout="harmonic")
    tone_BT = torch.sin(2 * torch.pi * 440 * torch.arange(16000) / 16000)[None]
    out = front(tone_BT)[0, :, :, 30]
    base_hz = front.centre_hz[: front.levels]
    for channel in range(6):
        want = int((base_hz * (channel + 1) - 440).abs().argmin())
        assert abs(int(out[channel].argmax()) - want) <= 1, channel  # a bin is 31 Hz, a row here 13
    assert len({int(row.argmax()) for row in out}) == 6


def test_layouts_hold_the_same_filters() -> None:
    audio_BT = noise_BT(2, 8000)
    harmonic = HarmonicSTFT(16000, layout="harmonic")(audio_BT)
    published = HarmonicSTFT(16000)(audio_BT)
    flat = harmonic.permute(0, 3, 1, 2).flatten(2)  # all levels of harmonic 1, then of harmonic 2, ...
    assert torch.equal(published.permute(0, 3, 2, 1).flatten(2), flat)
    assert not torch.equal(published, harmonic)


@pytest.mark.parametrize(("layout", "weights"), [("cnn10", 294_449), ("cnn6", 270_177)])
def test_pann_cnn_is_small_and_has_a_time_axis(layout: str, weights: int) -> None:
    encoder = build(PannCNNConfig(layout=layout), 80000)
    assert sum(p.numel() for p in encoder.parameters()) == weights
    assert encoder.hop_seconds == pytest.approx(0.32)
    assert encoder.sequence(encoder.front_end(noise_BT(2, 80000))).shape == (2, 15, 128)


def test_pann_cnn_hears_where_a_sound_is() -> None:
    """A burst in the middle moves the steps near it, and no others."""
    encoder = build(PannCNNConfig(channels=4), 80000).eval()
    quiet_BT = 0.01 * noise_BT(1, 80000)
    burst_BT = quiet_BT.clone()
    burst_BT[:, 40000:44000] += noise_BT(1, 4000)
    with torch.no_grad():
        moved_S = (encoder.sequence(encoder.front_end(burst_BT)) - encoder.sequence(encoder.front_end(quiet_BT))).abs()
    steps = moved_S.amax(dim=2)[0].nonzero()[:, 0]
    assert steps.tolist() == [5, 6, 7, 8, 9, 10]  # of 15; frames 125 to 138 lie in steps 7 and 8


@pytest.mark.parametrize(
    "change", [{"dropout": 0.6}, {"hop_samples": 640}, {"pooling": {"kind": "mean"}}, {"pooling": {"kind": "max"}}]
)
def test_settings_of_pann_cnn_act(change: dict) -> None:
    outs = []
    for settings in ({}, change):
        encoder = build(PannCNNConfig.model_validate({"channels": 4, **settings}), 80000).train()
        if hasattr(encoder.pooling, "score"):
            nn.init.normal_(encoder.pooling.score.weight)
        torch.manual_seed(1)
        outs.append(encoder(noise_BT(4, 80000)))
    assert not torch.allclose(*outs)


@pytest.mark.parametrize("config", [PannCNNConfig(channels=4), MelCNNConfig(channels=4, embedding=8, mels=20)])
def test_spec_augment_hides_bands_and_stretches_in_training_only(config: EncoderConfig) -> None:
    settings = SpecAugmentConfig(mel_masks=1, mel_share=0.5, time_masks=2, time_share=0.25)
    plain, masked = build(config, 66048), build(config.model_copy(update={"spec_augment": settings}), 66048)
    audio_BT = noise_BT(8, 66048)
    assert torch.equal(plain.eval().front_end(audio_BT), masked.eval().front_end(audio_BT))
    whole_BFM, drawn = plain.train().front_end(audio_BT), []
    masked.train()
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        drawn.append(masked.front_end(audio_BT))
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])
    hidden_BFM = drawn[0] == 0
    assert torch.equal(drawn[0][~hidden_BFM], whole_BFM[~hidden_BFM])
    rows_BF, columns_BM = hidden_BFM.all(dim=2), hidden_BFM.all(dim=1)
    assert torch.equal(hidden_BFM, rows_BF[:, :, None] | columns_BM[:, None])
    assert rows_BF.float().mean(dim=1).max() <= 0.5 and columns_BM.float().mean(dim=1).max() <= 0.5
    assert rows_BF.any() and columns_BM.any() and not torch.equal(rows_BF[0], rows_BF[1])


def test_spans_reach_every_place_and_width() -> None:
    torch.manual_seed(0)
    hidden_BX = spans(4000, 10, 1, 0.3, torch.device("cpu"))
    assert set(hidden_BX.sum(dim=1).tolist()) == {0, 1, 2, 3}
    assert hidden_BX.float().mean(dim=0).min() > 0.05
    assert not spans(4, 10, 0, 0.3, torch.device("cpu")).any()


def test_both_paths_of_the_sinc_front_end_are_in_the_suite() -> None:
    taps = {name: c.filter_length + 2 for name, c in ENCODERS.items() if isinstance(c, TagSincNetConfig)}
    assert {name: count >= FFT_FROM_TAPS for name, count in taps.items()} == {
        "tag_sinc_net direct": False,
        "tag_sinc_net fft": True,
        "tag_sinc_net honest": True,
    }


@pytest.mark.parametrize("block", ["se", "rese"])
def test_se_ratio_and_dropout_act(block: str) -> None:
    sizes = [
        sum(p.numel() for p in build(SampleCNNConfig(block=block, channels=8, se_ratio=r), 8000).parameters())
        for r in (1, 16)
    ]
    assert sizes[0] < sizes[1]
    encoder = build(SampleCNNConfig(block=block, channels=8, dropout=0.5), 8000).train()
    outs = [encoder(noise_BT(4, 8000)) for _ in range(2)]
    assert torch.equal(*outs) == (block == "se")  # dropout stands in the residual branch only


def test_union() -> None:
    adapter = TypeAdapter(AnyEncoderConfig)
    assert adapter.validate_python({"kind": "harmonic_cnn", "channels": 64}) == HarmonicCNNConfig(channels=64)
    assert adapter.validate_python({"kind": "sample_cnn"}) == SampleCNNConfig()
    assert adapter.validate_python({"kind": "tag_sinc_net", "filters": 64}) == TagSincNetConfig(filters=64)
    for wrong in ({"kind": "sample_cnn", "channels": 0}, {"kind": "sample_cnn", "block": "x"}, {"kind": "mel"}, {}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
    assert (SampleCNNConfig.published_length, HarmonicCNNConfig.published_length) == (59049, 80000)

"""MelCNN, the zero-shot method, its optimizer and its vectors give the numbers of the published code (zsl_*.npz)."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from conftest import TINY_TAGS
from parity_vectors import FORWARD, GRADIENT, assert_close, below, load
from torch import nn

from atose_ray.config import run_config
from atose_ray.encoders.mel_cnn import DEVIATION, MEAN, MelCNN, MelCNNConfig
from atose_ray.methods.supervised import SupervisedConfig
from atose_ray.methods.zero_shot import ZeroShot, ZeroShotConfig, draw, kernel_energy, ranking_terms, unit
from atose_ray.optim import KerasSGDConfig, after_plateaus
from atose_ray.types import Batch, DataSpec, TagSet

LAYERS = {**{f"am_conv_{n}": f"encoder.conv{n}" for n in range(1, 6)}, "word_dense": "towers.words"}
AXES = {3: (2, 1, 0), 2: (1, 0), 1: (0,)}


def spec(tags: int = 12, frames: int = 130, **more: object) -> DataSpec:
    names = tuple(f"tag {i}" for i in range(tags))
    return DataSpec(sample_rate_hz=22_050, clip_samples=(frames - 1) * 512, tags=names, exclusive=False, **more)


def published(weights: dict[str, torch.Tensor], vectors_CV: torch.Tensor, **changes: object) -> ZeroShot:
    """The full-width method with the published layers' weights."""
    of = spec(len(vectors_CV))
    method = ZeroShotConfig(**changes).build(MelCNNConfig().build(of), of, TagSet(of.tags, vectors_CV.float()))
    state = method.state_dict()
    for theirs, ours in LAYERS.items():
        state[f"{ours}.weight"] = weights[f"{theirs}/kernel"].float().permute(*AXES[weights[f"{theirs}/kernel"].dim()])
        state[f"{ours}.bias"] = weights[f"{theirs}/bias"].float()
    method.load_state_dict(state)
    return method.train()


def encoded(encoder: nn.Module, mel_BFM: torch.Tensor) -> torch.Tensor:
    assert isinstance(encoder, MelCNN)
    return encoder.pool(encoder.sequence((mel_BFM.float() - MEAN) / DEVIATION))


def word(method: ZeroShot, vectors: torch.Tensor) -> torch.Tensor:
    return method.towers.words(vectors.float())


def test_parameters_are_the_published_ones() -> None:
    for width, total in ((300, 272_888), (40, 246_888)):
        method = ZeroShotConfig().build(
            MelCNNConfig().build(spec()), spec(), TagSet(spec().tags, torch.zeros(12, width))
        )
        assert sum(p.numel() for p in method.parameters()) == total
    assert sum(p.numel() for p in method.encoder.parameters()) == 242_788
    supervised = SupervisedConfig(head={"kind": "linear"}).build(MelCNNConfig().build(spec(50)), spec(50), TagSet(()))
    assert sum(p.numel() for p in supervised.parameters()) == 247_838
    assert MelCNNConfig.published_length == 129 * 512


def test_forward_layer_by_layer() -> None:
    arrays = load("zsl_model")
    out, method = below(arrays, "out"), published(below(arrays, "w"), arrays["pos_tag_vectors"])
    seen: dict[str, torch.Tensor] = {}
    for number in range(1, 6):
        layer = method.encoder.get_submodule(f"conv{number}")
        layer.register_forward_hook(lambda _, __, y, name=f"conv{number}": seen.__setitem__(name, y.transpose(1, 2)))
    audio_BD = encoded(method.encoder, arrays["mel_raw"])
    assert_close(seen["conv1"][:, ::5, ::4], out["conv1"], FORWARD, "conv1")
    for number, factor in enumerate(method.encoder.pools, 1):
        y = nn.functional.max_pool1d(seen[f"conv{number}"].relu().transpose(1, 2), factor).transpose(1, 2)
        assert_close(y[:, :, ::2] if number == 1 else y, out[f"pool{number}"], FORWARD, f"pool{number}")
    assert_close(seen["conv5"], out["conv5"], FORWARD, "conv5")
    assert_close(audio_BD, out["audio_embedding"], FORWARD, "audio")
    pos, neg = (word(method, arrays[f"{name}_tag_vectors"]) for name in ("pos", "neg"))
    assert_close(pos, out["pos_word_embedding"], FORWARD, "pos")
    assert_close(neg, out["neg_word_embedding"], FORWARD, "neg")
    cosines = torch.stack([(unit(audio_BD) * unit(one)).sum(dim=1) for one in (pos, neg)], dim=1)
    assert_close(cosines, out["similarity"], FORWARD, "similarity")
    assert bool(out["training_equals_inference"])
    assert torch.equal(encoded(method.eval().encoder, arrays["mel_raw"]), audio_BD)


@pytest.mark.parametrize(("key", "ranking", "margin"), [
    *((f"hinge_margin{m}", "hinge", m) for m in (0.1, 0.4, 0.7)), ("bpr", "bpr", 0.4)
])  # fmt: skip
def test_ranking_losses(key: str, ranking: str, margin: float) -> None:
    arrays = load("zsl_model")
    names = ("audio_embedding", "pos_word_embedding", "neg_word_embedding")
    audio, pos, neg = (arrays[f"out/{name}"].clone().requires_grad_() for name in names)
    cos = [(unit(audio) * unit(one)).sum(dim=1, keepdim=True) for one in (pos, neg)]
    loss = ranking_terms(*cos, ranking, margin).sum()
    assert_close(loss[None], arrays[f"{key}/loss"], 1e-6, "loss")
    for name, grad in zip(names, torch.autograd.grad(loss, [audio, pos, neg]), strict=True):
        assert_close(grad, arrays[f"{key}/grad_{name}"], GRADIENT, name)


def test_cosine_of_vanishing_embeddings() -> None:
    eps = below(load("zsl_model"), "eps")
    audio, words = eps["audio_embedding"], eps["word_embedding"]
    assert_close((unit(audio) * unit(words)).sum(dim=1), eps["similarity"], FORWARD, "similarity")
    theirs = nn.functional.cosine_similarity(audio, words)
    assert abs(float(theirs[2] - eps["similarity"][2])) > 1e-2  # torch's own floor is another


def test_losses_and_weight_gradients() -> None:
    arrays = load("zsl_model")
    for wanted, decay in (("grad_hinge_margin0.4", 0.0), ("grad_total_margin0.4", 1e-5)):
        method = published(below(arrays, "w"), arrays["pos_tag_vectors"])
        audio = unit(encoded(method.encoder, arrays["mel_raw"]))
        words = [unit(word(method, arrays[f"{name}_tag_vectors"])) for name in ("pos", "neg")]
        cos = [(audio * one).sum(dim=1, keepdim=True) for one in words]
        energy = kernel_energy(method.encoder)
        assert_close(1e-5 * energy[None], arrays["l2_regularisation_sum"], 1e-6, "L2")
        loss = ranking_terms(*cos, "hinge", 0.4).sum() + decay * energy
        if decay:
            assert_close(loss[None], arrays["total_loss_margin0.4"], 1e-6, "total")
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in method.named_parameters()}
        for theirs, ours in LAYERS.items():
            want, weight = below(arrays, f"{wanted}/{theirs}"), gradients[f"{ours}.weight"]
            kernel = weight.permute(*AXES[weight.dim()])
            assert_close(gradients[f"{ours}.bias"], want["bias"], GRADIENT, f"{theirs} bias")
            part = kernel[::4, ::4] if kernel.dim() == 2 else kernel[:, ::8, ::8]
            assert_close(part, want["kernel/every4" if kernel.dim() == 2 else "kernel/every8"], GRADIENT, theirs)
            assert float(kernel.double().norm()) == pytest.approx(float(want["kernel/l2norm"]), rel=1e-4)


def repeated(mel_FM: torch.Tensor) -> torch.Tensor:
    """As the published code lengthens a short track: doubled until it has 130 frames."""
    while len(mel_FM) < 130:
        mel_FM = torch.cat([mel_FM, mel_FM])
    return mel_FM


def test_published_extraction() -> None:
    """Back-to-back segments, the tail dropped, raw embeddings averaged; and what our mean of scores gives instead."""
    arrays = load("zsl_model")
    method = published(below(arrays, "w"), arrays["extract/tag_vectors"]).eval()
    tracks = []
    for number in range(4):
        mel_FM = repeated(arrays[f"extract/track{number}_mel_raw"].float())
        segments = mel_FM[: len(mel_FM) // 130 * 130].view(-1, 130, 128)
        tracks.append(encoded(method.encoder, segments).detach())
    track_ND = torch.stack([segments.mean(dim=0) for segments in tracks])
    tag_CD = word(method, arrays["extract/tag_vectors"]).detach()
    assert_close(track_ND, arrays["extract/track_embedding"], FORWARD, "track")
    assert_close(tag_CD, arrays["extract/tag_embedding"], FORWARD, "tag")
    assert_close(unit(tag_CD) @ unit(track_ND).T, arrays["extract/cosine_tag_by_track"], FORWARD, "cosine")
    of_scores = unit(tag_CD) @ unit(tracks[0]).mean(dim=0)
    assert (of_scores - arrays["extract/cosine_tag_by_track"][:, 0]).abs().max() > 1e-4


def test_pretraining_net_is_supervised_with_a_linear_head() -> None:
    arrays = load("zsl_model")
    method = published(below(arrays, "w"), arrays["pos_tag_vectors"])
    head = nn.Linear(100, 50)
    kernel, bias = (arrays[f"softmax_model/dense_{name}"].float() for name in ("kernel", "bias"))
    head.load_state_dict({"weight": kernel.T, "bias": bias})
    got = torch.sigmoid(head(encoded(method.encoder, arrays["mel_raw"])))
    assert_close(got, arrays["softmax_model/output"], FORWARD, "output")


def published_batches(arrays: dict[str, torch.Tensor], negatives: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The published loader re-told: numpy shuffles the order, Python's `random` draws crop, positive and negatives."""
    random.seed(int(arrays["rng_seed_python_random"]))
    np.random.seed(int(arrays["rng_seed_numpy"]))
    has, seen = arrays["track_by_tag"].numpy(), arrays["train_tag_keys"].tolist()
    train, valid = (arrays[f"{name}_track_keys"].numpy() for name in ("train", "valid"))
    orders = [np.arange(len(train)), np.arange(len(valid))]
    for order in orders:
        np.random.shuffle(order)

    def row(track: int) -> list[int]:
        frames = len(repeated(arrays[f"mel_raw/track{track}"]))
        start = random.randint(0, frames - 130)
        positive = random.choice([tag for tag in seen if has[track, tag]])
        return [track, start, positive, *random.sample([tag for tag in seen if not has[track, tag]], negatives)]

    found, per_epoch = [], len(train) // 4
    for step in range(steps):
        if step and step % per_epoch == 0:
            orders[0] = np.arange(len(train))
            np.random.shuffle(orders[0])
        at = step % per_epoch * 4
        found.append([row(int(track)) for track in train[orders[0][at : at + 4]]])
    return np.array(found), np.array([row(int(track)) for track in valid[orders[1][:4]]])


@pytest.mark.parametrize(("key", "negatives"), [("k1", 1), ("k3", 3)])
def test_training_trace(key: str, negatives: int) -> None:
    """The loader's draws, then losses, accuracies and weights of the published steps, with our optimizer."""
    arrays = load("zsl_train")
    trace, vectors = below(arrays, key), arrays["tag_vectors"].float()
    method = published(below(arrays, "w0"), vectors)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    drawn, valid_rows = trace["batch_track_crop_pos_neg"].numpy(), trace["valid_track_crop_pos_neg"].numpy()
    retold, retold_valid = published_batches(arrays, negatives, len(drawn))
    assert np.array_equal(retold, drawn) and np.array_equal(retold_valid, valid_rows)
    settings = KerasSGDConfig(lr=1e-3, decay=1e-6)
    optimizer = settings.build(method.parameters())

    def step(rows: np.ndarray) -> tuple[torch.Tensor, float, torch.Tensor]:
        mel = [repeated(arrays[f"mel_raw/track{row[0]}"].float())[row[1] : row[1] + 130] for row in rows]
        audio, words = unit(encoded(method.encoder, torch.stack(mel))), unit(word(method, vectors))
        cos = (audio[:, None] * words[torch.from_numpy(rows[:, 2:])]).sum(dim=2)
        loss = ranking_terms(cos[:, :1], cos[:, 1:], "hinge", 0.4).sum() + 1e-5 * kernel_energy(method.encoder)
        return loss, float((cos.argmax(dim=1) == 0).float().mean()), cos

    with torch.no_grad():
        first = step(valid_rows)
    for number, (rows, want) in enumerate(zip(drawn, trace["train_loss_and_accuracy"], strict=True)):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr_at(number, 100)
        optimizer.zero_grad()
        loss, accuracy, _ = step(rows)
        assert float(loss.detach()) == pytest.approx(float(want[0]), rel=1e-6) and accuracy == float(want[1])
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        last = step(valid_rows)
    for (loss, accuracy, _), want in zip((first, last), trace["valid_loss_and_accuracy_before_after"], strict=True):
        assert float(loss) == pytest.approx(float(want[0]), rel=2e-6) and accuracy == float(want[1])
    assert_close(last[2], trace["valid_similarity_after"], FORWARD, "similarity")
    assert_close(1e-5 * kernel_energy(method.encoder)[None].detach(), trace["l2_regularisation_after"], 1e-6, "L2")
    for theirs, ours in LAYERS.items():
        want = below(trace, f"after/{theirs}")
        weight = method.get_parameter(f"{ours}.weight").detach()
        kernel = weight.permute(*AXES[weight.dim()])
        assert_close(method.get_parameter(f"{ours}.bias"), want["bias"], FORWARD, theirs)
        name = "kernel_every2" if kernel.dim() == 2 else "kernel_every8"
        part, wanted = kernel[::2, ::2] if kernel.dim() == 2 else kernel[:, ::8, ::8], want[name]
        if (key, theirs) == ("k1", "am_conv_1"):  # in step 4 two frames of channel 88 are 5e-8 apart, in float64 too:
            part, wanted = (
                torch.cat([one[..., :11], one[..., 12:]], dim=-1) for one in (part, wanted)
            )  # rounding picks
        assert_close(part, wanted, FORWARD, theirs)
        moved = float((weight - before[f"{ours}.weight"]).double().norm())
        assert moved == pytest.approx(float(want["kernel_update_l2norm"]), rel=1e-4)


@pytest.mark.parametrize(("rows", "decay", "drop"), [
    ("rows_lr0.1_decay0", 0.0, None), ("rows_lr0.1_decay0.5", 0.5, None),
    ("rows_lr0.1_decay0.5_lr_set_to_0.02_before_step5", 0.5, 0.02),
])  # fmt: skip
def test_optimizer_with_a_decaying_rate(rows: str, decay: float, drop: float | None) -> None:
    arrays = load("zsl_optim")
    weight = nn.Parameter(arrays["w0"].clone())
    settings = KerasSGDConfig(lr=0.1, decay=decay)
    optimizer = settings.build([weight])
    for step, (grad, want) in enumerate(zip(arrays["gradients"], arrays[rows], strict=True)):
        if drop and step == 4:
            settings = settings.model_copy(update={"lr": drop})
        optimizer.param_groups[0]["lr"] = settings.lr_at(step, 8)
        weight.grad = grad.clone()
        optimizer.step()
        assert_close(weight, want, FORWARD, f"step {step}")


@pytest.mark.parametrize("name", ["plateau", "min_delta", "constant"])
def test_a_rate_that_falls_on_plateaus(name: str) -> None:
    course = below(load("zsl_optim"), f"schedule/{name}")
    losses, want = course["val_loss"].tolist(), course["lr_after_epoch"].tolist()
    got = [after_plateaus(1e-3, losses[: epoch + 1]) for epoch in range(len(want))]
    assert got == pytest.approx(want, rel=1e-6)


def test_draws_are_even_and_never_of_the_other_side() -> None:
    tags_BC = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0] * 6, [1, 1, 1, 1, 1, 0]]).float()
    positive, negative = torch.zeros(4, 6), torch.zeros(4, 6)
    torch.manual_seed(0)
    for _ in range(3000):
        positive_B, negative_BK, counts_BK = draw(tags_BC, 2)
        assert counts_BK.tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]  # no tag; lacks only one
        assert (negative_BK[:, 0] != negative_BK[:, 1]).all()
        positive[torch.arange(4), positive_B] += 1
        negative.scatter_add_(1, negative_BK, torch.ones(4, 2))
    assert not (positive * (1 - tags_BC))[:2].any() and not (negative * tags_BC)[:2].any()
    assert torch.allclose(positive[0, :2], torch.full((2,), 1500.0), rtol=0.1)
    assert torch.allclose(negative[0, 2:], torch.full((4,), 1500.0), rtol=0.1)
    _, every, counts = draw(tags_BC, "all")
    assert (every == torch.arange(6)).all() and torch.equal(counts[:2], 1 - tags_BC[:2]) and not counts[2].any()


def losses_of(**changes: object) -> dict[str, float]:
    torch.manual_seed(3)
    of = spec(len(TINY_TAGS), 12)
    method = ZeroShotConfig(**changes).build(
        MelCNNConfig(channels=4, embedding=8, mels=16).build(of), of, TagSet(of.tags, torch.randn(len(of.tags), 6))
    )
    audio_BT, tags_BC = 0.1 * torch.randn(6, of.input.length), torch.eye(4)[torch.arange(6) % 4]
    torch.manual_seed(4)
    losses = method(Batch(audio_BT, tags_BC, torch.arange(6)), "align")
    return {name: float(value.detach()) for name, value in losses.items()}


def test_each_published_choice_and_its_other_side() -> None:
    """Sum or mean, one negative or several or all, decay of kernels or none, hinge or BPR, margin."""
    base, mean = losses_of(), losses_of(reduction="mean")
    assert base["ranking"] == pytest.approx(6 * mean["ranking"])
    assert losses_of(kernel_decay=0)["decay"] == 0 < base["decay"]
    assert base["loss"] == pytest.approx(base["ranking"] + base["decay"])
    others = ({"negatives": 2}, {"negatives": "all"}, {"ranking": "bpr"}, {"margin": 0.1}, {"latent": 5})
    assert len({round(one["ranking"], 5) for one in [base, *(losses_of(**changes) for changes in others)]}) == 6


def test_tags_that_are_held_out_are_neither_drawn_nor_missed() -> None:
    of = spec(4, 12, held_out=("tag 1", "tag 3"))
    torch.manual_seed(0)
    method = ZeroShotConfig(negatives="all").build(
        MelCNNConfig(channels=4, embedding=8, mels=16).build(of), of, TagSet(of.tags, torch.randn(4, 6))
    )
    audio_BT = 0.1 * torch.randn(2, of.input.length)
    without, with_them = [[1, 0, 0, 0], [0, 0, 1, 0]], [[1, 1, 0, 1], [0, 1, 1, 0]]
    batches = [Batch(audio_BT, torch.tensor(rows).float(), torch.arange(2)) for rows in (without, with_them)]
    first, second = (method(batch, "align")["loss"].detach() for batch in batches)
    assert first == second
    with torch.no_grad():
        method.vectors_CV[[1, 3]] += 1
    assert method(batches[0], "align")["loss"].detach() == first
    with pytest.raises(ValueError, match="no vectors of zither"):
        method.score(batches[0], TagSet(("zither",)), "align")


def test_zero_shot_needs_vectors() -> None:
    with pytest.raises(ValueError, match=r"zero_shot reads tag vectors: set tag_vectors\.kind"):
        run_config({"method": {"kind": "zero_shot"}})

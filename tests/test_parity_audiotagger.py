"""Multi-level attention against the published code of AudioTagger (shared/parity: audiotagger_*), and its own laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from parity_vectors import (
    FORWARD,
    GRADIENT,
    assert_close,
    below,
    error,
    form,
    load,
    load_arrays,
    load_weights,
    to_torch,
)
from pydantic import ValidationError

from atose_ray.data.sampling import class_queue
from atose_ray.encoders import FramesConfig
from atose_ray.evaluation.audioset import audioset_metrics, d_prime
from atose_ray.evaluation.metrics import per_tag_table
from atose_ray.methods.multi_level_attention import (
    FrameNorm,
    MultiLevelAttention,
    MultiLevelAttentionConfig,
    clipped_cross_entropy,
    weighted,
)
from atose_ray.optim import KerasAdamConfig
from atose_ray.types import Batch, DataSpec, FrameInput, TagSet

LOSS = 1e-6
SMALL = ("l23", "l123", "l3")
CANCELLED = ("bias", "bn0.beta")  # in front of a BatchNorm: the true gradient is 0


def build(levels: tuple[int, ...], widths: tuple[int, ...], classes: int, **options: object) -> MultiLevelAttention:
    frames = FrameInput(frames=10, bins=128, frame_hop_seconds=1.0, dtype="uint8")
    spec = DataSpec(input=frames, tags=tuple(map(str, range(classes))), exclusive=False)
    config = MultiLevelAttentionConfig(levels=levels, **options)
    torch.manual_seed(0)
    return MultiLevelAttention(config, widths[: max(levels)], FramesConfig().build(spec), spec)


def small(arrays: dict[str, torch.Tensor], tag: str, **options: object) -> MultiLevelAttention:
    """The reduced model with its published weights; no dropout."""
    widths = tuple(arrays["n_hid"].tolist())
    levels = tuple(arrays[f"{tag}/levels"].tolist())
    method = build(levels, widths, int(arrays["n_out"]), dropout=0.0, loss="clipped", **options)
    load_weights(method.attention, below(arrays, f"{tag}/w"))
    return method.eval()


def batch_of(arrays: dict[str, torch.Tensor], tag: str, index: int) -> Batch:
    x_BFM, tags_BC = arrays[f"{tag}/x_uint8"][index].float(), arrays[f"{tag}/y"][index].float()
    return Batch(x_BFM, tags_BC, torch.arange(len(x_BFM)))


def hear(method: MultiLevelAttention) -> dict[str, torch.Tensor]:
    """Outputs of the attention's children, filled by the next forward."""
    found: dict[str, torch.Tensor] = {}
    for name, module in method.attention.named_modules():
        module.register_forward_hook(lambda _, __, out, name=name: found.update({name: out}))
    return found


@pytest.mark.parametrize("tag", SMALL)
def test_evaluation(tag: str) -> None:
    arrays = load("audiotagger_model")
    method = small(arrays, tag)
    found, inputs = hear(method), arrays[f"{tag}/x_uint8"].flatten(0, 1).float()
    batch = Batch(inputs, torch.zeros(18, 7), torch.arange(18))
    with torch.no_grad():
        prob = method.score(batch, TagSet(method.spec.tags), "attend")
    assert_close(prob, arrays[f"{tag}/eval/prob"], FORWARD)
    for name, want in below(arrays, f"{tag}/eval/act").items():
        level, _, what = name.partition(".")
        got = {
            "cla": lambda level=level: torch.sigmoid(found[f"{level}.cla_bn"]),
            "att_softmax": lambda level=level: torch.softmax(found[f"{level}.att_bn"], dim=2),
            "pooled": lambda level=level: found[level],
            "": lambda name=name: found["out_bn"] if name == "out_logits" else found["fc3_bn"].relu(),
        }[what]()
        assert_close(got, want, FORWARD, name)


@pytest.mark.parametrize("tag", SMALL)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_loss_and_gradients(tag: str, mode: str) -> None:
    arrays = load("audiotagger_model")
    method, batch = small(arrays, tag), batch_of(arrays, tag, 0)
    method.train(mode == "train")
    seq = method.embed(batch).embed_BE.clone().requires_grad_()
    loss = method.embedding_losses(seq, batch.tags_BC, "attend")["loss"]
    assert loss.item() == pytest.approx(float(arrays[f"{tag}/{mode}/loss_batch0"]), rel=LOSS)
    loss.backward()
    parameters = dict(method.attention.named_parameters())
    wanted = below(arrays, f"{tag}/{mode}/grad")
    assert len(wanted) == len(parameters)
    for name, want in wanted.items():
        own, value = to_torch(name, want)
        if mode == "train" and name.endswith(CANCELLED):
            assert parameters[own].grad.abs().max() < 1e-6
        else:
            assert_close(parameters[own].grad, value, GRADIENT, name)
    # the vectors' input is the float one, which is what `embed` gave
    assert_close(seq.grad.view(6, 10, 128), arrays[f"{tag}/{mode}/grad_input_batch0"], GRADIENT, "input")
    if mode == "train":
        fresh = small(arrays, tag).train()
        prob = fresh.score(batch, TagSet(method.spec.tags), "attend")
        assert_close(prob, arrays[f"{tag}/train/prob_batch0"], FORWARD, "train prob")


@pytest.mark.parametrize("tag", SMALL)
def test_three_published_steps(tag: str) -> None:
    """Keras 2.2.4: Adam(1e-3), zero-debiased statistics. What the legend says never to compare is left out."""
    arrays = load("audiotagger_model")
    method = small(arrays, tag).train()
    optimizer = KerasAdamConfig(lr=1e-3).build(method.parameters())
    for step in range(3):
        optimizer.zero_grad()
        loss = method(batch_of(arrays, tag, step), "attend")["loss"]
        assert loss.item() == pytest.approx(float(arrays[f"{tag}/train_on_batch_loss_acc"][step, 0]), rel=5e-6), step
        loss.backward()
        optimizer.step()
        if step in (0, 2):
            state = method.attention.state_dict()
            loose = 1 if step == 0 else 10
            for name, want in below(arrays, f"{tag}/after{step + 1}").items():
                own, value = to_torch(name, want)
                if name.endswith(CANCELLED):
                    continue
                if step == 0 and name.endswith("moving_variance"):
                    assert_close(state[own], value, 2e-5, name)
                else:
                    assert error(state[own], value) < 1e-4 * loose, (step, name)
    method.eval()
    prob = method.score(batch_of(arrays, tag, 0), TagSet(method.spec.tags), "attend")
    assert_close(prob, arrays[f"{tag}/eval_prob_after3"], 2e-3)


@pytest.mark.parametrize("tag", ["l23", "l123"])
def test_statistics_of_todays_keras(tag: str) -> None:
    arrays, modern = load("audiotagger_model"), load("audiotagger_bn_modern")
    method = small(arrays, tag, statistics="plain").train()
    optimizer = KerasAdamConfig(lr=1e-3).build(method.parameters())
    for step in range(3):
        optimizer.zero_grad()
        loss = method(batch_of(arrays, tag, step), "attend")["loss"]
        assert loss.item() == pytest.approx(float(modern[f"{tag}/train_losses"][step]), rel=5e-6)
        loss.backward()
        optimizer.step()
        if step in (0, 2):
            for name, want in below(modern, f"{tag}/after{step + 1}").items():
                own, value = to_torch(name, want)
                assert_close(method.attention.state_dict()[own], value, 1e-5 if step == 0 else 1e-4, name)


@pytest.mark.parametrize("tag", ["l23", "l123", "l3", "l1"])
def test_full_width(tag: str) -> None:
    arrays, texts = load("audiotagger_full_width"), load_arrays("audiotagger_full_width")
    rows = dict(zip(texts["weight_names"].tolist(), range(len(texts["weight_names"])), strict=True))
    levels = tuple(int(digit) for digit in tag[1:])
    method = build(levels, (600, 600, 600), 527, dropout=0.0, loss="clipped")
    weights = {}
    for name, tensor in method.attention.state_dict().items():
        published = next((one for one in rows if to_torch(one, torch.zeros(1, 1))[0] == name), None)
        if published is None:
            assert name.endswith("num_batches_tracked")
            continue
        shape = tuple(tensor.shape[::-1])
        numbers = (int(texts[key][rows[published]]) for key in ("stream_id_S", "log2_scale_p"))
        weights[published] = form(shape, *numbers, float(texts["offset"][rows[published]]))
    load_weights(method.attention, weights)
    batch = Batch(arrays["x_uint8"].float(), arrays["y"].float(), torch.arange(16))
    found = hear(method)
    trained = method.train()(batch, "attend")["loss"]
    assert trained.item() == pytest.approx(float(arrays[f"{tag}/train_loss"]), rel=LOSS)
    assert_close(torch.sigmoid(found["out_bn"]), arrays[f"{tag}/train_prob"], FORWARD, "train")
    load_weights(method.attention, weights)
    with torch.no_grad():
        loss = method.eval()(batch, "attend")["loss"]
    assert loss.item() == pytest.approx(float(arrays[f"{tag}/eval_loss"]), rel=LOSS)
    assert_close(torch.sigmoid(found["out_bn"]), arrays[f"{tag}/eval_prob"], FORWARD, "eval")
    last = f"level{max(levels)}"
    assert_close(found[last], arrays[f"{tag}/eval_last_level_pooled"], FORWARD, "pooled")
    trainable = sum(parameter.numel() for parameter in method.parameters())
    statistics = sum(value.numel() for name, value in method.state_dict().items() if "running" in name)
    counts = tuple(int(arrays[f"{tag}/param_{what}"]) for what in ("trainable", "total"))
    assert (trainable, trainable + statistics) == counts


def test_pooling_of_the_attention() -> None:
    arrays = load("audiotagger_pieces")
    cla, att = (arrays[f"attention/{name}"].requires_grad_() for name in ("cla", "att"))
    out = weighted(cla, att)
    assert_close(out, arrays["attention/out"], FORWARD)
    (out * arrays["attention/cotangent"]).sum().backward()
    assert_close(cla.grad, arrays["attention/grad_cla"], GRADIENT)
    assert_close(att.grad, arrays["attention/grad_att"], GRADIENT)


def test_published_loss() -> None:
    arrays = load("audiotagger_pieces")
    p, y = arrays["bce/p"].requires_grad_(), arrays["bce/y"]
    loss = clipped_cross_entropy(p, y)
    assert loss.item() == pytest.approx(float(arrays["bce/loss"]), rel=LOSS)
    loss.backward()
    assert_close(p.grad, arrays["bce/grad_p"], GRADIENT)
    rows = [[clipped_cross_entropy(p[i, j], y[i, j]).item() for j in range(10)] for i in range(2)]
    assert_close(torch.tensor(rows), arrays["bce/elementwise"], LOSS)


def test_published_sampler() -> None:
    arrays = load_arrays("audiotagger_sampler")
    for case in "ABCD":
        tags_NC = arrays[f"{case}/y"]
        tags_NC = np.unpackbits(tags_NC, axis=1)[:, :527] if case == "D" else tags_NC
        draws = class_queue(tags_NC, int(arrays[f"{case}/batch_size"]), int(arrays[f"{case}/seed"]))
        for wanted, length in zip(arrays[f"{case}/indices"], arrays[f"{case}/batch_lengths"], strict=True):
            assert np.array_equal(next(draws), wanted[:length]), case


def test_published_metrics() -> None:
    arrays = load_arrays("audiotagger_metrics")
    tags_NC = np.unpackbits(arrays["y_packed_axis1"], axis=1)[:, : int(arrays["n_classes"])].astype(float)
    scores, table = [], arrays["get_avg_stats/iter_mAP_AUC_dprime_as_printed"]
    for row, iteration in enumerate((0, 1000, 2000)):
        scores_NC = arrays[f"iter{iteration}/scores_times_256_uint8"].astype(float) / 256
        scores.append(scores_NC)
        per_tag = per_tag_table(scores_NC, tags_NC, tuple(map(str, range(527))))
        for ours, theirs in (("average_precision", "AP"), ("roc_auc", "AUC")):
            assert np.allclose([one[ours] for one in per_tag], arrays[f"iter{iteration}/{theirs}"], rtol=0, atol=1e-12)
        got = audioset_metrics(scores_NC, tags_NC)
        assert got["pr_auc_macro"] == pytest.approx(float(arrays[f"iter{iteration}/mAP_returned_by_eval"]), abs=1e-12)
        assert got["d_prime"] == pytest.approx(float(arrays["get_avg_stats/dprime_full"][row]), abs=1e-9)
        named = [got[name] for name in ("pr_auc_macro", "roc_auc_macro", "d_prime")]
        assert np.allclose(named, table[row, 1:], atol=1e-6) and got["tags_scored"] == 527
    ensemble = audioset_metrics(np.mean(scores, axis=0), tags_NC)
    named = [ensemble[name] for name in ("pr_auc_macro", "roc_auc_macro", "d_prime")]
    assert np.allclose(named, arrays["upstream_ensemble/mAP_AUC_dprime"], rtol=0, atol=1e-9)
    pieces = load_arrays("audiotagger_pieces")
    for auc, want in zip(pieces["dprime/auc"], pieces["dprime/dprime"], strict=True):
        assert d_prime(float(auc)) == pytest.approx(float(want), abs=1e-12)
    assert d_prime(1.0) == pytest.approx(-d_prime(0.0)) and d_prime(1.0) > 8


@pytest.mark.parametrize("pooling", ["attention", "mean", "max", "linear_softmax"])
def test_poolings_are_what_they_say(pooling: str) -> None:
    """Of equal frames each gives that frame; linear softmax weighs by the probability itself."""
    method = build((1, 2), (6, 5), 4, pooling=pooling).eval()
    frame = torch.randint(0, 256, (3, 1, 128), generator=torch.Generator().manual_seed(1)).float()
    found = hear(method)
    batches = (Batch(frame.expand(3, frames, 128), torch.zeros(3, 4), torch.arange(3)) for frames in (1, 7))
    with torch.no_grad():
        one, seven = (method.score(batch, TagSet(method.spec.tags), "attend") for batch in batches)
    assert torch.allclose(one, seven, atol=1e-6) and found["level1"].shape == (3, 4)
    assert torch.allclose(weighted(torch.tensor([[[0.2], [0.8]]]), torch.tensor([[[0.2], [0.8]]])), torch.tensor(0.68))


@pytest.mark.parametrize(
    "change",
    [{"dropout": 0.9}, {"attention_over": "frames"}, {"pooling": "max"}, {"loss": "cross_entropy"}, {"width": 9}],
)
def test_published_choices_can_be_changed(change: dict[str, object]) -> None:
    """Each alone gives another loss, of longer clips as well. The clipped loss differs where a logit is saturated."""
    inputs = torch.randint(0, 256, (3, 13, 128), generator=torch.Generator().manual_seed(2)).float()
    batch, losses = Batch(inputs, torch.eye(3), torch.arange(3)), []
    for options in ({}, change):
        settings = {"levels": (1, 2), "width": 6, "loss": "clipped", **options}
        spec = DataSpec(
            input=FrameInput(frames=13, bins=128, frame_hop_seconds=1.0, dtype="uint8"),
            tags=tuple("abc"),
            exclusive=False,
        )
        torch.manual_seed(0)
        method = MultiLevelAttentionConfig(**settings).build(FramesConfig().build(spec), spec, TagSet(spec.tags))
        with torch.no_grad():
            method.attention.out_bn.weight.fill_(30.0)
        losses.append(method.train()(batch, "attend")["loss"].item())
    assert losses[0] != pytest.approx(losses[1], rel=1e-5)


def test_statistics_are_of_all_workers() -> None:
    """Two workers with the same rows are one worker with both: outputs, gradients and running statistics."""
    x_XC = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    norms = [FrameNorm(5, "debiased") for _ in range(2)]
    for norm, rows_XC, gather in (
        (norms[0], x_XC, lambda rows: torch.cat([rows, rows])),
        (norms[1], torch.cat([x_XC, x_XC]), lambda rows: rows),
    ):
        for _ in range(3):
            norm(rows_XC, gather)[:4].square().sum().backward()
    for name, value in norms[0].state_dict().items():
        assert torch.allclose(value, norms[1].state_dict()[name], atol=1e-6), name
    assert torch.allclose(norms[0].weight.grad, norms[1].weight.grad, rtol=1e-5)


def test_settings_that_cannot_be() -> None:
    for levels in ((3, 2), (2, 2), (), (0,)):
        with pytest.raises(ValidationError):
            MultiLevelAttentionConfig(levels=levels)
    assert MultiLevelAttentionConfig(levels="1 3").levels == (1, 3)
    with pytest.raises(ValidationError, match="keeps no embeddings"):
        MultiLevelAttentionConfig(stages=[{"name": "attend", "epochs": 1, "cache": 4, "trains": ["attention"]}])

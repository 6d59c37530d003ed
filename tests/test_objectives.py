"""Losses against values worked out by hand, and the behaviour they are chosen for."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import TypeAdapter

from atose_ray.objectives import (
    CosineConfig,
    InfoNCEConfig,
    ObjectiveConfigs,
    PairwiseMarginConfig,
    TaggingConfig,
    TaggingLoss,
    reconstruction_loss,
    tagging_loss,
)
from atose_ray.tags.autoencoder import TagDecoder, TagEncoder, probabilities, unit_norm
from atose_ray.training.run import Job, open_run

OBJECTIVES = [PairwiseMarginConfig(), CosineConfig(), InfoNCEConfig()]
DISTINCT = torch.eye(4)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return unit_norm(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def pairwise_margin(tag: torch.Tensor, audio: torch.Tensor, tags: torch.Tensor, margin: float) -> torch.Tensor:
    return PairwiseMarginConfig(margin=margin).loss(tag, audio, tags)


def info_nce(tag: torch.Tensor, audio: torch.Tensor, tags: torch.Tensor, temperature: float) -> torch.Tensor:
    return InfoNCEConfig(temperature=temperature).loss(tag, audio, tags)


def test_pairwise_margin_by_hand() -> None:
    tag = torch.tensor([[1.0, 0.0]])
    audio = torch.tensor([[0.5, 0.1]])
    want = (1 * 0.25 + 1 * 0.3**2) / 2
    assert pairwise_margin(tag, audio, DISTINCT[:1], 0.4).item() == pytest.approx(want)
    assert pairwise_margin(tag, audio, DISTINCT[:1], 0.0).item() == pytest.approx(0.125)


@pytest.mark.parametrize(("latent", "least"), [(128, 0.08921), (50, 0.06024), (64, 0.06813)])
def test_pairwise_margin_is_least_at_the_uniform_vector(latent: int, least: float) -> None:
    """The analysed flaw of the published objective (0.4): a constant beats perfect alignment."""
    uniform = torch.full((8, latent), latent**-0.5)
    tags = torch.eye(8)
    assert pairwise_margin(uniform, uniform, tags, 0.4).item() == pytest.approx(least, abs=1e-5)
    aligned = unit(8, latent).abs()
    assert pairwise_margin(aligned, aligned, tags, 0.4) > pairwise_margin(aligned, uniform, tags, 0.4)


def test_cosine_by_hand() -> None:
    tag = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    audio = torch.tensor([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    assert CosineConfig().loss(tag, audio, torch.eye(3)).item() == pytest.approx((0 + 1 + 2) / 3)
    assert CosineConfig().loss(tag, torch.zeros(3, 2), torch.eye(3)).item() == pytest.approx(1.0)


def test_info_nce_by_hand() -> None:
    """Orthogonal, aligned: each row is softmax of [1, 0, 0, 0] / temperature. All equal: log of the batch."""
    temperature = 0.5
    want = math.log(math.exp(1 / temperature) + 3) - 1 / temperature
    assert info_nce(torch.eye(4), torch.eye(4), DISTINCT, temperature).item() == pytest.approx(want, rel=1e-5)
    same = torch.ones(4, 4)
    assert info_nce(same, same, DISTINCT, temperature).item() == pytest.approx(math.log(4), rel=1e-5)


def test_info_nce_is_least_for_aligned_pairs() -> None:
    tag, order = unit(4, 16), torch.tensor([1, 2, 3, 0])
    aligned, permuted = (info_nce(tag, audio, DISTINCT, 0.1) for audio in (tag, tag[order]))
    assert aligned < permuted - 1
    assert CosineConfig().loss(tag, tag, DISTINCT) < CosineConfig().loss(tag, tag[order], DISTINCT) - 0.3


def test_info_nce_looks_both_ways() -> None:
    tag, audio = unit(4, 3, seed=1), unit(4, 3, seed=2)
    cos = audio @ tag.T / 0.2
    want = -(cos.log_softmax(dim=1).diagonal().mean() + cos.log_softmax(dim=0).diagonal().mean()) / 2
    assert info_nce(tag, audio, DISTINCT, 0.2).item() == pytest.approx(want.item(), rel=1e-5)
    assert info_nce(audio, tag, DISTINCT, 0.2).item() == pytest.approx(want.item(), rel=1e-5)


def test_info_nce_counts_equal_tag_sets_as_positives() -> None:
    """Two clips of each of two tag sets: swapping within a set changes nothing, and the floor is log 2, not above."""
    tags = torch.tensor([[1.0, 0, 1], [1, 0, 1], [0, 1, 0], [0, 1, 0]])
    tag = torch.eye(2)[[0, 0, 1, 1]]
    audio = unit(4, 2, seed=3)
    swapped = audio[[1, 0, 3, 2]]
    assert info_nce(tag, audio, tags, 0.1).item() == pytest.approx(info_nce(tag, swapped, tags, 0.1).item(), rel=1e-5)
    assert info_nce(tag, tag, tags, 0.01).item() == pytest.approx(math.log(2), rel=1e-5)
    own = torch.eye(4)  # tag vectors that tell equal sets apart: worth little here, all where each clip stands alone
    want = math.log(math.exp(1 / 0.1) + 3) - 0.5 / 0.1  # half of each target lies on the row's own column
    assert info_nce(own, own, tags, 0.1).item() == pytest.approx(want, rel=1e-5)
    assert info_nce(own, own, DISTINCT, 0.1) < 0.001 < 1 < info_nce(own, own, tags, 0.1)
    subset = torch.tensor([[1.0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 1, 1]])  # overlapping sets are not equal
    assert info_nce(tag, tag, subset, 0.1) == info_nce(tag, tag, DISTINCT, 0.1)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.kind)
def test_objective_contract(objective: PairwiseMarginConfig | CosineConfig | InfoNCEConfig) -> None:
    """Scalar, the same for every order of the batch, with finite gradients on both sides, also for zero rows."""
    tag, audio, tags = unit(6, 8, seed=1), unit(6, 8, seed=2), torch.eye(6)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    loss = objective.loss(tag, audio, tags)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(objective.loss(tag[order], audio[order], tags[order]).item(), rel=1e-5)
    tag[0], audio[1] = 0, 0
    gradients = torch.autograd.grad(objective.loss(tag.requires_grad_(), audio.requires_grad_(), tags), [tag, audio])
    assert all(grad.isfinite().all() and grad.abs().max() < 100 for grad in gradients)
    assert gradients[1].abs().max() > 0


@pytest.mark.parametrize("objective", [CosineConfig(), InfoNCEConfig()], ids=lambda o: o.kind)
def test_descent_aligns(objective: CosineConfig | InfoNCEConfig) -> None:
    tag, audio = unit(6, 8, seed=1), unit(6, 8, seed=2).requires_grad_()
    optimizer = torch.optim.Adam([audio], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        objective.loss(tag, audio, torch.eye(6)).backward()
        optimizer.step()
    assert torch.equal((unit_norm(audio) @ tag.T).argmax(dim=1), torch.arange(6))


def test_parameters_act_and_union() -> None:
    tag, audio, tags = unit(6, 8, seed=1), unit(6, 8, seed=2), torch.eye(6)
    adapter = TypeAdapter(ObjectiveConfigs)
    for kind, field, values in (("pairwise_margin", "margin", (0.2, 0.8)), ("info_nce", "temperature", (0.1, 1.0))):
        first, second = (adapter.validate_python({"kind": kind, field: value}) for value in values)
        assert first.loss(tag, audio, tags) != second.loss(tag, audio, tags)
    assert adapter.validate_python({"kind": "cosine"}) == CosineConfig()
    assert PairwiseMarginConfig().margin == 0.4


def test_tagging_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    tags = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    binary = (math.log(2) - math.log(0.75) + math.log(2) + math.log(2)) / 4
    assert tagging_loss(logits, tags, exclusive=False).item() == pytest.approx(binary)
    assert tagging_loss(logits, tags, exclusive=True).item() == pytest.approx(-math.log(0.75) / 2)  # row 2 adds 0


def test_focal_loss_by_hand() -> None:
    logits_BC, tags_BC = torch.tensor([[0.3, -1.2], [2.0, 0.1]]), torch.tensor([[1.0, 0.0], [0.25, 1.0]])
    p, y = logits_BC.sigmoid(), tags_BC
    expected = -(y * (1 - p) ** 2 * p.log() + (1 - y) * p**2 * (1 - p).log()).mean()
    torch.testing.assert_close(tagging_loss(logits_BC, tags_BC, exclusive=False, focal=2.0), expected)
    q = logits_BC.softmax(dim=1)
    expected = -(y * (1 - q) ** 2 * q.log()).sum(dim=1).mean()
    torch.testing.assert_close(tagging_loss(logits_BC, tags_BC, exclusive=True, focal=2.0), expected)


@pytest.mark.parametrize("exclusive", [True, False])
def test_focal_loss_forgives_what_is_known(exclusive: bool) -> None:
    tags_BC = torch.tensor([[1.0, 0.0]])
    known, missed = torch.tensor([[4.0, -4.0]]), torch.tensor([[-1.0, 1.0]])
    shares = [
        float(tagging_loss(logits_BC, tags_BC, exclusive, 2.0) / tagging_loss(logits_BC, tags_BC, exclusive))
        for logits_BC in (known, missed)
    ]
    assert shares[0] < 0.01 < 0.4 < shares[1]


def test_class_weights_by_hand() -> None:
    logits_BC, y = torch.tensor([[0.3, -1.2, 0.5], [2.0, 0.1, -0.4]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    counts, clips = (90, 10, 0), 100
    loss = TaggingLoss(TaggingConfig(class_weights="balanced"), exclusive=False)
    loss.weigh(counts, clips)
    w = torch.tensor([10 / 90, 9.0, 1.0])
    torch.testing.assert_close(loss.weight_C, w)
    p = logits_BC.sigmoid()
    torch.testing.assert_close(loss(logits_BC, y), -(w * y * p.log() + (1 - y) * (1 - p).log()).mean())
    loss = TaggingLoss(TaggingConfig(class_weights="balanced"), exclusive=True, columns=(0, 1))
    loss.weigh(counts, clips)
    torch.testing.assert_close(loss.weight_C, torch.tensor([100 / 180, 5.0]))
    plain = TaggingLoss(None, exclusive=True)
    plain.weigh(counts, clips)
    assert plain.weight_C is None and not list(loss.state_dict())


def test_class_weights_are_of_the_train_split(tiny_store, tiny_run, tiny_manifest) -> None:
    tree = tiny_run("joint_embedding").model_dump(mode="json")
    tree["method"]["tagging"] = {"class_weights": "balanced"}
    opened = open_run(Job(type(tiny_run()).model_validate(tree), tiny_store.uri, tiny_store.child("weighed").uri))
    clips = tiny_manifest.data_spec.counts["train"]
    counts = [tiny_manifest.tag_counts[tag]["train"] for tag in tiny_manifest.data_spec.tags]
    expected = [(clips - count) / count for count in counts]
    torch.testing.assert_close(opened.method.tagging_loss.weight_C, torch.tensor(expected))


@pytest.mark.parametrize("exclusive", [False, True])
def test_probabilities(exclusive: bool) -> None:
    scores = probabilities(torch.randn(5, 7), exclusive)
    assert scores.min() >= 0 and scores.max() <= 1
    assert torch.allclose(scores.sum(dim=1), torch.ones(5)) == exclusive


def test_reconstruction_loss_by_hand() -> None:
    assert reconstruction_loss(torch.tensor([[0.5, 1.0]]), torch.tensor([[1.0, 1.0]])).item() == pytest.approx(0.125)


def test_unit_norm() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-5, 0.0]], requires_grad=True)
    y = unit_norm(x)
    assert torch.allclose(y, torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]]))
    y.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad[1].abs().max() <= 1


def test_tag_autoencoder_survives_a_clip_without_tags_and_learns() -> None:
    """Zero biases and no tag: the published unit norm gives NaN here. Then: eight tag sets are learnt by heart."""
    torch.manual_seed(0)
    encoder, decoder = TagEncoder(5, 16), TagDecoder(16, 5)
    tags = torch.tensor([[float(code >> bit & 1) for bit in range(5)] for code in range(0, 24, 3)])
    assert torch.equal(encoder(tags)[0], torch.zeros(16))
    assert torch.allclose(encoder(tags)[1:].norm(dim=1), torch.ones(7))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        loss = reconstruction_loss(probabilities(decoder(encoder(tags)), exclusive=False), tags)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01

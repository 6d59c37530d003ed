"""Heads and losses give the numbers of the published code."""

from __future__ import annotations

import pytest
import torch
from parity_vectors import FORWARD, GRADIENT, assert_close, below, load, load_weights

from atose_ray.methods.heads import Classifier, Projector
from atose_ray.objectives import PairwiseMarginConfig, reconstruction_loss, tagging_loss
from atose_ray.tags.autoencoder import TagDecoder, TagEncoder, probabilities

DATASETS = {"mtat": (50, 128, False), "dcase": (17, 50, False), "keyword": (35, 64, True)}
PARAMETERS = {
    "mtat": (147_712, 23_040, 22_962, 341_042),
    "dcase": (53_800, 3_450, 3_417, 332_561),
    "keyword": (69_760, 6_464, 6_435, 337_187),
}


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("head", ["tag_encoder", "tag_decoder", "projector", "classifier"])
def test_head(head: str, dataset: str) -> None:
    tags, latent, exclusive = DATASETS[dataset]
    vectors = below(load("heads"), f"{head}_{dataset}")
    module = {
        "tag_encoder": lambda: TagEncoder(tags, latent),
        "tag_decoder": lambda: TagDecoder(latent, tags),
        "projector": lambda: Projector(48, latent),
        "classifier": lambda: Classifier(48, tags),
    }[head]()
    load_weights(module, below(vectors, "w"))
    x = vectors["x"].clone().requires_grad_()
    y = module.eval()(x)
    if head in ("tag_decoder", "classifier"):
        y = probabilities(y, exclusive)
    (grad,) = torch.autograd.grad((y * vectors["cotangent"]).sum(), x)
    assert_close(y, vectors["y"], FORWARD, "y")
    assert_close(grad, vectors["gradx"], GRADIENT, "gradx")


@pytest.mark.parametrize("dataset", DATASETS)
def test_parameter_counts(dataset: str) -> None:
    tags, latent, _ = DATASETS[dataset]
    heads = (Projector(1024, latent), TagEncoder(tags, latent), TagDecoder(latent, tags), Classifier(1024, tags))
    assert tuple(sum(p.numel() for p in head.parameters()) for head in heads) == PARAMETERS[dataset]


def test_heads_start_and_drop_out_as_published() -> None:
    torch.manual_seed(0)
    classifier = Classifier(64, 10)
    for head in (Projector(64, 32), TagEncoder(40, 32), TagDecoder(32, 40), classifier):
        for name, layer in head.named_modules():
            if isinstance(layer, torch.nn.Linear):
                bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
                assert 0.9 * bound < layer.weight.abs().max() <= bound * 1.000001, name
                assert not layer.bias.any(), name
    x = torch.randn(3, 64)
    assert not torch.equal(classifier.train()(x), classifier(x))
    assert torch.equal(classifier.eval()(x), classifier(x))
    still = Classifier(64, 10, dropout=0.0).train()
    assert torch.equal(still(x), still(x))


@pytest.mark.parametrize("margin", [0.2, 0.4, 0.7, 1.0])
def test_pairwise_margin(margin: float) -> None:
    vectors = below(load("losses"), "pw")
    wanted = below(vectors, f"margin{margin}")
    y, preds = (vectors[key].clone().requires_grad_() for key in ("y", "preds"))
    loss = PairwiseMarginConfig(margin=margin).loss(y, preds, torch.zeros(5, 3))
    grad_y, grad_preds = torch.autograd.grad(loss, [y, preds])
    assert_close(loss[None], wanted["loss"], FORWARD, "loss")
    assert_close(grad_y, wanted["grad_y"], GRADIENT, "grad_y")
    assert_close(grad_preds, wanted["grad_preds"], GRADIENT, "grad_preds")


def test_stage_one_total() -> None:
    vectors = load("losses")
    labels, total = vectors["ae/labels"], below(vectors, "total")
    pred, tag_embed_BD, audio_embed_BD = (
        value.clone().requires_grad_() for value in (vectors["ae/pred"], total["z2"], total["r1"])
    )
    reconstruction = reconstruction_loss(pred, labels)
    assert_close(reconstruction[None], vectors["ae/mse"], FORWARD, "reconstruction")
    (grad,) = torch.autograd.grad(reconstruction, pred, retain_graph=True)
    assert_close(grad, vectors["ae/grad_pred"], GRADIENT, "reconstruction by prediction")
    loss = reconstruction + PairwiseMarginConfig(margin=0.4).loss(tag_embed_BD, audio_embed_BD, labels)
    assert_close(loss[None], total["loss"], FORWARD, "total")
    gradients = torch.autograd.grad(loss, [pred, tag_embed_BD, audio_embed_BD])
    for key, grad in zip(("grad_pred", "grad_z2", "grad_r1"), gradients, strict=True):
        assert_close(grad, total[key], GRADIENT, key)


@pytest.mark.parametrize(
    ("labels", "loss", "grad", "exclusive"),
    [
        ("bce", "bce/graph_loss", "bce/graph_grad_logits", False),
        ("bce_sat", "bce_sat/loss_graph", "bce_sat/grad_graph", False),
        ("cce", "cce/loss", "cce/grad_logits", True),
        ("cce_sat", "cce_sat/loss_graph", "cce_sat/grad_graph", True),
    ],
)
def test_tagging_loss(labels: str, loss: str, grad: str, exclusive: bool) -> None:
    vectors = load("losses")
    logits = vectors.get(f"{labels}/logits", vectors["bce_sat/logits"]).clone().requires_grad_()
    got = tagging_loss(logits, vectors[f"{labels}/labels"], exclusive)
    (got_grad,) = torch.autograd.grad(got, logits)
    assert_close(got[None], vectors[loss], FORWARD, "loss")
    assert_close(got_grad, vectors[grad], GRADIENT, "gradient")

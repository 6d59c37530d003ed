"""Golden curves: the losses of 20 updates of every method and encoder, kept as text. A refactor must not move them.

All is float64, and weights, audio and tags are drawn here, so a curve is the same on every machine and does not depend
on the order in which a constructor draws. A change that is meant to move a curve rewrites the files, and its commit
says why:

    ATOSE_REWRITE_GOLDEN=1 python -m pytest tests/test_golden.py
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import resolved
from torch import nn

from atose_ray.config import run_config
from atose_ray.types import Batch, DataSpec

GOLDEN = Path(__file__).parent / "golden"
REWRITE = os.environ.get("ATOSE_REWRITE_GOLDEN") == "1"
STEPS, BATCHES, CLIPS, SAMPLES, RATE_HZ = 20, 4, 6, 4096, 16000
TAGS = ("a", "b", "c", "d", "e")
RTOL = 1e-6
NARROW = {"channels": 4, "se_ratio": 2, "dropout": 0.0}
SINC = {"kind": "tag_sinc_net", "filters": 6, **NARROW}
ENCODERS: dict[str, dict[str, Any]] = {
    **{
        f"sample_cnn_{block}": {"kind": "sample_cnn", "block": block, **NARROW}
        for block in ("basic", "se", "res", "rese")
    },
    "harmonic_cnn": {"kind": "harmonic_cnn", "channels": 4},
    "tag_sinc_net_direct": {**SINC, "filter_length": 31},
    "tag_sinc_net_fft": {**SINC, "filter_length": 255},
    "mel_cnn": {"kind": "mel_cnn", "channels": 4, "embedding": 8, "mels": 12},
}
HEAD = {"kind": "mlp", "hidden": 6, "dropout": 0.0}
ADAM = {"kind": "adam", "lr": 3e-3, "weight_decay": 0.01}
SGD = {"kind": "sgd", "lr": 0.03}
# Before a frozen encoder. Adam makes steps of the rounding in a gradient of 0, that of a bias before BatchNorm, and the
# running mean lags behind them; with the larger epsilon of Keras they are small enough.
CALM = {"kind": "keras_adam", "lr": 1e-3}
UNFROZEN = {"trains": ["encoder", "classifier"]}
SUPERVISED = {"kind": "supervised", "head": HEAD, "stages": [{"name": "classify", "epochs": 1}]}


def joint_embedding(objective: str, *stages: str, **settings: dict[str, Any]) -> dict[str, Any]:
    """A joint embedding with these stages. settings: of a stage, by its name."""
    listed = [{"name": stage, "epochs": 1, **settings.get(stage, {})} for stage in stages]
    return {"kind": "joint_embedding", "latent": 6, "objective": {"kind": objective}, "head": HEAD, "stages": listed}


Curve = tuple[dict[str, Any], dict[str, Any], bool]  # method, optimizer, whether tags are exclusive
MAIN: dict[str, Curve] = {
    "supervised": (SUPERVISED, ADAM, False),
    "embed": (joint_embedding("pairwise_margin", "embed"), ADAM, False),
    "classify": (joint_embedding("pairwise_margin", "embed", "classify", embed={"optimizer": CALM}), ADAM, False),
    "joint": (joint_embedding("pairwise_margin", "joint"), ADAM, False),
}
OBJECTIVES: dict[str, Curve] = {
    "cosine": (joint_embedding("cosine", "embed"), ADAM, False),
    "info_nce": (joint_embedding("info_nce", "embed"), ADAM, False),
    "soft_targets": (joint_embedding("soft_targets", "embed"), ADAM, False),
    "unfrozen": (joint_embedding("cosine", "embed", "classify", classify=UNFROZEN), ADAM, False),
    "embed_exclusive": (joint_embedding("pairwise_margin", "embed"), ADAM, True),
    "supervised_exclusive": (SUPERVISED, ADAM, True),
}
OPTIMIZERS: dict[str, Curve] = {
    "linear_head": ({**SUPERVISED, "head": {"kind": "linear"}}, ADAM, False),
    "sgd": (SUPERVISED, {**SGD, "schedule": "cosine"}, False),
    "keras_sgd": (SUPERVISED, {"kind": "keras_sgd", "lr": 0.03, "schedule": "cosine"}, False),
    "keras_adam": (SUPERVISED, {"kind": "keras_adam", "lr": 3e-3, "steps_before": 100, "warmup_steps": 5}, False),
}
COALA: dict[str, Curve] = {
    "ae_c": ({"kind": "coala", "hidden": 6, "dropout": 0.0}, SGD, False),
    "info_nce": ({"kind": "coala", "hidden": 6, "dropout": 0.0, "objective": {"kind": "info_nce"}}, SGD, True),
}
FILES: dict[str, tuple[dict[str, Any], dict[str, Curve]]] = {
    **{name: (encoder, MAIN) for name, encoder in ENCODERS.items()},
    "coala": ({"kind": "coala_cnn", "channels": 2, "dropout": 0.0}, COALA),
    "objectives": (ENCODERS["sample_cnn_basic"], OBJECTIVES),
    "optimizers": (ENCODERS["sample_cnn_basic"], OPTIMIZERS),
}


@pytest.fixture(autouse=True)
def in_float64():
    """Buffers are computed in it too: a float32 cosine is not the same on every machine."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def drawn(key: str, *shape: int) -> np.ndarray:
    """[0, 1) float64 that depends on key and shape only; RandomState, because numpy froze its stream."""
    return np.random.RandomState(zlib.crc32(f"{key} {shape}".encode())).random_sample(shape)


def fill(method: nn.Module) -> None:
    """Give every weight a value that depends on its name and shape: matrices uniform, scaled by fan-in; of vectors what
    they are born with, moved a little. The sinc bank's frequencies stay: they were not drawn."""
    with torch.no_grad():
        for name, weight in method.named_parameters():
            if ".sinc." in name:
                continue
            unit = torch.from_numpy(2 * drawn(name, *weight.shape) - 1)
            if weight.dim() > 1:
                weight.copy_(unit * (6 / weight[0].numel()) ** 0.5)
            else:
                weight.add_(0.1 * unit)


def batches(exclusive: bool) -> list[Batch]:
    """The batches that all curves train on, in turn: noise, and tags of any number per clip or of one."""
    made = []
    for index in range(BATCHES):
        audio_BT = 0.6 * drawn(f"audio {index}", CLIPS, SAMPLES) - 0.3
        draws_BC = drawn(f"tags {index}", CLIPS, len(TAGS))
        tags_BC = np.eye(len(TAGS))[draws_BC.argmax(axis=1)] if exclusive else (draws_BC < 0.4).astype(np.float64)
        made.append(Batch(torch.from_numpy(audio_BT), torch.from_numpy(tags_BC), torch.arange(CLIPS)))
    return made


def losses(encoder: dict[str, Any], method: dict[str, Any], optim: dict[str, Any], exclusive: bool) -> list[float]:
    """The loss before each of the 20 updates of the last stage; every stage before it makes as many."""
    spec = DataSpec(sample_rate_hz=RATE_HZ, clip_samples=SAMPLES, tags=TAGS, exclusive=exclusive)
    run = resolved(run_config({"encoder": encoder, "method": method, "optim": optim}), spec)
    model = run.build(spec).double()
    fill(model)
    feed = batches(exclusive)
    curve: list[float] = []
    for stage in run.method.stages:
        optimizer = stage.optimizer_under(run.optim).build(model.train_only(run.method.trained_parts(stage)))
        curve = []
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = stage.optimizer_under(run.optim).lr_at(step, STEPS)
            optimizer.zero_grad(set_to_none=True)
            loss = model(feed[step % BATCHES], stage.name)["loss"]
            loss.backward()
            optimizer.step()
            curve.append(float(loss.detach()))
    return curve


def write(file: Path, curves: dict[str, list[float]]) -> None:
    """A line per step, a column per curve."""
    head = "# losses of 20 updates in float64; written by: ATOSE_REWRITE_GOLDEN=1 python -m pytest tests/test_golden.py"
    columns = [
        [f"{name:>14}", *(f"{loss:{max(14, len(name))}.12f}" for loss in curve)] for name, curve in curves.items()
    ]
    steps = ["step", *(f"{step:>4}" for step in range(1, STEPS + 1))]
    lines = [head, *("  ".join(row) for row in zip(steps, *columns, strict=True))]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read(file: Path) -> dict[str, list[float]]:
    """What `write` wrote."""
    head, *rows = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {name: [float(row[at]) for row in rows] for at, name in enumerate(head) if name != "step"}


def moved(name: str, golden: list[float], curve: list[float]) -> str | None:
    """Where a curve left the golden one first, and how far, or None."""
    for step, (want, got) in enumerate(zip(golden, curve, strict=True), start=1):
        if not abs(got - want) <= RTOL * abs(want):
            return f"{name}: {want:.12f} became {got:.12f} at step {step}"
    return None


@pytest.mark.parametrize("name", FILES)
def test_losses_have_not_moved(name: str) -> None:
    encoder, wanted = FILES[name]
    curves = {title: losses(encoder, *curve) for title, curve in wanted.items()}
    file = GOLDEN / f"{name}.txt"
    if REWRITE:
        write(file, curves)
        pytest.skip(f"wrote {file.name}")
    golden = read(file)
    assert list(golden) == list(curves)
    found = [text for title in curves if (text := moved(title, golden[title], curves[title]))]
    assert not found, "\n".join(["these losses moved; if they were meant to, rewrite the golden files", *found])


def test_every_curve_learns_and_differs_from_all_others() -> None:
    """A golden file of a run that stands still would notice little."""
    assert {file.stem for file in GOLDEN.glob("*.txt")} == set(FILES)
    seen: dict[tuple[float, ...], str] = {}
    for file in FILES:
        for name, curve in read(GOLDEN / f"{file}.txt").items():
            assert len(curve) == STEPS and np.isfinite(curve).all()
            assert sum(curve[-BATCHES:]) < sum(curve[:BATCHES]), f"{file} {name}"
            assert seen.setdefault(tuple(curve), f"{file} {name}") == f"{file} {name}"

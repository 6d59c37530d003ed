"""The contenders of docs/COMPARISON.md train what ours trains, are scored as ours is, and run; the page says what the
lines say."""

import csv
import json
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from sklearn.metrics import average_precision_score

from atose_ray.encoders.base import Encoder
from atose_ray.evaluation.metrics import clip_metrics
from atose_ray.search.space import compose, load_study
from atose_ray.types import AudioInput, DataSpec
from benchmarks.beside import page, run
from benchmarks.beside.clips import load
from benchmarks.beside.hardship import goes_on
from benchmarks.beside.network import RATE_HZ, SAMPLES, network

TAGS = ("high", "low")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten tones of two pitches."""
    made = tmp_path_factory.mktemp("tones")
    with (made / "tags.csv").open("w") as stream:
        table = csv.writer(stream)
        table.writerow(["path", "split", "tags"])
        for number in range(10):
            split = ("train", "train", "valid", "test")[number // 2] if number < 8 else "train"
            pitch = (200.0, 900.0)[number % 2]
            tone_T = np.sin(np.arange(SAMPLES - 100 * number) * pitch * 2 * np.pi / RATE_HZ).astype(np.float32)
            soundfile.write(made / f"{number}.wav", 0.3 * tone_T, RATE_HZ)
            table.writerow([f"{number}.wav", split, TAGS[1 - number % 2]])
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "optuna",
        pytest.param("ray_tune", marks=pytest.mark.ray),
        pytest.param("lightning", marks=pytest.mark.skipif(not find_spec("lightning"), reason="needs lightning")),
    ],
)
def test_contender_searches(name: str, folder: Path, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="atr-", ignore_cleanup_errors=True) as scratch:
        given = {"data": folder, "out": tmp_path, "trials": 2, "epochs": 1, "seconds": 100}
        env = run.environment(Path(scratch), None, **given)
        call = run.command(name, tmp_path, tmp_path, 0, 100)
        ran = subprocess.run(call, cwd=run.ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "valid " in ran.stdout and "test " in ran.stdout
    assert [one["epoch"] for one in run.events(name, tmp_path, tmp_path)] == [1, 1]


def test_ours_trains_the_same_network() -> None:
    chosen = {"encoder": {"channels": 8}, "method": {"head": {"kind": "linear", "dropout": 0.3}}}
    config = compose(load_study(str(run.HERE / "ours.yaml")), chosen)
    audio = AudioInput(sample_rate_hz=RATE_HZ, clip_samples=round(3.7 * RATE_HZ))
    assert (config.data.crop_seconds, audio.clip_samples) == (3.7, SAMPLES)
    encoder = config.encoder.build(DataSpec(input=audio, tags=TAGS, exclusive=False))
    assert isinstance(encoder, Encoder)
    head = config.method.head.build(encoder.embed_dim, len(TAGS))
    ours, theirs = torch.nn.Sequential(encoder, head), network(8, 0.3, TAGS)
    assert str(ours) == str(theirs)
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [
        (k, v.shape) for k, v in theirs.state_dict().items()
    ]


def test_all_are_scored_alike() -> None:
    random = np.random.default_rng(0)
    scores_NC, tags_NC = random.random((40, 6), np.float32), random.integers(0, 2, (40, 6)).astype(np.float32)
    theirs = average_precision_score(tags_NC, scores_NC, average="macro")
    assert theirs == pytest.approx(clip_metrics(scores_NC, tags_NC, False)["pr_auc_macro"], abs=1e-6)
    if find_spec("torchmetrics"):
        from torchmetrics.classification import MultilabelAveragePrecision

        metric = MultilabelAveragePrecision(6, average="macro")
        assert float(metric(torch.from_numpy(scores_NC), torch.from_numpy(tags_NC).long())) == pytest.approx(
            theirs, abs=1e-6
        )


def test_a_short_file_is_padded_and_nothing_is_said(folder: Path) -> None:
    splits, tags = load(folder, SAMPLES)
    audio_NT, tags_NC = splits["valid"].tensors
    assert (tags, tuple(audio_NT.shape)) == (["high", "low"], (2, SAMPLES))
    assert not audio_NT[1, SAMPLES - 500 :].any() and audio_NT[1, : SAMPLES - 500].any()
    assert tags_NC.tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_what_a_user_writes_is_counted(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(
        '"""A\n\ndocstring."""\n\n# a word\nx = [\n    1,  # one\n]\nprint(x)  # measured\n\n\ndef f():\n    """B."""\n'
    )
    (tmp_path / "two.yaml").write_text("# a word\nbase:\n  x: 1\n\n")
    assert (page.written(tmp_path / "one.py"), page.written(tmp_path / "two.yaml")) == (4, 2)


def test_a_trial_that_goes_on_is_told_from_one_that_begins_again() -> None:
    before, after = [("0", 1), ("0", 2), ("1", 1), ("2", 1)], [("0", 3), ("1", 1), ("3", 1)]
    assert goes_on(before, after) == {"0": [2, 3], "1": [1, 1]}


def test_cpu_seconds_are_those_of_children_too() -> None:
    child = "import time\nwhile time.process_time() < 1.0: pass\ntime.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent])
    try:
        limit, got = time.time() + 60, 0.0
        while got < 0.9 and time.time() < limit:
            time.sleep(0.2)
            got = sum(run.cpu_seconds(process.pid).values())
        assert got >= 0.9
        began = time.time()
        assert run.watched(process, 0.5)[-1][1] >= 0.5
        assert process.returncode is not None and time.time() - began < 30
    finally:
        process.kill()


def test_the_page_says_what_was_measured() -> None:
    assert page.table() in page.PAGE.read_text()
    assert page.figure() == page.FIGURE.read_text()


def test_every_line_has_its_circumstances() -> None:
    for line in map(json.loads, run.RESULTS.read_text().splitlines()):
        assert {"what", "load", "cpus", "python", "versions", "date"} <= set(line)

"""The Python API: its names, its examples, the same numbers as the command's however a sound comes; no Ray, and
nothing heavy until it is used."""

from __future__ import annotations

import doctest
import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, tiny_tree
from processes import ROOT, environment

import atose_ray
from atose_ray.apps import model as api
from atose_ray.apps.embeddings import windows_of
from atose_ray.apps.predict import tag_file
from atose_ray.search import frame
from atose_ray.storage import Store
from atose_ray.training.checkpoint import load_model
from atose_ray.training.loop import fit
from atose_ray.training.run import Job, finish_run, open_run


def sound(seconds: float = 2.0, rate: int = RATE) -> np.ndarray:
    time_T = np.arange(int(seconds * rate)) / rate
    tone_T = 0.4 * np.sin(2 * np.pi * 300 * time_T) * (time_T > seconds / 3)
    return (tone_T + 0.05 * np.random.default_rng(3).standard_normal(len(time_T))).astype(np.float32)


@pytest.fixture(scope="module")
def home(tmp_path_factory, model_folder, tiny_store: Store, tiny_manifest) -> Path:
    """Where a person works: a model folder `best`, a sound, and a store with a study of one trial."""
    from atose_ray.config import run_config
    from atose_ray.training.run import resolve

    place = tmp_path_factory.mktemp("home")
    (place / "best").symlink_to(model_folder)
    soundfile.write(place / "song.wav", sound(), RATE, subtype="FLOAT")
    study = Store(str(place / "atose_store" / "studies" / "tiny"))
    run = resolve(run_config(tiny_tree()), tiny_store, tiny_manifest)
    folder = study.child("trials", f"000-{run.signature()}")
    about = {"number": 0, "name": "t000", "params": {"optim.lr": 0.003}, "distributions": {}}
    opened = open_run(Job(run, tiny_store.uri, folder.uri, about))
    fit(run, opened.method, opened.batches, opened.folder)
    finish_run(Job(run, tiny_store.uri, folder.uri), study.child("best"))
    spec = tiny_manifest.data_spec.model_dump(mode="json")
    tree = {"search": {"metric": "pr_auc_macro", "trials": 1}}
    study.write_json("study.json", {"config": tree, "versions": {}})
    study.write_json("data.json", {"data_spec": spec, "tag_counts": {}, "tag_correlation_CC": [], "skipped": []})
    return place


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    monkeypatch.delenv("ATOSE_STORE", raising=False)
    return home


def test_ten_names_and_no_more() -> None:
    assert len(atose_ray.__all__) == 10 and set(atose_ray.__all__) <= set(dir(atose_ray))
    assert all(getattr(atose_ray, name).__doc__ for name in atose_ray.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'tag_everything'; it has load_model, Model"):
        _ = atose_ray.tag_everything


def test_import_is_cheap_and_a_model_needs_no_ray(home: Path) -> None:
    lines = (
        "import sys, atose_ray\n"
        "assert not {'torch', 'numpy', 'pyarrow', 'pandas', 'ray'} & set(sys.modules)\n"
        "model = atose_ray.load_model('best')\n"
        "model.tag('song.wav'), model.embed('song.wav'), model.timeline('song.wav'), model.tag_files([])\n"
        "assert not {'ray', 'optuna'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", lines], check=True, cwd=home, env=environment())


@pytest.mark.parametrize("module", [api, frame])
def test_the_examples(module, at_home: Path) -> None:
    globs = {"atose_ray": atose_ray, "model": atose_ray.load_model("best")}
    globs["samples"], globs["sample_rate"] = soundfile.read("song.wav")
    found = [test for test in doctest.DocTestFinder().find(module, globs=globs) if test.examples]
    assert len(found) >= (6 if module is api else 1)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert sum(runner.run(test).failed for test in found) == 0


def test_a_sound_is_the_same_however_it_comes(at_home: Path) -> None:
    model, file = atose_ray.load_model("best"), "song.wav"
    wanted = tag_file(load_model("best"), file).scores
    samples, rate = soundfile.read(file, dtype="float32")
    content = Path(file).read_bytes()

    class Pipe(io.RawIOBase):  # does not seek
        def read(self, count: int = -1) -> bytes:
            return content

    for one in (Path(file), content, io.BytesIO(content), Pipe(), f"file://{at_home}/{file}"):
        assert model.tag(one).scores == wanted
    stereo_TC = np.stack([samples, samples], axis=1)
    for one in (samples, samples.astype(np.float64), stereo_TC, torch.from_numpy(samples), samples.tolist()):
        assert model.tag(one, rate).scores == wanted
    timeline = model.timeline(file, hop_s=0.3)
    assert np.array_equal(model.timeline(samples, rate, hop_s=0.3).scores_SC, timeline.scores_SC)
    assert np.array_equal(model.timeline(io.BytesIO(content), hop_s=0.3).scores_SC, timeline.scores_SC)
    pcm_T = np.rint(samples * 32767).astype(np.int16)
    assert dict(model.tag(pcm_T, rate).scores) == pytest.approx(dict(wanted), abs=1e-3)


@pytest.mark.parametrize(
    ("given", "rate", "message"),
    [
        (np.zeros(4000), None, r"samples need their sample_rate in Hz"),
        ("song.wav", 44100, r"sample_rate is for samples, but got 44100 with a file"),
        (np.zeros((2, 4000)), 4000, r"\[T\] or \[T, channels\].* \[2, 4000\]"),
        (np.zeros(4000, np.uint8), 4000, r"floats in \[-1, 1\], int16 or int32, but got uint8"),
        (np.full(4000, np.nan), 4000, r"samples: 4000 of 4000 samples are NaN"),
        (np.zeros(0), 4000, r"samples: holds no samples"),
        (b"no sound", None, r"bytes: cannot be decoded"),
    ],
)
def test_what_is_no_sound_says_why(at_home: Path, given, rate, message) -> None:
    with pytest.raises(ValueError, match=message):
        atose_ray.load_model("best").tag(given, rate)


def test_embeddings_are_those_of_an_index_and_of_the_hops(at_home: Path) -> None:
    model = atose_ray.load_model("best")
    scene = model.embed("song.wav")
    windows = list(windows_of(model.trained, "song.wav"))
    assert np.array_equal(scene.vectors_SE, np.stack([window.embed_E for window in windows]))
    assert np.allclose(scene.scene_E, scene.vectors_SE.mean(axis=0), atol=1e-6)
    assert np.allclose(scene.end_s_S - scene.start_s_S, 0.6) and scene.start_s_S[0] == 0
    hops = model.embed("song.wav", hop_s=0.2)
    assert len(hops.vectors_SE) == 10 and hops.start_s_S[3] == pytest.approx(0.6) and hops.end_s_S[-1] == 2.0
    samples, _ = soundfile.read("song.wav", dtype="float32")
    crop_T = samples[int(0.8 * RATE) - RATE // 5 : int(0.8 * RATE) + 2 * RATE // 5]  # 0.6 s around hop [0.8, 1.0)
    middle = model.embed(crop_T, RATE).vectors_SE[0]
    assert np.allclose(hops.vectors_SE[4], middle, atol=1e-5)


def test_timeline_settings(at_home: Path) -> None:
    model = atose_ray.load_model("best")
    config = atose_ray.TimelineConfig(threshold=0.9, max_tags=1)
    as_given = model.timeline("song.wav", config=config)
    assert as_given.settings["timeline"] == config.model_dump(mode="json")
    lower = model.timeline("song.wav", config=config, threshold=0.1).settings["timeline"]
    assert lower["threshold"] == 0.1 and lower["max_tags"] == 1
    fitted = atose_ray.load_model("tiny").timeline("song.wav").settings["timeline"]
    assert fitted["thresholds"] == atose_ray.load_model("tiny").metrics["thresholds"]["f1"]
    with pytest.raises(ValueError, match="threshold is a number or a rule that the model has"):
        model.timeline("song.wav", threshold="f1")
    with pytest.raises(ValueError, match="format is one of srt, vtt"):
        atose_ray.write_timeline(as_given, "x", "doc")
    with pytest.raises(ValueError, match="scores the 4 tags that it was trained on, not zither"):
        model.tag("song.wav", tags=["zither"])
    assert [tag for tag, _ in model.tag("song.wav", tags=["low"]).scores] == ["low"]


def test_many_threads_hear_what_one_hears(at_home: Path) -> None:
    model = atose_ray.load_model("best")
    sounds = [sound(0.5 + 0.1 * number) for number in range(12)]
    alone = [model.tag(one, RATE) for one in sounds]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda one: model.tag(one, RATE), sounds)) == alone


def test_files_come_in_order_and_are_not_read_far_ahead(at_home: Path, tmp_path: Path) -> None:
    model, asked = atose_ray.load_model("best"), []
    for number in range(12):
        soundfile.write(tmp_path / f"{number:02d}.wav", sound(0.5), RATE)
    (tmp_path / "03.wav").write_bytes(b"broken")

    def names():
        for number in range(12):
            asked.append(number)
            yield str(tmp_path / f"{number:02d}.wav")

    results = model.tag_files(names(), workers=2)
    first = next(results)
    assert first[0].endswith("00.wav") and len(asked) <= 5
    rest = list(results)
    assert [file[-6:-4] for file, _ in rest] == [f"{number:02d}" for number in range(1, 12)]
    assert [isinstance(result, atose_ray.AudioError) for _, result in rest] == [number == 3 for number in range(1, 12)]
    assert [file for file, _ in model.tag_files(str(tmp_path))] == sorted(map(str, tmp_path.glob("*.wav")))


def test_a_model_is_found_by_folder_study_and_trial(at_home: Path, tmp_path: Path) -> None:
    study = at_home / "atose_store" / "studies" / "tiny"
    best = atose_ray.load_model("tiny")
    for found in (
        atose_ray.load_model(study),
        atose_ray.load_model("tiny", trial=0),
        atose_ray.load_model(next((study / "trials").iterdir())),
        atose_ray.load_model("tiny", store=str(at_home / "atose_store")),
    ):
        assert found.tag("song.wav").scores == best.tag("song.wav").scores
    with pytest.raises(ValueError, match=r"trial 7 is not in the study .*; its trials: 0 to 0"):
        atose_ray.load_model("tiny", trial=7)
    with pytest.raises(ValueError, match=r"there is no study 'nothing' .*; it holds: tiny"):
        atose_ray.load_model("nothing")
    with pytest.raises(ValueError, match="is not a model folder: it lacks"):
        atose_ray.load_model(tmp_path)


@pytest.mark.ray
@pytest.mark.slow
def test_the_notebook(ray_cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells in their order, as Jupyter runs them; the search in it is `run_study`."""
    cells = json.loads((ROOT / "docs" / "python.ipynb").read_text(encoding="utf-8"))["cells"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ATOSE_STORE", raising=False)
    names: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"docs/python.ipynb, {cell['id']}", "exec"), names)
    found, model = names["frame"], names["model"]
    assert found["state"].tolist() == ["complete", "complete"] and found["optim.lr"].between(0.001, 0.01).all()
    assert found.attrs["best"] == found["value"].idxmax() and "pr_auc_macro" in found.attrs["test"]
    assert found.equals(atose_ray.read_study("tones")) and model.tags == ("high", "low", "steady")
    assert len(names["tagged"]) == 80 and names["timeline"].seconds == 6.0
    assert names["embedding"].vectors_SE.shape == (12, model.embedding_size) and (tmp_path / "tones.html").exists()

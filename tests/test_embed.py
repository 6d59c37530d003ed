"""Embeddings as a file: the numbers of the Python API, what was cut goes on, what changed is embedded again; and the
common API of HEAR 2021, held against the rules of its validator."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from conftest import RATE, resolved, tiny_tree

from atose_ray import embed, load_model
from atose_ray.apps import embedding_parts, embedding_table, hear
from atose_ray.config import run_config
from atose_ray.storage import Store
from atose_ray.training.checkpoint import save_model
from atose_ray.types import AudioInput, DataSpec

TAGS = ("high", "low")


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    folder = tmp_path / "sounds"
    (folder / "below").mkdir(parents=True)
    rng = np.random.default_rng(5)
    for number in range(6):
        name = folder / ("below" if number % 2 else "") / f"{number}.wav"
        soundfile.write(name, 0.1 * rng.standard_normal(RATE * (1 + number)), RATE, subtype="FLOAT")
    return folder


def read(file: Path) -> dict[str, list]:
    return pq.read_table(file).to_pydict()


def test_a_row_per_sound_and_a_row_per_hop(model_folder, sounds, tmp_path, capsys, monkeypatch) -> None:
    for module in (embedding_parts, embedding_table):  # of a sound's hops there are more
        monkeypatch.setattr(module, "ROWS_AT_A_TIME", 7)
    model, scenes, hops = load_model(model_folder), tmp_path / "scenes.parquet", tmp_path / "hops.parquet"
    embed.main([model_folder, str(sounds), "--out", str(scenes)])
    assert "6 new, 0 there already" in capsys.readouterr().out
    found = read(scenes)
    assert sorted(found["path"]) == sorted(map(str, sounds.rglob("*.wav"))) and not list(tmp_path.glob(".*"))
    for path, embedding in zip(found["path"], found["embedding"], strict=True):
        assert np.allclose(embedding, model.embed(path).scene_E, atol=1e-6)
    assert found["start_s"] == [0.0] * 6 and max(found["end_s"]) == pytest.approx(6.0)
    embed.main([model_folder, str(sounds), "--out", str(hops), "--timestamps", "0.25"])
    found = read(hops)
    assert len(found["path"]) == 4 * (1 + 2 + 3 + 4 + 5 + 6)
    last = str(sounds / "below" / "5.wav")
    rows = [at for at, path in enumerate(found["path"]) if path == last]
    whole = model.embed(last, hop_s=0.25)
    assert np.array_equal(np.array([found["embedding"][at] for at in rows], np.float32), whole.vectors_SE)
    assert [found["start_s"][at] for at in rows] == whole.start_s_S.tolist()


def test_what_was_cut_goes_on_and_what_changed_is_new(model_folder, sounds, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(embedding_parts, "PART_SOUNDS", 2)
    out, heard = tmp_path / "x.parquet", []
    whole = embedding_table.rows_of

    def cut_short(path: str, *rest: object):
        if len(heard) == 5:
            raise KeyboardInterrupt
        heard.append(path)
        return whole(path, *rest)

    monkeypatch.setattr(embedding_table, "rows_of", cut_short)
    command = [model_folder, str(sounds), "--out", str(out)]
    with pytest.raises(KeyboardInterrupt):
        embed.main(command)
    assert not out.exists() and len(heard) == 5
    monkeypatch.setattr(embedding_table, "rows_of", lambda path, *rest: heard.append(path) or whole(path, *rest))
    embed.main(command)
    assert len(heard) == 7 and heard[4] == heard[5]  # the two parts of two sounds each were not made again
    assert len(read(out)["path"]) == 6 and not list(tmp_path.glob(".*"))
    embed.main(command)
    assert len(heard) == 7 and "nothing new" in capsys.readouterr().out
    changed = sounds / "0.wav"
    soundfile.write(changed, np.full(RATE, 0.2), RATE, subtype="FLOAT")
    os.utime(changed, ns=(1, 1))
    before = dict(zip(read(out)["path"], read(out)["embedding"], strict=True))
    embed.main(command)
    after = dict(zip(read(out)["path"], read(out)["embedding"], strict=True))
    assert heard[7:] == [str(changed)] and len(read(out)["path"]) == 6
    assert [path for path in after if after[path] != before[path]] == [str(changed)]


def test_what_is_no_sound_is_left_out_and_another_model_is_refused(model_folder, sounds, tmp_path, capsys) -> None:
    out = tmp_path / "x.parquet"
    (sounds / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(SystemExit) as ended:
        embed.main([model_folder, str(sounds), str(tmp_path / "gone.wav"), "--out", str(out)])
    told = capsys.readouterr()
    assert ended.value.code == 2 and "6 new" in told.out and "2 left out" in told.out
    assert "broken.wav" in told.err and "gone.wav: no such file" in told.err
    with pytest.raises(ValueError, match="holds embeddings of another model or hop"):
        embed.main([model_folder, str(sounds), "--out", str(out), "--timestamps"])
    with pytest.raises(ValueError, match="a number of seconds above 0, but got -1"):
        embed.main([model_folder, str(sounds), "--out", str(out), "--timestamps", "-1"])


@pytest.fixture(scope="module")
def hear_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model at 22,000 Hz, which the API does not allow."""
    spec = DataSpec(input=AudioInput(sample_rate_hz=22000, clip_samples=6600), tags=TAGS, exclusive=False)
    tree = {**tiny_tree(), "data": {"dataset": "folder", "crop_seconds": 0.3, "eval_crops": 2}}
    run = resolved(run_config(tree), spec)
    torch.manual_seed(0)
    folder = Store(str(tmp_path_factory.mktemp("hear")))
    method = run.build(spec).eval()
    save_model(folder, method, run, method.spec, {"stage": "classify", "epoch": 1, "number": 0})
    return folder.uri


def test_hear(hear_folder: str) -> None:
    """The rules of hearvalidator 2021.0.2, and that the numbers are those of `embed`."""
    model = hear.load_model(hear_folder)
    assert isinstance(model, torch.nn.Module) and model.sample_rate == 22050
    assert isinstance(model.scene_embedding_size, int) and isinstance(model.timestamp_embedding_size, int)
    noise_BT = torch.rand(3, 44100, generator=torch.Generator().manual_seed(0)) * 2 - 1
    embeddings, stamps = hear.get_timestamp_embeddings(noise_BT, model)
    assert embeddings.dtype == torch.float32 and embeddings.shape[:2] == stamps.shape == (3, 40)
    assert embeddings.shape[2] == model.timestamp_embedding_size
    steps = torch.diff(stamps)
    assert (steps - steps.mean()).abs().max() < 1e-3 and steps.mean() <= 50.0 and float(stamps[0, 0]) == 25.0
    scenes = hear.get_scene_embeddings(noise_BT, model)
    assert scenes.dtype == torch.float32 and scenes.shape == (3, model.scene_embedding_size)
    ours = load_model(hear_folder)
    assert np.array_equal(ours.embed(noise_BT[1].numpy(), 22050).scene_E, scenes[1].numpy())
    assert np.array_equal(ours.embed(noise_BT[1].numpy(), 22050, hop_s=0.05).vectors_SE, embeddings[1].numpy())
    with pytest.raises(ValueError, match="name a model folder"):
        hear.load_model()


def test_the_validator_of_hear(hear_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip install --no-deps hearvalidator. Of TensorFlow, which it imports, it only asks whether a model is of it."""
    tensorflow = ModuleType("tensorflow")
    tensorflow.Module = type("Module", (), {})
    monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)
    validate = pytest.importorskip("hearvalidator.validate")
    validate.ValidateModel("atose_ray.apps.hear", hear_folder, "cpu")()

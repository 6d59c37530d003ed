"""A chosen model on new audio: a long file is heard part by part, and scores as it does in one piece."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from conftest import RATE

from atose_ray.apps import predict
from atose_ray.storage import Store
from atose_ray.training.checkpoint import load_model
from atose_ray.training.loop import fit
from atose_ray.training.run import Job, finish_run, open_run, resolve


@pytest.fixture(scope="module")
def model(tiny_store: Store, tiny_manifest, tmp_path_factory: pytest.TempPathFactory):
    from conftest import tiny_tree

    from atose_ray.config import run_config

    run = resolve(run_config(tiny_tree()), tiny_store, tiny_manifest)
    folder = Store(str(tmp_path_factory.mktemp("run")))
    job = Job(run, tiny_store.uri, folder.uri)
    opened = open_run(job)
    fit(opened.run, opened.method, opened.batches, opened.folder)
    finish_run(job, folder.child("best"))
    return load_model(folder.child("best"))


def test_a_long_file_is_tagged_in_parts(model, tmp_path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    time_T = np.arange(int(RATE * 12.3)) / RATE
    audio_T = 0.5 * np.sin(2 * np.pi * 900 * time_T) * (time_T > 6) + 0.05 * rng.standard_normal(len(time_T))
    file = str(tmp_path / "long.wav")
    soundfile.write(file, audio_T.astype(np.float32), RATE, subtype="FLOAT")
    whole = predict.tag_file(model, file)
    longest = []
    decode = predict.decode_parts
    monkeypatch.setattr(predict, "PART_S", 2.0)
    monkeypatch.setattr(
        predict, "decode_parts", lambda *a, **k: (longest.append(len(p.audio_T)) or p for p in decode(*a, **k))
    )
    parts = predict.tag_file(model, file)
    assert len(longest) == 7 and max(longest) == 2 * RATE and parts.seconds == whole.seconds == pytest.approx(12.3)
    assert dict(parts.scores) == pytest.approx(dict(whole.scores), abs=0.05)
    assert [score for _, score in parts.scores] == sorted(dict(parts.scores).values(), reverse=True)

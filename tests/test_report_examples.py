"""Examples: the worst mistakes, what is taken for what, excerpts that sound; scored once, and never on test."""

from __future__ import annotations

import base64
import dataclasses
import io
import time
import wave
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atose_ray import report as verb
from atose_ray.data.shards import data_store, load_manifest, read_index
from atose_ray.evaluation import examples
from atose_ray.evaluation.examples import (
    EXCERPT_HZ,
    EXCERPT_S,
    WORST,
    WORST_OF_CLIP,
    WORST_OF_TAG,
    confusion,
    decision,
    excerpt,
    worst_mistakes,
)
from atose_ray.evaluation.scoring import ClipScores
from atose_ray.search.record import load_study_record
from atose_ray.storage import Store
from atose_ray.training import examples as writing
from atose_ray.training.examples import examples_of, write_examples, write_trial_examples
from atose_ray.training.loop import fit
from atose_ray.training.record import RunFolder
from atose_ray.training.record import test_scorings as scorings_of
from atose_ray.training.run import Job, batches_in, finish_run, open_run, resolve

CPU = torch.device("cpu")


def random_scores(clips: int = 200, tags: int = 12, exclusive: bool = False, seed: int = 0) -> ClipScores:
    random = np.random.default_rng(seed)
    scores_NC = random.uniform(0, 1, (clips, tags))
    if exclusive:
        tags_NC = np.eye(tags)[random.integers(tags, size=clips)]
        scores_NC /= scores_NC.sum(axis=1, keepdims=True)
    else:
        tags_NC = (random.uniform(size=(clips, tags)) < np.linspace(0.02, 0.5, tags)).astype(float)
    return ClipScores(np.arange(clips) * 3, scores_NC, tags_NC)


def test_a_tag_is_given_to_as_many_clips_as_carry_it() -> None:
    scores = random_scores()
    scores.tags_NC[:, 4] = 0
    given_NC, needed_C = decision(scores.scores_NC, scores.tags_NC, exclusive=False)
    assert given_NC.sum(axis=0).tolist() == scores.tags_NC.sum(axis=0).tolist(), "break-even: as many given as carried"
    for tag in range(12):
        if tag != 4:
            assert scores.scores_NC[given_NC[:, tag], tag].min() == needed_C[tag]
            assert scores.scores_NC[~given_NC[:, tag], tag].max() < needed_C[tag]


def test_of_exclusive_tags_the_highest_is_given() -> None:
    scores = random_scores(exclusive=True)
    given_NC, _ = decision(scores.scores_NC, scores.tags_NC, exclusive=True)
    assert (given_NC.sum(axis=1) == 1).all() and (given_NC.argmax(axis=1) == scores.scores_NC.argmax(axis=1)).all()


@pytest.mark.parametrize("exclusive", [False, True])
def test_the_lists_hold_mistakes_only_and_no_tag_or_clip_fills_them(exclusive: bool) -> None:
    scores = random_scores(exclusive=exclusive)
    given_NC, _ = decision(scores.scores_NC, scores.tags_NC, exclusive)
    positives, negatives = worst_mistakes(scores, exclusive)
    assert len(positives) == len(negatives) == WORST
    assert all(given_NC[one.clip, one.tag] and not scores.tags_NC[one.clip, one.tag] for one in positives)
    assert all(not given_NC[one.clip, one.tag] and scores.tags_NC[one.clip, one.tag] for one in negatives)
    for one_list in (positives, negatives):
        assert max(Counter(one.tag for one in one_list).values()) <= WORST_OF_TAG
        severities = [one.severity for one in one_list]
        assert severities == sorted(severities, reverse=True)
    clips = Counter(one.clip for one in positives + negatives)
    assert max(clips.values()) <= WORST_OF_CLIP
    if exclusive:
        assert all(len({one.clip for one in one_list}) == len(one_list) for one_list in (positives, negatives))
    axis_scores = scores.scores_NC if exclusive else scores.scores_NC.T
    for one in positives + negatives:
        row = axis_scores[one.clip if exclusive else one.tag]
        assert one.rank == 1 + (row > scores.scores_NC[one.clip, one.tag]).sum()


def test_every_miss_of_an_exclusive_tag_is_a_false_negative_too() -> None:
    """Three of five clips are wrong: each is a false positive of what it was given, and a false negative of its own."""
    tags_NC = np.eye(3)[[0, 0, 1, 2, 2]]
    scores_NC = np.eye(3)[[0, 1, 2, 2, 0]] * 0.6 + 0.1
    positives, negatives = worst_mistakes(ClipScores(np.arange(5), scores_NC, tags_NC), exclusive=True)
    assert {(one.clip, one.tag) for one in positives} == {(1, 1), (2, 2), (4, 0)}
    assert {(one.clip, one.tag) for one in negatives} == {(1, 0), (2, 1), (4, 2)}


def test_a_planted_mistake_of_a_rare_tag_comes_first() -> None:
    """Scores of a rare tag are low everywhere: what counts is how far above its own measure a clip lies."""
    scores = random_scores()
    scores.scores_NC[:, 0] *= 0.01
    absent = np.flatnonzero(scores.tags_NC[:, 0] == 0)[5]
    present = np.flatnonzero(scores.tags_NC[:, 0])[0]
    scores.scores_NC[absent, 0], scores.scores_NC[present, 0] = 0.9, 0.0
    positives, negatives = worst_mistakes(scores, exclusive=False)
    assert (positives[0].clip, positives[0].tag, positives[0].rank) == (absent, 0, 1)
    assert (negatives[0].clip, negatives[0].tag, negatives[0].rank) == (present, 0, 200)


def test_a_model_without_mistakes_has_empty_lists() -> None:
    scores = random_scores()
    perfect = dataclasses.replace(scores, scores_NC=0.1 + 0.8 * scores.tags_NC)
    assert worst_mistakes(perfect, exclusive=False) == ([], [])
    counts_CC = np.array(confusion(perfect, exclusive=False)["counts"])
    assert counts_CC.trace() == counts_CC.sum() == scores.tags_NC.sum()


@pytest.mark.parametrize("exclusive", [False, True])
def test_confusions_are_counted_clip_by_clip(exclusive: bool) -> None:
    scores = random_scores(60, 5, exclusive)
    given_NC, _ = decision(scores.scores_NC, scores.tags_NC, exclusive)
    expected = [[0] * 5 for _ in range(5)]
    for clip in range(60):
        for a in np.flatnonzero(scores.tags_NC[clip]):
            for b in np.flatnonzero(given_NC[clip]):
                if a == b or not scores.tags_NC[clip, b]:
                    expected[a][b] += 1
    found = confusion(scores, exclusive)
    assert found["counts"] == expected and found["tags"] == [0, 1, 2, 3, 4]
    assert found["carry"] == scores.tags_NC.sum(axis=0).astype(int).tolist()


def test_of_many_tags_the_map_keeps_those_with_most_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = random_scores(tags=12)
    whole = np.array(confusion(scores, exclusive=False)["counts"])
    np.fill_diagonal(whole, 0)
    most = np.argsort(-(whole.sum(axis=0) + whole.sum(axis=1)), kind="stable")[:4]
    monkeypatch.setattr(examples, "MAP_TAGS", 4)
    found = confusion(scores, exclusive=False)
    assert found["tags"] == sorted(most.tolist()) and np.array(found["counts"]).shape == (4, 4)


def heard(content: bytes) -> tuple[int, np.ndarray[Any, Any]]:
    with wave.open(io.BytesIO(content)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2")


def test_an_excerpt_is_the_loudest_part_at_the_level_that_was_stored() -> None:
    rate_hz = 16000
    pcm_T = (1000 * np.sin(2 * np.pi * 440 * np.arange(10 * rate_hz) / rate_hz)).astype(np.int16)
    pcm_T[5 * rate_hz : 9 * rate_hz] *= 20
    first, content = excerpt(pcm_T, 0.5 / 32767, rate_hz)
    rate, sound_T = heard(content)
    assert rate == EXCERPT_HZ and abs(len(sound_T) - EXCERPT_S * rate) <= 1 and abs(first - 5 * rate_hz) < 100
    middle_T = sound_T[8000:24000]
    assert abs(np.abs(middle_T).max() - 10_000) < 300, "20,000 stored at a scale of a half"
    strongest = np.abs(np.fft.rfft(middle_T)).argmax() * rate / len(middle_T)
    assert strongest == pytest.approx(440, abs=1)


@pytest.mark.parametrize("samples", [0, 1, 700])
def test_an_excerpt_of_a_short_clip_is_all_of_it(samples: int) -> None:
    rate, sound_T = heard(excerpt(np.full(samples, 1000, np.int16), 1 / 32767, 4000)[1])
    assert rate == 4000 and len(sound_T) == samples


@pytest.fixture(scope="module")
def finished(tiny_store: Store, tiny_manifest: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    """A run folder and the model folder made of it."""
    from conftest import tiny_tree

    from atose_ray.config import run_config

    folder = tmp_path_factory.mktemp("examples")
    run = resolve(run_config(tiny_tree()), tiny_store, tiny_manifest)
    job = Job(run, tiny_store.uri, str(folder / "run"), {"number": 7, "name": "t", "params": {}, "distributions": {}})
    opened = open_run(job)
    fit(opened.run, opened.method, opened.batches, opened.folder)
    finish_run(job, Store(str(folder / "best")))
    return Store(str(folder / "run")), Store(str(folder / "best"))


def test_a_model_is_scored_on_validation_once(
    finished: tuple[Store, Store], tiny_store: Store, tiny_manifest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, best = finished
    write_examples(best, tiny_store, CPU)
    found = best.read_json("examples.json")
    assert found["number"] == 7 and found["split"] == "valid"
    logged = best.read_json("metrics.json")["valid"]
    assert found["metrics"] == pytest.approx(logged), "the same scores as in training, so the same clips"
    folder, groups = data_store(tiny_store, "folder"), tiny_manifest.row_groups("valid")
    valid = {str(i) for group in groups for i in read_index(folder, group, len(found["tags"])).clip_id_N.tolist()}
    assert found["clip_count"] == len(valid)
    shown = {one["clip"] for one in found["false_positives"] + found["false_negatives"]}
    assert shown and shown == set(found["clips"]) <= valid
    for clip in found["clips"].values():
        rate, sound_T = heard(base64.b64decode(clip["wav"]))
        assert 0 < len(sound_T) <= EXCERPT_S * rate + 1 and clip["name"]
    monkeypatch.setattr(writing, "examples_of", lambda *args: pytest.fail("scored again"))
    write_examples(best, tiny_store, CPU)
    other = run.child("elsewhere")
    with pytest.raises(pytest.fail.Exception, match="scored again"):
        write_trial_examples(run, other, "7.json", tiny_store, CPU)


def test_test_scores_have_intervals_and_a_new_winner_is_one_more_scoring(
    finished: tuple[Store, Store], tiny_store: Store, tmp_path: Path
) -> None:
    run, best = finished
    metrics = best.read_json("metrics.json")
    bounds, [first] = metrics["test_intervals"], metrics["test_scorings"]
    assert set(bounds) == {"pr_auc_macro", "roc_auc_macro", "pr_auc_micro", "f1_macro_at_0.5"}
    assert all(low <= metrics["test"][name] <= high for name, (low, high) in bounds.items())
    assert (first["number"], first["metric"], first["protocol"]) == (7, "pr_auc_macro", "clip")
    assert first["value"] == metrics["test"]["pr_auc_macro"] and abs(first["time"] - time.time()) < 3600
    other = Store(str(tmp_path / "best"))
    before = {key: value for key, value in metrics.items() if not key.startswith("test_")} | {"number": 3}
    other.write_json("metrics.json", before)  # of a version that kept neither
    assert scorings_of(before) == [{**first, "number": 3, "time": None}]
    job = Job(
        resolve(RunFolder(run).config()[0], tiny_store, load_manifest(tiny_store, "folder")), tiny_store.uri, run.uri
    )
    finish_run(job, other)
    assert [one["number"] for one in other.read_json("metrics.json")["test_scorings"]] == [3, 7]
    assert scorings_of({**before, "test": None}) == []


def test_scoring_cannot_see_the_test_split(
    finished: tuple[Store, Store], tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atose_ray.training.checkpoint import load_model

    seen = []

    def spy(view: Any, run: Any, uri: str) -> Any:
        seen.append([len(view.manifest.row_groups(split)) for split in ("valid", "test")])
        return batches_in(view, run, uri)

    monkeypatch.setattr("atose_ray.training.run.batches_in", spy)
    examples_of(load_model(finished[1]), tiny_store, CPU)
    assert len(seen) == 1 and seen[0][0] > 0 and seen[0][1] == 0


def test_a_trial_is_scored_like_the_model_made_of_it(finished: tuple[Store, Store], tiny_store: Store) -> None:
    run, best = finished
    write_examples(best, tiny_store, CPU)
    write_trial_examples(run, run.child("examples"), "7.json", tiny_store, CPU)
    assert run.child("examples").read_json("7.json") == best.read_json("examples.json")


def test_other_data_or_no_epoch_is_refused(finished: tuple[Store, Store], tiny_store: Store, tmp_path: Path) -> None:
    from atose_ray.training.checkpoint import load_model

    model = load_model(finished[1])
    data = model.run.data.model_copy(update={"content_hash": "0" * 64})
    stranger = dataclasses.replace(model, run=model.run.model_copy(update={"data": data}))
    with pytest.raises(
        ValueError, match="does not hold the content 0000000000000000, which this was resolved with; give the store"
    ):
        examples_of(stranger, tiny_store, CPU)
    empty = Store(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="no finished epoch"):
        write_trial_examples(empty, empty, "0.json", tiny_store, CPU)


@pytest.fixture
def study(finished: tuple[Store, Store], tiny_store: Store, tmp_path: Path) -> Store:
    """A study folder around that run: trial 7 is chosen, trial 8 is the same run again, trial 9 still runs."""
    folder = tiny_store.child("studies", f"examples-{tmp_path.name}")
    run, best = finished
    facts = {"data_spec": run.read_json("data_spec.json"), "tag_counts": {}, "tag_correlation_CC": [], "skipped": []}
    settings = {"metric": "pr_auc_macro", "trials": 3}
    folder.write_json("study.json", {"config": {"search": settings}, "versions": {}})
    folder.write_json("data.json", facts)
    for name in best.names():
        folder.child("best").write(name, best.read(name))
    for number in (7, 8, 9):
        trial = folder.child("trials", f"signature-{number}")
        for name in ("config.json", "data_spec.json", "best.safetensors"):
            trial.write(name, run.read(name))
        trial.write_json("about.json", {**run.read_json("about.json"), "number": number})
        lines = run.read("log.jsonl").splitlines(keepends=True)
        trial.write("log.jsonl", b"".join(lines[:-1] if number == 9 else lines))
        RunFolder(trial).note("memory", f"halved in {number}")
    return folder


def test_a_study_is_read_with_notes_and_what_ended_is_not_read_again(study: Store, tiny_store: Store) -> None:
    name = study.uri.rsplit("/", 1)[1]
    record = load_study_record(tiny_store, name)
    assert [trial.state for trial in record.trials] == ["complete", "complete", "running"]
    assert [trial.notes[0].text for trial in record.trials] == ["halved in 7", "halved in 8", "halved in 9"]
    assert record.promotion is None and name in record.arguments and not verb.has_ended(record)
    study.child("trials", "signature-8").delete("log.jsonl")
    RunFolder(study.child("trials", "signature-9")).end("complete")
    study.write_json("promotion.json", {"metric": "pr_auc_macro", "trials": [], "comparisons": [], "test": None})
    again = load_study_record(tiny_store, name, before=record)
    assert again.trials[1] is record.trials[1] and again.trials[2].state == "complete"
    assert again.promotion is not None and verb.has_ended(again)
    assert not load_study_record(tiny_store, name).trials[1].epochs, "without what was known it is read from the store"


def test_the_verb_scores_the_chosen_trial_and_another(study: Store, tiny_store: Store) -> None:
    name = study.uri.rsplit("/", 1)[1]
    verb.main([name, "--score", "7", "8", "--store", tiny_store.uri])
    assert study.child("best").exists("examples.json") and study.child("examples").names() == ["8.json"]
    record = load_study_record(tiny_store, name)
    assert set(record.examples) == {7, 8} and record.examples[8]["per_tag"] == record.examples[7]["per_tag"]
    page = study.read("report.html").decode()
    wav = next(iter(record.examples[7]["clips"].values()))["wav"]
    assert page.count(wav) == 1, "the sound of the chosen trial, once"

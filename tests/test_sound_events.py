"""Found events against annotated ones: counts by hand and by sed_eval, annotation files, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from atose_ray import evaluate as command
from atose_ray.apps.sound_events import annotated, read_table
from atose_ray.evaluation.sound_events import Marked, Tally, count_events, count_segments, frame_metrics, in_time, roll
from atose_ray.training.checkpoint import load_model

TAGS = ("dog", "rain", "wind", "speech")


def made_up_recordings() -> list[tuple[list[Marked], list[Marked]]]:
    """Eight recordings of a minute with annotated and found events, by a fixed stream of random numbers."""
    rng = np.random.default_rng(0)
    recordings = []
    for count in (6, *[25] * 7):
        truth, found = [], []
        for _ in range(count):
            start, length = round(float(rng.uniform(0, 55)), 2), round(float(rng.uniform(0.2, 4)), 2)
            tag = TAGS[rng.integers(4)]
            truth.append(Marked(start, round(start + length, 2), tag))
            if rng.random() < 0.75:
                named = tag if rng.random() < 0.7 else TAGS[rng.integers(4)]
                begun = max(0, round(start + float(rng.normal(0, 0.15)), 2))
                ended = round(max(begun + 0.05, start + length + float(rng.normal(0, 0.5))), 2)
                found.append(Marked(begun, ended, named))
            if rng.random() < 0.3:
                begun = round(float(rng.uniform(0, 55)), 2)
                found.append(Marked(begun, round(begun + 1.3, 2), TAGS[rng.integers(4)]))
        recordings.append((truth, found))
    return recordings


def test_counts_and_figures_are_those_of_sed_eval() -> None:
    """The expected numbers are what sed_eval 0.2.1 (SegmentBasedMetrics with a resolution of 1 s over 60 s a file;
    EventBasedMetrics with t_collar 0.2, percentage_of_length 0.5) gave for these lists on 2026-11-27."""
    segments, events = Tally(TAGS), Tally(TAGS)
    for truth, found in made_up_recordings():
        count_segments(segments, truth, found, 60.0)
        count_events(events, truth, found)
    assert list(vars(segments.overall).values()) == [469, 483, 312, 71, 86, 100]
    assert list(vars(events.overall).values()) == [181, 189, 74, 23, 84, 92]
    named = segments.metrics()
    assert named["f1_micro"] == pytest.approx(0.6554621848739496)
    assert named["error_rate"] == pytest.approx(0.5479744136460554)
    assert named["f1_macro"] == pytest.approx(0.6530568240736447)
    named = events.metrics()
    assert named["f1_micro"] == pytest.approx(0.4) and named["error_rate"] == pytest.approx(1.0994475138121547)
    each = [(row["f1"], row["error_rate"]) for row in segments.table()]
    assert each == [pytest.approx(pair) for pair in SEGMENTS_OF_TAGS]
    each = [(row["f1"], row["error_rate"]) for row in events.table()]
    assert each == [pytest.approx(pair) for pair in EVENTS_OF_TAGS]


SEGMENTS_OF_TAGS = [
    (0.663934426, 0.602941176),
    (0.701195219, 0.6),
    (0.603960396, 0.879120879),
    (0.643137255, 0.777777778),
]
EVENTS_OF_TAGS = [
    (0.375, 1.111111111),
    (0.484210526, 1.088888889),
    (0.313253012, 1.540540541),
    (0.416666667, 1.244444444),
]


def test_segments_by_hand() -> None:
    """Segment 0: dog right; 1: rain for dog, a substitution; 2: rain too much; 3: dog missed."""
    tally = Tally(("dog", "rain"))
    truth, found = [Marked(0.2, 1.5, "dog"), Marked(3.1, 3.2, "dog")], [Marked(0, 1, "dog"), Marked(1.9, 2.1, "rain")]
    count_segments(tally, truth, found, 3.5)
    assert list(vars(tally.overall).values()) == [3, 3, 1, 1, 1, 1]
    assert tally.overall.figures() == {"f1": 1 / 3, "precision": 1 / 3, "recall": 1 / 3, "error_rate": 1.0}
    assert list(vars(tally.per_tag["rain"]).values()) == [0, 2, 0, 0, 0, 2]
    assert tally.metrics()["f1_macro"] == pytest.approx(0.5)  # of rain nothing is annotated: it has none
    with pytest.raises(ValueError, match="no event of the model's tags"):
        Tally(("dog",)).metrics()


def test_an_event_is_right_within_both_collars() -> None:
    truth = Marked(10.0, 12.0, "dog")
    assert in_time(truth, Marked(10.19, 12.99, "dog")) and in_time(truth, Marked(9.81, 11.01, "dog"))
    assert not in_time(truth, Marked(10.21, 12.0, "dog")) and not in_time(truth, Marked(10.0, 13.01, "dog"))
    assert in_time(Marked(1.0, 1.1, "dog"), Marked(1.0, 1.29, "dog"))  # a short one has the collar


def test_as_many_events_are_paired_as_can_be() -> None:
    """Taken in turns, the first found event would take the first annotated one, and leave the other alone."""
    tally, other = Tally(("dog", "rain")), Tally(("dog", "rain"))
    truth, found = [Marked(1.0, 2.0, "dog"), Marked(1.3, 2.3, "dog")], [Marked(1.15, 2, "dog"), Marked(0.9, 2, "dog")]
    count_events(tally, truth, found)
    assert tally.overall.right == 2
    count_events(other, truth, [Marked(1.0, 2.0, "rain")])
    assert list(vars(other.overall).values()) == [2, 1, 0, 1, 1, 0]
    count_events(other, [], [Marked(1.0, 2.0, "rain")])
    count_events(other, truth, [])
    assert list(vars(other.overall).values()) == [4, 2, 0, 1, 3, 1]


def test_frames_are_ranked_and_a_touched_hop_counts() -> None:
    truth_SC = roll([Marked(0.9, 1.1, "dog"), Marked(3.0, 9.0, "rain")], ("dog", "rain"), 0.5, 8)
    assert truth_SC[:, 0].tolist() == [False, True, True, False, False, False, False, False]
    assert truth_SC[:, 1].tolist() == [False] * 6 + [True] * 2
    scores_SC = truth_SC * 0.5 + np.linspace(0, 0.4, 8)[:, None]
    named, rows = frame_metrics(scores_SC, truth_SC, ("dog", "rain"))
    assert named == {"frame_map": 1.0, "tags_scored": 2.0, "hops": 8.0} and rows[0]["average_precision"] == 1.0
    with pytest.raises(ValueError, match="no ranking"):
        frame_metrics(scores_SC, np.zeros((8, 2), bool), ("dog", "rain"))


def sounds(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise = 0.2 * np.random.default_rng(len(name)).standard_normal(8000)
        soundfile.write(folder / name, noise, 4000, "PCM_16")
    return [str(folder / name) for name in names]


def test_annotations_beside_the_sound_in_a_folder_and_in_a_table(tmp_path) -> None:
    one, two = sounds(tmp_path / "sound", "a/one.wav", "two.wav")
    (tmp_path / "sound/a/one.txt").write_text("onset\toffset\tlabel\n0.5\t1.25\tdoor slam\n\n")
    (tmp_path / "sound/two.txt").write_text("")
    expected = {one: [Marked(0.5, 1.25, "door slam")], two: []}
    assert annotated([str(tmp_path / "sound")], None) == expected
    (tmp_path / "sound/two.txt").unlink()
    with pytest.raises(ValueError, match=r"two\.wav is not annotated: expected .*two\.txt"):
        annotated([one, two], None)
    elsewhere = tmp_path / "truth"
    elsewhere.mkdir()
    (elsewhere / "one.txt").write_text("0.5\t1.25\tdoor slam\n")
    (elsewhere / "two.ann").write_text("")
    assert annotated([one, two], str(elsewhere)) == expected
    for line in ("filename,onset,offset,event_label", "filename\tonset\toffset\tevent_label"):
        mark = "\t" if "\t" in line else ","
        rows = [line, mark.join(("one.mp3", "0.5", "1.25", "door slam")), f"two.wav{3 * mark}"]
        (tmp_path / "all.csv").write_text("\n".join(rows))
        assert annotated([one, two], str(tmp_path / "all.csv")) == expected
    (tmp_path / "all.csv").write_text("filename,onset,offset,event_label\none.wav,1,2,x\n")
    with pytest.raises(ValueError, match=r"says nothing of .*two\.wav.*a row with its name alone"):
        annotated([one, two], str(tmp_path / "all.csv"))
    (again,) = sounds(tmp_path / "sound", "b/one.wav")
    with pytest.raises(ValueError, match="but one is there twice"):
        annotated([one, again], str(tmp_path / "all.csv"))


@pytest.mark.parametrize("row", ["one.wav,1,1,dog", "one.wav,x,2,dog", "one.wav,1,2,", "one.wav,-1,2,dog"])
def test_a_line_that_is_no_event_is_named(row: str, tmp_path) -> None:
    (tmp_path / "all.csv").write_text(f"filename,onset,offset,event_label\none.wav,0,1,dog\n{row}\n")
    with pytest.raises(ValueError, match=r"all\.csv line 3 must be onset, offset .* and label, but is"):
        read_table(tmp_path / "all.csv")
    (tmp_path / "all.csv").write_text("file,onset,offset,event_label\n")
    with pytest.raises(ValueError, match="filename is not in 'file,onset"):
        read_table(tmp_path / "all.csv")


def test_the_command_scores_recordings_with_the_settings_that_made_it(model_folder, tmp_path, capsys) -> None:
    """At a threshold of 0 every tag sounds all the time, so that the counts are known without a trained model."""
    sounds(tmp_path, "one.wav", "other.wav")  # 2 s each
    tags = load_model(model_folder).spec.tags
    (tmp_path / "one.txt").write_text(f"0.5\t1.5\t{tags[0]}\n")
    (tmp_path / "other.txt").write_text(f"0\t2\t{tags[1]}\n")
    words = [model_folder, "--recordings", str(tmp_path), "--hop", "0.5", "--threshold", "0", "--json"]
    command.main(words)
    segment, event, frame = json.loads(capsys.readouterr().out)
    assert [one["protocol"] for one in (segment, event, frame)] == ["segment", "event", "frame"]
    assert segment["metrics"]["recall"] == 1.0 and segment["metrics"]["precision"] == 4 / (4 * len(tags))
    assert event["metrics"]["annotated"] == 2 and event["metrics"]["found"] == 2 * len(tags)
    assert event["metrics"]["recall"] == 0.5  # from 0 to 2 s, not from 0.5 to 1.5 s
    assert event["tags"][1]["recall"] == 1.0 and 0 < frame["metrics"]["frame_map"] <= 1
    assert segment["settings"]["hop_s"] == 0.5 and segment["settings"]["timeline"]["threshold"] == 0.0
    command.main([*words[:-1], "--protocol", "segment", "--set", "min_duration_s=3"])
    out = capsys.readouterr().out
    assert "found                                           0  [segment]" in out and '"min_duration_s": 3.0' in out
    (tmp_path / "one.txt").write_text("0.5\t1.5\tgong of Bali\n")
    with pytest.raises(ValueError, match="the annotations name gong of Bali, but the model scores"):
        command.main(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--protocol", "event"], "of recordings: say which, --recordings"),
        (["--threshold", "0.3"], "of recordings: say which, --recordings"),
        (["--set", "hysteresis=0.1"], "of recordings: say which, --recordings"),
        (["--recordings", "x.wav", "--protocol", "clip"], "scored under segment, event, frame"),
        (["--recordings", "x.wav", "--against", "before.json"], "without --against"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        command.main(["nowhere", *words])

"""The pages of single trials, the comparison, mistakes, promotion, and the live report; thousands of trials; hostile
names. Studies here are synthetic."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import itertools
import json
import re
import wave
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import (
    HOSTILE,
    INSTRUMENTS,
    METRICS,
    drawn_page,
    make_study,
    make_trial,
    page_data,
    unpack,
    usual_study,
)

from atose_ray import report as verb
from atose_ray.config import RunConfig
from atose_ray.search import report
from atose_ray.search.record import Note, StudyRecord, TrialRecord
from atose_ray.search.report import render_report, report_data
from atose_ray.search.report_trials import CURVE_POINTS, bars, leaves, pack, shortened, thin
from atose_ray.storage import Store
from atose_ray.training.record import EpochRecord

RTL = "\u202e\u05d0\u05d1\u05d2 abc\u202c"
LONG = "long name " * 1000
NAMES = (HOSTILE, RTL, LONG, "']}`${alert(1)}", "ordinary")


def epochs_of(count: int, stage_ends: tuple[int, ...] = (), seconds: float = 2.0) -> tuple[EpochRecord, ...]:
    random, best, found = np.random.default_rng(count), 0.0, []
    for epoch in range(1, count + 1):
        score = 0.9 - 0.7 * float(np.exp(-epoch / 20)) + float(random.normal(0, 0.02))
        best = max(best, score)
        stage = f"stage {sum(epoch > end for end in stage_ends)}"
        valid = dict.fromkeys(METRICS, score)
        found.append(EpochRecord(epoch, stage, seconds, 1 / epoch, 0.1, valid, best, 1.7e9 + 10 + seconds * epoch))
    return tuple(found)


def tone(hz: float, seconds: float = 4.0, rate: int = 8000) -> str:
    """A WAV of a sine in base64."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        time_T = np.arange(int(seconds * rate)) / rate
        file.writeframes((9000 * np.sin(2 * np.pi * hz * time_T)).astype("<i2").tobytes())
    return base64.b64encode(content.getvalue()).decode()


def make_examples(number: int, tags: tuple[str, ...], listed: int = 3, exclusive: bool = False) -> dict[str, Any]:
    """examples.json as training/examples.py writes it."""
    count = len(tags)
    lines = [
        {"clip": str(i), "tag": i % count, "score": 0.5, "rank": i + 1, "top": [[0, 0.9]]} for i in range(2 * listed)
    ]
    clips = {
        str(i): {"name": NAMES[i % len(NAMES)], "tags": [i % count], "seconds": 9.5, "from_s": 1.5, "wav": tone(500)}
        for i in range(2 * listed)
    }
    row = {"positives": 9, "clips": 100, "average_precision": 0.5, "roc_auc": 0.7}
    return {
        "number": number,
        "identity": {"signature": "x", "stage": "classify", "epoch": 6, "version": 1},
        "split": "valid",
        "protocol": "clip",
        "exclusive": exclusive,
        "clip_count": 100,
        "tags": list(tags),
        "metrics": {"pr_auc_macro": 0.5},
        "per_tag": [{"tag": tag, **row} for tag in tags],
        "confusion": {
            "tags": list(range(count)),
            "carry": [9] * count,
            "counts": (np.eye(count) * 4 + 1).astype(int).tolist(),
        },
        "false_positives": lines[:listed],
        "false_negatives": lines[listed:],
        "clips": clips,
    }


def make_promotion(winner: int, second: int, name: str = "again") -> dict[str, Any]:
    rows = [
        {"number": winner, "role": "winner", "valid": [0.7, 0.72, 0.71], "mean": 0.71, "low": 0.69, "high": 0.73},
        {"number": second, "role": "second", "valid": [0.69, 0.7, 0.71], "mean": 0.7, "low": 0.68, "high": 0.72},
        {"number": 2, "role": "third", "valid": [], "mean": None, "low": None, "high": None, "diverged": 3},
        {"number": -1, "role": "baseline", "valid": [0.5], "mean": 0.5, "low": 0.5, "high": 0.5},
    ]
    pairs = [(second, 0.012, 0.003, 0.021, 0.99), (-1, -0.004, -0.013, 0.005, 0.2)]
    return {
        "metric": "pr_auc_macro",
        "trials": [{**row, "name": name, "seeds": [1, 2, 3]} for row in rows],
        "comparisons": [
            {"a": winner, "b": b, "difference": d, "low": low, "high": high, "better": better, "resamples": 1000}
            for b, d, low, high, better in pairs
        ],
        "test": {"values": [0.6, 0.61, 0.62], "mean": 0.61, "low": 0.59, "high": 0.63},
    }


def full_config(trial: TrialRecord) -> dict[str, Any]:
    tree = RunConfig().model_dump(mode="json")
    tree["optim"]["lr"], tree["seed"] = trial.params["optim.lr"], trial.number
    return tree


def rich_study() -> StudyRecord:
    """The usual study with real configs, notes, mistakes of the best trial, and a promotion."""
    study = usual_study()
    notes = (Note(1.7e9 + 3, "memory", "a batch did not fit: it is taken in halves"),)
    trials = tuple(
        dataclasses.replace(
            trial,
            config=full_config(trial),
            notes=notes,
            resources={"cpus": 2.0},
            threads=2,
            started=trial.started - 3,
            opened=trial.started - 2.5,
            epochs=tuple(dataclasses.replace(one, gpu_memory=0.01 * min(one.epoch, 31)) for one in trial.epochs),
        )
        for trial in study.trials
    )
    assert study.best is not None
    best = study.best.number
    return dataclasses.replace(
        study,
        trials=trials,
        config={**study.config, "base": {"seed": 3}},
        examples={best: make_examples(best, INSTRUMENTS), 4: make_examples(4, INSTRUMENTS, exclusive=True)},
        promotion=make_promotion(best, 0 if best else 1),
        arguments="demo --store here",
    )


# ---- what Python puts into the page


@pytest.mark.parametrize("count", [0, 1, 59, 60, 61, 400, 5000])
def test_thinning_keeps_ends_best_and_both_sides_of_a_stage(count: int) -> None:
    ends = (count // 3,) if count > 60 else ()
    epochs = epochs_of(count, ends)
    kept = thin(epochs, CURVE_POINTS)
    if count <= CURVE_POINTS:
        assert kept == list(range(count))
        return
    assert kept == sorted(set(kept)) and CURVE_POINTS <= len(kept) <= CURVE_POINTS + 3
    best = max(range(count), key=lambda i: (epochs[i].valid["pr_auc_macro"], -i))
    assert {0, count - 1, best, ends[0] - 1, ends[0]} <= set(kept)
    assert max(b - a for a, b in itertools.pairwise(kept)) <= -(-(count - 1) // (CURVE_POINTS - 1)) + 1


def test_packed_curves_come_back_with_their_gaps() -> None:
    values = [0.1, None, float("nan"), 0.70001, float("inf"), -3.5]
    back = unpack(pack(values))
    assert [value is None for value in back] == [False, True, True, False, True, False]
    for value, got in zip((0.1, 0.70001, -3.5), (back[0], back[3], back[5]), strict=True):
        assert got == pytest.approx(value, abs=4.3 / 131_000)
    assert unpack(pack([2.0, 2.0])) == [2.0, 2.0] and pack([None, float("nan")]) is None and pack([]) is None


def test_every_config_comes_back_from_what_is_shared_and_what_is_own() -> None:
    study = rich_study()
    odd = dataclasses.replace(study.trials[3], config={"only": {"deep": [1, {"x": None}]}, "seed": 3})
    study = dataclasses.replace(study, trials=(*study.trials[:3], odd, *study.trials[4:]))
    data = report_data(study, importances=())
    table = data["configs"]
    for shown, trial in zip(data["trials"], study.trials, strict=True):
        lacks = set(shown["lacks"])
        rebuilt = dict(table["leaves"][i] for i in [*(i for i in table["shared"] if i not in lacks), *shown["config"]])
        expected = {leaf.path: json.loads(leaf.value) for leaf in leaves(trial.config)}
        assert rebuilt.keys() == expected.keys()
        assert all(
            rebuilt[k] == (pytest.approx(v, rel=1e-4) if isinstance(v, float) else v) for k, v in expected.items()
        )
    base = dict(table["leaves"][i] for i in table["base"])
    assert base["seed"] == 3 and base["optim.lr"] == RunConfig().optim.lr, "the base with all defaults"


def test_a_base_of_another_version_is_no_base() -> None:
    study = rich_study()
    study = dataclasses.replace(study, config={**study.config, "base": {"no_such_part": 1}})
    assert report_data(study, importances=())["configs"]["base"] is None


def test_the_course_has_a_bar_per_stage_and_shows_a_break() -> None:
    epochs = epochs_of(6, (3,))
    late = tuple(dataclasses.replace(e, time=e.time + 100) if e.epoch > 5 else e for e in epochs)
    trial = dataclasses.replace(make_trial(0), started=1.7e9, epochs=late)
    assert bars(trial) == [("stage 0", 10, 16), ("stage 1", 16, 20), ("stage 1", 120, 122)]


def test_long_reasons_keep_their_end_where_the_error_is() -> None:
    text = "Traceback\n" + "x" * 50_000 + "\nRuntimeError: out of memory"
    assert len(shortened(text, 300)) < 400 and shortened(text, 300).endswith("RuntimeError: out of memory")
    trials = [make_trial(n, "failed", 0, reason=text) for n in range(40)]
    assert len(json.dumps(report_data(make_study(trials), importances=())["trials"])) < 300_000


def test_sound_is_of_the_chosen_trial_only() -> None:
    study = rich_study()
    data = page_data(render_report(study, importances=()))
    assert study.best is not None
    assert set(data["sound"]) == set(study.examples[study.best.number]["clips"])
    assert all(clip["wav"] is None for one in data["examples"].values() for clip in one["clips"].values())


class Elements(HTMLParser):
    """The start tags of a page with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def hostile_study() -> StudyRecord:
    """Hostile text in every place that holds text."""
    trials = [make_trial(n, name=NAMES[n % 5], device=NAMES[n % 5]) for n in range(5)]
    trials += [make_trial(5 + n, "failed", 0, reason=NAMES[n]) for n in range(4)]
    noted = [
        dataclasses.replace(
            trial,
            notes=(Note(1.7e9, HOSTILE, LONG), Note(1.7e9, RTL, HOSTILE)),
            config={HOSTILE: {RTL: HOSTILE, "list": [HOSTILE, {LONG: RTL}]}, "seed": trial.number},
            params={**trial.params, HOSTILE: LONG if trial.number % 2 else HOSTILE},
            precision=HOSTILE,
            residency=HOSTILE,
        )
        for trial in trials
    ]
    study = make_study(noted, NAMES, name=HOSTILE, rerun_command=HOSTILE, versions={HOSTILE: RTL})
    assert study.best is not None
    best = study.best.number
    skipped = tuple((name, reason) for name in NAMES for reason in NAMES)
    return dataclasses.replace(
        study,
        skipped=skipped,
        examples={best: make_examples(best, NAMES), 6: make_examples(6, NAMES)},
        promotion=make_promotion(best, 0 if best else 1, HOSTILE),
        arguments=HOSTILE,
    )


def test_hostile_names_add_no_element_and_no_place_to_load_from() -> None:
    plain, evil = Elements(), Elements()
    plain.feed(render_report(rich_study(), importances=()))
    evil.feed(render_report(hostile_study(), importances=()))
    assert evil.found == plain.found, "the markup does not depend on the data"
    loads = {(tag, name) for tag, attrs in evil.found for name in attrs if name in ("src", "href", "data", "action")}
    assert loads <= {("a", "href")}
    assert all(attrs["href"].startswith("#") for tag, attrs in evil.found if tag == "a" and attrs.get("href"))
    assert len(render_report(hostile_study(), importances=())) < 2_000_000


# ---- in a browser

VISIT = """
const seen = {errors: [], text: {}, layout: {}};
const visit = (hash) => {
  location.hash = hash;
  route();
  seen.text[hash] = (overview.hidden ? detail : overview).innerText;
  seen.layout[hash] = {overview: !overview.hidden, detail: !detail.hidden,
    wide: document.documentElement.scrollWidth > innerWidth, isolated: detail.querySelector("h1 bdi") !== null,
    curves: detail.querySelectorAll(".smalls svg").length, changed: detail.querySelectorAll(".changed").length,
    marks: detail.querySelectorAll("mark").length, heat: detail.querySelectorAll("image").length,
    options: detail.querySelectorAll("option").length, open: detail.querySelectorAll("select").length};
};
"""
LEAVE = """
drawAllPictures();
seen.images = document.querySelectorAll("img, iframe, object, embed, link").length;
seen.players = [...document.querySelectorAll("audio")].map((one) => one.getAttribute("src").slice(0, 22));
seen.pictures = document.querySelectorAll(".picture image").length;
seen.error = document.documentElement.dataset.error || "";
seen.title = document.title;
seen.loaded = performance.getEntriesByType("resource").map((one) => one.name.slice(0, 60));
document.documentElement.dataset.seen = JSON.stringify(seen);
"""


def visited(page: str, folder: Path, script: str) -> dict[str, Any]:
    root = re.search(r"<html[^>]*>", drawn_page(page, folder, VISIT + script + LEAVE))
    assert root is not None
    found = re.search(r'data-seen="([^"]*)"', root[0])
    assert found is not None, root[0]
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    assert seen["error"] == "" and seen["images"] == 0, seen["error"]
    assert [name for name in seen["loaded"] if not name.startswith("data:")] == [], "nothing is loaded from anywhere"
    return seen


@pytest.mark.browser
def test_a_reader_visits_trials_compares_them_and_comes_back(tmp_path: Path) -> None:
    study = rich_study()
    assert study.best is not None
    best = study.best.number
    other = next(trial for trial in study.trials if trial.state == "pruned")
    script = f"""
    scrollTo({{top: 2500, behavior: "instant"}});
    for (const hash of ["#trial-{best}", "#trial-{other.number}", "#trial-9", "#trial-99", "#trial-4",
      "#compare-{best}-{other.number}", "#compare", "#compare-{best}-{best}", "#summary"]) visit(hash);
    seen.top = scrollY;
    document.querySelector(".sortable tbody tr td:nth-child(2)").click();
    seen.clicked = location.hash;
    """
    seen = visited(render_report(study, importances=()), tmp_path, script)
    text, layout = seen["text"], seen["layout"]
    page = text[f"#trial-{best}"]
    course = "queued 0.50 s, starting 2.5 s, stage 1:"
    chosen = next(trial for trial in study.trials if trial.number == best)
    assert f"{min(len(chosen.epochs), 31)} %" in page
    for words in ("searched", course, "2 cpus", "taken in halves", "9 of 100", "of 13 trials with a score"):
        assert words in page, (words, page)
    assert layout[f"#trial-{best}"]["curves"] == len(METRICS) + 1 and layout[f"#trial-{best}"]["heat"] == 1
    assert layout[f"#trial-{best}"]["changed"] >= 2, "learning rate and seed differ from the base"
    assert layout[f"#trial-{best}"]["detail"] and not layout[f"#trial-{best}"]["overview"]
    assert other.reason is not None and other.reason in text[f"#trial-{other.number}"]
    assert f"python -m atose_ray.report demo --store here --score {other.number}" in text[f"#trial-{other.number}"]
    assert "out of memory" in text["#trial-9"] and "no epoch was finished" in text["#trial-9"].lower()
    assert "no trial 99" in text["#trial-99"] and "Average precision per tag" in text["#trial-4"]
    compared = text[f"#compare-{best}-{other.number}"]
    assert "optim.lr" in compared and layout[f"#compare-{best}-{other.number}"]["marks"] >= 2 * 2
    assert layout["#compare"]["options"] == 2 * (len(study.trials) + 1) and layout["#compare"]["open"] == 2
    assert "the same" in text[f"#compare-{best}-{best}"]
    back = text["#summary"]
    assert layout["#summary"]["overview"] and not layout["#summary"]["detail"]
    assert "no training finished an epoch" in back
    assert "sure" in back and "not decided by these clips" in back and "the baseline beats" in back
    assert "by 0.012 [0.003, 0.021]" in back and "by 0.004 [\u22120.005, 0.013]" in back
    assert seen["clicked"].startswith("#trial-") and seen["top"] == 2500, "back where the reader was"
    assert seen["players"] == ["data:audio/wav;base64,"] * 6 and seen["pictures"] == 6


@pytest.mark.browser
def test_hostile_names_are_drawn_as_text_on_every_page(tmp_path: Path) -> None:
    study = hostile_study()
    hashes = ["#trial-0", "#trial-1", "#trial-2", "#trial-5", "#trial-6", "#compare-1-2", "#summary"]
    seen = visited(render_report(study, importances=()), tmp_path, f"{json.dumps(hashes)}.forEach(visit);")
    assert "</script><img src=x" in seen["text"]["#trial-0"] and not seen["title"].startswith("owned")
    assert not any(layout["wide"] for layout in seen["layout"].values()), "no name makes a page scroll sideways"
    assert seen["layout"]["#trial-1"]["isolated"], "a right-to-left name turns nothing around it"


@pytest.mark.browser
def test_a_tone_is_a_line_at_its_frequency(tmp_path: Path) -> None:
    study = rich_study()
    script = """
    const {rate, samples} = samplesOf(REPORT.sound[0]);
    const {columns, cells} = spectrogram(samples, rate);
    const middle = Array.from(cells.slice((columns >> 1) * BANDS, ((columns >> 1) + 1) * BANDS));
    const band = middle.indexOf(Math.max(...middle));
    seen.hz = (bandBins(rate)[band] + bandBins(rate)[band + 1]) / 2 * rate / FFT_SIZE;
    seen.quiet = middle.filter((db) => db < -40).length;
    """
    seen = visited(render_report(study, importances=()), tmp_path, script)
    assert seen["hz"] == pytest.approx(500, rel=0.03) and seen["quiet"] > 60


@pytest.mark.browser
def test_a_watched_report_reloads_only_when_asked(tmp_path: Path) -> None:
    script = """
    visit("#summary");
    const box = document.querySelector(".live input");
    seen.before = reloading;
    box.click();
    seen.after = reloading !== null;
    seen.stored = kept.read();
    box.click();
    """
    study = usual_study()
    study = dataclasses.replace(study, config={**study.config, "search": {"trials": 20}})
    seen = visited(render_report(study, 7, importances=()), tmp_path, script)
    assert seen["before"] is None and seen["after"] and seen["stored"] == {"on": True}
    assert "written again every 7.0 s" in seen["text"]["#summary"]
    assert re.search(r"\d an hour; about .* are left", seen["text"]["#summary"])
    still = render_report(usual_study(), importances=())
    assert page_data(still)["live"] is None and 'http-equiv="refresh"' not in still


def large_study() -> StudyRecord:
    tags = tuple(f"tag number {i}" for i in range(60))
    trials = []
    for n in range(2000):
        state, reason = ("complete", None) if n % 3 == 0 else ("pruned", f"by successive halving at epoch {n % 7}")
        if n % 30 == 1:
            state, reason = "failed", "Traceback\n" + "  in a file, in a line\n" * 80 + f"RuntimeError: {n}"
        trial = make_trial(n, state, 40, 1.7e9 + 30 * n, reason=reason)
        trials.append(dataclasses.replace(trial, config=full_config(trial), resources={"cpus": 2.0, "gpus": 1.0}))
    study = make_study(trials, tags)
    assert study.best is not None
    best = study.best.number
    return dataclasses.replace(study, examples={best: make_examples(best, tags, 20)})


@pytest.mark.slow
@pytest.mark.browser
def test_two_thousand_trials_stay_below_ten_megabytes_and_open_by_a_click(tmp_path: Path) -> None:
    page = render_report(large_study(), importances=())
    assert len(page.encode()) < 10_000_000
    script = """
    const timed = (act) => {
      const from = performance.now();
      act();
      document.body.offsetHeight; // lays the page out
      return Math.round(performance.now() - from);
    };
    seen.ms = {
      all: timed(drawAll), open: timed(() => visit("#trial-1000")), compare: timed(() => visit("#compare-1000-3")),
      back: timed(() => visit("#summary")), mark: timed(() => select(3)),
      page: timed(() => document.querySelectorAll(".pager button")[2].click()),
    };
    seen.text = {};
    seen.rows = document.querySelectorAll(".sortable tbody tr").length;
    seen.nodes = document.querySelectorAll("*").length;
    seen.sheets = layers.map((one) => one.items.length);
    """
    seen = visited(page, tmp_path, script)
    print("milliseconds:", seen["ms"], "elements:", seen["nodes"], "bytes:", len(page.encode()))
    assert seen["rows"] == 100 and seen["nodes"] < 10_000 and min(seen["sheets"]) >= 1900


# ---- the verb


def test_watching_ends_with_the_search_and_writes_only_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = usual_study()
    whole = dataclasses.replace(whole, config={**whole.config, "search": {"trials": 14}})
    running = dataclasses.replace(
        whole, trials=(*whole.trials[:13], dataclasses.replace(whole.trials[13], state="running")), best=None
    )
    readings = iter([running, running, dataclasses.replace(whole, best=None), whole])
    written: list[tuple[int | None, int]] = []

    def fake_write(store: Store, record: StudyRecord, live_s: int | None = None, importances: Any = None) -> None:
        written.append((live_s, sum(trial.state == "running" for trial in record.trials)))

    monkeypatch.setattr(verb, "load_study_record", lambda *args, **kept: next(readings))
    monkeypatch.setattr(verb, "parameter_importances", lambda trials: ())
    monkeypatch.setattr(verb, "write", fake_write)
    monkeypatch.setattr(verb.time, "sleep", lambda seconds: None)
    verb.main(["demo", "--watch", "5", "--store", str(tmp_path)])
    assert written == [(5, 1), (5, 0), (None, 0)], (
        "not again when nothing changed; at the end a page that is no longer live"
    )
    assert "the search has ended" in capsys.readouterr().out


def test_ctrl_c_leaves_a_page_that_waits_for_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = usual_study()
    study = dataclasses.replace(study, config={**study.config, "search": {"trials": 99}})
    monkeypatch.setattr(verb, "load_study_record", lambda *args, **kept: study)

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verb.time, "sleep", interrupt)
    for module in (verb, report):
        monkeypatch.setattr(module, "parameter_importances", lambda trials: ())
    verb.main(["demo", "--watch", "--store", str(tmp_path)])
    page = (tmp_path / "studies" / "demo" / "report.html").read_text()
    assert page_data(page)["live"] is None and len(page_data(page)["trials"]) == 14


def test_scoring_an_unknown_trial_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "load_study_record", lambda *args, **kept: usual_study())
    with pytest.raises(ValueError, match="0 to 13, but got 77"):
        verb.main(["demo", "--score", "77", "--store", str(tmp_path)])

"""The report: whole, self-contained, honest with little data, safe with hostile data. Studies here are synthetic."""

from __future__ import annotations

import base64
import dataclasses
import functools
import html
import itertools
import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, distribution_to_json
from processes import PATIENCE_S

from atose_ray.data.tag_statistics import tag_order
from atose_ray.search import importance
from atose_ray.search.importance import MIN_TRIALS, parameter_importances
from atose_ray.search.record import BestRecord, EpochRecord, StudyRecord, TagEmbeddings, TrialRecord
from atose_ray.search.report import render_report, report_data, triangle_correlation
from atose_ray.types import DataSpec

INSTRUMENTS = (
    "choir",
    "voice",
    "slow",
    "techno",
    "beat",
    "synth",
    "fast",
    "loud",
    "guitar",
    "plucked",
    "strings",
    "bowed",
)
SECTIONS = (
    "summary",
    "best",
    "promotion",
    "space",
    "history",
    "pareto",
    "curves",
    "parallel",
    "importances",
    "per-tag",
)
SECTIONS += ("mistakes", "tag-maps", "failures", "time", "trials", "versions")
METRICS = ("pr_auc_macro", "roc_auc_macro", "pr_auc_micro")
HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"> & 'quotes' <!-- \u2028 @@DATA@@"

SPACE: dict[str, Any] = {
    "encoder.kind": CategoricalDistribution(["harmonic_cnn", "sample_cnn"]),
    "encoder[harmonic_cnn].channels": CategoricalDistribution([64, 128]),
    "encoder[sample_cnn].block": CategoricalDistribution(["basic", "se", "res", "rese"]),
    "method.kind": CategoricalDistribution(["supervised", "joint_embedding"]),
    "method[joint_embedding].latent": CategoricalDistribution([32, 50, 64, 128, 256]),
    "method[joint_embedding].objective.kind": CategoricalDistribution(["pairwise_margin", "info_nce"]),
    "method[joint_embedding].objective[info_nce].temperature": FloatDistribution(0.02, 0.5, log=True),
    "optim.lr": FloatDistribution(1e-5, 1e-2, log=True),
}


def draw_params(random: np.random.Generator) -> dict[str, Any]:
    """One define-by-run walk over SPACE: a bracketed path is drawn only when its arms were chosen before."""
    params: dict[str, Any] = {}
    for path, distribution in SPACE.items():
        plain = [re.sub(r"\[[^\]]*\]", "", path[: found.start()]) for found in re.finditer(r"\[", path)]
        chosen = {re.sub(r"\[[^\]]*\]", "", name): value for name, value in params.items()}
        arms = re.findall(r"\[([^\]]*)\]", path)
        if any(chosen.get(f"{where}.kind") != arm for where, arm in zip(plain, arms, strict=True)):
            continue
        if isinstance(distribution, CategoricalDistribution):
            params[path] = distribution.choices[int(random.integers(len(distribution.choices)))]
        else:
            params[path] = float(np.exp(random.uniform(np.log(distribution.low), np.log(distribution.high))))
    return params


def make_trial(
    number: int, state: str = "complete", epochs: int = 6, started: float = 1.7e9, **changes: Any
) -> TrialRecord:
    random = np.random.default_rng(number)
    params = draw_params(random)
    joint = params["method.kind"] == "joint_embedding"
    goal = 0.75 - 0.12 * abs(math.log10(params["optim.lr"]) + 3) + 0.1 * joint + float(random.normal(0, 0.02))
    done, best, clock, seconds = [], 0.0, started, 4.0 + 3 * (params["encoder.kind"] == "harmonic_cnn")
    for epoch in range(1, epochs + 1):
        score = 0.18 + (goal - 0.18) * (1 - math.exp(-epoch / 3)) + float(random.normal(0, 0.01))
        best, clock = max(best, score), clock + seconds
        stage = "classify" if not joint or epoch > 3 else "embed"
        valid = {name: score + 0.05 * i for i, name in enumerate(METRICS)}
        loss = 0.7 * math.exp(-epoch / 4) + 0.05
        done.append(EpochRecord(epoch, stage, seconds, loss, params["optim.lr"], valid, best, clock))
    fields: dict[str, Any] = {
        "number": number,
        "name": f"{params['encoder.kind']}-{'je' if joint else 'sup'}-{number:03d}",
        "signature": f"{number:08x}",
        "params": params,
        "distributions": {path: distribution_to_json(SPACE[path]) for path in params},
        "config": {"seed": number},
        "state": state,
        "reason": None,
        "started": started,
        "finished": None if state == "running" else clock + 1.5,
        "device": "cpu x2" if number % 3 else "NVIDIA H200",
        "parameters": 4_442_777 if params["encoder.kind"] == "harmonic_cnn" else 2_639_104,
        "epochs": tuple(done),
    }
    return TrialRecord(**(fields | changes))


def make_best(trial: TrialRecord, tags: tuple[str, ...], cosine: Any, collapsed: bool | None) -> BestRecord:
    random = np.random.default_rng(5)
    per_tag = []
    for i, tag in enumerate(tags):
        positives = 0 if i == len(tags) - 1 else int(random.integers(6, 60))
        score = None if positives == 0 else float(random.uniform(0.3, 0.95))
        row = {"tag": tag, "average_precision": score, "roc_auc": score, "positives": positives, "clips": 120}
        per_tag.append(row)
    metrics = {
        "protocol": "clip_mean_of_4_crops",
        "metric": "pr_auc_macro",
        "number": trial.number,
        "stage": "classify",
        "epoch": 6,
        "valid": {name: trial.epochs[-1].valid[name] for name in METRICS} | {"pr_auc_macro": trial.value},
        "test": {"pr_auc_macro": 0.61234, "roc_auc_macro": 0.84321, "pr_auc_micro": 0.66666},
        "test_prevalence_mean": 0.21987,
        "per_tag": per_tag,
        "tag_embedding_cosine_CC": cosine,
        "tag_embedding_collapsed": collapsed,
    }
    return BestRecord(trial.number, {"seed": trial.number, "encoder": {"kind": "sample_cnn"}}, metrics)


def tag_matrices(tags: int) -> tuple[list[list[float]], list[list[float]]]:
    """Correlation of tags that come in shuffled groups of three, and a cosine that resembles it."""
    random = np.random.default_rng(1)
    group = random.permutation(tags) // 3
    noise = random.normal(0, 0.06, (tags, tags))
    correlation = 0.55 * (group[:, None] == group[None, :]) - 0.08 + (noise + noise.T) / 2
    cosine = np.clip(correlation * 1.3 + random.normal(0, 0.1, (tags, tags)), -1, 1)
    cosine = (cosine + cosine.T) / 2
    for matrix in (correlation, cosine):
        np.fill_diagonal(matrix, 1.0)
    return correlation.tolist(), cosine.tolist()


def make_study(trials: list[TrialRecord], tags: tuple[str, ...] = INSTRUMENTS, **changes: Any) -> StudyRecord:
    correlation, cosine = tag_matrices(len(tags))
    complete = [trial for trial in trials if trial.state == "complete" and trial.value is not None]
    best = max(complete, key=lambda trial: trial.value or 0.0) if complete else None
    counts = {"train": 400, "valid": 100, "test": 120}
    fields: dict[str, Any] = {
        "name": "demo",
        "metric": "pr_auc_macro",
        "config": {
            "base": {"method": {"kind": "supervised"}, "seed": 7},
            "space": {"optim": {"lr": {"range": [1e-5, 1e-2], "log": True}}},
            "search": {"trials": len(trials), "seed": 3},
        },
        "data_spec": DataSpec(sample_rate_hz=16000, clip_samples=80000, tags=tags, exclusive=False, counts=counts),
        "tag_counts": {split: {tag: 10 + i for i, tag in enumerate(tags)} for split in counts},
        "tag_correlation_CC": correlation,
        "trials": tuple(trials),
        "best": make_best(best, tags, cosine, False) if best else None,
        "rerun_command": f"python -m atose_ray.train demo --config best/config.json --seed {best.number}"
        if best
        else None,
        "versions": {"atose_ray": "0.1.0", "ray": "2.60.0", "optuna": "5.0.0"},
        "tag_embeddings": TagEmbeddings(best.number, best.name, cosine, False) if best else None,
        "skipped": (("clips/broken.mp3", "the decoder read 0 of 29.1 s"),),
    }
    return StudyRecord(**(fields | changes))


def usual_study() -> StudyRecord:
    """Fourteen trials on two slots: eight complete, four pruned, one diverged, one failed."""
    trials = []
    for number in range(14):
        start = 1.7e9 + 22 * number
        if number in (3, 6, 8, 11):
            reason = "asha: below the best half at epoch 2"
            trials.append(make_trial(number, "pruned", epochs=2, started=start, reason=reason))
        elif number == 5:
            trials.append(make_trial(number, "diverged", 1, start, reason="train loss is nan in epoch 2, step 14"))
        elif number == 9:
            reason = "Traceback (most recent call last):\n  in fit\nRuntimeError: out of memory"
            trials.append(make_trial(number, "failed", 0, start, reason=reason))
        else:
            trials.append(make_trial(number, started=start))
    return make_study(trials)


def hostile_study() -> StudyRecord:
    tags = (HOSTILE, "<b>rock & roll</b>", 'it\'s "quoted"', "\udcff broken name", "ordinary")
    trials = [make_trial(0), make_trial(1, "failed", 0, reason=HOSTILE), make_trial(2, name=HOSTILE, device=HOSTILE)]
    distribution = distribution_to_json(CategoricalDistribution([HOSTILE, "b"]))
    trials[0] = dataclasses.replace(trials[0], params={HOSTILE: HOSTILE}, distributions={HOSTILE: distribution})
    skipped = ((HOSTILE, HOSTILE), ("\udce4.wav", "bad name"))
    return make_study(trials, tags, name=HOSTILE, rerun_command=HOSTILE, skipped=skipped, versions={HOSTILE: "1"})


def large_study() -> StudyRecord:
    trials = []
    for number in range(300):
        state, epochs = ("pruned", 20) if number % 3 == 1 else ("complete", 20)
        trials.append(make_trial(number, state, epochs, 1.7e9 + 30 * number))
    return make_study(trials, tuple(f"tag number {i}" for i in range(50)))


STUDIES = {
    "usual": usual_study,
    "hostile": hostile_study,
    "large": large_study,
    "one": lambda: make_study([make_trial(0)]),
    "none": lambda: make_study([]),
    "running": lambda: make_study([make_trial(0, "running", 0, reason=None), make_trial(1, "running", 2)]),
    "failed": lambda: make_study([make_trial(n, "failed", 0, reason="no space left on device") for n in range(2)]),
}


def page_data(page: str) -> dict[str, Any]:
    """What the browser gets: the text up to the first end of the script element, parsed."""
    opening = '<script type="application/json" id="data">'
    assert page.count(opening) == 1
    found: dict[str, Any] = json.loads(page.split(opening)[1].split("</script>")[0], parse_constant=pytest.fail)
    return found


def unpack(packed: list[Any] | None) -> list[float | None]:
    """A curve as the page packs it, in Python."""
    if packed is None:
        return []
    low, high, text = packed
    steps = np.frombuffer(base64.b64decode(text), "<u2").tolist()
    return [None if step == 65535 else low + (high - low) * step / 65534 for step in steps]


@pytest.fixture(autouse=True, scope="module")
def few_shuffles() -> Iterator[None]:
    """Chance is measured by two shuffled repeats, not by twenty: a forest each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importance, "shuffles", lambda trials: 2)
        yield


@functools.cache
def page_of(name: str) -> str:
    return render_report(STUDIES[name](), importances=() if name == "large" else None)


@pytest.fixture(scope="module")
def usual_page() -> str:
    return page_of("usual")


@pytest.mark.parametrize("name", [name for name in STUDIES if name != "large"])
def test_every_study_gives_a_whole_page(name: str) -> None:
    page = page_of(name)
    places = [page.index(f'id="{section}"') for section in SECTIONS]
    assert places == sorted(places), "the sections are out of order"
    assert not re.search(r"@@(STYLE|SCRIPT|TITLE)@@", page)
    assert set(page_data(page)) >= {"study", "trials", "best", "importances", "tag_maps", "versions"}
    page.encode("utf-8")


def test_the_page_asks_no_network_for_anything(usual_page: str) -> None:
    assert set(re.findall(r"[a-z]+://[^\s\"'`)<]*", usual_page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(
        r"<(link|iframe|object|embed|base)\b|@import|url\(|\bfetch\(|XMLHttpRequest|\bsrc=", usual_page
    )
    assert "default-src 'none'" in usual_page


def test_the_numbers_of_the_record_are_in_the_page(usual_page: str) -> None:
    study, data = usual_study(), page_data(usual_page)
    assert study.best is not None
    assert data["best"]["number"] == study.best.number
    assert data["best"]["metrics"]["test"]["pr_auc_macro"] == 0.61234
    assert data["best"]["metrics"]["test_prevalence_mean"] == 0.21987
    assert data["study"]["rerun"] == study.rerun_command
    assert [trial["number"] for trial in data["trials"]] == list(range(14))
    for shown, trial in zip(data["trials"], study.trials, strict=True):
        assert list(shown["params"]) == list(trial.params)
        assert shown["params"]["optim.lr"] == pytest.approx(trial.params["optim.lr"], rel=1e-4)
        assert shown["params"]["encoder.kind"] == trial.params["encoder.kind"]
        assert (shown["value"] is None) == (trial.value is None)
        assert unpack(shown["curves"]["valid"][data["metrics"].index("pr_auc_macro")]) == pytest.approx(
            [epoch.valid["pr_auc_macro"] for epoch in trial.epochs], rel=1e-4
        )
    assert data["data"]["skipped"] == [["clips/broken.mp3", "the decoder read 0 of 29.1 s"]]
    assert {trial["reason"] for trial in data["trials"]} == {trial.reason for trial in study.trials}
    started, ended = study.trials[0].started, max(trial.finished or 0.0 for trial in study.trials)
    assert data["study"]["wall_seconds"] == pytest.approx(ended - started, rel=1e-4)


def test_the_ranges_are_those_of_the_last_trial_and_one_that_cannot_be_read_is_left_out() -> None:
    study = usual_study()
    ranges = report_data(study, importances=())["ranges"]
    assert set(ranges) == set(SPACE)
    lr = {"low": 1e-5, "high": 1e-2, "log": True, "step": None}
    assert ranges["optim.lr"] == {"name": "FloatDistribution", "attributes": lr}
    later = dataclasses.replace(study.trials[-1], started=1.8e9, distributions={"optim.lr": "half of one {"})
    assert report_data(make_study([later]), importances=())["ranges"] == {}


@pytest.mark.browser
def test_the_space_lists_each_parameter_with_its_range_and_trials(tmp_path: Path) -> None:
    study = usual_study()
    root = re.search(r"<html[^>]*>", drawn_page(page_of("usual"), tmp_path, SPACE_READER))
    assert root is not None
    seen = json.loads(html.unescape(re.search(r'data-seen="([^"]*)"', root[0])[1]))
    space = {one["path"]: one for one in seen["space"]}
    assert set(space) == set(SPACE)
    parts = [re.split(r"[.\[]", one["path"])[0] for one in seen["space"]]
    assert parts == sorted(parts, key=parts.index)
    assert seen["tried"] == [{"kind": "choice", "choices": [1, "a"]}] * 2
    assert space["optim.lr"] | {"trials": 0} == {
        "path": "optim.lr", "trials": 0, "kind": "number", "low": 1e-5, "high": 1e-2, "log": True, "step": None,
    }  # fmt: skip
    assert space["encoder[sample_cnn].block"]["choices"] == ["basic", "se", "res", "rese"]
    with_block = [trial for trial in study.trials if "encoder[sample_cnn].block" in trial.params]
    assert space["encoder[sample_cnn].block"]["trials"] == len(with_block) < len(study.trials)


def test_order_of_trials_is_order_of_start() -> None:
    trials = [make_trial(0, started=1.7e9 + 50), make_trial(1, started=1.7e9), make_trial(2, started=1.7e9 + 20)]
    assert [trial["number"] for trial in report_data(make_study(trials))["trials"]] == [1, 2, 0]


def test_hostile_text_stays_text() -> None:
    page = page_of("hostile")
    body = page.split("<body>")[1]
    assert page.count("</script>") == 2, "data closed a script element"
    assert "<img" not in page and "<b>rock" not in page and "<!-- " not in body
    data = page_data(page)
    assert data["study"]["name"] == HOSTILE and data["data"]["tags"][0] == HOSTILE
    assert data["trials"][1]["reason"] == HOSTILE
    assert "&lt;img src=x" in page.split("</title>")[0]


def test_no_script_turns_text_into_markup(usual_page: str) -> None:
    script = usual_page.rsplit("<script>", 1)[1]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", script)


def test_not_finite_numbers_become_gaps() -> None:
    broken = EpochRecord(
        1, "classify", 2.0, float("nan"), 0.1, {"pr_auc_macro": float("inf")}, float("-inf"), 1.7e9 + 2
    )
    trials = [make_trial(0), make_trial(1, "diverged", reason="loss is nan", epochs=0)]
    trials[1] = dataclasses.replace(trials[1], epochs=(broken,))
    data = page_data(render_report(make_study(trials)))
    assert data["trials"][1]["value"] is None
    assert data["trials"][1]["curves"]["loss"] is None
    assert data["trials"][1]["curves"]["valid"][0] is None


def test_three_hundred_trials_stay_small() -> None:
    page = page_of("large")
    assert len(page_data(page)["trials"]) == 300
    assert len(page.encode("utf-8")) < 1_500_000


def test_both_layouts_of_tag_counts_read_the_same() -> None:
    study = make_study([make_trial(0)])
    by_tag = {tag: {split: study.tag_counts[split][tag] for split in study.tag_counts} for tag in INSTRUMENTS}
    turned = dataclasses.replace(study, tag_counts=by_tag)
    assert report_data(turned)["data"]["tag_counts"] == report_data(study)["data"]["tag_counts"]


# ---- importances


def test_importance_finds_the_parameter_that_matters() -> None:
    found = {one.path: one for one in parameter_importances([make_trial(n) for n in range(60)])}
    lr, block = found["optim.lr"], found["encoder[sample_cnn].block"]
    assert lr.value is not None and lr.chance is not None and lr.value > max(0.4, lr.chance)
    assert block.value is not None and block.value < lr.value
    assert lr.trials == 60 > block.trials, "a conditional parameter is judged over the trials that have it"


def test_importance_repeats_exactly() -> None:
    trials = [make_trial(n) for n in range(10)]
    assert parameter_importances(trials) == parameter_importances(trials)


def test_importance_refuses_what_it_cannot_know() -> None:
    few = parameter_importances([make_trial(n) for n in range(MIN_TRIALS - 1)])
    assert few and all(one.value is None and "not enough trials" in (one.note or "") for one in few)
    same = [make_trial(n) for n in range(20)]
    same = [dataclasses.replace(trial, params=trial.params | {"optim.lr": 1e-3}) for trial in same]
    found = {one.path: one for one in parameter_importances(same)}
    assert found["optim.lr"].value is None and "distinct values (1 of" in (found["optim.lr"].note or "")
    unscored = parameter_importances([make_trial(n, "failed", 0) for n in range(20)])
    assert unscored and all(one.value is None and one.trials == 0 for one in unscored)


def test_importance_survives_unreadable_ranges() -> None:
    trials = [make_trial(n) for n in range(20)]
    trials = [
        dataclasses.replace(trial, distributions=trial.distributions | {"optim.lr": "{", "method.kind": '{"name": 1}'})
        for trial in trials
    ]
    found = {one.path: one for one in parameter_importances(trials)}
    assert found["optim.lr"].value is None and found["encoder.kind"].value is not None


# ---- tags


def test_tag_order_is_a_permutation_that_keeps_groups_together() -> None:
    correlation, _ = tag_matrices(30)
    order = tag_order(correlation)
    assert sorted(order) == list(range(30))
    group = np.random.default_rng(1).permutation(30) // 3
    changes = sum(group[a] != group[b] for a, b in itertools.pairwise(order))
    assert changes == 9, "ten groups of three tags, each in one run"


@pytest.mark.parametrize("matrix", [[], [[1.0]], [[1.0, math.nan], [math.nan, 1.0]]])
def test_tag_order_of_next_to_nothing(matrix: list[list[float]]) -> None:
    assert sorted(tag_order(matrix)) == list(range(len(matrix)))


def test_triangle_correlation() -> None:
    correlation, cosine = tag_matrices(12)
    assert triangle_correlation(correlation, correlation) == pytest.approx(1.0)
    upper = np.triu_indices(12, k=1)
    expected = np.corrcoef(np.array(correlation)[upper], np.array(cosine)[upper])[0, 1]
    assert triangle_correlation(correlation, cosine) == pytest.approx(float(expected))
    assert triangle_correlation(correlation, np.ones((12, 12)).tolist()) is None


def test_a_model_without_tag_embeddings_has_no_second_map() -> None:
    study = usual_study()
    maps = report_data(dataclasses.replace(study, tag_embeddings=None), importances=())["tag_maps"]
    assert maps["cosine"] is None and maps["agreement"] is None and len(maps["correlation"]) == len(INSTRUMENTS)


# ---- in a browser


def collapsed_study() -> StudyRecord:
    study = usual_study()
    assert study.tag_embeddings is not None
    return dataclasses.replace(study, tag_embeddings=dataclasses.replace(study.tag_embeddings, collapsed=True))


# What a reader does: mark by table and by curve, sort, switch the metric, brush an axis, resize, print.
READER = """
const seen = {};
const click = (node, keys) => node.dispatchEvent(new MouseEvent("click", {bubbles: true, ...keys}));
const pressed = (selector, i) => click(document.querySelectorAll(selector)[i || 0]);
Element.prototype.setPointerCapture = () => {};
seen.layers = layers.map((one) => new Set(one.items.map((item) => item.trial.number)).size);
click(document.querySelectorAll(".sortable tbody tr")[2].children[1], {ctrlKey: true});
seen.marked = view.selected;
seen.rows = document.querySelectorAll("tr.sel").length;
seen.hash = location.hash;
seen.bar = document.getElementById("selection").textContent;
pressed("#selection button");
seen.cleared = view.selected;
pressed(".sortable thead button", 3);
seen.top = document.querySelector(".sortable tbody td").textContent;
seen.sorted = document.querySelectorAll(".sortable thead th")[3].getAttribute("aria-sort");
pressed("#curve-choice button", 3);
seen.curves = document.querySelector("#curves .plot svg:not(.back)").getAttribute("aria-label");
const grips = document.querySelectorAll(".grip");
const box = document.querySelector("#parallel .plot svg:not(.back)").getBoundingClientRect();
for (const [kind, y] of [["pointerdown", 50], ["pointermove", 90], ["pointerup", 150]])
  grips[grips.length - 1].dispatchEvent(new PointerEvent(kind, {clientX: 0, clientY: box.top + y, bubbles: true}));
seen.kept = document.querySelectorAll(".sortable tbody tr").length;
pressed("#parallel-controls button");
seen.all = document.querySelectorAll(".sortable tbody tr").length;
document.querySelector("#tag-maps svg").dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowDown"}));
seen.tip = document.getElementById("tip").textContent;
dispatchEvent(new Event("beforeprint"));
seen.open = document.querySelectorAll("details:not([open])").length;
dispatchEvent(new Event("afterprint"));
document.documentElement.dataset.seen = JSON.stringify(seen);
"""


SPACE_READER = """
const tried = [1, "a", 1];
const seen = { space: SPACE, tried: [rangeOf(undefined, tried), rangeOf({}, tried)] };
document.documentElement.dataset.seen = JSON.stringify(seen);
"""


def drawn_page(page: str, folder: Path, then: str = "") -> str:
    """The document after its scripts (and one more, `then`) ran, as headless Chromium prints it."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no `chromium` on the PATH: the page was not drawn")
    file = folder / "report.html"
    file.write_text(page.replace("</body>", f"<script>{{{then}}}</script></body>"), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += f" --disable-component-update --disable-sync --user-data-dir={folder / 'profile'} --window-size=1280,2000"
    command = [chromium, *flags.split(), "--dump-dom", file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout


@pytest.mark.browser
@pytest.mark.parametrize("name", STUDIES)
def test_the_page_draws_without_error(name: str, tmp_path: Path) -> None:
    drawn = drawn_page(page_of(name), tmp_path)
    root = re.search(r"<html[^>]*>", drawn)
    assert root is not None and 'data-ready="true"' in root[0]
    assert "data-error" not in root[0], root[0]
    assert "<title>owned" not in drawn and "<img" not in drawn.split("<body>")[1]
    visible = drawn.split('<script type="application/json"')[0]
    assert not re.search(r"\bNaN\b|undefined|\[object |Infinity", visible)


@pytest.mark.browser
def test_the_drawn_page_shows_what_the_study_found(tmp_path: Path) -> None:
    study = collapsed_study()
    visible = drawn_page(render_report(study, importances=()), tmp_path).split('<script type="application/json"')[0]
    assert study.best is not None and study.rerun_command is not None
    for text in (
        "0.6123",
        "0.2199",
        study.rerun_command,
        "RuntimeError: out of memory",
        "have collapsed",
        "Not scored",
    ):
        assert text in visible, text
    assert "14 trials (8 complete, 4 pruned, 1 diverged, 1 failed)" in visible
    assert visible.count("not used") >= 5


@pytest.mark.browser
def test_without_a_finished_trial_the_drawn_page_says_why(tmp_path: Path) -> None:
    visible = drawn_page(page_of("failed"), tmp_path).split('<script type="application/json"')[0]
    assert "There is no best trial: none of the 2 trials (2 failed) finished an epoch" in visible
    assert "no space left on device" in visible


@pytest.mark.browser
def test_selecting_sorting_brushing_and_printing(tmp_path: Path) -> None:
    study = usual_study()
    root = re.search(r"<html[^>]*>", drawn_page(page_of("usual"), tmp_path, READER))
    assert root is not None and "data-error" not in root[0], root
    attribute = re.search(r'data-seen="([^"]*)"', root[0])
    assert attribute is not None, root[0]
    seen = json.loads(html.unescape(attribute[1]))
    assert seen["layers"] == [14, 13, 13, 14, 14], "history, cost, curves, threads and timeline; a trial has no epoch"
    assert seen["marked"] == 2 and seen["rows"] == 1 and seen["hash"] == "", "with Ctrl a row is marked, not opened"
    assert "2: " + study.trials[2].name in seen["bar"] and seen["cleared"] is None
    assert study.best is not None and seen["top"] == str(study.best.number) and seen["sorted"] == "descending"
    assert seen["curves"].startswith("train loss")
    assert 1 <= seen["kept"] < 14 and seen["all"] == 14, "a brush at the high end keeps the good trials"
    assert "correlation in the data" in seen["tip"] and "cosine of the embeddings" in seen["tip"]
    assert seen["open"] == 0, "print shows what is folded"

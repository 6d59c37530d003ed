"""Published and ours: the rows are whole and their commands are commands, a wrong number fails, and a run goes on."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_TAGS, tiny_tree
from parity_vectors import PARITY
from processes import ROOT, environment
from test_docs import parsed

from atose_ray import reproduce as command
from atose_ray.evaluation.published import figures
from atose_ray.reproduction import record
from atose_ray.reproduction.claims import ClaimRow, Runnable, ScoreRow, VectorsRow, claims
from atose_ray.reproduction.commands import Commands, claim, score
from atose_ray.reproduction.computed import parameters, recipe, value
from atose_ray.reproduction.record import Figure, judged, near
from atose_ray.reproduction.vectors import CHECKS, vectors
from atose_ray.storage import Store

ROWS = {row.name: row for system in claims().systems.values() for row in system.measured()}
COMPUTED = [row for row in ROWS.values() if row.kind in ("parameters", "recipe", "value")]


def changed(name: str, **update: object):
    return ROWS[name].model_copy(update=update)


# ---- the rows


def test_every_system_has_rows_of_every_kind() -> None:
    systems = claims().systems
    assert tuple(systems) == command.SYSTEMS and len(ROWS) == sum(len(one.measured()) for one in systems.values())
    for name, system in systems.items():
        rows = system.measured()
        assert {row.kind for row in rows} >= {"parameters", "recipe", "vectors", "claim", "score"}, name
        assert all(row.name.startswith(f"{name}.{row.kind}.") and row.what and row.source for row in rows)
        assert (ROOT / "docs" / system.page).is_file()


def test_a_score_says_how_it_is_run_and_how_far_it_may_be_off_or_why_not() -> None:
    told = set()
    for row in (row for row in ROWS.values() if isinstance(row, ScoreRow)):
        if row.impossible:
            assert row.way is None
            continue
        assert row.way is not None and row.needs and row.hours, row.name
        assert row.tolerance and set(row.tolerance) <= set(row.published) and row.tolerance_from, row.name
        told |= {row.name.rpartition(".")[0]}
    assert len(told) == 9
    for dataset, protocol in (("mtat", "jetatag"), ("fma", "choi"), ("gtzan", "probe_coala")):
        of = figures()[dataset][protocol]
        assert sum(name.startswith(f"{system}.score.{dataset}.") for name in ROWS for system in command.SYSTEMS) == len(
            of.systems
        ) + len(of.logs)


def lines_of(row: ClaimRow | ScoreRow) -> list[str]:
    ways = list(row.arms.values()) if isinstance(row, ClaimRow) else [row.way] if row.way else []
    return [*row.needs.values(), *(line for way in ways for line in way.run)]


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if isinstance(row, ClaimRow | ScoreRow)])
def test_the_commands_of_a_row_are_commands(name: str) -> None:
    for line in lines_of(ROWS[name]):
        parsed(re.sub(r"\{(seed|model|coala_\w+)\}", "1", line))


def test_each_check_and_each_arm_is_used() -> None:
    assert {row.check for row in ROWS.values() if isinstance(row, VectorsRow)} == set(CHECKS)
    for row in (row for row in ROWS.values() if isinstance(row, ClaimRow)):
        assert len(row.arms) == (1 if row.than is not None else 2), row.name


# ---- a wrong number fails


@pytest.mark.parametrize("row", COMPUTED, ids=lambda row: row.name)
def test_what_needs_no_training_is_as_published(row) -> None:
    found = {"parameters": parameters, "recipe": recipe, "value": value}[row.kind](row)
    assert found.status == "PASS", [one for one in found.figures if not one.ok]


def test_a_wrong_number_fails() -> None:
    heads = parameters(changed("coala.parameters.cnn", published={"encoder+classifier": (3_533_801,)}))
    assert heads.status == "FAIL" and heads.figures[0].ours == 3_533_800
    published = json.loads(json.dumps(ROWS["atose.recipe.mtat"].published))
    published["method"]["stages"][4]["optimizer"]["lr"] = 2e-3
    found = recipe(changed("atose.recipe.mtat", published=published))
    assert [one.name for one in found.figures if not one.ok] == ["method.stages.4.optimizer.lr"]
    published["method"]["stages"].append({"name": "classify"})
    names = {one.name for one in recipe(changed("atose.recipe.mtat", published=published)).figures if not one.ok}
    assert names == {"method.stages.4.optimizer.lr", "method.stages, how many", "method.stages.7.name"}
    assert value(changed("atose.value.floor", tolerance=1e-5)).status == "FAIL"
    assert near("x", 0.5, float("nan"), 1.0).ok is False and near("x", 0.5, 9.0, None).ok is None
    with pytest.raises(ValueError, match="could not fail"):
        judged([Figure("x", 1, 1)])


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if isinstance(row, VectorsRow)])
def test_vectors(name: str) -> None:
    row = ROWS[name]
    assert isinstance(row, VectorsRow)
    without = vectors(row, None)
    assert without.status == "NOT RUN" and "--parity DIR" in without.reason
    if not PARITY.is_dir():
        pytest.skip(f"needs {PARITY}")
    found = vectors(row, str(PARITY))
    assert found.status == "PASS" and found.figures, found


def test_vectors_that_differ_fail_and_a_lacking_file_is_named(tmp_path: Path) -> None:
    row = ROWS["jetatag.vectors.metrics"]
    assert isinstance(row, VectorsRow)
    assert "has no metrics.npz" in vectors(row, str(tmp_path)).reason
    scores = np.random.default_rng(0).random((4, 2, 3), np.float32)
    numbers = {"keras_roc_micro_crops": 0.5, "keras_pr_micro_crops": 0.5, "scores": scores}
    np.savez(tmp_path / "metrics.npz", labels=np.eye(4, 3, dtype=np.float32), **numbers)
    found = vectors(row, str(tmp_path))
    assert found.status == "FAIL" and all(one.ours > 1e-3 for one in found.figures)


# ---- claims and scores, with made-up commands


class Made:
    """Commands that train nothing. numbers: a part of a command's words -> what evaluate then prints."""

    def __init__(self, **more: object) -> None:
        self.lines: list[list[str]] = []
        self.more = more

    def __call__(self, words: list[str]) -> str:
        self.lines.append(words)
        if words[0] == "train":
            return f"epoch 1\nmodel: {'+'.join(words[1:])}\n"
        seed = int(words[1].split("seed=")[1][0]) if "seed=" in words[1] else 0
        score = (0.6 if "good" in words[1] else 0.5) + 0.01 * seed * (1 if "good" in words[1] else -1)
        return json.dumps({"metrics": {"x": score}, "published": {}, **self.more})


def arms(*names: str) -> dict[str, Runnable]:
    lines = {name: (f"train demo --set {name} --set seed={{seed}}", "evaluate {model}") for name in names}
    return {name: Runnable(run=run, value="metrics.x") for name, run in lines.items()}


def commands(store: Path, scale: str, **more: object) -> tuple[Commands, Made]:
    made = Made(**more)
    return Commands(Store(str(store)), made, scale), made  # type: ignore[arg-type]


def test_a_claim_holds_where_the_interval_is_above_zero(tmp_path: Path) -> None:
    base = {"needs": {}, "packages": {}, "than": None}
    of, made = commands(tmp_path, "laptop")
    found = claim(changed("coala.claim.decoders_help", arms=arms("good", "bad"), **base), of)
    assert found.status == "PASS" and found.figures[-1].ours.startswith("+0.1200 (95 % +0.0703 to +0.1697, 3 seeds)")
    assert len(made.lines) == 12 and all(line[-2:] == ["--store", str(tmp_path)] for line in made.lines)
    assert all("--resume" in line for line in made.lines if line[0] == "train")
    found = claim(changed("coala.claim.decoders_help", arms=arms("bad", "good"), **base), of)
    assert found.status == "FAIL" and found.reason == "the other way round" and len(made.lines) == 12  # none anew
    found = claim(changed("coala.claim.decoders_help", arms=arms("good"), **{**base, "than": 0.59}), of)
    assert found.status == "OPEN" and found.reason == "not shown: the interval holds 0"
    assert claim(changed("coala.claim.decoders_help", arms=arms("good"), **{**base, "than": 0.5}), of).status == "PASS"


def test_a_claim_that_is_not_run_says_why(tmp_path: Path) -> None:
    row = ROWS["zero_shot.claim.words_help"]
    assert isinstance(row, ClaimRow)
    of, made = commands(tmp_path, "smoke")
    assert "--scale laptop" in claim(row, of).reason
    of, made = commands(tmp_path, "laptop")
    found = claim(row.model_copy(update={"packages": {"no_such_package": "pip install it"}}), of)
    assert found.status == "NOT RUN" and found.reason == "needs a package: pip install it" and not made.lines


def test_a_score_is_held_to_its_tolerance_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Commands, "incomparable", lambda *_: "")
    way = Runnable(run=("train demo --set good", "evaluate {model}"), value="metrics")
    row = changed("jetatag.score.mtat.harmoniccnn", way=way, needs={}, published={"x": 0.59}, tolerance={"x": 0.02})
    of, _ = commands(tmp_path, "full")
    assert score(row, of).status == "PASS"
    for off in (0.57, 0.63):
        found = score(row.model_copy(update={"published": {"x": off}}), of)
        assert found.status == "FAIL" and found.reason.startswith("beyond the tolerance: x ")
    laptop, made = commands(tmp_path, "laptop")
    assert "--scale full trains it" in score(row, laptop).reason and not made.lines
    lacking = score(ROWS["jetatag.score.mtat.harmoniccnn"], of)  # type: ignore[arg-type]
    assert lacking.status == "NOT RUN" and lacking.reason == "data not at hand: mtat"
    assert (
        lacking.commands[0] == "prepare mtat --source DIR"
        and "--scale full" in lacking.commands[1]
        and len(lacking.figures) == 2
    )
    monkeypatch.undo()
    assert score(row, of).reason == "not comparable: none of  was prepared as mtat"
    logged = score(ROWS["jetatag.score.dcase2017.harmoniccnn"], of)  # type: ignore[arg-type]
    assert logged.status == "NOT RUN" and '"F1"' in logged.reason and logged.figures[0].published == 0.5143


def test_a_configuration_that_a_command_reads_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Commands, "incomparable", lambda *_: "")
    row = ROWS["coala.score.gtzan.ae_c"]
    assert isinstance(row, ScoreRow) and row.tolerance == {"accuracy": 0.0318}
    found = {"scores": {"embeddings": {"accuracy": {"mean": 0.6}}}}
    of, made = commands(tmp_path, "full", **found)
    assert score(row.model_copy(update={"needs": {}}), of).status == "PASS"
    tree = json.loads(Path(made.lines[-1][1]).read_text())
    assert tree["init_from"] == {"uri": "published_coala+--resume+--store+" + str(tmp_path)}
    assert tree["encoder"]["scaler"] == "published" and made.lines[-1][2:5] == ["gtzan_22k", "--published", "--json"]


def test_real_commands_give_a_number(tiny_store: Store, tmp_path: Path) -> None:
    """Trained, scored, and gone on with by another process' commands; a set of our own has no published figures."""
    shutil.copytree(Path(tiny_store.root) / "data", tmp_path / "store" / "data")
    (tmp_path / "one.json").write_text(json.dumps(tiny_tree()))
    way = Runnable(
        run=(f"train {tmp_path}/one.json --set seed={{seed}}", "evaluate {model}"), value="metrics.pr_auc_macro"
    )
    row = changed("coala.claim.decoders_help", needs={}, seeds=2, arms={"tiny": way}, than=0.0)
    options = argparse.Namespace(scale="full")
    found = [
        command.measured(row, command.commands_of(options, Store(str(tmp_path / "store"))), None) for _ in range(2)
    ]
    assert found[0].figures == found[1].figures and 0 < float(found[0].figures[0].ours) <= 1
    runs = list((tmp_path / "store" / "runs").iterdir())
    assert len(runs) == 2 and all(len((run / "log.jsonl").read_text().splitlines()) == 4 for run in runs)
    lines = tuple(line.replace("{seed}", "0") for line in way.run)
    change = {"way": Runnable(run=lines, value="metrics"), "needs": {"folder": "prepare folder --source DIR"}}
    table, of = (
        changed("jetatag.score.mtat.harmoniccnn", **change),
        command.commands_of(options, Store(str(tmp_path / "store"))),
    )
    assert score(table, of).reason == "not comparable: none of folder was prepared as mtat"
    table = table.model_copy(update={"dataset": "folder"})
    assert score(table, of).reason == f"not comparable: folder has {len(TINY_TAGS)} tags, the published one 50"
    table = table.model_copy(
        update={"tags": len(TINY_TAGS), "published": {"pr_auc_macro": 0.5}, "tolerance": {"pr_auc_macro": 1.0}}
    )
    assert score(table, of).status == "PASS"


# ---- the command


def run(*words: str) -> int:
    try:
        command.main(list(words))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_a_run_that_was_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    seen, real = [], command.measured

    def cut(row, *rest):
        seen.append(row.name)
        if len(seen) == 3 and len(list((tmp_path / "reproduce" / "smoke").glob("*.json"))) == 2:
            raise KeyboardInterrupt
        return real(row, *rest)

    monkeypatch.setattr(command, "measured", cut)
    with pytest.raises(KeyboardInterrupt):
        command.main(["coala", "--store", str(tmp_path)])
    folder = tmp_path / "reproduce" / "smoke"
    assert {path.stem for path in folder.glob("*.json")} == set(seen[:2])
    assert run("coala", "--store", str(tmp_path)) == 0
    ran = [name for name in seen if seen.count(name) > 1]
    assert set(ran) == {seen[2]} and {path.stem for path in folder.glob("*.json")} == {
        name for name in ROWS if name.startswith("coala.")
    }
    kept = json.loads((folder / "coala.parameters.all.json").read_text())
    assert kept["status"] == "PASS" and kept["about"]["versions"]["torch"] and kept["seconds"] > 0
    capsys.readouterr()
    seen.clear()
    assert run("coala", "--store", str(tmp_path), "--again", "coala.recipe") == 0
    again = [name for name in seen if "recipe" in name or "parameters" in name]
    assert again == ["coala.recipe.ae_c", "coala.recipe.e_c"]
    out = capsys.readouterr().out
    assert re.search(r"^coala +4 +0 +0 +16$", out, re.M) and "21 of 21 values as published" in out
    assert "NOT RUN  coala.score.gtzan.* (3 rows)\n           data not at hand: gtzan_22k, coala_hdf5" in out


def test_a_row_that_was_changed_is_measured_anew(tmp_path: Path) -> None:
    store, row = Store(str(tmp_path)), ROWS["coala.recipe.e_c"]
    record.write(store, row, recipe(row), 0.1)  # type: ignore[arg-type]
    assert record.read(store, row).status == "PASS"
    assert record.read(store, row.model_copy(update={"published": {}})) is None


def test_a_failure_ends_with_one_and_stands_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def broken(row, *rest):
        return record.Result("FAIL", reason="it </script> ended") if "recipe" in row.name else record.Result("NOT RUN")

    monkeypatch.setattr(command, "measured", broken)
    assert run("audiotagger", "--store", str(tmp_path)) == 1
    assert "FAIL     audiotagger.recipe.levels_2_3\n           it </script> ended" in capsys.readouterr().out
    page = (tmp_path / "reproduce" / "smoke" / "reproduce.html").read_text()
    assert "it \\u003c/script\\u003e ended" in page and not re.search(r"(src|href)=.?http", page)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert [one["name"] for one in data["systems"]] == list(command.SYSTEMS)
    others = [row for one in data["systems"] if one["name"] != "audiotagger" for row in one["rows"]]
    assert {row["reason"] for row in others} == {"not asked for"}


def test_what_a_command_refuses_is_a_failure_with_its_words(tmp_path: Path) -> None:
    def refuse(words: list[str]) -> str:
        raise ValueError("no glove here")

    row = changed("coala.claim.decoders_help", needs={})
    of = Commands(Store(str(tmp_path)), refuse, "laptop")
    found = command.measured(row, of, None)
    assert found.status == "FAIL" and found.reason == "it ended with ValueError: no glove here"


def test_unknown_names_are_refused(tmp_path: Path, capsys) -> None:
    assert run("jetatagg", "--store", str(tmp_path)) == 2 and "invalid choice: 'jetatagg'" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"--again zero: no row begins so; they are coala\.parameters\.all"):
        command.main(["coala", "--store", str(tmp_path), "--again", "zero"])


def test_help_imports_no_torch() -> None:
    code = "import sys, atose_ray.reproduce as one\none.arguments().format_help()\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


@pytest.mark.slow
def test_the_whole_at_scale_smoke_in_a_process(tmp_path: Path) -> None:
    line = shlex.split(f"{sys.executable} -m atose_ray.reproduce --store {tmp_path}")
    done = subprocess.run(line, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"PASS +FAIL +OPEN +NOT RUN$", done.stdout, re.M)
    assert re.search(r"^all +\d+ +0 +\d+ +\d+$", done.stdout, re.M)
    assert len(list((tmp_path / "reproduce" / "smoke").glob("*.json"))) == len(ROWS)
    shutil.rmtree(tmp_path)

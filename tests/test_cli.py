"""The outer surfaces, frozen: verbs, options, examples, and the files that a run, a study and a model leave."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_tree
from processes import PATIENCE_S, ROOT, environment

import atose_ray
from atose_ray import __main__ as listing
from atose_ray import cli, find, train
from atose_ray.storage import Store
from atose_ray.training.checkpoint import load_model

COMMANDS = (
    *("prepare", "doctor", "train", "tune", "status", "stop", "rerun", "promote", "crossvalidate", "evaluate"),
    *("probe", "reproduce", "report", "tag", "embed", "find", "export", "serve"),
)
OPTIONS = {
    "prepare": {
        *("dataset", "--store", "--source", "--option", "--name", "--remove-old", "--yes"),
        *("--workers", "--address", "--cpus"),
    },
    "doctor": {"dataset", "--store", "--json"},
    "train": {"config", "--store", "--workers", "--resume", "--set", "--address", "--cpus"},
    "tune": {"study", "--store", "--name", "--trials", "--cluster", "--set", "--address", "--cpus", "--object-store"}
    | {"--resume", "--extend", "--retry-failed", "--budget", "--warm-start", "--folds", "--epochs"},
    "status": {"study", "--store", "--watch", "--json"},
    "stop": {"study", "--store", "--wait", "--now"},
    "rerun": {"study", "trial", "--store", "--resume", "--address", "--cpus"},
    "promote": {"study", "--store", "--trial", "--seeds", "--top", "--baseline", "--address", "--cpus"},
    "crossvalidate": {"config", "--store", "--workers", "--set", "--address", "--cpus"},
    "evaluate": {
        *("model", "--store", "--split", "--protocol", "--against", "--average", "--json"),
        *("--recordings", "--annotations", "--hop", "--left", "--right", "--threshold", "--set"),
    },
    "probe": {"model", "dataset", "--store", "--classifier", "--whole", "--published", "--seeds", "--json"},
    "reproduce": {"system", "--store", "--scale", "--parity", "--again"},
    "report": {"study", "--store", "--watch", "--score"},
    "tag": {
        *("model", "files", "--top", "--tags", "--json", "--timeline", "--hop", "--left", "--right", "--threshold"),
        *("--set", "--out", "--again", "--rate", "--channels", "--vggish", "--published", "--show-music-speech"),
        *("--clips", "--scores"),
    },
    "embed": {"model", "files", "--out", "--timestamps", "--trial"},
    "export": {"model", "--to", "--out", "--sound", "--trial"},
    "serve": {"models", "--store", "--local", "--host", "--port", "--set", "--address", "--cpus"},
    "find": {"index", "words", "--like", "--top", "--json", "--html"},
}
MODEL_FILES = {"model.safetensors", "config.json", "data_spec.json", "metrics.json", "README.md"}
RUN_FILES = {"config.json", "data_spec.json", "about.json", "log.jsonl", "best.safetensors"}
STUDY_FILES = {"study.json", "data.json", "report.html", "best", "trials"}
STUDY_MAY_HOLD = {"tag_embeddings.json", "optuna.journal", "sessions.jsonl", "examples", "promotion.json"}
STUDY_MAY_HOLD |= {"crossvalidation.json", "finished.json"}


def parser_of(verb: str) -> argparse.ArgumentParser:
    return importlib.import_module(f"atose_ray.{verb}").arguments()


def examples() -> list[tuple[str, str]]:
    """(where, command line) of every `python -m atose_ray.<verb> ...` in the epilogs."""
    return [
        (verb, line.strip())
        for verb in COMMANDS
        for line in str(parser_of(verb).epilog).splitlines()
        if "python -m atose_ray" in line
    ]


def test_the_list_names_exactly_the_verbs_that_exist(capsys) -> None:
    package = Path(atose_ray.__file__).parent
    modules = {path.stem for path in package.glob("[a-z]*.py") if "cli.run(main)" in path.read_text()}
    assert tuple(listing.COMMANDS) == COMMANDS and modules == set(COMMANDS)
    listing.main([])
    out = capsys.readouterr().out
    assert tuple(re.findall(r"^  python -m atose_ray\.(\w+) ", out, flags=re.MULTILINE)) == COMMANDS
    for verb, arguments in re.findall(r"python -m atose_ray\.(\w+) (\w+)(?: &&|\n|$)", out.splitlines()[-1]):
        parser_of(verb).parse_args([arguments])


def quiet(*words: str) -> list[str]:
    """Run the console command in a process of its own -> the modules that it imported, of those that take time."""
    lines = (
        "import sys\nfrom atose_ray.__main__ import console\nsys.argv[0] = 'atose-ray'\ntry:\n    console()\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "slow = ('torch', 'ray', 'numpy', 'pyarrow', 'pandas', 'optuna', 'scipy')\n"
        "print(*[name for name in slow if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", lines, *words], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout, done.stderr
    return done.stderr.split()


@pytest.mark.parametrize("words", [["--help"], ["tag", "--help"], ["tune", "demo", "--help"], ["completion", "bash"]])
def test_help_and_completion_of_the_console_command_import_nothing_that_takes_time(words: list[str]) -> None:
    assert quiet(*words) == []


@pytest.mark.parametrize(("module", "starts"), [("tune", "tune [-h]"), ("find", "find [-h]")])
def test_help_of_a_module_imports_nothing_that_takes_time(module: str, starts: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", f"atose_ray.{module}", "--help"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"usage: python -m atose_ray.{starts}")
    imported = set(re.findall(r"\| +(\w+)$", done.stderr, re.MULTILINE))
    assert "json" in imported and not imported & {"torch", "ray", "numpy", "pyarrow", "pandas", "optuna", "pydantic"}


def test_the_console_command_runs_a_command_and_shows_its_help(tmp_path: Path, capsys) -> None:
    assert set(quiet("status", "--store", str(tmp_path))) <= {"numpy", "pyarrow"}
    listing.main(["find", "index", "--help"])
    assert capsys.readouterr().out.startswith("usage: atose-ray find index [-h]")
    with pytest.raises(ValueError, match=r"there is no command 'tuen'; did you mean tune\?"):
        listing.main(["tuen"])
    script = f'[project.scripts]\n{cli.CONSOLE} = "{listing.__name__}:{listing.console.__name__}"'
    assert script in (ROOT / "pyproject.toml").read_text()


def test_stored_help_is_that_of_the_parsers() -> None:
    """Written anew by: python -m atose_ray commands"""
    script = "import json; from atose_ray import __main__ as listing; print(json.dumps(listing.pages_of_parsers()))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # knows no test's
    stored, now = listing.stored_pages(), json.loads(ran.stdout)
    assert stored.keys() == now.keys()
    for command, page in now.items():
        assert stored[command]["options"] == page["options"] and stored[command]["words"] == page["words"]
        if sys.version_info[:2] == (3, 11):  # argparse wraps its lines in other places in other versions
            assert stored[command]["help"] == page["help"]
        assert f"example:\n  atose-ray {command} " in page["help"]


@pytest.mark.parametrize("shell", listing.SHELLS)
def test_completion(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    script = listing.completion(shell)

    def completed(*words: str) -> list[str]:
        given = " ".join(shlex.quote(word) for word in words)
        ask = f"COMP_WORDS=({given}); COMP_CWORD={len(words) - 1}; _atose_ray; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        done = subprocess.run([shell, "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert completed("atose-ray", "tu") == ["tune"]
    assert completed("atose-ray", "tune", "--tr") == ["--trials"]
    assert completed("atose-ray", "evaluate", "best", "--split", "va") == ["valid"]
    assert completed("atose-ray", "tag", "") == []  # the shell's own file names
    assert completed("atose-ray", "tag", "--scores", "") == ["window", "frame"]


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_has_an_example_and_the_options_are_frozen(verb: str, capsys) -> None:
    main = importlib.import_module(f"atose_ray.{verb}").main
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: python -m atose_ray.{verb}" in out and f"example:\n  python -m atose_ray.{verb} " in out
    actions = [action for action in parser_of(verb)._actions if action.dest != "help"]
    assert {(action.option_strings or [action.dest])[0] for action in actions} == OPTIONS[verb]
    assert all(action.help and "SUPPRESS" not in action.help for action in actions)


def test_there_are_examples_of_every_verb() -> None:
    assert {verb for verb, _ in examples()} == set(COMMANDS) and len(examples()) >= 9


@pytest.mark.parametrize(("where", "line"), examples(), ids=lambda text: text[:60])
def test_every_example_parses(where: str, line: str) -> None:
    words = shlex.split(line)
    start = words.index("-m")
    assert words[start - 1] == "python"
    verb = words[start + 1].removeprefix("atose_ray.")
    assert verb == where
    options = parser_of(verb).parse_args(words[start + 2 :])
    if verb == "tune":
        from atose_ray.search.space import load_study

        trials = () if options.trials is None else (f"search.trials={options.trials}",)
        load_study(options.study, (*options.overrides, *trials))
    if verb == "prepare":
        from atose_ray.datasets import KINDS

        assert options.dataset in KINDS or options.remove_old
    if verb == "train" and not options.config.endswith(".json"):
        from atose_ray.config import apply_overrides, run_config
        from atose_ray.search.space import load_tree

        run_config(apply_overrides(load_tree(options.config), options.overrides))


def documented() -> list[str]:
    """Every line of README and docs that is a command of ours: indented or fenced code."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
    lines = (line.strip() for line in text.replace("\\\n", " ").splitlines())
    return [line for line in lines if re.match(r"(ray job submit .*-- )?python -m atose_ray\.", line)]


def test_documented_commands_parse() -> None:
    assert len(documented()) >= 5
    for line in documented():
        words = shlex.split(line, comments=True)
        while "-m" in words:
            verb, *rest = words[words.index("-m") + 1 :]
            end = next((at for at, word in enumerate(rest) if word in ("&&", "||", ";", "|", ">")), len(rest))
            try:
                making = verb == "atose_ray.find" and rest[0] == "index"  # its two forms have a parser each
                parser = find.index_arguments() if making else parser_of(verb.removeprefix("atose_ray."))
                parser.parse_args(rest[making:end])
            except SystemExit as stop:
                assert stop.code == 0, line
            words = rest[end:]


def test_shared_options_mean_the_same_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ATOSE_STORE", raising=False)
    parser = cli.parser("train", "summary", "  example")
    assert cli.open_store(parser.parse_args([])).root == str(tmp_path / "atose_store")
    monkeypatch.setenv("ATOSE_STORE", str(tmp_path / "mine"))
    assert cli.open_store(parser.parse_args([])).root == str(tmp_path / "mine")
    assert cli.open_store(parser.parse_args(["--store", "/x"])).root == "/x"


def test_a_run_leaves_these_files(tiny_store: Store, tmp_path: Path, capsys) -> None:
    shutil.copytree(Path(tiny_store.root) / "data", tmp_path / "store" / "data")
    (tmp_path / "one.json").write_text(json.dumps(tiny_tree()))
    train.main([str(tmp_path / "one.json"), "--store", str(tmp_path / "store")])
    assert {path.name for path in (tmp_path / "store").iterdir()} == {"data", "runs"}
    (run,) = (tmp_path / "store" / "runs").iterdir()
    assert re.fullmatch(r"[0-9a-f]{12}", run.name)
    assert {path.name for path in run.iterdir()} == RUN_FILES | {"best", "checkpoint.pt"}
    assert {path.name for path in (run / "best").iterdir()} == MODEL_FILES
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["epoch"] * 3 + ["end"]
    epoch = {"event", "epoch", "stage", "seconds", "train_loss", "lr", "valid", "objective", "time", "protocol"} | {
        "gpu_memory"
    }
    assert set(events[0]) == epoch and set(events[-1]) == {"event", "state", "reason", "time"}
    metrics = load_model(str(run / "best")).metrics
    assert {"metric", "stage", "epoch", "valid", "number", "protocol", "test", "per_tag"} <= set(metrics)


def test_a_verb_whose_reader_has_left_ends_without_a_word() -> None:
    """`python -m atose_ray.tag ... | head`"""
    lines = "from atose_ray import cli\ncli.run(lambda argv: [print('x' * 1000, flush=True) for _ in range(10000)])"
    running = subprocess.Popen(
        [sys.executable, "-c", lines], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert running.stdout.readline()
    running.stdout.close()
    assert running.stderr.read() == b"" and running.wait(timeout=PATIENCE_S) == 141
    running.stderr.close()


def test_another_broken_pipe_is_not_hidden() -> None:
    def lost(argv: object) -> None:
        raise BrokenPipeError("a worker's")

    with pytest.raises(BrokenPipeError, match="a worker's"):
        cli.run(lost)


def test_ctrl_c_ends_with_the_code_of_a_signal(capsys) -> None:
    def interrupted(argv: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        cli.run(interrupted)
    assert ended.value.code == 130 and "Traceback" not in capsys.readouterr().err

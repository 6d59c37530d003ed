"""The Dockerfile: read line by line, and its Python steps run in an empty virtual environment (no daemon is needed).

The default run takes pip and the packages of the lock from the environment of the tests. With ATOSE_IMAGE_FULL=1 it
installs the whole lock instead, as the image does (minutes, gigabytes).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import ROOT

FULL = os.environ.get("ATOSE_IMAGE_FULL") == "1"
ADDRESS = re.compile(r"--(extra-)?index-url|--trusted-host|https?://(?!127\.0\.0\.1)")


@dataclass(frozen=True)
class Line:
    """One instruction of one stage, continued lines joined."""

    stage: int
    word: str
    rest: str


def dockerfile() -> list[Line]:
    lines, stage = [], -1
    for line in (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines():
        if line and not line.startswith("#"):
            word, rest = line.split(maxsplit=1)
            stage += word == "FROM"
            lines.append(Line(stage, word, rest))
    return lines


def of(word: str, stage: int | None = None) -> list[str]:
    return [line.rest for line in dockerfile() if line.word == word and stage in (None, line.stage)]


def copied() -> list[str]:
    """What COPY takes from the checkout."""
    return [name for rest in of("COPY") if "--from=" not in rest for name in rest.split()[:-1]]


def test_base_is_cuda_and_pinned_by_its_tag() -> None:
    bases = [rest.split()[0] for rest in of("FROM")]
    assert len(bases) == 2 and len(set(bases)) == 1
    found = re.fullmatch(r"nvidia/cuda:(\d+)\.\d+\.\d+-base-ubuntu24\.04", bases[0])
    cuda = re.search(r"^cuda-toolkit==(\d+)\.", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)
    assert found and cuda and found[1] == cuda[1]


def test_it_runs_as_a_user_that_ray_up_can_write_for() -> None:
    last = dockerfile()[-1].stage
    assert of("USER") == ["ray"]
    assert any(
        "useradd --uid 1000 --create-home --home-dir /home/ray --shell /bin/bash ray" in run for run in of("RUN")
    )
    variables = dict(entry.split("=", 1) for rest in of("ENV", last) for entry in rest.split())
    assert variables["HOME"] == "/home/ray" and variables["RAY_AUTH_MODE"] == "token"
    assert variables["PATH"].startswith("/opt/venv/bin:")
    installed = {word for run in of("RUN", last) if "apt-get" in run for word in run.split()}
    assert {"openssh-client", "rsync", "python3", "ca-certificates"} <= installed
    assert all(
        "--no-install-recommends" in run and "rm -rf /var/lib/apt" in run for run in of("RUN") if "apt-get" in run
    )
    (profile,) = (run for run in of("RUN", last) if "/etc/profile.d/" in run)
    written = subprocess.run(
        ["sh", "-c", profile.replace("/etc/profile.d/atose_ray.sh", "/dev/stdout")], capture_output=True, check=True
    )
    assert written.stdout == b"export PATH=/opt/venv/bin:$PATH\n"


def test_it_has_a_health_check_and_a_harmless_default() -> None:
    (check,) = of("HEALTHCHECK")
    assert health_command()[:2] == ["python", "-c"] and "--timeout=" in check
    compile(health_command()[2], "HEALTHCHECK", "exec")
    assert [json.loads(rest) for rest in of("CMD")] == [["python", "-m", "atose_ray"]] and not of("ENTRYPOINT")


def health_command() -> list[str]:
    """The words after HEALTHCHECK ... CMD."""
    (check,) = of("HEALTHCHECK")
    return list(json.loads(check.partition("CMD ")[2]))


def test_no_secret_and_no_address_gets_in() -> None:
    text = "\n".join(line.rest for line in dockerfile())
    assert not of("ARG") and not of("ADD") and not ADDRESS.search(text)
    for rest in of("ENV"):
        assert not re.search(r"key|secret|password|(?<!=)token\b", rest, flags=re.IGNORECASE)
    for name in ("requirements.lock", "cluster/requirements.lock"):
        pins = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
        assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", pin) for pin in pins)


def test_the_build_context_is_what_is_copied_and_no_more() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*" and lines[-1] == "**/__pycache__"
    assert sorted(line.removeprefix("!") for line in lines[1:-1]) == sorted(copied())
    assert all((ROOT / name).exists() for name in copied())


def lend_packages(venv: Path) -> None:
    """Let an environment find the packages of this one, but for the project itself."""
    ours, theirs = Path(sysconfig.get_path("purelib")), venv / "lent"
    theirs.mkdir()
    for entry in ours.iterdir():
        if not entry.name.startswith(("atose_ray", "__editable__")) and entry.suffix != ".pth":
            (theirs / entry.name).symlink_to(entry)
    packages = sysconfig.get_path("purelib", vars={"base": str(venv), "platbase": str(venv)})
    Path(packages, "lent.pth").write_text(f"import sys; sys.path.insert(1, {str(theirs)!r})\n")


@pytest.mark.slow
def test_its_python_steps_give_a_package_that_works(tmp_path: Path) -> None:
    """venv, pip, COPY and CMD of the Dockerfile, with its folders below `tmp_path`."""
    venv, work, home = tmp_path / "opt" / "venv", tmp_path / "build", tmp_path / "home"
    home.mkdir()
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ATOSE_", "RAY_"))}
    environment = {**plain, "HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    def run(*command: str, folder: Path) -> str:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout

    ran = []
    for line in dockerfile():
        if line.stage == 0 and line.word == "COPY":
            *names, target = line.rest.split()
            for name in names:
                place = work / target / Path(name).name if target.endswith("/") else work / target
                place.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, place)
        elif line.stage == 0 and line.word == "RUN" and "/opt/venv" in line.rest:
            if "requirements.lock" in line.rest and not FULL:
                lend_packages(venv)
                continue
            for step in line.rest.split(" && "):
                step = re.sub("^python3 -m venv", f"{sys.executable} -m venv" + " --without-pip" * (not FULL), step)
                run(*shlex.split(step.replace("/opt/venv", str(venv))), folder=work if work.is_dir() else tmp_path)
                ran.append(step)
    assert len(ran) == (5 if FULL else 3)

    python = str(venv / "bin" / "python")
    (default,) = (json.loads(rest) for rest in of("CMD"))
    assert "python -m atose_ray.tune" in run(python, *default[1:], folder=home)
    lost = [python, "-m", "atose_ray.tune", "none"]
    done = subprocess.run(lost, cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    known = done.stderr.partition("error: unknown study 'none'; known: ")[2].partition(";")[0].split(", ")
    assert known == sorted(path.stem for path in (ROOT / "search_spaces").glob("*.yaml"))
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(venv), "platbase": str(venv)}))
    code, installed = (
        {path.relative_to(folder) for path in (folder / "atose_ray").rglob("*.py")} for folder in (ROOT, packages)
    )
    assert installed == code
    if FULL:
        assert run(python, "-c", "import ray, torch; print(torch.__version__)", folder=home).startswith("2.")

"""Ray's private names: all in one file, and a search of in-process trials needs none of them."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from processes import environment

from atose_ray.runtime import ray_private
from atose_ray.storage import Store

FILE = Path(ray_private.__file__)
RUNTIME = FILE.parent
TRIALS = 2


def private_names(path: Path) -> list[str]:
    """Imports of Ray with a part that begins with an underscore, and such attributes of anything but self."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            names = [alias.name for alias in node.names]
            if modules[0].split(".")[0] == "ray" and re.search(r"(^|[.])_|execution", ".".join([*modules, *names])):
                found.append(".".join([*modules, *names]))
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            found += [] if owner == "self" else [f"{owner}.{node.attr}"]
    return found


@pytest.mark.parametrize("path", sorted({*RUNTIME.glob("*.py")} - {FILE}), ids=lambda path: path.name)
def test_private_names_stand_in_one_file(path: Path) -> None:
    assert private_names(path) == []


def test_each_function_says_what_is_lost_without_it() -> None:
    tree = ast.parse(FILE.read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name != "_find"]
    assert len(functions) >= 9
    assert [one.name for one in functions if "Without it" not in " ".join((ast.get_docstring(one) or "").split())] == []


def search_without_private_names(store_uri: str) -> None:
    """A whole search in a Ray of its own, every private name hidden in the driver and in the trials."""
    from test_ray import run, study

    from atose_ray.runtime import trial
    from atose_ray.runtime.cluster import cluster

    def hidden(path: str, at: object = None) -> None:
        return None

    class Blind(trial.ActorTrial):
        def setup(self, *given, **more) -> None:
            ray_private._find = hidden
            super().setup(*given, **more)

    ray_private._find, trial.ActorTrial = hidden, Blind
    with cluster(cpus=2):
        record = run(study(trials=TRIALS), "s", Store(store_uri))
    print(
        sorted(one.state for one in record.trials), record.best is not None, sum(len(t.epochs) for t in record.trials)
    )


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_of_in_process_trials_needs_no_private_name(tiny_store: Store, tmp_path: Path) -> None:
    shutil.copytree(Path(tiny_store.root) / "data", tmp_path / "data")
    with tempfile.TemporaryDirectory(prefix="atr-", ignore_cleanup_errors=True) as scratch:
        variables = environment(RAY_TMPDIR=scratch, RAY_AUTH_MODE="disabled")
        command = [sys.executable, __file__, str(tmp_path)]
        ran = subprocess.run(
            command, env=variables, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=280, check=False
        )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"\['complete', '(complete|pruned)'\] True [1-8]$", ran.stdout.strip()), ran.stdout
    assert not list(tmp_path.glob("studies/s/trials/*/lease.json")) and (tmp_path / "studies/s/report.html").is_file()


if __name__ == "__main__":
    search_without_private_names(sys.argv[1])

"""The walls: imports run one way, Ray stays in runtime/, files and functions stay short, no stray machine paths."""

import ast
import subprocess
import sys
from pathlib import Path

from processes import environment

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "atose_ray"
COMMANDS = {path.stem for path in PACKAGE.glob("*.py") if "\ndef main(" in path.read_text()} | {"cli"}
ORDER = [
    {"types", "ranks", "gpu", "gpu_trial"},
    {"storage", "execution"},
    {"audio", "objectives", "optim", "tags"},
    {"encoders", "datasets"},
    {"data", "methods"},
    {"config"},
    {"evaluation"},
    {"training"},
    {"search"},
    {"runtime", "apps", "reproduction"},
    COMMANDS,
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports_of(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return names


def test_imports_run_one_way() -> None:
    wrong = []
    for path in FILES:
        room = room_of(path)
        for name in imports_of(path):
            parts = name.split(".")
            if parts[0] != "atose_ray" or len(parts) == 1 or room == "__init__":
                continue
            other = parts[1]
            neighbours = other == room or (other == "cli" and room in COMMANDS)
            if other not in LEVEL or not (neighbours or LEVEL[other] < LEVEL[room]):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_ray_only_in_runtime_and_torchaudio_only_in_audio() -> None:
    allowed = {"ray": "runtime", "torchaudio": "audio"}
    roots = [(path, name.split(".")[0]) for path in FILES for name in imports_of(path)]
    assert not [(path, root) for path, root in roots if root in allowed and room_of(path) != allowed[root]]


def test_what_needs_no_ray_is_not_in_its_room() -> None:
    files = [path for path in FILES if room_of(path) == "runtime" and path.stem not in ("__init__", "ray_private")]
    assert not [path.name for path in files if "ray" not in {name.split(".")[0] for name in imports_of(path)}]


def test_core_loads_without_ray() -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "import atose_ray.training.loop, atose_ray.training.run, atose_ray.search.report, atose_ray.apps.predict\n"
        "import atose_ray.train, atose_ray.tag, atose_ray.report, atose_ray.prepare, atose_ray.tune\n"
        "import atose_ray.evaluate\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_files_and_functions_are_short() -> None:
    lengths = sorted(len(path.read_text().splitlines()) for path in FILES)
    assert lengths[-1] <= 400
    assert lengths[int(len(lengths) * 0.95)] <= 300
    functions = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                functions.append((node.end_lineno - node.lineno + 1, f"{path.name}:{node.name}"))
    functions.sort()
    assert functions[-1][0] <= 70, functions[-1]
    assert functions[int(len(functions) * 0.95)][0] <= 40


def test_public_names_have_docstrings() -> None:
    bare = []
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if (
                isinstance(node, (ast.FunctionDef, ast.ClassDef))
                and not node.name.startswith("_")
                and not ast.get_docstring(node)
            ):
                bare.append(f"{path.relative_to(ROOT)}:{node.name}")
    assert not bare


def test_a_training_and_a_search_begin_without_what_only_some_need() -> None:
    """Every trial is a process that imports the first, every search one that imports the second."""
    lines = (
        "import sys, atose_ray.training.folds\n"
        "print(*{'sklearn', 'scipy.stats', 'scipy.cluster', 'pandas', 'ray'} & set(sys.modules))\n"
        "import atose_ray.runtime.search\n"
        "print(*{'sklearn', 'scipy.stats', 'scipy.cluster', 'sqlalchemy', 'torch._dynamo'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", lines], env=environment(), capture_output=True, text=True, check=True)
    assert not done.stdout.split()

"""What a kill -9 costs, and what a bad file does: `python -m benchmarks.beside.hardship kill|bad --work DIR`.

kill: the driver alone is killed 20 s after its first epoch; what survives it is left 10 s, counted and ended; then the
same command is given again (the others' for 30 s more, ours to the end of its budget). bad: one MP3 is cut in half
(`cut`), or a text file is called .wav (`false`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.beside.run import (
    CONTENDERS,
    ROOT,
    add,
    circumstances,
    command,
    cpu_seconds,
    data_of,
    environment,
    events,
    fresh,
    lines,
)

UNTIL_KILL_S, LEFT_S, AGAIN_S, BUDGET_S = 20.0, 10.0, 30.0, 120.0
Key = tuple[str, int]


def keys(found: list[dict[str, Any]], since: float, until: float) -> list[Key]:
    """Which epochs of which trials ended in a time."""
    return [(one["trial"], one["epoch"]) for one in found if since < one["time"] <= until]


def goes_on(before: list[Key], after: list[Key]) -> dict[str, list[int]]:
    """Of every trial that was trained before and after: its last epoch before, its first after."""
    trials = {trial for trial, _ in before} & {trial for trial, _ in after}
    return {
        trial: [max(e for t, e in before if t == trial), min(e for t, e in after if t == trial)]
        for trial in sorted(trials)
    }


def killed(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One search killed and begun again: its line."""
    work = options.work.absolute()
    load, out = os.getloadavg()[0], fresh(name, work, "kill")
    given = {"data": data_of(work), "out": out, "seed": 1, "seconds": BUDGET_S}
    env = environment(work, options.lightning, **given)
    with (out / "output.txt").open("w") as stream:
        process = subprocess.Popen(
            command(name, work, out, 1, BUDGET_S), cwd=ROOT, env=env, stdout=stream, stderr=stream
        )
        limit = time.time() + BUDGET_S
        while not events(name, work, out) and process.poll() is None and time.time() < limit:
            time.sleep(0.5)
        time.sleep(UNTIL_KILL_S)
        started = set(cpu_seconds(process.pid)) - {process.pid}
        process.kill()
        at = time.time()
        process.wait()
        time.sleep(LEFT_S)
        left = [number for number in started if trains(number)]
        for number in left:
            os.kill(number, signal.SIGKILL)
        time.sleep(1.0)
        cleaned = time.time()
        env["BESIDE_SECONDS"] = str(AGAIN_S)
        again = command(name, work, out, 1, BUDGET_S)  # a budget of ours counts both sessions
        code = subprocess.run(again, cwd=ROOT, env=env, stdout=stream, stderr=stream, timeout=300).returncode
    found = events(name, work, out)
    before, orphans, after = keys(found, 0, at), keys(found, at, cleaned), keys(found, cleaned, time.time())
    later = [one["time"] - cleaned for one in found if one["time"] > cleaned]
    return {
        "what": "kill",
        "contender": name,
        "epochs_before": len(before),
        "trials_before": len({trial for trial, _ in before}),
        "processes_left": len(left),
        "epochs_of_those_left": len(orphans),
        "epochs_after": len(after),
        "trained_twice": len({*before, *orphans} & set(after)),
        "goes_on": goes_on([*before, *orphans], after),
        "first_epoch_again_s": round(min(later), 1) if later else None,
        "rc": code,
        **circumstances(load),
    }


def trains(number: int) -> bool:
    """Whether a process that was started here is still there, and no zombie."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def spoiled(work: Path, case: str) -> Path:
    """A copy of the data with one bad file in train."""
    folder = work / f"bad-{case}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(data_of(work), folder)
    table = folder / "tags.csv"
    head, *rows = table.read_text().splitlines()
    path, _, rest = next(row for row in rows if ",train," in row).partition(",")
    if case == "cut":
        whole = (folder / path).read_bytes()
        (folder / path).write_bytes(whole[: len(whole) // 2])
    else:
        (folder / "false.wav").write_text("This is no sound.\n" * 100)
        table.write_text("\n".join([head, f"false.wav,{rest}", *rows]) + "\n")
    return folder


def met(name: str, case: str, options: argparse.Namespace) -> dict[str, Any]:
    """What a contender does with the bad folder, and the last it says."""
    work = options.work.absolute()
    load, out, folder = os.getloadavg()[0], fresh(name, work, f"bad-{case}"), spoiled(work, case)
    env = environment(work, options.lightning, data=folder, out=out, seconds=2 if name != "ray_tune" else 40, epochs=1)
    call = command(name, work, out, 1, 2)  # Tune cuts off at its budget what runs; the others let it end
    if name == "ours":
        place = ["--source", str(folder), "--name", f"bad-{case}", "--store", str(work / "store")]
        call = [sys.executable, "-m", "atose_ray.prepare", "folder", *place]
    began = time.time()
    ran = subprocess.run(call, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    (out / "output.txt").write_text(ran.stdout + ran.stderr)
    said = [line for line in (ran.stdout + ran.stderr).replace("\r", "\n").splitlines() if line.strip()]
    named = [line for line in said if folder.name in line or "Error" in line or "false.wav" in line]
    told = [line.replace(str(work), "WORK")[:240] for line in named]
    line = {"what": "bad", "contender": name, "case": case, "rc": ran.returncode, "said": told[-3:]}
    return {**line, "s": round(time.time() - began, 1), **circumstances(load)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kill", "bad"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--lightning")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    options = parser.parse_args()
    done = {(line["contender"], line.get("case")) for line in lines(options.what)}
    for name in options.contenders:
        for case in (None,) if options.what == "kill" else ("cut", "false"):
            if (name, case) not in done:
                add(killed(name, options) if case is None else met(name, case, options))


if __name__ == "__main__":
    main()

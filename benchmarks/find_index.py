"""Index of many short files: files per second and peak memory, with a kill on the way; then how long a query takes.

    python -m benchmarks.find_index MODEL [--append] [--files 10000] [--seconds 1.0]

Writes tones as WAV files, runs `find index` in a process of its own, kills it (SIGKILL) when half of the files are in
the index, and runs it again to the end. `--append` adds a JSON line to benchmarks/results/find_index.jsonl.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from atose_ray.apps.index import open_index, parts_of, read_rows
from atose_ray.apps.retrieve import Term, find
from atose_ray.storage import Store
from benchmarks.timing import append


def write_tones(folder: Path, files: int, seconds: float) -> None:
    """Tones of all pitches, a hundred to a folder."""
    time_T = np.arange(int(16000 * seconds)) / 16000
    for number in range(files):
        place = folder / f"{number // 100:03d}"
        place.mkdir(parents=True, exist_ok=True)
        tone_T = 0.3 * np.sin(2 * np.pi * (60 + 4000 * number / files) * time_T)
        soundfile.write(place / f"{number:05d}.wav", tone_T, 16000)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--append", action="store_true")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=1.0)
    args = parser.parse_args()
    args.device, args.threads, args.batch, args.rounds = "cpu", 1, 0, 1
    with tempfile.TemporaryDirectory(prefix="find-index-") as scratch:
        sounds, place = Path(scratch) / "sounds", Path(scratch) / "index"
        write_tones(sounds, args.files, args.seconds)
        command = [sys.executable, "-m", "atose_ray.find", "index", args.model, str(sounds), str(place)]
        store, start = Store(str(place)), time.perf_counter()
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while len(parts_of(store).names()) < args.files / 2 / 256:
            if first.poll() is not None:
                raise SystemExit(f"find index ended with {first.returncode}")
            time.sleep(0.2)
        first.kill()
        first.wait()
        kept = len(parts_of(store).stamps())
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        opened, _, model = open_index(str(place))
        found = {path for rows in read_rows(opened) for path in rows.paths}
        assert len(found) == args.files, f"{len(found)} of {args.files} files are in the index"
        start = time.perf_counter()
        find(opened, model, [Term(model.spec.tags[0])])
        query = time.perf_counter() - start
    results = {"files": args.files, "kept_after_kill": kept, "seconds": seconds, "peak_gib": peak, "query_s": query}
    print(f"{args.files} files in {seconds:.0f} s with a kill after {kept}; peak {peak:.2f} GiB; a query {query:.2f} s")
    if args.append:
        append("find_index", args, results, model=model.run.encoder.kind, width=model.method.encoder.embed_dim)


if __name__ == "__main__":
    main()

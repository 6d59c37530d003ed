"""A synthetic AudioSet of stored frames: prepared, and trained with each sampler; time and memory of every step.

    python -m benchmarks.audioset_frames [--append] [--clips 200000] [--width 128] [--epochs 2] [--samplings ...]

Writes the published layout (bal_train.h5, unbal_train.h5, eval.h5: x uint8 [N, 10, 128], y bool [N, 527], video ids):
bytes of noise with a pattern of each of a clip's labels laid over five of its ten rows. Labels are as unequal as
AudioSet's: the commonest has a fifth of the clips, the rarest some ten. Then the commands as a person runs them:
prepare, and train of multi-level attention (levels 2 and 3, batches of 500) on every `--samplings`; an epoch is what
the log says, validation included. `feed` is an epoch of batches alone. `metrics` times the validation scores alone, by
sorting (evaluation/areas.py) and by scikit-learn's curves on some of the tags, scaled to all. Memory: the proportional
set size of a command and all that it started, sampled four times a second; CPU seconds are of the command and what it
waited for, without Ray's own processes. `--append` adds one JSON line to benchmarks/results/audioset_frames.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from atose_ray.config import run_config
from atose_ray.data.shards import load_manifest
from atose_ray.evaluation.areas import areas_of_columns
from atose_ray.evaluation.metrics import clip_metrics
from atose_ray.storage import Store
from atose_ray.training.run import make_batches, resolve
from benchmarks.data_memory import PeakMemory
from benchmarks.timing import append

ROOT = Path(__file__).resolve().parents[1]
CLASSES, FRAMES, BINS, ROWS = 527, 10, 128, 2000
SHARES = {"bal_train": 0.05, "unbal_train": 0.85, "eval": 0.10}
SOME_TAGS = 20
FEEDS = ("uniform", "class_balanced", "class_queue")


def write_source(folder: Path, clips: int) -> None:
    """The three files, some rows at a time, and the labels' names."""
    import h5py

    rng = np.random.default_rng(0)
    pattern_CM = rng.integers(-40, 41, (CLASSES, BINS)).astype(np.float32)
    chance_C = np.maximum(0.2 / np.arange(1, CLASSES + 1) ** 1.3, 10 / clips)
    folder.mkdir(parents=True)
    names = [f'{number},/m/{number:05d},"label {number}"' for number in range(CLASSES)]
    (folder / "class_labels_indices.csv").write_text("\n".join(["index,mid,display_name", *names]) + "\n")
    for part, share in SHARES.items():
        count = round(clips * share)
        with h5py.File(folder / f"{part}.h5", "w") as file:
            x = file.create_dataset("x", (count, FRAMES, BINS), np.uint8)
            y = file.create_dataset("y", (count, CLASSES), bool)
            file["video_id_list"] = np.array([f"{part}_{number:07d}".encode() for number in range(count)])
            for first in range(0, count, ROWS):
                rows = min(ROWS, count - first)
                y_nC = rng.random((rows, CLASSES)) < chance_C
                x_nFM = rng.normal(128, 40, (rows, FRAMES, BINS)).astype(np.float32)
                start_n = rng.integers(0, FRAMES // 2, rows)
                heard_nF = (np.arange(FRAMES) >= start_n[:, None]) & (np.arange(FRAMES) < start_n[:, None] + 5)
                x_nFM += heard_nF[:, :, None] * (y_nC.astype(np.float32) @ pattern_CM)[:, None]
                x[first : first + rows], y[first : first + rows] = np.clip(x_nFM, 0, 255).astype(np.uint8), y_nC


def measured(scratch: Path, *words: str) -> dict[str, float]:
    """A command of ours in a process of its own: its seconds and peaks. Raises RuntimeError where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(scratch)}
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with (scratch / "out.txt").open("w+") as out:
        started = subprocess.Popen([sys.executable, "-m", *words], cwd=ROOT, env=environment, stdout=out, stderr=out)
        peak = PeakMemory(started.pid)
        code = started.wait()
        peaks = peak.stop()
        out.seek(0)
        if code:
            raise RuntimeError(f"{' '.join(words)} failed: {out.read()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(time.perf_counter() - start, 1), "cpu_seconds": round(cpu, 1), **peaks}


def prepared(scratch: Path) -> dict[str, float]:
    """Of this call, or of the one that prepared the folder."""
    known, place = scratch / "prepare.json", ("--source", str(scratch / "source"), "--store", str(scratch / "store"))
    if not known.exists():
        row = measured(scratch, "atose_ray.prepare", "audioset_frames", *place, "--cpus", "2")
        known.write_text(json.dumps(row))
    return dict(json.loads(known.read_text()))


def trained(scratch: Path, args: argparse.Namespace, sampling: str) -> dict[str, Any]:
    """A training with one sampler: what `measured` says, and its epochs."""
    stages = json.dumps([{"name": "attend", "epochs": args.epochs}])
    settings = {"data.sampling": sampling, "method.width": args.width, "method.stages": stages, "execution.threads": 1}
    settings |= {"data.residency": "stream"} if args.stream else {}
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    row: dict[str, Any] = measured(
        scratch, "atose_ray.train", "audioset_frames", "--store", str(scratch / "store"), *words
    )
    for run in (scratch / "store" / "runs").iterdir():
        if json.loads((run / "config.json").read_text())["data"]["sampling"] == sampling:
            lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
            epochs = [line for line in lines if line["event"] == "epoch"]
            row["epoch_seconds"] = [round(line["seconds"], 1) for line in epochs]
            row["pr_auc_macro"] = [round(line["valid"]["pr_auc_macro"], 4) for line in epochs]
            row["roc_auc_macro"] = [round(line["valid"]["roc_auc_macro"], 4) for line in epochs]
            about = json.loads((run / "about.json").read_text())
            row |= {"parameters": about["parameters"], "residency": about["residency"]}
    return row


def feed(scratch: Path, sampling: str) -> dict[str, Any]:
    """An epoch of batches alone, from memory: seconds, CPU seconds, how many clips come, and of how many labels a batch
    has at least one clip, in the mean. Of a queue also what a run that goes on at the tenth epoch draws again."""
    store = Store(str(scratch / "store"))
    manifest = load_manifest(store, "audioset_frames")
    tree = {
        "data": {"dataset": "audioset_frames", "batch_size": 500, "sampling": sampling, "residency": "host"},
        "encoder": {"kind": "frames"},
        "method": {"kind": "multi_level_attention"},
    }
    batches = make_batches(resolve(run_config(tree), store, manifest), manifest, store.uri, device=torch.device("cpu"))
    marks, labels, clips = [(time.perf_counter(), time.process_time())], list[int](), 0
    for batch in batches.train(0):
        labels.append(int((batch.tags_BC.sum(dim=0) > 0).sum()))
        clips += len(batch.clip_id_B)
    marks.append((time.perf_counter(), time.process_time()))
    next(batches.train(10))
    marks.append((time.perf_counter(), time.process_time()))
    wall, cpu = (np.diff(column) for column in zip(*marks, strict=True))
    row = {"batches": len(labels), "clips": clips, "labels_per_batch": round(float(np.mean(labels)), 1)}
    row |= {"epoch_s": round(float(wall[0]), 1), "epoch_cpu_s": round(float(cpu[0]), 1)}
    return row | {"first_batch_of_epoch_11_cpu_s": round(float(cpu[1]), 1)}


def metrics(clips: int) -> dict[str, float]:
    """Seconds of the scores of so many clips: all of `clip_metrics`, its areas, and scikit-learn's."""
    rng = np.random.default_rng(0)
    tags_NC = (rng.random((clips, CLASSES)) < np.maximum(0.2 / np.arange(1, CLASSES + 1) ** 1.3, 20 / clips)) * 1.0
    scores_NC = (rng.random((clips, CLASSES), np.float32) + 0.3 * tags_NC.astype(np.float32)).astype(np.float64)
    marks = [time.perf_counter()]
    clip_metrics(scores_NC, tags_NC, exclusive=False)
    marks.append(time.perf_counter())
    ours = np.array(areas_of_columns(scores_NC, tags_NC))
    marks.append(time.perf_counter())
    some = np.linspace(0, CLASSES - 1, SOME_TAGS).astype(int)
    pairs = [(tags_NC[:, column], scores_NC[:, column]) for column in some]
    theirs = np.array([[figure(*pair) for pair in pairs] for figure in (average_precision_score, roc_auc_score)])
    marks.append(time.perf_counter())
    average_precision_score(tags_NC.ravel(), scores_NC.ravel())
    marks.append(time.perf_counter())
    whole, areas, of_some, micro = np.diff(marks)
    return {
        "clips": clips,
        "clip_metrics_s": round(whole, 2),
        "areas_s": round(areas, 2),
        "scikit_learn_macro_s": round(of_some * CLASSES / SOME_TAGS, 1),
        "scikit_learn_micro_s": round(micro, 1),
        "greatest_difference": float(np.abs(ours[:, some] - theirs).max()),
    }


def main() -> None:
    """Measure, print, and append when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--append", action="store_true", help="add a line to benchmarks/results/")
    parser.add_argument("--clips", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=128, help="of a block; published: 600")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--samplings", nargs="*", default=["uniform", "class_balanced", "class_queue"])
    parser.add_argument("--stream", action="store_true", help="keep no clip in memory")
    parser.add_argument("--folder", help="where source and store stay, or are already (default: a temporary one)")
    parser.set_defaults(device="cpu", threads=1, batch=500, rounds=1)
    args = parser.parse_args()
    results: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        made = args.folder or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="atf-", ignore_cleanup_errors=True)
        )
        scratch = Path(made)
        if not (scratch / "source").exists():
            write_source(scratch / "source", args.clips)
        size = sum(path.stat().st_size for path in (scratch / "source").iterdir())
        print(f"{args.clips} clips, {size / 1e6:.0f} MB", flush=True)
        results["prepare"] = prepared(scratch)
        print("prepare", results["prepare"], flush=True)
        results["feed"] = {sampling: feed(scratch, sampling) for sampling in FEEDS}
        print("feed", results["feed"], flush=True)
        for sampling in args.samplings:
            results[sampling] = trained(scratch, args, sampling)
            print(sampling, results[sampling], flush=True)
    results["metrics"] = metrics(20_000)
    print("metrics", results["metrics"], flush=True)
    if args.append:
        append("audioset_frames", args, results, clips=args.clips, width=args.width, stream=args.stream)


if __name__ == "__main__":
    main()

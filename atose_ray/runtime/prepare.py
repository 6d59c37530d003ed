"""`prepare` as Ray Data tasks: one task decodes and writes one shard."""

import pickle
import time
from collections.abc import Iterator
from typing import Any

import ray.data
from tqdm import tqdm

from atose_ray.data.shard_job import ShardJob, ShardResult, write_shard


def run_on_ray(jobs: list[ShardJob], workers: int | None = None) -> Iterator[ShardResult]:
    """Write the shards on the cluster this process has joined, with a progress bar of files.

    workers: tasks at a time, of one CPU each; None is all the cluster's CPUs.
    """
    items = [{"job": pickle.dumps(job)} for job in jobs]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    results = dataset.map(_write, num_cpus=1, concurrency=workers)
    began, read = time.monotonic(), 0
    with tqdm(total=sum(len(job.clips) for job in jobs), unit="file", desc="prepare", smoothing=0.1) as bar:
        for row in results.iter_rows():
            result: ShardResult = pickle.loads(row["result"])
            read += result.source_bytes
            bar.set_postfix_str(f"{read / 1e6 / (time.monotonic() - began):.1f} MB/s", refresh=False)
            bar.update(result.sources)
            yield result


def _write(row: dict[str, Any]) -> dict[str, Any]:
    return {"result": pickle.dumps(write_shard(pickle.loads(row["job"])))}

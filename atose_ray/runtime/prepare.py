"""`prepare` as Ray Data tasks: one task decodes and writes one shard."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import ray.data
from tqdm import tqdm

from atose_ray.data.prepare import ShardJob, ShardResult, write_shard


def run_on_ray(jobs: list[ShardJob]) -> Iterator[ShardResult]:
    """Write the shards on the cluster this process has joined, with a progress bar of clips."""
    items = [{"job": pickle.dumps(job)} for job in jobs]
    results = ray.data.from_items(items, override_num_blocks=len(items)).map(_write, num_cpus=1)
    with tqdm(total=sum(len(job.clips) for job in jobs), unit="clip", desc="prepare", smoothing=0) as bar:
        for row in results.iter_rows():
            result: ShardResult = pickle.loads(row["result"])
            bar.update(result.clips + len(result.skipped))
            yield result


def _write(row: dict[str, Any]) -> dict[str, Any]:
    return {"result": pickle.dumps(write_shard(pickle.loads(row["job"])))}

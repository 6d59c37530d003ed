"""The same clips of noise in the form that each contender of data_ingest.py reads: .npy, tar, MDS, our shards.

All hold int16 samples without compression, so that a byte read is a byte of audio everywhere.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

RATE_HZ, CLIP_SAMPLES, TAGS = 16_000, 29 * 16_000, 50
CLIPS_PER_SHARD = 64
NPY_HEADER_BYTES = 128
BUCKET = "atose-ray-benchmark"


def clip(number: int) -> np.ndarray:
    """int16 [T]: noise of its own."""
    return np.random.default_rng(number).integers(-20_000, 20_000, CLIP_SAMPLES, np.int16)


def tags_of(number: int) -> list[int]:
    """Two or three of 50."""
    return sorted({number % TAGS, number * 7 % TAGS, number * 3 % TAGS})


def tag_row(number: int) -> np.ndarray:
    """uint8 {0, 1} [50]."""
    row = np.zeros(TAGS, np.uint8)
    row[tags_of(number)] = 1
    return row


def make_npy(folder: Path, clips: int) -> None:
    """A file per clip, and the tags of all in one."""
    folder.mkdir(parents=True)
    for number in range(clips):
        path = folder / f"{number:06d}.npy"
        np.save(path, clip(number))
        assert path.stat().st_size == NPY_HEADER_BYTES + 2 * CLIP_SAMPLES
    np.save(folder / "tags.npy", np.stack([tag_row(number) for number in range(clips)]))


def make_tar(folder: Path, clips: int) -> None:
    """Tar shards of 64 clips: NUMBER.pcm (samples), NUMBER.tags (0 or 1 per tag)."""
    folder.mkdir(parents=True)
    for shard in range(-(-clips // CLIPS_PER_SHARD)):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(shard * CLIPS_PER_SHARD, min(clips, (shard + 1) * CLIPS_PER_SHARD)):
                for suffix, content in (("pcm", clip(number).tobytes()), ("tags", tag_row(number).tobytes())):
                    info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def make_mds(folder: Path, clips: int) -> None:
    """MDS shards of the library's default size."""
    from streaming import MDSWriter

    columns = {"pcm": "bytes", "tags": "bytes"}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for number in range(clips):
            writer.write({"pcm": clip(number).tobytes(), "tags": tag_row(number).tobytes()})


def make_ours(store_uri: str, scratch: Path, clips: int) -> None:
    """`prepare` over WAV files; four clips more, for the splits that are not trained on."""
    import soundfile  # here and not above: the contenders that do not need these are not to hold them in memory

    from atose_ray.data.prepare import prepare
    from atose_ray.datasets import dataset_config
    from atose_ray.storage import Store

    scratch.mkdir(parents=True)
    lines = ["path,split,tags"]
    for number in range(clips + 4):
        soundfile.write(scratch / f"{number:06d}.wav", clip(number), RATE_HZ, subtype="PCM_16")
        split = "train" if number < clips else "valid" if number < clips + 2 else "test"
        lines.append(f"{number:06d}.wav,{split},{'|'.join(f'tag {tag:02d}' for tag in tags_of(number))}")
    (scratch / "tags.csv").write_text("\n".join(lines) + "\n")
    prepare(dataset_config("folder", source=str(scratch), sample_rate_hz=RATE_HZ), Store(store_uri))
    shutil.rmtree(scratch)


def make_all(folder: Path, clips: int, endpoint: str | None, forms: Collection[str]) -> dict[str, float]:
    """These of npy, tar, mds and ours, below `folder` or in the bucket behind `endpoint`. Seconds it took, by form."""
    seconds: dict[str, float] = {}
    others = {"npy": make_npy, "tar": make_tar, "mds": make_mds}
    for name in forms:
        start = time.perf_counter()
        if name == "ours":
            make_ours(store_of(folder, endpoint), folder / "wav", clips)
        else:
            others[name](folder / name, clips)
            if endpoint:
                upload(folder / name, name)
                shutil.rmtree(folder / name)
        seconds[name] = round(time.perf_counter() - start, 2)
    return seconds


def store_of(folder: Path, endpoint: str | None) -> str:
    """Where our shards lie."""
    return f"s3://{BUCKET}/store" if endpoint else str(folder / "store")


def s3_client() -> Any:
    """boto3's, by the environment's endpoint and keys."""
    import boto3

    return boto3.client("s3")


def upload(folder: Path, prefix: str) -> None:
    """Every file of a folder."""
    client = s3_client()
    for path in sorted(folder.iterdir()):
        client.upload_file(str(path), BUCKET, f"{prefix}/{path.name}")


@contextmanager
def emulated_s3(wanted: bool) -> Iterator[str | None]:
    """moto's server in a process of its own, and this process's environment set for it; None where it is not wanted."""
    if not wanted:
        yield None
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {
        **keys,
        "AWS_ENDPOINT_URL": endpoint,
        "S3_ENDPOINT_URL": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"{endpoint}/moto-api/data.json")
        s3_client().create_bucket(Bucket=BUCKET)
        yield endpoint
    finally:
        server.terminate()
        server.wait()


def wait_for(address: str, seconds: float = 60) -> None:
    """Until something answers there. Raises OSError when nothing does."""
    until = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)

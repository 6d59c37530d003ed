"""One contender of data_ingest.py in a process of its own: `python -m benchmarks.data_contenders JSON`.

Every contender delivers float32 [B, 59049] in [-1, 1] to this process. Those of others hand int16 from their workers to
this process, which makes float32 of it, as ours does: half the bytes between the processes.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.data_clips import BUCKET, CLIP_SAMPLES, NPY_HEADER_BYTES, TAGS, s3_client, store_of

CROP_SAMPLES = 59_049
SHUFFLE_BUFFER = 256
EPOCH = Callable[[int], Iterator[tuple[torch.Tensor, torch.Tensor]]]


@dataclass(frozen=True)
class Order:
    """What to run. endpoint: of the emulated S3, None for this machine's disk."""

    contender: str
    workers: int
    folder: str
    endpoint: str | None
    clips: int
    batch: int
    threads: int
    seconds: float
    cpus: int

    def as_json(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))


def random_start() -> int:
    """First sample of a random crop."""
    return int(torch.randint(CLIP_SAMPLES - CROP_SAMPLES + 1, ()))


def stack(samples: list[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops and tags -> int16 [B, T], uint8 [B, C]."""
    audio, tags = zip(*samples, strict=True)
    return torch.from_numpy(np.stack(audio)), torch.from_numpy(np.stack(tags))


def as_floats(batches: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """int16 and uint8 -> float32."""
    for audio_BT, tags_BC in batches:
        yield audio_BT.float().mul_(1 / 32767), tags_BC.float()


def loader(dataset: Any, order: Order, **options: Any) -> EPOCH:
    """A torch DataLoader whose workers live as long as it."""
    batches = DataLoader(dataset, num_workers=order.workers, persistent_workers=order.workers > 0, **options)
    return lambda epoch: as_floats(batches)


class NpyFiles(Dataset):  # type: ignore[type-arg]
    """The published loader: np.load of a whole clip, then the crop; with `mmap` only the crop's pages are read."""

    def __init__(self, folder: Path, mmap: bool) -> None:
        self.paths = [str(path) for path in sorted(folder.glob("0*.npy"))]
        self.tags_NC = np.load(folder / "tags.npy")
        self.mode: Any = "r" if mmap else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        start = random_start()
        audio_T = np.load(self.paths[index], mmap_mode=self.mode)[start : start + CROP_SAMPLES]
        return np.asarray(audio_T), self.tags_NC[index]


class NpyObjects(Dataset):  # type: ignore[type-arg]
    """The same on S3: a GET of the whole object, or, with `ranged`, of the crop's bytes."""

    def __init__(self, clips: int, ranged: bool) -> None:
        self.clips, self.ranged = clips, ranged
        self.client: Any = None
        self.tags_NC = np.load(io.BytesIO(s3_client().get_object(Bucket=BUCKET, Key="npy/tags.npy")["Body"].read()))

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        self.client = self.client or s3_client()  # one per worker
        start, key = random_start(), f"npy/{index:06d}.npy"
        if not self.ranged:
            content = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            return np.load(io.BytesIO(content))[start : start + CROP_SAMPLES], self.tags_NC[index]
        first = NPY_HEADER_BYTES + 2 * start
        span = f"bytes={first}-{first + 2 * CROP_SAMPLES - 1}"
        content = self.client.get_object(Bucket=BUCKET, Key=key, Range=span)["Body"].read()
        return np.frombuffer(content, "<i2"), self.tags_NC[index]


def npy(order: Order, cropped: bool) -> EPOCH:
    """torch DataLoader over .npy. cropped: only the crop's bytes are read."""
    dataset = NpyObjects(order.clips, cropped) if order.endpoint else NpyFiles(Path(order.folder, "npy"), cropped)
    return loader(dataset, order, batch_size=order.batch, shuffle=True, collate_fn=stack)


def crop_of(sample: dict[str, bytes]) -> tuple[np.ndarray, np.ndarray]:
    """A sample of a tar or MDS shard -> a random crop and its tags."""
    audio_T = np.frombuffer(sample["pcm"], "<i2", CROP_SAMPLES, offset=2 * random_start())
    return audio_T.copy(), np.frombuffer(sample["tags"], np.uint8).copy()


def webdataset(order: Order) -> EPOCH:
    """Tar shards in random order; crops (not whole clips) wait in the shuffle buffer."""
    wds = importlib.import_module("webdataset")
    shards = range(-(-order.clips // 64))
    place = f"pipe:curl -s -f {order.endpoint}/{BUCKET}/tar" if order.endpoint else f"{order.folder}/tar"
    urls = [f"{place}/{shard:05d}.tar" for shard in shards]
    dataset = wds.WebDataset(urls, shardshuffle=len(urls), empty_check=False).map(crop_of).shuffle(SHUFFLE_BUFFER)
    return loader(dataset.batched(order.batch, collation_fn=stack), order, batch_size=None)


def mosaic(order: Order) -> EPOCH:
    """MosaicML StreamingDataset. On S3 it keeps the shards it has read on the local disk."""
    streaming = importlib.import_module("streaming")
    streaming.base.util.clean_stale_shared_memory()

    class Crops(streaming.StreamingDataset):  # type: ignore[misc, name-defined]
        def __getitem__(self, index: int) -> Any:
            return crop_of(super().__getitem__(index))

    remote = f"s3://{BUCKET}/mds" if order.endpoint else None
    local = f"{order.folder}/mds-cache-{time.time_ns()}" if order.endpoint else f"{order.folder}/mds"
    dataset = Crops(remote=remote, local=local, shuffle=True, batch_size=order.batch)
    return loader(dataset, order, batch_size=order.batch, collate_fn=stack)


def ours(order: Order, ray: bool = False, residency: str = "stream") -> EPOCH:
    """Our shards, through the same door as a training. ray: read by Ray Data tasks."""
    from atose_ray.config import run_config
    from atose_ray.data.shards import load_manifest
    from atose_ray.storage import Store
    from atose_ray.training.run import make_batches, resolve

    reader: dict[str, Any] = {}
    if ray:
        from atose_ray.runtime.ingest import RayBatches

        reader = {"reader": RayBatches}
    store = Store(store_of(Path(order.folder), order.endpoint))
    manifest = load_manifest(store, "folder")
    seconds = CROP_SAMPLES / manifest.data_spec.audio.sample_rate_hz
    tree = {"dataset": "folder", "batch_size": order.batch, "crop_seconds": seconds, "residency": residency}
    small = {"kind": "sample_cnn", "block": "basic", "channels": 4}
    run = resolve(run_config({"data": tree, "encoder": small}), store, manifest)
    batches = make_batches(run, manifest, store.uri, **reader, device=torch.device("cpu"))
    return lambda epoch: ((batch.inputs, batch.tags_BC) for batch in batches.train(epoch))


CONTENDERS: dict[str, Callable[[Order], EPOCH]] = {
    "npy whole": lambda order: npy(order, cropped=False),
    "npy cropped": lambda order: npy(order, cropped=True),
    "webdataset": webdataset,
    "mosaicml": mosaic,
    "ours local": ours,
    "ours ray": lambda order: ours(order, ray=True),
    "ours resident": lambda order: ours(order, residency="host"),
}


def measure(order: Order) -> dict[str, float]:
    """Seconds to the first batch of a new source; clips per second of its first epoch, and of those after."""
    start = time.perf_counter()
    epochs = CONTENDERS[order.contender](order)
    first_s = heard = 0.0
    for audio_BT, tags_BC in epochs(0):
        first_s = first_s or time.perf_counter() - start
        check(audio_BT, tags_BC)
        heard += len(audio_BT)
    first_epoch_s, first_heard = time.perf_counter() - start, heard
    start, heard, number = time.perf_counter(), 0.0, 0
    while number < 2 or time.perf_counter() - start < order.seconds:
        number += 1
        for audio_BT, _ in epochs(number):
            heard += len(audio_BT)
    after = heard / (time.perf_counter() - start)
    return {
        "first_batch_s": first_s,
        "first_epoch_clips_per_s": first_heard / first_epoch_s,
        "clips_per_s": after,
        "clips_per_epoch": heard / number,
    }


def check(audio_BT: torch.Tensor, tags_BC: torch.Tensor) -> None:
    """Raises ValueError unless a batch is what all agreed on."""
    shapes = audio_BT.shape[1:] == (CROP_SAMPLES,) and tags_BC.shape[1:] == (TAGS,)
    if not shapes or {audio_BT.dtype, tags_BC.dtype} != {torch.float32} or float(audio_BT.abs().max()) > 1:
        raise ValueError(f"a batch must be float32 [B, {CROP_SAMPLES}] in [-1, 1], but is {tuple(audio_BT.shape)}")


def main() -> None:
    """Run one order."""
    order = Order(**json.loads(sys.argv[1]))
    torch.set_num_threads(order.threads)
    with started(order):
        print(json.dumps(measure(order)), flush=True)


def started(order: Order) -> contextlib.AbstractContextManager[None]:
    """What a contender has up before the clock starts: its imports, and Ray."""
    if not order.contender.startswith("ours"):
        importlib.import_module({"webdataset": "webdataset", "mosaicml": "streaming"}.get(order.contender, "torch"))
        return contextlib.nullcontext()
    importlib.import_module("atose_ray.training.run")
    if order.contender != "ours ray":
        return contextlib.nullcontext()
    importlib.import_module("atose_ray.runtime.ingest")
    return importlib.import_module("atose_ray.runtime.cluster").cluster(order.cpus)  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()

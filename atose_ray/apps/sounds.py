"""What a caller calls a sound: a path, a URI, the bytes of a file, an open file, or samples with their rate.

All of them are read by `audio.io.decode_parts`: the same sound gives the same numbers however it comes."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import numpy as np

from atose_ray.audio.io import Samples, Source
from atose_ray.storage import Store, folder_of, is_uri
from atose_ray.types import Array

Sound = str | os.PathLike[str] | bytes | BinaryIO | Array


@contextlib.contextmanager
def opened(sound: Sound | Any, sample_rate: int | None = None) -> Iterator[tuple[Source, str]]:
    """What `decode_parts` reads of a sound, and what it is called in messages.

    sample_rate: in Hz, of samples and of nothing else. Raises ValueError for samples that cannot be a sound or have no
    rate, and for a file with one."""
    encoded = isinstance(sound, str | os.PathLike | bytes | bytearray) or hasattr(sound, "read")
    if encoded and sample_rate is not None:
        raise ValueError(
            f"sample_rate is for samples, but got {sample_rate} with a file, which says its own; leave it out"
        )
    if isinstance(sound, str | os.PathLike):
        place = os.fspath(sound)
        if not is_uri(place):
            yield place, place
            return
        folder, name = folder_of(place)
        with Store(folder).reading(name) as file:
            yield file, place
    elif isinstance(sound, bytes | bytearray):
        yield bytes(sound), "bytes"
    elif hasattr(sound, "read"):
        name = str(getattr(sound, "name", "file"))
        seekable = hasattr(sound, "seekable") and sound.seekable()
        yield (cast(BinaryIO, sound) if seekable else sound.read()), name
    else:
        yield samples_of(np.asarray(sound), sample_rate), "samples"


def samples_of(samples: Array, sample_rate: int | None) -> Samples:
    """[T] or [T, channels], float in [-1, 1] or int16 or int32 -> samples of float32. Raises ValueError for another
    shape or type, and for no rate."""
    if sample_rate is None or sample_rate < 1:
        raise ValueError(f"samples need their sample_rate in Hz, as in sample_rate=44100, but got {sample_rate}")
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and samples.shape[1] > samples.shape[0]):
        raise ValueError(
            f"samples are [T] or [T, channels], as soundfile reads them, but got the shape {list(samples.shape)}; "
            "transpose [channels, T]"
        )
    if samples.dtype in (np.int16, np.int32):
        samples = samples / -float(np.iinfo(samples.dtype).min)
    if samples.dtype.kind != "f":
        raise ValueError(f"samples are floats in [-1, 1], int16 or int32, but got {samples.dtype}; convert them")
    audio_TC = samples if samples.ndim == 2 else samples[:, None]
    return Samples(audio_TC.astype(np.float32), sample_rate)

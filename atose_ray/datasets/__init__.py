"""Data sets: which clips there are, their tags and their splits. One adapter per file, chosen by `kind`.

A new data set is one file and one name in the table below; a test or a notebook may add one while it runs.
"""

from difflib import get_close_matches
from typing import Any

from atose_ray.datasets.audioset import AudioSetConfig
from atose_ray.datasets.audioset_frames import AudioSetFramesConfig
from atose_ray.datasets.base import DatasetConfig, DatasetError
from atose_ray.datasets.coala_hdf5 import CoalaHdf5Config
from atose_ray.datasets.dcase2017 import Dcase2017Config
from atose_ray.datasets.demo import DemoConfig
from atose_ray.datasets.esc50 import Esc50Config
from atose_ray.datasets.fma import FmaConfig
from atose_ray.datasets.folder import FolderConfig
from atose_ray.datasets.frames import FramesConfig
from atose_ray.datasets.gtzan import GtzanConfig
from atose_ray.datasets.msd import MsdConfig
from atose_ray.datasets.mtat import MtatConfig
from atose_ray.datasets.mtg_jamendo import MtgJamendoConfig
from atose_ray.datasets.nsynth import NsynthConfig
from atose_ray.datasets.speech_commands import SpeechCommandsConfig
from atose_ray.datasets.urbansound8k import UrbanSound8kConfig
from atose_ray.types import by_kind

__all__ = ["KINDS", "DatasetConfig", "DatasetError", "dataset_config"]

KINDS: dict[str, type[DatasetConfig]] = by_kind(
    *(AudioSetConfig, AudioSetFramesConfig, CoalaHdf5Config, Dcase2017Config, DemoConfig, Esc50Config, FmaConfig),
    *(FolderConfig, FramesConfig, GtzanConfig, MsdConfig, MtatConfig, MtgJamendoConfig, NsynthConfig),
    *(SpeechCommandsConfig, UrbanSound8kConfig),
)


def dataset_config(kind: str, **options: Any) -> DatasetConfig:
    """The config of the data set called `kind`. Raises `ValueError` that lists the known names, or the wrong option."""
    if kind not in KINDS:
        close = get_close_matches(kind, KINDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"unknown dataset {kind!r}; known: {', '.join(sorted(KINDS))}{hint}")
    return KINDS[kind](**options)

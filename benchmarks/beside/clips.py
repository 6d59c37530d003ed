"""A folder of audio with a tags.csv, decoded once into memory. Counted for every contender that uses it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import soundfile
import torch
from torch.utils.data import TensorDataset

SPLITS = ("train", "valid", "test")


def decode(path: Path, samples: int) -> torch.Tensor:
    """[T] float32: the file's samples, cut or padded with zeros."""
    audio_T = torch.from_numpy(soundfile.read(path, dtype="float32")[0])[:samples]
    return torch.nn.functional.pad(audio_T, (0, samples - len(audio_T)))


def load(folder: Path, samples: int) -> tuple[dict[str, TensorDataset], list[str]]:
    """The clips of every split, (audio_NT, tags_NC), and the names of the tags."""
    table = pd.read_csv(folder / "tags.csv")
    tags = sorted({tag for cell in table["tags"] for tag in cell.split("|")})
    splits = {}
    for split in SPLITS:
        rows = table[table["split"] == split]
        audio_NT = torch.stack([decode(folder / path, samples) for path in rows["path"]])
        tags_NC = torch.tensor([[float(tag in cell.split("|")) for tag in tags] for cell in rows["tags"]])
        splits[split] = TensorDataset(audio_NT, tags_NC)
    return splits, tags

"""Sentence vectors of tag names: a phrase needs no word list, and a context is read as a whole.

The folder of a sentence encoder as it is published (config.json, model.safetensors, tokenizer files), such as
all-MiniLM-L6-v2, is run by the package `transformers` (`pip install 'atose_ray[sentence]'`); nothing is downloaded. The
vector is the mean over the tokens of the last layer, at length 1 (Reimers & Gurevych, EMNLP 2019)."""

import importlib
import importlib.util
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from atose_ray.tags.base import TAG, Context, TagVectorsConfig
from atose_ray.types import Array


class SentenceVectorsConfig(TagVectorsConfig):
    """folder: of the encoder, on a disk that every node sees. context: the sentence around the tag."""

    kind: Literal["sentence"] = "sentence"
    folder: str = Field(min_length=1)
    context: Context = TAG

    @torch.no_grad()
    def vectors(self, names: tuple[str, ...], tags_NC: Array | None = None) -> Array:
        missing = [name for name in ("config.json",) if not (Path(self.folder) / name).is_file()]
        if missing:
            raise ValueError(f"{self.folder} is not the folder of a sentence encoder: it lacks {', '.join(missing)}")
        if importlib.util.find_spec("transformers") is None:
            raise ValueError(
                "tag_vectors sentence needs the package transformers, which is not installed here: pip install "
                "'atose_ray[sentence]', or take tag_vectors glove or table"
            )
        transformers = importlib.import_module("transformers")
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        model = transformers.AutoModel.from_pretrained(self.folder, local_files_only=True).eval()
        rows = []
        for name in names:  # one at a time: a vector does not depend on which others are asked for
            tokens = tokenizer(self.context.replace(TAG, name), return_tensors="pt", truncation=True)
            mean_V = model(**tokens).last_hidden_state[0].mean(dim=0)
            rows.append(torch.nn.functional.normalize(mean_V, dim=0).float().numpy())
        return np.array(rows, np.float32)

"""Demo data: rendered, not recorded. Real audio files with annotations in the MTAT layout, in seconds and offline.

    FOLDER/demo.json               what was rendered, written first
    FOLDER/c/NAME-01-0-3.7.mp3     16 kHz mono MP3 as MTAT has, so that the demo goes the way that real data goes
    FOLDER/annotations_final.csv   clip_id, tags, mp3_path, written last: without it a rendering is unfinished

Instruments are in `synthesis`, genres in `genres`, pieces in `composition`. The same (clips, seconds, seed) gives the
same bytes on the same machine (another build of numpy or LAME may round elsewhere). The artists of every genre are
dealt to the splits 60 / 20 / 20; none is in two.
"""

import csv
import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import soundfile
from pydantic import Field
from tqdm import tqdm

from atose_ray.datasets.base import AudioDatasetConfig, DatasetError
from atose_ray.datasets.demo.composition import Artist, compose
from atose_ray.datasets.demo.genres import GENRES
from atose_ray.datasets.demo.synthesis import RATE_HZ
from atose_ray.datasets.mtat import FOLDERS, list_mtat, read_annotations
from atose_ray.storage import is_uri
from atose_ray.types import SPLITS, Listing

RENDERER = 1  # raise it when the sound of the same seed changes
ANNOTATIONS = "annotations_final.csv"
SETTINGS = "demo.json"
SPLIT_OF_TURN = (0, 1, 2, 0, 0, 2, 1, 0, 0, 0)  # of the artists of a genre, in turn: train, valid, test
FIRST_NAMES = ("amber", "silent", "northern", "paper", "velvet", "iron", "distant", "early", "golden", "hollow")
LAST_NAMES = ("harbour", "meridian", "orchard", "lantern", "parade", "quartet", "river", "theory")


class DemoConfig(AudioDatasetConfig):
    """Without a `source` the audio is kept in the user's cache folder."""

    renders: ClassVar[bool] = True
    kind: Literal["demo"] = "demo"
    clips: int = Field(default=480, ge=24, le=100_000)
    seconds: float = Field(default=3.7, ge=1.0, le=30.0, description="Of every clip; 59049 samples, 3.69 s, fit.")
    seed: int = Field(default=0, ge=0)

    def folder(self) -> Path:
        """The folder to render into, which need not exist yet."""
        if self.source is None:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            return (cache / "atose_ray" / f"demo-{RENDERER}-{self.clips}x{self.seconds:g}s-{self.seed}").absolute()
        path = Path(os.path.expanduser(self.source)).absolute()
        return super().folder() if is_uri(self.source) or path.exists() else path

    def list_clips(self) -> Listing:
        folder = self.folder()
        self.render(folder)
        annotations = read_annotations(folder / ANNOTATIONS)
        return list_mtat(self, folder, annotations, len(annotations.tags))

    def settings(self) -> dict[str, float]:
        """What decides the audio."""
        return {"renderer": RENDERER, "clips": self.clips, "seconds": self.seconds, "seed": self.seed}

    def render(self, folder: Path) -> bool:
        """Writes audio and annotations; False if they were there. Raises `DatasetError` if other things are there."""
        if self._is_complete(folder):
            return False
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ANNOTATIONS).unlink(missing_ok=True)
        (folder / SETTINGS).write_text(json.dumps(self.settings()) + "\n", encoding="utf-8")
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # threads: encoding and FFTs leave the GIL
            rendered = pool.map(partial(self._render_clip, folder), range(self.clips))
            rows = list(tqdm(rendered, "rendering demo audio", total=self.clips, unit="clip", disable=None))
        write_annotations(folder / ANNOTATIONS, rows)
        return True

    def _is_complete(self, folder: Path) -> bool:
        if not folder.exists() or not any(folder.iterdir()):
            return False
        if not (folder / SETTINGS).is_file():
            raise DatasetError(
                f"the demo is rendered into an empty folder, but {folder} holds other files; "
                "name a new folder: --source DIR"
            )
        found = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        if found != self.settings():
            raise DatasetError(
                f"{folder} holds a demo rendered with {found}, but {self.settings()} is asked for; "
                "name a new folder (--source DIR), or remove this one"
            )
        if not (folder / ANNOTATIONS).is_file():
            return False
        return all((folder / path).is_file() for path, _ in read_annotations(folder / ANNOTATIONS).rows)

    def _render_clip(self, folder: Path, index: int) -> tuple[str, tuple[str, ...]]:
        artists = max(3, round(self.clips / (6 * len(GENRES)))) * len(GENRES)
        artist, piece = Artist(self.seed, index % artists), index // artists
        audio_T, tags = compose(artist, piece, self.seconds)
        path = clip_path(artist, piece, self.seconds)
        (folder / path).parent.mkdir(exist_ok=True)
        soundfile.write(folder / path, audio_T.astype(np.float32), RATE_HZ, format="MP3")
        return path, tags


def clip_path(artist: Artist, piece: int, seconds: float) -> str:
    """Path of a clip as MTAT names it; the folder's digit decides the split, by the artist's turn within its genre."""
    folders = FOLDERS[SPLITS[SPLIT_OF_TURN[artist.turn % len(SPLIT_OF_TURN)]]]
    first = FIRST_NAMES[artist.turn % len(FIRST_NAMES)]
    last = LAST_NAMES[(artist.number + artist.turn) % len(LAST_NAMES)]
    again = artist.turn // len(FIRST_NAMES)
    name = f"{first}_{last}" + (f"_{again + 1}" if again else "")
    return f"{folders[artist.number % len(folders)]}/{name}-demo-{piece + 1:02d}-untitled-0-{seconds:g}.mp3"


def write_annotations(path: Path, rows: list[tuple[str, tuple[str, ...]]]) -> None:
    """Writes `annotations_final.csv` in one step; tags by count, as MTAT's header has them."""
    counts = Counter(tag for _, tags in rows for tag in tags)
    header = sorted(counts, key=lambda tag: (-counts[tag], tag))
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
        table.writerow(["clip_id", *header, "mp3_path"])
        for index, (mp3_path, tags) in enumerate(rows):
            table.writerow([index + 1, *(int(tag in tags) for tag in header), mp3_path])
    unfinished.replace(path)

"""Vectors of genres made of the instruments that their tracks were annotated with (OpenMIC-2018).

Paper: Choi, Lee, Park, Nam, "Zero-shot Learning for Audio-based Music Classification and Tagging", ISMIR 2019, and its
published code. OpenMIC-2018 (Humphrey, Durand, McFee, ISMIR 2018) annotates 20,000 excerpts of FMA with 20 instruments,
each with a relevance in 0 to 1. A genre's vector has 40 numbers: how much its tracks were said to have each instrument
(relevance above 0.5), and not to have it (0.5 and below); every genre's own 40 numbers are standardised.

Published, the sums run over all tracks, those too that the genre is later tested on; `tests: left_out` takes those of
the training and validation split alone."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import Field

from atose_ray.storage import read_uri
from atose_ray.tags.base import TagVectorsConfig
from atose_ray.types import Array

LABELS = ("sample_key", "instrument", "relevance")
TEST = ("test", "testing")


class InstrumentVectorsConfig(TagVectorsConfig):
    """labels: openmic-2018-aggregated-labels.csv. tracks: FMA's tracks.csv (with `genres`: its genres.csv, which has
    the titles), or a table with the columns track_id, tags (joined by |) and, where it is asked for, split.

    count: `cnt` adds 1 for every annotation, `conf` its distance from 0.5. standardised: each genre's numbers to mean 0
    and deviation 1."""

    kind: Literal["instrument"] = "instrument"
    labels: str = Field(min_length=1)
    tracks: str = Field(min_length=1)
    genres: str | None = None
    count: Literal["cnt", "conf"] = "cnt"
    standardised: bool = True
    tests: Literal["included", "left_out"] = "included"

    def vectors(self, names: tuple[str, ...], tags_NC: Array | None = None) -> Array:
        track_TV = self.of_tracks()
        total = dict.fromkeys(names, np.zeros(0))
        for track, tags, split in self.tagged():
            if track in track_TV and not (self.tests == "left_out" and split in TEST):
                for tag in tags:
                    if tag in total:
                        total[tag] = track_TV[track] + (total[tag] if len(total[tag]) else 0)
        missing = [name for name, vector in total.items() if not vector.any()]
        if missing:
            raise ValueError(f"no track of {', '.join(missing)} has instruments in {self.labels}; leave these tags out")
        sums_CV = np.array([total[name] for name in names])
        if self.standardised:
            sums_CV = (sums_CV - sums_CV.mean(axis=1, keepdims=True)) / sums_CV.std(axis=1, keepdims=True)
        return sums_CV.astype(np.float32)

    def of_tracks(self) -> dict[int, Array]:
        """Track id -> its 40 numbers; the instruments are in the order of their names."""
        lines = [row for row in rows_of(self.labels) if row]
        if not set(LABELS) <= set(lines[0]):
            raise ValueError(f"{self.labels} must have the columns {', '.join(LABELS)}, but has {', '.join(lines[0])}")
        key, instrument, relevance = (lines[0].index(name) for name in LABELS)
        instruments = sorted({line[instrument] for line in lines[1:]})
        found: dict[int, Array] = {}
        for line in lines[1:]:
            value, place = float(line[relevance]), instruments.index(line[instrument])
            track = int(line[key].partition("_")[0])
            numbers_V = found.setdefault(track, np.zeros(2 * len(instruments)))
            has = value > 0.5
            numbers_V[place if has else place + len(instruments)] += 1 if self.count == "cnt" else abs(value - 0.5)
        return found

    def tagged(self) -> Iterator[tuple[int, tuple[str, ...], str]]:
        """Track id, tags and split of every track. Raises ValueError for a table that is neither FMA's nor as above."""
        lines = rows_of(self.tracks)
        head = next(lines)
        if "track_id" in head:
            split = head.index("split") if "split" in head else None
            if "tags" not in head or (self.tests == "left_out" and split is None):
                raise ValueError(f"{self.tracks} needs the columns track_id, tags and, without tests, split")
            for line in lines:
                tags = tuple(tag.strip() for tag in line[head.index("tags")].split("|") if tag.strip())
                yield int(line[head.index("track_id")]), tags, "" if split is None else line[split]
            return
        pairs = list(zip(head, next(lines), strict=False))
        if ("track", "genres") not in pairs or ("set", "split") not in pairs or self.genres is None:
            raise ValueError(
                f"{self.tracks} must be FMA's tracks.csv, with tag_vectors.genres its genres.csv, or a table with the "
                "columns track_id and tags"
            )
        next(lines)  # track_id
        titles = dict(self.titles(self.genres))
        genres, split = pairs.index(("track", "genres")), pairs.index(("set", "split"))
        for line in lines:
            yield (
                int(line[0]),
                tuple(titles[one] for one in json.loads(line[genres] or "[]") if one in titles),
                line[split],
            )

    def titles(self, file: str) -> Iterator[tuple[int, str]]:
        """Genre id and title."""
        lines = rows_of(file)
        head = next(lines)
        for line in lines:
            yield int(line[head.index("genre_id")]), line[head.index("title")]


def rows_of(file: str) -> Iterator[list[str]]:
    """The lines of a CSV. Raises OSError where it cannot be read."""
    csv.field_size_limit(1 << 24)
    yield from csv.reader(io.StringIO(read_uri(file).decode("utf-8-sig")))

"""GTZAN: 1,000 excerpts of 30 s in ten genres. G. Tzanetakis, P. Cook, "Musical genre classification of audio signals",
IEEE Transactions on Speech and Audio Processing 10(5), 2002.

The only split offered is the fault-filtered one of C. Kereliuk, B. L. Sturm, J. Larsen, "Deep learning and music
adversaries", IEEE Transactions on Multimedia 17(11), 2015, after B. L. Sturm, "The GTZAN dataset: its contents, its
faults, their effects on evaluation, and its future use", 2013: repeated, distorted and mislabelled excerpts are out,
and no artist is in two parts. 443 / 197 / 290 excerpts. The numbers below were compared with the lists of that paper's
authors and with those that torchaudio carries: they are equal. Traps:

- Accuracies on random splits of all 1,000 are far higher and not comparable.
- `jazz.00054` cannot be read in the copy most people have. It is in the training list, and stays listed: `prepare`
  reports it.
- Artists are not named in the lists, so clips have no group.
"""

from pathlib import Path
from typing import Literal

from atose_ray.datasets.base import AudioDatasetConfig, DatasetError, finish_listing
from atose_ray.types import ClipRef, Listing, Split

AUDIO_FOLDERS = (".", "genres_original", "genres", "Data/genres_original")
SUFFIXES = (".wav", ".au")
EXCERPTS: dict[Split, dict[str, str]] = {
    "train": {
        "blues": "29-49 73-97",
        "classical": "30-33 43-48 50-67 80-99",
        "country": "19-26 28-29 65-99",
        "disco": "5 15-20 22-37 39-45 47 49 53-54 56-57 59 61 70 73-74 89",
        "hiphop": "2-25 28-29 31-38 41-42 55-61 77-80",
        "jazz": "0-1 11-24 41 47-72",
        "metal": "2-3 5 21 24 35 46-57 59-66 69 71-72 79-80 84 86 89-99",
        "pop": "2-9 11-12 16-20 23-29 31-36 38-42 44 46 49-50 80 97-99",
        "reggae": "0-2 4 6 9 11-12 14-32 42-45 49-51 54-60 63 69",
        "rock": "0-9 16-26 57-70 91-99",
    },
    "valid": {
        "blues": "0-11 50-60",
        "classical": "0-10 68-76",
        "country": "0-7 9-18 27 41-42 45 49",
        "disco": "0 2-4 6-14 46 48 52 67-68 72 75 90 95",
        "hiphop": "81-98",
        "jazz": "2-10 25-32",
        "metal": "0-1 6-11 16-20 36-37 68 76-77 81-82",
        "pop": "10 53 55 58-62 81 83-86",
        "reggae": "61-62 70 72 74 76-78 85 92-99",
        "rock": "38 49-56 71-85",
    },
    "test": {
        "blues": "12-28 61-72 98-99",
        "classical": "11-29 34-41 49 77-79",
        "country": "30-40 43-44 46-48 50-51 53-64",
        "disco": "1 21 58 62-66 69 76-88 91-94 96-97 99",
        "hiphop": "0 26-27 30 40 43-45 51-54 62-75 99",
        "jazz": "73-99",
        "metal": "12-15 22-23 25-33 38-39 67 70 73-75 78 83 85 87-88",
        "pop": "0-1 13-14 43 63-66 69-79 82 88-96",
        "reggae": "34-40 46-48 52-53 64-68 71 79 82-84 87-90",
        "rock": "10-15 27-37 39-48 86-90",
    },
}


class GtzanConfig(AudioDatasetConfig):
    """`source` holds the ten genre folders, itself or in `genres_original/` (.wav) or `genres/` (.au)."""

    kind: Literal["gtzan"] = "gtzan"

    def list_clips(self) -> Listing:
        folder = self.folder()
        genres = tuple(EXCERPTS["train"])
        places = [folder / place for place in AUDIO_FOLDERS if (folder / place / genres[0]).is_dir()]
        if not places:
            raise DatasetError(
                f"gtzan needs the folders {', '.join(genres)}, but {folder} has no {genres[0]}, neither itself nor in "
                f"its folders {', '.join(AUDIO_FOLDERS[1:])}; --source must be the unpacked archive"
            )
        audio = places[0]
        clips = [
            ClipRef(str(find_excerpt(audio / genre, name)), name, (genre,), split)
            for split, lists in EXCERPTS.items()
            for genre, numbers in lists.items()
            for name in names_of(genre, numbers)
        ]
        listed = {clip.name for clip in clips}
        faulty = {
            path.stem
            for genre in genres
            for path in (audio / genre).glob(f"{genre}.*")
            if path.suffix in SUFFIXES and path.stem not in listed
        }
        left_out = {"not in the fault-filtered split": len(faulty)}
        return finish_listing(self, audio, clips, "the fault-filtered split", exclusive=True, left_out=left_out)


def names_of(genre: str, numbers: str) -> list[str]:
    """("blues", "3 5-6") -> blues.00003, blues.00005, blues.00006."""
    names = []
    for part in numbers.split():
        first, _, last = part.partition("-")
        names += [f"{genre}.{number:05d}" for number in range(int(first), int(last or first) + 1)]
    return names


def find_excerpt(folder: Path, name: str) -> Path:
    """The file of an excerpt; where none is there, the one to expect, for `prepare` to report."""
    paths = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
    return next((path for path in paths if path.is_file()), paths[0])

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

from typing import Literal

from atose_ray.datasets.base import AudioDatasetConfig, DatasetError, finish_listing, first_file
from atose_ray.types import ClipRef, Listing, Split, package_yaml

AUDIO_FOLDERS = (".", "genres_original", "genres", "Data/genres_original")
SUFFIXES = (".wav", ".au")
EXCERPTS: dict[Split, dict[str, str]] = package_yaml(__package__, "gtzan.yaml")


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
            ClipRef(str(first_file([audio / genre / f"{name}{suffix}" for suffix in SUFFIXES])), name, (genre,), split)
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
    spans = [(int(first), int(last or first)) for first, _, last in (part.partition("-") for part in numbers.split())]
    return [f"{genre}.{number:05d}" for first, last in spans for number in range(first, last + 1)]

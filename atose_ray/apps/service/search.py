"""An index of sounds beside the models: searched by words and by sound, its sounds to be heard."""

import mimetypes
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from atose_ray.apps.index import PARTS, NoIndexError, Rows, open_index, read_rows
from atose_ray.apps.model import Model
from atose_ray.apps.retrieve import Found, Term, mean_direction, parse, ranked, tags_of
from atose_ray.apps.service.batching import seconds_left
from atose_ray.apps.service.config import Wrong
from atose_ray.storage import Store, StoreError
from atose_ray.storage.store import FileStamp
from atose_ray.training import checkpoint
from atose_ray.types import Array

MOST_TERMS, MOST_FOUND, SHOWN_TAGS = 50, 1000, 40


class Search:
    """The windows of an index in memory; read anew when `find index` added to them. name: of its model.

    Raises NoIndexError for what is no index, and ValueError where none of the models made it."""

    def __init__(self, uri: str, models: Mapping[str, Model]) -> None:
        self.store, info, made_with = open_index(uri)
        self.name = next((name for name, model in models.items() if same(model.trained, made_with)), "")
        if not self.name:
            raise ValueError(
                f"the index {self.store.uri} was made by another model than {', '.join(models)}: serve its own, "
                f"{self.store.uri}/model, or make one anew: python -m atose_ray.find index MODEL FOLDER INDEX"
            )
        self.trained, self.folder = models[self.name].trained, Store(info.folder)
        self._lock, self._version = threading.Lock(), tuple[FileStamp, ...]()
        self._parts, self._paths = list[Rows](), frozenset[str]()
        self.refresh()

    def refresh(self) -> tuple[list[Rows], frozenset[str]]:
        """The windows and the files, as they are now."""
        with self._lock:
            version = tuple(sorted(self.store.child(PARTS).files()))
            if version != self._version:
                parts = list(read_rows(self.store))
                self._version, self._parts = version, parts
                self._paths = frozenset(path for rows in parts for path in rows.paths)
            return self._parts, self._paths

    def find(self, words: str, vectors_SE: Array | None, top: int) -> tuple[list[Found], int]:
        """The best files, and how many there are. vectors_SE: of the windows of a sound to be near to. Raises
        ValueError for words that are none, Wrong for those that the model does not know, NoIndexError for an empty
        index, TimeUp."""
        terms = parse(words) if words.strip() else []
        if not terms and vectors_SE is None:
            raise ValueError("expected words to look for, a sound to be like, or both: ?words=guitar, -drums")
        if len(terms) > MOST_TERMS:
            raise ValueError(f"expected at most {MOST_TERMS} words, but got {len(terms)}")
        self._check(terms)
        tags = tags_of(self.trained, terms)
        parts, paths = self.refresh()
        if not paths:
            raise NoIndexError("the index holds no sound yet: python -m atose_ray.find index MODEL FOLDER INDEX")

        def in_time() -> Iterator[Rows]:
            for rows in parts:
                seconds_left()
                yield rows

        wanted_E = None if vectors_SE is None else mean_direction(vectors_SE)
        return ranked(in_time(), self.trained, terms, tags, wanted_E, min(top, MOST_FOUND)), len(paths)

    def _check(self, terms: list[Term]) -> None:
        own, method = self.trained.spec.tags, self.trained.run.method
        unknown = [term.text for term in terms if term.text not in own]
        if unknown and not method.scores_unseen:
            more = f" and {len(own) - SHOWN_TAGS} more" if len(own) > SHOWN_TAGS else ""
            raise Wrong(
                422,
                f"the model of the index does not know {', '.join(unknown)}; it knows "
                f"{', '.join(own[:SHOWN_TAGS])}{more}",
            )

    def sound(self, path: str, most_bytes: int) -> tuple[bytes, str]:
        """A file of the index with its media type. Raises Wrong: 404, 413."""
        if path not in self.refresh()[1] or not below(self.folder, path):
            raise Wrong(404, f"the index has no sound {path!r}; /find names those that it has")
        try:
            size = self.folder.fs.get_file_info(self.folder.path(path)).size
            if size is not None and size > most_bytes:
                raise Wrong(413, f"{path}: more than {most_bytes / (1 << 20):g} MiB, the most that this service sends")
            with self.folder.reading(path) as file:
                content = file.read()
        except (OSError, StoreError):
            raise Wrong(
                404,
                f"{path} is in the index, but its sound is not at hand: it was moved or deleted since, or its folder "
                "cannot be read from where the service runs",
            ) from None
        kind = mimetypes.guess_type(path)[0] or ""
        return content, kind if kind.startswith(("audio/", "video/")) else "application/octet-stream"


def same(one: checkpoint.Model, other: checkpoint.Model) -> bool:
    """Whether two models are one: same tags, same weights."""
    mine, theirs = one.method.state_dict(), other.method.state_dict()
    return (
        one.spec.tags == other.spec.tags
        and mine.keys() == theirs.keys()
        and all(torch.equal(tensor.cpu(), theirs[key].cpu()) for key, tensor in mine.items())
    )


def below(root: Store, name: str) -> bool:
    """Whether a name leads to a place below a folder, links included."""
    parts = name.split("/")
    if not {"", ".", ".."}.isdisjoint(parts) or "\0" in name:
        return False
    if root.local_path is None:
        return True
    place = root.local_path.resolve()
    return (place / Path(*parts)).resolve().is_relative_to(place)

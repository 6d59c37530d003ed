"""The Python API: a trained model that tags, embeds and follows sounds. `atose_ray/__init__.py` lists the names.

Every method may be called from several threads at once; a sound is a path, a URI, the bytes of a file, an open file, or
samples with their rate (apps/sounds.py). The examples below are run by tests/test_api.py."""

import functools
import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

from atose_ray.apps.embeddings import Embedding, embedded, embedding_of
from atose_ray.apps.predict import Tagging, device_of, tag_file
from atose_ray.apps.published_tagger import with_vggish
from atose_ray.apps.recordings import Listening, sounds_below, thresholds_of, timeline_of
from atose_ray.apps.sounds import Sound, opened
from atose_ray.apps.timeline import Timeline, TimelineConfig
from atose_ray.apps.writers import WRITERS
from atose_ray.audio.io import AudioError
from atose_ray.search.record import existing_study, load_trials, trial_store
from atose_ray.storage import Store, default_store_uri, is_uri
from atose_ray.training import checkpoint
from atose_ray.training.precision import prepare_to_score
from atose_ray.training.record import BEST_WEIGHTS, RunFolder
from atose_ray.training.sources import tags_with_vectors
from atose_ray.types import TagSet

AHEAD = 2  # files that wait for each worker
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Model:
    """A trained model, as `load_model` opens it.

    tags: what it was trained on. sample_rate: in Hz, of what it hears; every sound is resampled to it. metrics: what
    its training found out (metrics.json). uri: where it lies. trained: its parts, for those who need them.

    >>> import atose_ray
    >>> model = atose_ray.load_model("best")
    >>> model.tags
    ('high', 'loud', 'low', 'steady')
    >>> model.sample_rate, model.embedding_size
    (4000, 32)
    """

    def __init__(self, trained: checkpoint.Model, uri: str) -> None:
        self.trained, self.uri = trained, uri
        self.tags, self.metrics = trained.spec.tags, trained.metrics

    def __repr__(self) -> str:
        run = self.trained.run
        return f"<Model {run.encoder.kind}, {run.method.kind}, {len(self.tags)} tags, {self.uri}>"

    @property
    def sample_rate(self) -> int:
        """In Hz. Raises ValueError for a model of stored frames, which hears nothing (load_model's `vggish`)."""
        return self.trained.spec.audio.sample_rate_hz

    @functools.cached_property
    def embedding_size(self) -> int:
        """Numbers of an embedding."""
        with torch.no_grad():
            return int(embedded(self.trained, torch.zeros(1, *self.trained.spec.input.shape)).shape[1])

    def tag(self, sound: Sound, sample_rate: int | None = None, *, tags: Iterable[str] | None = None) -> Tagging:
        """The score of every tag in [0, 1], highest first: the mean over crops of the whole sound.

        sample_rate: of samples, in Hz. tags: others than the model's own; one that reads tag vectors scores any words.
        Raises AudioError for what is no sound, ValueError for tags that the model cannot score.

        >>> tagging = model.tag("song.wav")
        >>> tagging.seconds, sorted(tag for tag, score in tagging.scores)
        (2.0, ['high', 'loud', 'low', 'steady'])
        >>> import soundfile
        >>> samples, sample_rate = soundfile.read("song.wav")
        >>> model.tag(samples, sample_rate).scores == tagging.scores
        True
        """
        with opened(sound, sample_rate) as (source, name):
            return tag_file(self.trained, source, tags=self._tag_set(tags), name=name)

    def embed(self, sound: Sound, sample_rate: int | None = None, *, hop_s: float | None = None) -> Embedding:
        """The sound as vectors: `scene_E` of the whole, and with `hop_s` one every so many seconds in `vectors_SE`.

        >>> model.embed("song.wav").scene_E.shape
        (32,)
        >>> embedding = model.embed(samples, sample_rate, hop_s=0.5)
        >>> embedding.vectors_SE.shape, embedding.start_s_S.tolist()
        ((4, 32), [0.0, 0.5, 1.0, 1.5])
        """
        with opened(sound, sample_rate) as (source, name):
            return embedding_of(self.trained, source, hop_s, name)

    def timeline(
        self,
        sound: Sound,
        sample_rate: int | None = None,
        *,
        hop_s: float = 1.0,
        left_s: float | None = None,
        right_s: float | None = None,
        tags: Iterable[str] | None = None,
        threshold: float | str | None = None,
        config: TimelineConfig | None = None,
    ) -> Timeline:
        """What sounds when: the scores of every hop, and events made of them.

        left_s, right_s: what is heard around a hop; None is the model's own length with the hop in its middle.
        threshold: a number, or a rule by which every tag's was fitted on validation (f1, precision); None is that of
        `config`, else f1 where the model has it, else 0.5. config: how events are made of scores.

        >>> timeline = model.timeline("song.wav", hop_s=0.5, threshold=0.0)
        >>> timeline.scores_SC.shape, len(timeline.events)
        ((4, 4), 4)
        >>> atose_ray.write_timeline(timeline, "song.srt", "srt")
        """
        wanted = self._tag_set(tags)
        if config is None or threshold is not None:
            rule = None if threshold is None else str(threshold)
            events = (config or TimelineConfig()).model_dump() | thresholds_of(self.trained, wanted, rule)
            config = TimelineConfig.model_validate(events)
        listening = Listening(hop_s, left_s, right_s, config)
        with opened(sound, sample_rate) as (source, name):
            file = io.BytesIO(source) if isinstance(source, bytes) else None if isinstance(source, str) else source
            return timeline_of(self.trained, name, listening, self.uri, tags=wanted, source=file)

    def tag_files(
        self, files: str | Iterable[Sound], *, workers: int = 2, tags: Iterable[str] | None = None
    ) -> Iterator[tuple[Sound, Tagging | AudioError]]:
        """Many files, or the sounds below a folder: (file, what `tag` gives), in their order, as they are done.

        workers: files that are read and heard at a time, each in a thread. What is no sound comes with its AudioError,
        and the others go on.

        >>> for file, result in model.tag_files(["song.wav", "nowhere.wav"]):
        ...     print(file, "error" if isinstance(result, atose_ray.AudioError) else len(result.scores))
        song.wav 4
        nowhere.wav error
        """
        asked = None if tags is None else tuple(tags)
        return in_order(lambda file: self.tag(file, tags=asked), sounds_of(files), workers)

    def embed_files(
        self, files: str | Iterable[Sound], *, workers: int = 2, hop_s: float | None = None
    ) -> Iterator[tuple[Sound, Embedding | AudioError]]:
        """As `tag_files`, with what `embed` gives.

        >>> [result.scene_E.shape for _, result in model.embed_files(["song.wav"])]
        [(32,)]
        """
        return in_order(lambda file: self.embed(file, hop_s=hop_s), sounds_of(files), workers)

    def _tag_set(self, tags: Iterable[str] | None) -> TagSet | None:
        return None if tags is None else tags_with_vectors(self.trained, tuple(tags))


def load_model(
    model: str | os.PathLike[str],
    *,
    trial: int | None = None,
    store: str | None = None,
    device: str = "cpu",
    vggish: str | None = None,
) -> Model:
    """Open a trained model: a model folder (`best` of a study or of a run), a run folder, or a study by name or folder.

    model: a path, s3:// or gs://, or the name of a study in `store` (default: ATOSE_STORE, else ./atose_store).
    trial: of a study, by number; None is its chosen one. device: cpu or cuda. vggish: the weights by which a model of
    VGGish's stored features hears (docs/USE.md). Raises ValueError, saying what is there, where there is no model.

    >>> atose_ray.load_model("atose_store/studies/tiny/best").tags == model.tags
    True
    >>> atose_ray.load_model("tiny", trial=0)
    <Model sample_cnn, supervised, 4 tags, .../studies/tiny/trials/000-...>
    """
    trained, uri = _found(os.fspath(model), trial, store)
    if vggish is not None:
        trained = with_vggish(trained, vggish)
    if torch.device(device) != device_of(trained):
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device is {device}, but PyTorch sees no CUDA device here; leave it out")
        execution = trained.run.execution.model_copy(update={"cuda_graphs": False})  # a graph is for one thread
        prepare_to_score(trained.method.to(device), execution, torch.device(device))
    return Model(trained, uri)


def _found(place: str, trial: int | None, store: str | None) -> tuple[checkpoint.Model, str]:
    """A model by what `load_model` was given, and where it lies."""
    here = Store(place)
    if trial is None and here.exists(checkpoint.WEIGHTS):
        return checkpoint.load_model(here), here.uri
    if here.exists("study.json"):
        study = here
    elif not is_uri(place) and Path(place).name == place and not Path(place).exists():
        study = existing_study(Store(store or default_store_uri()), place)
    elif trial is None and here.exists(BEST_WEIGHTS):
        return checkpoint.best_model(RunFolder(here)), here.uri
    else:
        return checkpoint.load_model(here), here.uri  # or it says what is missing
    if trial is None:
        best = study.child("best")
        return checkpoint.load_model(best), best.uri
    numbers = {one.number: one for one in load_trials(study)}
    if trial not in numbers:
        there = f"0 to {max(numbers)}" if numbers else "none"
        raise ValueError(f"trial {trial} is not in the study {study.uri}; its trials: {there}")
    folder = trial_store(study, numbers[trial])
    return checkpoint.best_model(RunFolder(folder)), folder.uri


def write_timeline(timeline: Timeline, path: str | os.PathLike[str], format: str) -> None:
    """Write a timeline as srt, vtt, audacity, raven, csv, jsonl, textgrid, elan, rttm, npz or html. Raises ValueError
    for another format."""
    if format not in WRITERS:
        raise ValueError(f"format is one of {', '.join(WRITERS)}, but got {format!r}")
    place = Path(path).absolute()
    Store(str(place.parent)).write(place.name, WRITERS[format].write(timeline))


def sounds_of(files: str | Iterable[Sound]) -> Iterable[Sound]:
    """The files of a folder, or what was given."""
    return [file for file, _ in sounds_below([files])] if isinstance(files, str) else files


def in_order(
    function: Callable[[ItemT], ResultT], items: Iterable[ItemT], workers: int
) -> Iterator[tuple[ItemT, ResultT | AudioError]]:
    """(item, function(item)) of every item in its order; `workers` at a time, and a few ahead of who reads them."""
    waiting: deque[tuple[ItemT, Future[ResultT | AudioError]]] = deque()

    def call(item: ItemT) -> ResultT | AudioError:
        try:
            return function(item)
        except AudioError as error:
            return error

    def oldest() -> tuple[ItemT, ResultT | AudioError]:
        item, future = waiting.popleft()
        return item, future.result()

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(call, item)))
                if len(waiting) >= AHEAD * max(workers, 1):
                    yield oldest()
            while waiting:
                yield oldest()
        finally:
            for _, future in waiting:
                future.cancel()


__all__ = ["AudioError", "Embedding", "Model", "Tagging", "Timeline", "TimelineConfig", "load_model", "write_timeline"]

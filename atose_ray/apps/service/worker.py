"""What a process with models does with a request: decode within limits, ask a model, write the answer."""

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Literal

import numpy as np
from pydantic import ValidationError

from atose_ray.apps.model import Model, load_model
from atose_ray.apps.service.batching import Passes, TimeUp, Together, deadline, passes, seconds_left
from atose_ray.apps.service.config import ServiceConfig, Wrong
from atose_ray.apps.service.search import Search, below
from atose_ray.apps.timeline import Timeline, TimelineConfig
from atose_ray.apps.writers import WRITERS, page
from atose_ray.audio.io import AudioError, decode_parts
from atose_ray.config import explain
from atose_ray.storage import Store, StoreError, is_uri
from atose_ray.types import Array

PIECE_S = 30.0  # decoded between two looks at the limits
MOST_HOPS, MOST_SMOOTHED, MOST_AROUND_S, MOST_WORDS = 20_000, 500, 60.0, 200
NO_INDEX = "this service has no index to search: start it with --set index=FOLDER, which `find index` made"
UPLOAD = "upload://"  # before the name of what was sent: no writer looks for it on this machine's disk
FORMATS = ("json", "view", *WRITERS)
MEDIA_TYPES = {"csv": "text/csv", "html": "text/html", "vtt": "text/vtt", "npz": "application/octet-stream"}
MEDIA_TYPES |= {"elan": "application/xml", "jsonl": "application/x-ndjson"}


Kind = Literal["tag", "embed", "timeline", "find", "sound"]
OF_INDEX = ("find", "sound")


@dataclasses.dataclass(frozen=True)
class Task:
    """A sound (its content, or a name below the config's `sounds`) and what is asked of it; `find` may have none, and
    `sound` asks for one of the index. options: by name, given ones only: top, tags, hop_s, left_s, right_s, threshold,
    settings (JSON of a TimelineConfig), format, words, path."""

    kind: Kind
    model: str
    name: str
    content: bytes
    uri: str | None
    options: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Answer:
    """body: of the answer. seconds: of sound that was decoded. passes: forward passes that it caused."""

    status: int
    body: bytes
    media_type: str = "application/json"
    suffix: str = ".json"
    seconds: float = 0.0
    passes: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class About:
    """What a caller may know of a model. finds: whether the service's index is of it."""

    name: str
    tags: tuple[str, ...]
    sample_rate_hz: int
    any_words: bool
    finds: bool


def refusal(status: int, message: str) -> Answer:
    """An answer that says what was wrong."""
    return Answer(status, json.dumps({"error": message}).encode())


class Worker:
    """Models by name, and the config's index. `answer` may be called from several threads at once. Raises ValueError
    for an index of none of them."""

    def __init__(self, models: Mapping[str, Model], config: ServiceConfig) -> None:
        self.config, self.models, self.together = config, dict[str, Model](), dict[str, Together]()
        self.search = None if config.index is None else Search(config.index, models)
        for name, model in models.items():
            together = Together(model.trained.method, config.batch, config.batch_wait_ms / 1000).eval()
            self.together[name] = together
            self.models[name] = Model(dataclasses.replace(model.trained, method=together), name)
        self.abouts = tuple(self._about(name) for name in self.models)

    def _about(self, name: str) -> About:
        model = self.models[name]
        any_words = model.trained.run.method.scores_unseen
        finds = self.search is not None and self.search.name == name
        return About(name, model.tags, model.sample_rate, any_words, finds)

    def answer(self, task: Task) -> Answer:
        """Never raises for what a request may bring."""
        together = self.together.get(task.model)
        if together is None:
            return refusal(404, f"there is no model {task.model!r}; there are {', '.join(self.models)}")
        token = deadline.set(time.monotonic() + self.config.request_s)
        noted: Passes = []
        passes_token = passes.set(noted)
        together.open += 1  # a hint for batching: it need not be exact
        try:
            return dataclasses.replace(self._refusing(task), passes=tuple(noted))
        finally:
            together.open -= 1
            deadline.reset(token)
            passes.reset(passes_token)

    def _refusing(self, task: Task) -> Answer:
        try:
            return self._answer(task)
        except Wrong as error:
            return refusal(error.status, str(error))
        except TimeUp:
            return refusal(503, f"it took longer than {self.config.request_s:g} s; send a shorter sound")
        except AudioError as error:
            return refusal(422, str(error).removeprefix(UPLOAD))
        except (ValueError, StoreError) as error:
            return refusal(422, str(error))
        except Exception:
            logging.getLogger(__name__).exception("a request failed")
            return refusal(500, "this failed here, and not through your request alone; the service's log says why")

    def _answer(self, task: Task) -> Answer:
        model, options, hop_s = self.models[task.model], task.options, task.options.get("hop_s")
        check_options(options)
        if task.kind in OF_INDEX:
            return self._of_index(task)
        audio_T, seconds = self._decoded(task, model.sample_rate)
        if hop_s is not None and seconds / hop_s > MOST_HOPS:
            raise Wrong(413, f"{seconds:.1f} s make more than {MOST_HOPS} hops of {hop_s:g} s; take longer ones")
        file = task.uri or UPLOAD + task.name
        facts = {"file": task.uri or task.name, "model": task.model, "seconds": round(seconds, 6)}
        if task.kind == "tag":
            scores = model.tag(audio_T, model.sample_rate, tags=words_of(options)).scores
            return as_json({**facts, "scores": dict(scores[: options.get("top")])}, seconds)
        if task.kind == "embed":
            found = model.embed(audio_T, model.sample_rate, hop_s=hop_s)
            rows = {name: getattr(found, field).tolist() for name, field in EMBEDDING.items()}
            return as_json({**facts, **rows}, seconds)
        timeline = model.timeline(audio_T, model.sample_rate, **timeline_options(options))
        return written(dataclasses.replace(timeline, file=file), options.get("format", "json"), facts)

    def _of_index(self, task: Task) -> Answer:
        if self.search is None or self.search.name != task.model:
            raise Wrong(404, NO_INDEX)
        if task.kind == "sound":
            content, media_type = self.search.sound(task.options["path"], self.config.max_bytes)
            return Answer(200, content, media_type, "")
        vectors_SE, seconds = None, 0.0
        if task.content or task.uri is not None:
            model = self.models[task.model]
            audio_T, seconds = self._decoded(task, model.sample_rate)
            vectors_SE = model.embed(audio_T, model.sample_rate).vectors_SE
        found, files = self.search.find(task.options.get("words", ""), vectors_SE, task.options.get("top", 10))
        return as_json({"model": task.model, "files": files, "found": [*map(dataclasses.asdict, found)]}, seconds)

    def _decoded(self, task: Task, rate_hz: int) -> tuple[Array, float]:
        """[T] at the rate of the model, and its seconds. Raises Wrong for a sound beyond the limits, AudioError."""
        parts, samples = list[Array](), 0
        with self._opened(task) as (source, name):
            for piece in decode_parts(source, sample_rate_hz=rate_hz, max_seconds=PIECE_S, name=name):
                seconds_left()
                samples += len(piece.audio_T)
                if samples > self.config.max_seconds * rate_hz:
                    most = self.config.max_seconds
                    raise Wrong(413, f"the sound is longer than {most:g} s, the most that this service takes; cut it")
                parts.append(piece.audio_T)
        return np.concatenate(parts), samples / rate_hz

    @contextlib.contextmanager
    def _opened(self, task: Task) -> Iterator[tuple[bytes | BinaryIO, str]]:
        if task.uri is None:
            yield task.content, UPLOAD + task.name
            return
        if self.config.sounds is None:
            raise Wrong(403, "this service takes sounds that are sent, and none by name (its config `sounds`)")
        root = Store(self.config.sounds)
        name = inside(root, task.uri)
        if not root.exists(name):
            raise Wrong(404, f"{task.uri}: there is no such sound")
        size = root.fs.get_file_info(root.path(name)).size
        if size is None or size > self.config.max_bytes:
            raise Wrong(413, f"{task.uri}: more than {self.config.max_mib:g} MiB, the most that this service takes")
        with root.reading(name) as file:
            yield file, task.uri


EMBEDDING = {"scene": "scene_E", "vectors": "vectors_SE", "start_s": "start_s_S", "end_s": "end_s_S"}


def inside(root: Store, uri: str) -> str:
    """The name below `root` of a URI that begins with it, or of a relative path. Raises Wrong for any other place."""
    name = uri.removeprefix(f"{root.uri.rstrip('/')}/")
    if root.local_path is not None:
        name = name.removeprefix(f"file://{root.local_path}/")
    if is_uri(name) or "\\" in name or "?" in name or not name.isprintable() or not below(root, name):
        raise Wrong(403, "uri names a sound below the service's own folder, such as birds/wren.wav, and nothing else")
    return name


def check_options(options: Mapping[str, Any]) -> None:
    """Raises Wrong for options that would cost more than a sound is worth."""
    if options.get("format", "json") not in FORMATS:
        raise Wrong(422, f"format is one of {', '.join(FORMATS)}, but got {options['format']!r}")
    for name in ("left_s", "right_s"):
        if options.get(name, 0.0) > MOST_AROUND_S:
            raise Wrong(422, f"{name} is at most {MOST_AROUND_S:g} s, but got {options[name]:g}")
    if len(words_of(options) or ()) > MOST_WORDS:
        raise Wrong(422, f"tags are at most {MOST_WORDS} words")


def words_of(options: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The tags of an option like `sitar, door slam`; None are the model's own."""
    words = [" ".join(word.split()) for word in options.get("tags", "").split(",")]
    return tuple(dict.fromkeys(word for word in words if word)) or None


def timeline_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """What `Model.timeline` takes. Raises Wrong for settings that are none."""
    taken = {name: options[name] for name in ("hop_s", "left_s", "right_s", "threshold") if name in options}
    taken["tags"] = words_of(options)
    if "settings" in options:
        try:
            config = TimelineConfig.model_validate_json(options["settings"])
        except ValidationError as error:
            raise Wrong(422, explain(error, "settings", TimelineConfig)) from error
        if config.smoothing_s / options.get("hop_s", 1.0) > MOST_SMOOTHED:
            raise Wrong(422, f"smoothing_s is at most {MOST_SMOOTHED} hops, but got {config.smoothing_s:g}")
        taken["config"] = config
    return taken


def written(timeline: Timeline, kind: str, facts: Mapping[str, Any]) -> Answer:
    """A timeline in one of FORMATS."""
    if kind == "view":
        return as_json({**facts, **page.view_of(timeline)}, timeline.seconds)
    if kind == "json":
        scores_SC = np.round(timeline.scores_SC.astype(np.float64), 6).tolist()
        events = [dataclasses.asdict(event) for event in timeline.events]
        rows = {"hop_s": timeline.hop_s, "tags": timeline.tags, "events": events, "scores": scores_SC}
        return as_json({**facts, **rows, "settings": timeline.settings}, timeline.seconds)
    writer = WRITERS[kind]
    media_type = MEDIA_TYPES.get(kind, "text/plain")
    return Answer(200, writer.write(timeline), media_type, writer.suffix, timeline.seconds)


def as_json(value: Mapping[str, Any], seconds: float) -> Answer:
    """A value that is JSON. Raises ValueError for numbers that are none."""
    return Answer(200, json.dumps(value, ensure_ascii=False, allow_nan=False).encode(), seconds=seconds)


def open_worker(models: Mapping[str, str], config: ServiceConfig, store: str | None) -> Worker:
    """Name -> path, URI or study. Raises ValueError where one is no model, or hears nothing."""
    return Worker({name: load_model(uri, store=store, device=config.device) for name, uri in models.items()}, config)

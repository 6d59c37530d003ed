"""The service as an ASGI application: who may ask, what they may send, where their question is answered."""

import asyncio
import contextvars
import math
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atose_ray.apps.service.access import Rate, from_this_machine, with_token
from atose_ray.apps.service.config import TOKEN_VARIABLE, ServiceConfig, Wrong
from atose_ray.apps.service.pages import main_page, reference_page
from atose_ray.apps.service.upload import Upload, read_upload
from atose_ray.apps.service.worker import FORMATS, NO_INDEX, OF_INDEX, About, Answer, Kind, Task, Worker, refusal

OPEN_TO_ALL = frozenset(("/", "/healthz", "/docs", "/openapi.json"))
PATHS = OPEN_TO_ALL | {"/models", "/metrics", "/tag", "/embed", "/timeline", "/find", "/sound"}
GRACE_S = 5.0  # beyond request_s, before an answer is given up here
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
SAFE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; media-src blob: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
FORM = {
    "requestBody": {
        "description": "the sound, unless `uri` names one",
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}
            }
        },
    }
}


class Backend(Protocol):
    """Where models are."""

    async def answer(self, task: Task) -> Answer:
        """Of a model."""

    async def models(self) -> tuple[About, ...]:
        """All that there are; the first is asked where a request names none."""


class LocalBackend:
    """Models of this process."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.pool = ThreadPoolExecutor(worker.config.threads, thread_name_prefix="answers")

    async def answer(self, task: Task) -> Answer:
        """In a thread."""
        here = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self.pool, here.run, self.worker.answer, task)

    async def models(self) -> tuple[About, ...]:
        """As they were opened."""
        return self.worker.abouts


class Metrics:
    """What Prometheus reads: of this process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        text = "requests that were answered"
        self.requests = Counter("atose_requests", text, ["path", "status"], registry=self.registry)
        text, buckets = "seconds until an answer, upload included", BUCKETS
        self.seconds = Histogram("atose_request_seconds", text, ["path"], buckets=buckets, registry=self.registry)
        self.audio = Counter("atose_audio_seconds", "seconds of sound", ["model"], registry=self.registry)
        text, sizes = "clips of a forward pass", (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
        self.clips = Histogram("atose_batch_clips", text, ["model"], buckets=sizes, registry=self.registry)
        text, sizes = "requests whose clips went through a forward pass together", (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
        self.sharing = Histogram("atose_batch_requests", text, ["model"], buckets=sizes, registry=self.registry)
        self.open = Gauge("atose_open_requests", "requests that are being answered", registry=self.registry)

    def note(self, model: str, answer: Answer) -> None:
        """What a model did for an answer."""
        for clips, requests in answer.passes:
            self.clips.labels(model).observe(clips)
            self.sharing.labels(model).observe(requests)
        if answer.status == 200:
            self.audio.labels(model).inc(answer.seconds)


def response_of(answer: Answer, name: str = "") -> Response:
    """An answer over HTTP; what is no JSON is offered as a file with the sound's name, and without a suffix of its own
    under that name."""
    response = Response(answer.body, answer.status, media_type=answer.media_type)
    if answer.suffix != ".json":
        file = name.rpartition("/")[2]
        file = urllib.parse.quote(file.rsplit(".", 1)[0] + answer.suffix if answer.suffix else file)
        response.headers["content-disposition"] = f"attachment; filename*=UTF-8''{file}"
    return response


class Service:
    """What the routes share."""

    def __init__(self, backend: Backend, config: ServiceConfig, token: str | None) -> None:
        self.backend, self.config, self.token = backend, config, token
        self.rate, self.metrics, self.open = Rate(config.per_minute), Metrics(), 0

    def refused(self, request: Request) -> Answer | None:
        """Why a request is not answered, before anything of its body is read."""
        if self.token is None:
            if not from_this_machine(request.headers.get("host", ""), request.headers.get("origin")):
                return refusal(403, "without a token this service answers its own machine and its own page only")
        elif request.url.path not in OPEN_TO_ALL and not with_token(
            request.headers.get("authorization", ""), self.token
        ):
            return refusal(401, f"send the service's token: Authorization: Bearer ${TOKEN_VARIABLE}")
        return None

    async def ask(self, request: Request, kind: Kind, **asked: Any) -> Response:
        """A question to a model, within the limits."""
        client = request.client.host if request.client else ""
        if wait_s := self.rate.wait_s(client):
            return self.later(429, f"more than {self.config.per_minute} requests a minute", wait_s)
        if self.open >= self.config.max_open:
            return self.later(503, f"{self.config.max_open} requests are open already", 1)
        self.open += 1
        self.metrics.open.inc()
        try:
            given = {name: value for name, value in asked.items() if value is not None}
            model, uri = given.pop("model", None), given.pop("uri", None)
            abouts = await self.backend.models()
            if kind in OF_INDEX:
                model = next((about.name for about in abouts if about.finds), None)
                if model is None:
                    raise Wrong(404, NO_INDEX)
            model = model or abouts[0].name
            upload = Upload("", b"")
            if uri is None and (kind not in OF_INDEX or has_body(request)):
                upload = await read_upload(request, self.config.max_bytes, self.config.upload_s)
            task = Task(kind, model, upload.name, upload.content, uri, given)
            answer = await asyncio.wait_for(self.backend.answer(task), self.config.request_s + GRACE_S)
            if abouts and model in {about.name for about in abouts}:
                self.metrics.note(model, answer)
            return response_of(answer, uri or upload.name or given.get("path", ""))
        except Wrong as error:
            return response_of(refusal(error.status, str(error)))
        except asyncio.TimeoutError:
            return self.later(503, f"no answer within {self.config.request_s:g} s", 5)
        finally:
            self.open -= 1
            self.metrics.open.dec()

    def later(self, status: int, why: str, wait_s: float) -> Response:
        """Refused for now."""
        response = response_of(refusal(status, f"{why}; come again in {math.ceil(wait_s)} s"))
        response.headers["retry-after"] = str(math.ceil(wait_s))
        return response


def has_body(request: Request) -> bool:
    """Whether something is sent with it."""
    return request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers


class Gate:
    """Every request: may it be answered, how long did it take. As plain ASGI: Starlette's own middleware sends every
    body through a task and a stream of its own, a quarter of the time that HTTP took here."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, begun, status = scope["path"] if scope["path"] in PATHS else "other", time.monotonic(), 500
        await asyncio.sleep(0)  # where the rest of the packet is no HTTP, uvicorn answers it and hangs up first
        answer = self.service.refused(Request(scope))

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                headers, status = MutableHeaders(scope=message), message["status"]
                if answer is not None and status == 401:
                    headers["www-authenticate"] = "Bearer"
                if status >= 400:
                    headers["connection"] = "close"  # what is left of an upload is not waited for
                for name, value in SAFE.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await (self.app if answer is None else response_of(answer))(scope, receive, sending)
        finally:
            metrics = self.service.metrics
            metrics.requests.labels(path, str(status)).inc()
            metrics.seconds.labels(path).observe(time.monotonic() - begun)


Named = Annotated[str | None, Query(max_length=200, description="a name of /models; default: the first")]
Uri = Annotated[str | None, Query(max_length=1000, description="a sound of the service's folder, instead of a file")]
Words = Annotated[str | None, Query(max_length=10_000, description="score these, with commas between")]
Sought = Annotated[str | None, Query(max_length=2000, description="what to look for: guitar, slow:0.5, -drums")]
Path = Annotated[str, Query(max_length=4096, description="as /find has it")]
Hop = Annotated[float | None, Query(ge=0.01, le=3600, allow_inf_nan=False, description="from one to the next, seconds")]
Around = Annotated[float | None, Query(ge=0, allow_inf_nan=False, description="heard around a hop, seconds")]
Top = Annotated[int | None, Query(ge=1, description="so many of the highest")]
Threshold = Annotated[str | None, Query(max_length=40, description="a number, or f1 or precision")]
Settings = Annotated[str | None, Query(max_length=30_000, description="JSON of how events are made of scores")]
Format = Annotated[str | None, Query(max_length=40, description=f"{', '.join(FORMATS)}; default json")]


def create_app(backend: Backend, config: ServiceConfig, token: str | None) -> FastAPI:
    """token: what callers send as a bearer token; None: only this machine's are answered."""
    service = Service(backend, config, token)
    text = 'Tags, embeddings and timelines of sounds. A refusal is JSON: {"error": why}.'
    app = FastAPI(title="atose_ray", description=text, docs_url=None, redoc_url=None)
    app.add_middleware(Gate, service=service)

    @app.post("/tag", openapi_extra=FORM, summary="The score of every tag, highest first")
    async def tag(
        request: Request, model: Named = None, uri: Uri = None, tags: Words = None, top: Top = None
    ) -> Response:
        return await service.ask(request, "tag", model=model, uri=uri, tags=tags, top=top)

    @app.post("/embed", openapi_extra=FORM, summary="The sound as vectors: of the whole, and of its parts")
    async def embed(request: Request, model: Named = None, uri: Uri = None, hop_s: Hop = None) -> Response:
        return await service.ask(request, "embed", model=model, uri=uri, hop_s=hop_s)

    @app.post("/timeline", openapi_extra=FORM, summary="What sounds when, in any format of a timeline")
    async def timeline(
        request: Request,
        model: Named = None,
        uri: Uri = None,
        tags: Words = None,
        hop_s: Hop = None,
        left_s: Around = None,
        right_s: Around = None,
        threshold: Threshold = None,
        settings: Settings = None,
        format: Format = None,
    ) -> Response:
        asked = {"model": model, "uri": uri, "tags": tags, "hop_s": hop_s, "left_s": left_s, "right_s": right_s}
        asked |= {"threshold": threshold, "settings": settings, "format": format}
        return await service.ask(request, "timeline", **asked)

    @app.post("/find", openapi_extra=FORM, summary="Sounds of the index by words, by a sound to be like, or by both")
    async def find(request: Request, words: Sought = None, uri: Uri = None, top: Top = None) -> Response:
        return await service.ask(request, "find", words=words, uri=uri, top=top)

    @app.get("/sound", summary="A sound that /find names")
    async def sound(request: Request, path: Path) -> Response:
        return await service.ask(request, "sound", path=path)

    add_pages(app, service)
    return app


def add_pages(app: FastAPI, service: Service) -> None:
    """The routes that ask no model for anything but its name."""

    @app.get("/models", summary="The models, their tags, and the rate at which they hear")
    async def models() -> list[About]:
        return list(await service.backend.models())

    @app.get("/healthz", summary="200 where the models can be asked")
    async def healthz() -> dict[str, Any]:
        return {"status": "ok", "models": [about.name for about in await service.backend.models()]}

    @app.get("/metrics", summary="For Prometheus; of this process")
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(reference_page(app.openapi()), media_type="text/html")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(main_page(service.config, service.token is not None), media_type="text/html")

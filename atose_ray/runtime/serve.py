"""A service on Ray Serve: replicas with the models, and before them one that serves HTTP and asks them.

What is asked of a model has no effect, so a question whose replica died is asked again of another one."""

import asyncio
import contextvars
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from ray import serve
from ray.exceptions import RayActorError

APP, MODELS = "atose_ray", "models"
ATTEMPTS, FIRST_WAIT_S = 6, 0.2  # of a question; the wait doubles: 6 s in all
ROOM = 64  # requests for pages and health, beside those for models


class Replica:
    """Models in a process of their own. open_worker: -> what has `answer(task)`, for several threads, and `abouts`."""

    def __init__(self, open_worker: Callable[[], Any], threads: int) -> None:
        self.worker = open_worker()
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="answers")

    async def answer(self, task: Any) -> Any:
        """In a thread."""
        here = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self.pool, here.run, self.worker.answer, task)

    async def models(self) -> Any:
        """What a caller may know of them."""
        return self.worker.abouts


class Replicas:
    """The replicas as the application's backend."""

    def __init__(self, handle: Any) -> None:
        self.handle, self.abouts = handle, None

    async def answer(self, task: Any) -> Any:
        """Of any replica. Raises RayActorError where several died on it."""
        return await self._again(lambda: self.handle.answer.remote(task))

    async def models(self) -> Any:
        """Asked once: they do not change."""
        if self.abouts is None:
            self.abouts = await self._again(lambda: self.handle.models.remote())
        return self.abouts

    async def _again(self, ask: Callable[[], Any]) -> Any:
        for attempt in range(ATTEMPTS):
            try:
                return await ask()
            except RayActorError:
                if attempt == ATTEMPTS - 1:
                    raise
                await asyncio.sleep(FIRST_WAIT_S * 2**attempt)
        raise AssertionError


class Front:
    """HTTP. make_app: a backend -> the ASGI application."""

    def __init__(self, make_app: Callable[[Any], Any], handle: Any) -> None:
        self.make_app, self.handle = make_app, handle

    def __serve_build_asgi_app__(self) -> Any:
        return self.make_app(Replicas(self.handle))


def application(
    open_worker: Callable[[], Any],
    make_app: Callable[[Any], Any],
    *,
    replicas: int,
    threads: int,
    max_open: int,
    cpus: float,
    gpus: float,
) -> Any:
    """An application for `serve.run` or a RayService. threads: questions at a time of a replica, each of which takes
    `cpus` and `gpus`, which may be fractions. max_open: requests at a time, before those are refused."""
    behind = serve.deployment(
        Replica,
        name=MODELS,
        num_replicas=replicas,
        max_ongoing_requests=threads,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
    )
    front = serve.deployment(
        serve.ingress()(Front), name="http", max_ongoing_requests=max_open + ROOM, ray_actor_options={"num_cpus": 0}
    )
    return front.bind(make_app, behind.bind(open_worker, threads))


@contextmanager
def running(app: Any, host: str, port: int) -> Iterator[None]:
    """The application on the cluster that this process has joined, until it is left."""
    serve.start(http_options={"host": host, "port": port, "location": "HeadOnly"})
    try:
        serve.run(app, name=APP, route_prefix="/")
        yield
    finally:
        serve.shutdown()

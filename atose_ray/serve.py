"""`python -m atose_ray.serve MODEL...`: models over HTTP, and a page to drop a sound on."""

import argparse
import functools
import os
import secrets
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atose_ray import cli

if TYPE_CHECKING:
    from atose_ray.apps.service.config import ServiceConfig

HEADER_BYTES, BACKLOG, IDLE_S = 64 << 10, 512, 5


def arguments() -> argparse.ArgumentParser:
    """The command line of this command."""
    parser = cli.parser(
        "serve",
        "Serve models over HTTP: POST /tag, /embed and /timeline, a page at /, its interface at /docs, /metrics.\n"
        "With an index of one of them (find index) POST /find searches its sounds, and the page does.\n"
        "Without --local on Ray Serve, in replicas. Beyond this machine (--host) callers need a token:\n"
        "ATOSE_SERVE_TOKEN, else one that is made and printed.",
        "  python -m atose_ray.serve atose_store/studies/demo/best --local\n"
        "  python -m atose_ray.serve atose_store/studies/demo/best --local --set index=recordings.index\n"
        "  python -m atose_ray.serve birds=MODEL rain=OTHER_MODEL --set replicas=4 --set gpus=0.25\n"
        "  curl -F file=@song.mp3 http://127.0.0.1:8000/tag",
    )
    text = "a model folder, a run folder, or a study, by path, URI or name; NAME=MODEL names it for callers"
    parser.add_argument("models", nargs="+", metavar="MODEL", help=text)
    parser.add_argument("--local", action="store_true", help="one process, without Ray")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=cli.at_least_one, default=8000, help="port to listen on (default 8000)")
    cli.add_overrides(parser, "max_seconds=60, of apps/service/config.py")
    cli.add_cluster(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Open the models, say where they are, and serve until Ctrl-C."""
    options = arguments().parse_args(argv)
    config, models = config_of(options.overrides), named_models(options.models)
    token = token_for(options.host)
    if options.local:
        serve_local(models, config, options, token)
    else:
        serve_on_ray(models, config, options, token)


def config_of(overrides: list[str]) -> "ServiceConfig":
    """--set. Raises ValueError: ConfigError, or where the extra is not installed."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(f"serve needs the extra: pip install 'atose_ray[serve]' ({error})") from error
    from pydantic import ValidationError

    from atose_ray.apps.service.config import ServiceConfig
    from atose_ray.config import ConfigError, apply_overrides, explain

    try:
        return ServiceConfig.model_validate(apply_overrides({}, overrides))
    except ValidationError as error:
        raise ConfigError(explain(error, "--set", ServiceConfig)) from error


def named_models(given: list[str]) -> dict[str, str]:
    """NAME=MODEL, or MODEL by the last names of its place -> name to model. Raises ValueError for a name twice."""
    found: dict[str, str] = {}
    for one in given:
        name, mark, uri = one.partition("=")
        if not mark or "/" in name:
            uri = one
            parts = [part for part in one.split("/") if part and part not in (".", "..", "best")]
            name = parts[-1] if parts else "model"
        if name in found:
            raise ValueError(f"two models are called {name!r}; name them, as in birds={uri}")
        found[name] = uri
    return found


def token_for(host: str) -> str | None:
    """ATOSE_SERVE_TOKEN; else none on the loopback interface, and a new one beyond it."""
    from atose_ray.apps.service.access import LOOPBACK
    from atose_ray.apps.service.config import TOKEN_VARIABLE

    if token := os.environ.get(TOKEN_VARIABLE, "").strip():
        return token
    if host in LOOPBACK:
        return None
    token = secrets.token_urlsafe(24)
    print(f"token: {token} (keep one in {TOKEN_VARIABLE} to choose it)", flush=True)
    return token


def serve_local(
    models: dict[str, str], config: "ServiceConfig", options: argparse.Namespace, token: str | None
) -> None:
    """One process."""
    import uvicorn

    from atose_ray.apps.service.app import LocalBackend, create_app
    from atose_ray.apps.service.worker import open_worker

    app = create_app(LocalBackend(open_worker(models, config, options.store)), config, token)
    say(models, options)
    uvicorn.run(
        app,
        host=options.host,
        port=options.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=HEADER_BYTES,
        backlog=BACKLOG,
        timeout_keep_alive=IDLE_S,
        http="h11",
        ws="none",
    )


def say(models: dict[str, str], options: argparse.Namespace) -> None:
    """Where it is."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    print(f"serving {', '.join(models)} at http://{host}:{options.port}/ (Ctrl-C ends it)", flush=True)


def serve_on_ray(
    models: dict[str, str], config: "ServiceConfig", options: argparse.Namespace, token: str | None
) -> None:
    """Replicas on the cluster of --address, or on one that is started here."""
    from atose_ray.runtime.cluster import cluster
    from atose_ray.runtime.serve import running

    app = on_ray(models, config, options.store, token)
    with cluster(options.cpus, options.address), running(app, options.host, options.port):
        say(models, options)
        threading.Event().wait()


def on_ray(models: dict[str, str], config: "ServiceConfig", store: str | None, token: str | None) -> Any:
    """The application of runtime/serve.py."""
    from atose_ray.apps.service.app import create_app
    from atose_ray.apps.service.worker import open_worker
    from atose_ray.runtime import serve

    here = {name: whole(uri) for name, uri in models.items()}
    places = {name: whole(uri) for name in ("sounds", "index") if (uri := getattr(config, name)) is not None}
    config = config.model_copy(update=places)
    return serve.application(
        functools.partial(open_worker, here, config, store),
        functools.partial(create_app, config=config, token=token),
        replicas=config.replicas,
        threads=config.threads,
        max_open=config.max_open,
        cpus=config.cpus,
        gpus=config.gpus,
    )


def whole(uri: str) -> str:
    """A path that is here, from the root on: replicas run in folders of their own."""
    return str(Path(uri).absolute()) if Path(uri).exists() else uri


def application(args: dict[str, Any]) -> Any:
    """What a RayService imports (cluster/kuberay/rayservice.yaml). args: `models`, a list as on the command line, and
    `config`, of apps/service/config.py. Raises ValueError where ATOSE_SERVE_TOKEN is not set."""
    from atose_ray.apps.service.config import TOKEN_VARIABLE, ServiceConfig

    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        raise ValueError(f"set {TOKEN_VARIABLE} in the environment of every node: a cluster serves no one without it")
    config = ServiceConfig.model_validate(args.get("config", {}))
    return on_ray(named_models(args["models"]), config, os.environ.get("ATOSE_STORE"), token)


if __name__ == "__main__":
    cli.run(main)

"""The service's pages: one file each, which asks no other host for anything."""

from typing import Any

from atose_ray.apps.service.config import ServiceConfig
from atose_ray.apps.writers import WRITERS
from atose_ray.data.pages import offline_page


def main_page(config: ServiceConfig, needs_token: bool) -> str:
    """The page to drop a sound on. It asks /models for the rest, with the token where one is needed."""
    suffixes = {name: writer.suffix for name, writer in WRITERS.items()}
    limits = {"max_bytes": config.max_bytes, "max_seconds": config.max_seconds}
    data: dict[str, Any] = {"needs_token": needs_token, "formats": suffixes, "limits": limits}
    scripts = ["timeline.js", "spectrogram.js", "serve.js", "serve_find.js"]
    return offline_page("atose_ray.apps", "serve.html", "What sounds when", scripts, data, ["timeline.css"])


def reference_page(schema: dict[str, Any]) -> str:
    """/docs: the routes of an OpenAPI schema, their parameters and what they take."""
    routes = [
        {
            "route": f"{method.upper()} {path}",
            "summary": call.get("summary", ""),
            "takes": list(call.get("requestBody", {}).get("content", {})),
            "parameters": [
                {"name": one["name"], "description": one["schema"].get("description", one.get("description", ""))}
                for one in call.get("parameters", [])
            ],
        }
        for path, calls in schema["paths"].items()
        for method, call in calls.items()
    ]
    data = {"about": schema["info"]["description"], "routes": routes}
    return offline_page("atose_ray.apps", "serve_docs.html", "The service's interface", ["serve_docs.js"], data)

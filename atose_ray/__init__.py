"""atose_ray: distributed hyper-parameter search for audio tagging.

The Python API are the names of `__all__`; each is imported when it is first used, so `import atose_ray` costs nothing:

    model = atose_ray.load_model("atose_store/studies/demo/best")
    model.tag("song.mp3"); model.embed("song.mp3"); model.timeline("song.mp3"); model.tags
    frame = atose_ray.run_study("demo", trials=8)     # on Ray; a pandas frame, as read_study("demo") gives it

The commands are modules: `atose-ray`, or `python -m atose_ray`, lists them. The core (everything but `runtime/`) is
plain PyTorch.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atose_ray.apps.model import AudioError as AudioError
    from atose_ray.apps.model import Embedding as Embedding
    from atose_ray.apps.model import Model as Model
    from atose_ray.apps.model import Tagging as Tagging
    from atose_ray.apps.model import Timeline as Timeline
    from atose_ray.apps.model import TimelineConfig as TimelineConfig
    from atose_ray.apps.model import load_model as load_model
    from atose_ray.apps.model import write_timeline as write_timeline
    from atose_ray.search.frame import read_study as read_study
    from atose_ray.tune import run_study as run_study

__version__ = "0.1.0"
_HOMES = {"read_study": "atose_ray.search.frame", "run_study": "atose_ray.tune"}  # of the others: apps/model.py
__all__ = [  # noqa: RUF022  (in the order in which a person meets them)
    "load_model",
    "Model",
    "Tagging",
    "Embedding",
    "Timeline",
    "TimelineConfig",
    "write_timeline",
    "AudioError",
    "run_study",
    "read_study",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'atose_ray' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES.get(name, "atose_ray.apps.model")), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def _print_help() -> None:
    """The page of `python -m atose_ray.COMMAND --help`, before the command imports PyTorch, and the end."""
    module = next((word for word in sys.orig_argv if word.removeprefix("-m").startswith(f"{__name__}.")), "")
    page = importlib.import_module("atose_ray.__main__").help_page(module.rpartition(".")[2], sys.argv[1:])
    if page is not None:
        print(page)
        raise SystemExit(0)


if sys.argv[:1] == ["-m"] and {"-h", "--help"} & set(sys.argv[1:]):  # what Python says while it looks for the module
    _print_help()

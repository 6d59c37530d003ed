"""What a prepared set has in a store beside the content that its name means: listed, and removed on request."""

from dataclasses import dataclass

from atose_ray.data.prepare import PREPARING
from atose_ray.data.shards import CURRENT, MANIFEST
from atose_ray.storage import Store, StoreError

FLAT = "(as 0.1.0 wrote it)"


@dataclass(frozen=True)
class OldContent:
    """folder: its name below `data/NAME`. content_hash: None of a prepare that was cut short. used_by: the runs and
    studies of the store that were resolved with it."""

    folder: str
    content_hash: str | None
    clips: int
    bytes: int
    used_by: tuple[str, ...] = ()

    def line(self) -> str:
        """For a person."""
        what = f"{self.clips} clips" if self.content_hash else "a prepare that was cut short"
        used = f"; used by {', '.join(self.used_by)}" if self.used_by else ""
        return f"{self.folder or FLAT}  {what}, {self.bytes / 1e6:.1f} MB{used}"


def old_contents(store: Store, dataset: str) -> list[OldContent]:
    """What lies under the name of a set and is not what the name means. Raises StoreError when there is no such set."""
    place = store.child("data", dataset)
    if not place.exists(CURRENT) and not place.exists(MANIFEST):
        raise StoreError(f"no prepared data set {dataset!r} in the store {store.uri}")
    now = place.read_json(CURRENT)["folder"] if place.exists(CURRENT) else ""
    sizes: dict[str, int] = {}
    for file in place.files():
        folder = file.name.partition("/")[0] if "/" in file.name else ""
        sizes[folder] = sizes.get(folder, 0) + file.size
    users = users_of(store, dataset)
    found = []
    for folder, size in sorted(sizes.items()):
        name = f"{folder}/{MANIFEST}".lstrip("/")
        if folder == now or not (folder.startswith(PREPARING) or place.exists(name)):
            continue
        tree = place.read_json(name) if place.exists(name) else {}
        content, counts = tree.get("content_hash"), tree.get("data_spec", {}).get("counts", {})
        found.append(OldContent(folder, content, sum(counts.values()), size, tuple(users.get(str(content), ()))))
    return found


def users_of(store: Store, dataset: str) -> dict[str, list[str]]:
    """Content hash -> the studies and runs of the store that were resolved with it."""
    users: dict[str, list[str]] = {}
    for name in store.child("studies").names():
        study = store.child("studies", name)
        if study.exists("data.json"):
            users.setdefault(str(study.read_json("data.json").get("content_hash")), []).append(f"studies/{name}")
    for name in store.child("runs").names():
        run = store.child("runs", name)
        if run.exists("config.json"):
            data = run.read_json("config.json").get("data", {})
            if data.get("dataset") == dataset:
                users.setdefault(str(data.get("content_hash")), []).append(f"runs/{name}")
    return users


def remove(store: Store, dataset: str, old: OldContent) -> None:
    """Delete one of `old_contents`."""
    place = store.child("data", dataset)
    if old.folder:
        place.delete(old.folder)
        return
    place.delete(MANIFEST)  # first: what follows is then no prepared set any more
    for name in place.names():
        if name != CURRENT and not place.exists(f"{name}/{MANIFEST}") and not name.startswith(PREPARING):
            place.delete(name)

"""Who may ask, and how often."""

import hmac
import time
from collections import OrderedDict

LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))
MOST_CLIENTS = 10_000  # that are remembered


def host_of(header: str) -> str:
    """`[::1]:8000` or `localhost:8000` -> the name."""
    return header[1:].partition("]")[0] if header.startswith("[") else header.partition(":")[0]


def with_token(header: str, token: str) -> bool:
    """Whether an Authorization header brings it; takes as long for every wrong one."""
    kind, _, given = header.partition(" ")
    return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())


def from_this_machine(host: str, origin: str | None) -> bool:
    """Without a token: whether a request is meant for the loopback interface and comes from no other page: a browser
    would carry those of any page to it."""
    name = host_of(host)
    return name in LOOPBACK and (origin is None or origin.partition("://")[2] == host)


class Rate:
    """So many requests a minute of each client; what was not used is kept for a minute (a token bucket)."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self.clients: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and when it was so

    def wait_s(self, client: str, now: float | None = None) -> float:
        """0 where the request may go on, else seconds until one may."""
        now = time.monotonic() if now is None else now
        left, then = self.clients.pop(client, (float(self.per_minute), now))
        left = min(self.per_minute, left + (now - then) * self.per_minute / 60)
        allowed = left >= 1
        self.clients[client] = (left - allowed, now)
        if len(self.clients) > MOST_CLIENTS:
            self.clients.popitem(last=False)
        return 0.0 if allowed else (1 - left) * 60 / self.per_minute

"""Every request that came in, for tests to ask about."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "x-kaggle-authorization", "x-kaggle-proxy-data"})


@dataclass
class Entry:
    """One request and what became of it."""

    at: float
    """Emulator time at which it arrived."""
    method: str
    target: str
    route: str
    headers: Mapping[str, str]
    body_size: int = 0
    body: Any = None
    """The JSON that was sent, for RPCs."""
    user: str = ""
    session: int | None = None
    status: int | None = None
    """None when the connection was cut without an answer."""
    effect: str = ""
    faults: tuple[str, ...] = ()
    real_s: float = 0.0
    leaked_authorization: bool = False
    """A credential was sent to the storage host."""
    done: bool = False
    """The answer was written, or the connection cut."""

    @property
    def is_rpc(self) -> bool:
        return self.route not in {"BlobPut", "Download", "Admin", "Escape"}


@dataclass
class Journal:
    """The requests, oldest first, also as lines of JSON in a file."""

    path: Path
    entries: list[Entry] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self, entry: Entry) -> None:
        """Note a request that came in; it is filled in as it is served, and complete before its answer is sent."""
        with self._lock:
            self.entries.append(entry)

    def close(self, entry: Entry) -> None:
        """Note that a request was served."""
        entry.done = True
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(entry), default=str) + "\n")

    def of(self, route: str | None = None, *, where: Callable[[Entry], bool] | None = None) -> list[Entry]:
        """Give the entries of one route, or of all, that fit."""
        with self._lock:
            found = list(self.entries)
        return [entry for entry in found if (route is None or entry.route == route) and (where is None or where(entry))]

    def routes(self) -> list[str]:
        """Give the routes in the order in which they were called."""
        return [entry.route for entry in self.of()]

    @property
    def escapes(self) -> list[Entry]:
        """Requests that were meant for another host than the emulator."""
        return self.of("Escape")

    def busiest_minute(
        self, *, session: int | None = None, since: float = 0.0, until: float = float("inf"), window_s: float = 60.0
    ) -> int:
        """Give the most API calls in any minute of emulator time, by the user (`session=None`) or by one session."""
        moments = self._moments(session, since, until)
        start = most = 0
        for end, moment in enumerate(moments):
            while moment - moments[start] >= window_s:
                start += 1
            most = max(most, end - start + 1)
        return most

    def calls_per_minute(self, *, session: int | None = None, since: float = 0.0, until: float | None = None) -> float:
        """Give the mean number of API calls a minute of emulator time."""
        end = until if until is not None else max((entry.at for entry in self.of()), default=since)
        moments = self._moments(session, since, end)
        first = since or (moments[0] if moments else end)
        return len(moments) / max((end - first) / 60.0, 1.0)

    def _moments(self, session: int | None, since: float, until: float) -> list[float]:
        mine = self.of(where=lambda entry: entry.is_rpc and entry.session == session and since <= entry.at <= until)
        return sorted(entry.at for entry in mine)


def redact(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Keep the headers, but of a credential only its kind."""
    return {name: f"{value.split(' ', 1)[0]} [redacted]" if name.lower() in _SECRET_HEADERS else value for name, value in headers}

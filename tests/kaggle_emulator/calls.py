"""One request as the services see it, and what they may answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.kaggle_emulator.faults import Fault


@dataclass(frozen=True)
class Actor:
    """Who calls: a user, or a running session in the name of its user."""

    user: str
    session: int | None = None


ANYONE = Actor("")


@dataclass
class Call:
    """A request to one route."""

    route: str
    actor: Actor
    body: dict[str, Any]
    now: float
    """The moment as of which the answer is given; a stale read has an earlier one."""
    twists: list[Fault] = field(default_factory=list)
    """Faults that change the effect of this call rather than its transport."""
    effect: str = ""
    """What the call changed, in words, for the journal."""

    def text(self, name: str) -> str:
        return str(self.body.get(name) or "")

    def number(self, name: str) -> int | None:
        value = self.body.get(name)
        return int(value) if value else None

    def twist(self, kind: str) -> Fault | None:
        return next((fault for fault in self.twists if fault.kind == kind), None)


@dataclass(frozen=True)
class Redirect:
    """A 302 to the storage host, and what lies there."""

    path: Path
    name: str
    """The last part of the address."""
    modified_at: float


@dataclass(frozen=True)
class Attachment:
    """A file that is sent as it is."""

    path: Path
    modified_at: float


Answer = dict[str, Any] | Redirect | Attachment
Handler = Callable[[Call], Answer]


def page(items: list[Any], call: Call, *, default_size: int = 20, largest: int = 200) -> tuple[list[Any], str]:
    """Cut the page that the call asks for; the token is an offset, and empty at the end."""
    size = min(call.number("pageSize") or default_size, largest)
    start = int(call.text("pageToken") or 0) or (max(call.number("page") or 1, 1) - 1) * size
    rest = start + size
    return items[start:rest], str(rest) if rest < len(items) else ""

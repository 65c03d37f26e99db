"""What a kernel is: numbered versions of one source file, some of which ran."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any

from tests.kaggle_emulator.session_model import NEVER, Session


@dataclass(frozen=True)
class KernelVersion:
    """One push."""

    number: int
    request: dict[str, Any]
    created_at: float
    session: Session | None
    """None when it was only saved."""

    @property
    def source(self) -> str:
        return str(self.request.get("text") or "")


@dataclass
class Kernel:
    """A named series of versions."""

    id: int
    owner: str
    slug: str
    title: str
    created_at: float
    wedged: bool = False
    """Its title does not give its slug: questions about it are answered with 403, its sessions hold their slots to the limit."""
    versions: list[KernelVersion] = field(default_factory=list)
    deleted_at: float = NEVER

    @property
    def ref(self) -> str:
        return f"{self.owner}/{self.slug}"

    def exists(self, now: float) -> bool:
        return self.created_at <= now < self.deleted_at

    def latest(self, now: float) -> KernelVersion | None:
        return next((version for version in reversed(self.versions) if version.created_at <= now), None)

    def version(self, number: int, now: float) -> KernelVersion | None:
        return next((version for version in self.versions if version.number == number and version.created_at <= now), None)

    def last_session(self, now: float) -> Session | None:
        return next((v.session for v in reversed(self.versions) if v.session is not None and v.created_at <= now), None)


def slugify(title: str) -> str:
    """Make the slug that Kaggle makes of a title."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")

"""A plan of what goes wrong: which call, and how."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any

from tests.kaggle_emulator.calls import Call

BEFORE = frozenset({"status", "drop_before", "hang_before", "lie"})
"""Nothing happens on the server."""
AFTER = frozenset({"status_after", "drop_after", "hang_after", "truncate", "short_body", "rewrite"})
"""The call takes effect, and its answer suffers."""
TWISTS = frozenset(
    {
        "lose_file",
        "corrupt_file",
        "fail_processing",
        "slow_processing",
        "stale_mount",
        "missing_mount",
        "shape",
        "queue",
        "never_end",
        "lose_outputs",
        "refuse",
        "drop_body",
    }
)
"""The effect itself is another one than the answer says."""
KINDS = BEFORE | AFTER | TWISTS | {"delay", "lag"}


@dataclass(frozen=True, eq=False)
class Fault:
    """One rule. It meets a call when everything that it names fits; `calls` then counts the calls that it met."""

    route: str
    """The RPC's method, or BlobPut, Download, LogStream, SessionStart, SessionEnd; `*` and `Get*` work."""
    kind: str
    calls: Collection[int] | None = None
    """Which of the calls that fit, from 1; all when None."""
    for_s: float | None = None
    """Only within so many emulator seconds from when the rule was added."""
    actor: str | None = None
    """`user` or `session`; both when None."""
    match: Mapping[str, str] = field(default_factory=dict)
    """Fields of the request (`kernelSlug`, `body.versionNotes`) and patterns that they must fit."""
    when: Callable[[Call], bool] | None = None

    status: int = 503
    message: str = "The service is currently unavailable."
    html: bool = False
    retry_after: str | None = None
    seconds: float = 0.0
    """`delay` and `hang_*`: real seconds (0 hangs until the emulator stops or the rule goes); `lag`, `queue`, `slow_processing`:
    emulator seconds."""
    fraction: float = 0.5
    """`truncate`, `short_body`: how much of the body is sent."""
    after_bytes: int = 0
    """`drop_body`: how much of the upload arrives before the connection breaks."""
    body: Mapping[str, Any] = field(default_factory=dict)
    """`lie`: the whole answer (a plausible one when empty); `rewrite`: fields that replace the true ones."""
    files: str = "*"
    """`lose_file`, `corrupt_file`, `stale_mount`, `missing_mount`: names or sources, as a pattern."""
    value: str = ""
    """`shape`: the machine that the session really gets; `refuse`: the error in the body of a push."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no fault is called {self.kind!r}; there are {', '.join(sorted(KINDS))}")

    def fits(self, call: Call) -> bool:
        if not fnmatchcase(call.route, self.route):
            return False
        if self.actor is not None and self.actor != ("user" if call.actor.session is None else "session"):
            return False
        if not all(fnmatchcase(_field(call.body, name), pattern) for name, pattern in self.match.items()):
            return False
        return self.when is None or self.when(call)

    def to_json(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "when"}
        return {
            **values,
            "calls": None if self.calls is None else sorted(self.calls),
            "body": dict(self.body),
            "match": dict(self.match),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Fault:
        return cls(**document)


def refused_reads(slug: str, *, status: int = 403, for_s: float | None = None, deletes: bool = False) -> tuple[Fault, ...]:
    """Let reads of one kernel and one dataset answer as of what is not there, while lists of all show both.

    Args:
        slug: Of the kernel and of the dataset.
        status: 403 or 404.
        for_s: Emulator seconds; None: until the rules go.
        deletes: Whether deleting them is refused as well, as of a kernel that has got stuck.
    """
    reads = ("Get*", "List*", "LogStream", "Download*", *(("Delete*",) if deletes else ()))
    message = "Permission was denied" if status == 403 else "Not found"
    return tuple(
        Fault(route, "status", for_s=for_s, match={field_name: slug}, status=status, message=message)
        for route in reads
        for field_name in ("kernelSlug", "datasetSlug")
    )


@dataclass
class _Rule:
    fault: Fault
    added_at: float
    met: int = 0
    hit: int = 0
    gone: threading.Event = field(default_factory=threading.Event)


class FaultPlan:
    """The rules that hold now."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()

    def add(self, *faults: Fault) -> None:
        with self._lock:
            self._rules += [_Rule(fault, self._now()) for fault in faults]

    def remove(self, *faults: Fault) -> None:
        """Take rules away, and let go of the calls that they hold; all of them when none is named."""
        with self._lock:
            for rule in self._rules:
                if not faults or rule.fault in faults:
                    rule.gone.set()
            self._rules = [rule for rule in self._rules if not rule.gone.is_set()]

    def hits(self, fault: Fault) -> int:
        """How many calls the fault spoiled so far."""
        with self._lock:
            return sum(rule.hit for rule in self._rules if rule.fault is fault)

    def strike(self, call: Call) -> list[tuple[Fault, threading.Event]]:
        """Give the faults that this call suffers, each with the event that ends it, in the order in which they were added."""
        struck = []
        with self._lock:
            for rule in self._rules:
                over = rule.fault.for_s is not None and self._now() > rule.added_at + rule.fault.for_s
                if over or not rule.fault.fits(call):
                    continue
                rule.met += 1
                if rule.fault.calls is None or rule.met in rule.fault.calls:
                    rule.hit += 1
                    struck.append((rule.fault, rule.gone))
        return struck

    def to_json(self) -> list[dict[str, Any]]:
        with self._lock:
            return [{**rule.fault.to_json(), "met": rule.met, "hit": rule.hit} for rule in self._rules]


def _field(body: Mapping[str, Any], dotted: str) -> str:
    value: Any = body
    for name in dotted.split("."):
        value = value.get(name, "") if isinstance(value, Mapping) else ""
    return str(value)


PLAUSIBLE: Mapping[str, Mapping[str, Any]] = {
    "SaveKernel": {"ref": "/code/nobody/nothing", "url": "", "versionNumber": 1, "error": "", "kernelId": 1},
    "CreateDataset": {"ref": "nobody/nothing", "status": "ok", "error": ""},
    "CreateDatasetVersion": {"ref": "nobody/nothing", "status": "ok", "error": ""},
    "CreateDatasetVersionById": {"ref": "nobody/nothing", "status": "ok", "error": ""},
    "CreateModel": {"id": 1, "ref": "nobody/nothing", "error": ""},
    "CreateModelInstance": {"id": 1, "ref": "nobody/nothing", "error": ""},
    "CreateModelInstanceVersion": {"id": 1, "ref": "nobody/nothing", "error": ""},
    "DeleteKernel": {"errorMessage": ""},
    "DeleteDataset": {"error": ""},
    "UpdateDatasetMetadata": {"errors": []},
    "GetDatasetStatus": {"status": "READY"},
    "GetKernelSessionStatus": {"status": "COMPLETE"},
}
"""What a lying success answers when the rule does not say: the shape of success, and nothing behind it."""

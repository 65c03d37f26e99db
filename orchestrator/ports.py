"""The controller's ports: the backends that run sessions, the stores, the clock, and the preparation of data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from state.clock import Clock
from state.document import Document
from state.layout import HomeLayout
from state.ledger import DataRecord, RunRecord
from state.process import ProcessIdentity
from state.report import Heartbeat, SessionReport
from state.spec import RunSpec, SessionSpec
from state.stores.checkpoint_store import CheckpointStore
from state.stores.run_store import RunStore


@dataclass(frozen=True)
class AttemptRef:
    """Identifies an attempt on its backend, even if the answer to its launch was lost."""

    run: str
    session: int
    attempt: int
    handle: str | None = None
    """The backend's own id, once known."""
    launched_at: datetime | None = None
    """When the launch was last sent. On a platform with stale reads, MISSING counts only some time after it."""
    limit_s: float | None = None
    """Most seconds that the attempt may run."""


class AttemptStatus(StrEnum):
    """The state of an attempt as its backend reports it."""

    MISSING = "missing"
    """It does not exist: it was never launched."""
    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"
    """The backend did not answer, or gave an answer that we do not know: never an error, never "failed"."""


@dataclass(frozen=True)
class Observation:
    """A backend's current answer about an attempt."""

    sighting: AttemptStatus
    detail: str = ""
    ended_at: datetime | None = None
    """When it ended, as far as the backend can tell."""


@dataclass(frozen=True)
class Quota:
    """Whether a backend accepts another session now."""

    available: bool
    reason: str = ""
    until: datetime | None = None
    """When to poll again; None: soon."""


class Backend(Protocol):
    """A place where sessions run.

    Every method may raise TemporaryError (retry later). `launch` may also raise AmbiguousError (the attempt may exist: observe it
    before a retry), NotLaunchedError (nothing was sent: launch the same attempt later) and UserError.
    """

    @property
    def name(self) -> str:
        """The name that users type."""
        ...

    @property
    def poll_interval_s(self) -> float:
        """Poll interval in seconds while a session runs."""
        ...

    @property
    def can_be_run_by_hand(self) -> bool:
        """Whether a user can run an attempt by hand, without a controller, so that ended attempts must be polled too."""
        ...

    @property
    def lag_s(self) -> float:
        """Staleness of the reported status in seconds; extends the overdue deadline."""
        ...

    @property
    def kill_note(self) -> str:
        """Note that `stop --now` shows before `kill`, if `kill` has side effects; else empty."""
        ...

    def quota(self, now: datetime) -> Quota:
        """Return whether the backend accepts another session now."""
        ...

    def make_ready(self, spec: SessionSpec) -> str | None:
        """Advance the preparation of a launch by one step, without waiting; every tick calls it until it returns None.

        Returns:
            What the preparation waits for, or None if the attempt can be launched now.
        """
        ...

    def launch(self, spec: SessionSpec) -> str:
        """Launch an attempt and return the backend's id for it. Idempotent: the same attempt starts only once."""
        ...

    def observe(self, ref: AttemptRef) -> Observation:
        """Poll an attempt; a failed poll is UNKNOWN, not an error."""
        ...

    def report(self, ref: AttemptRef) -> SessionReport | None:
        """Return the report of an attempt; None while it has none."""
        ...

    def heartbeat(self, ref: AttemptRef) -> Heartbeat | None:
        """Return the newest heartbeat of a running attempt; None if it cannot be read."""
        ...

    def ask_to_stop(self, ref: AttemptRef) -> None:
        """Ask an attempt to save at its next step boundary and end."""
        ...

    def kill(self, ref: AttemptRef) -> None:
        """Kill an attempt; its unsaved steps are lost.

        Raises:
            OutOfReachError: the attempt cannot be killed from here; it was asked to stop, and the error says where it runs.
        """
        ...

    def read_log(self, ref: AttemptRef, offset: int) -> tuple[str, int]:
        """Return an attempt's log from an offset on, and the next offset."""
        ...


class Finding(Document):
    """The result of one check of `doctor`."""

    subject: str
    found: str
    ok: bool
    remedy: str | None = None


class Ask(Protocol):
    """Asks the user a question on a terminal."""

    def __call__(self, question: str, default: str | None, *checks: Callable[[str], object]) -> str:
        """Return the answer; ask again while a check raises UserError."""
        ...


@dataclass(frozen=True)
class ConfigWishes:
    """The user's wishes for the config file that `init` writes."""

    name: str | None
    owner: str | None
    """The user's name on the platform."""
    ask: Ask | None
    """Asks for a missing name; None if the command has no terminal."""


@dataclass(frozen=True)
class Services:
    """The services that a backend needs to open."""

    environment: Mapping[str, str]
    """Environment variables of the command."""
    home: HomeLayout
    clock: Clock
    runs: RunStore
    checkpoints: Callable[[str], CheckpointStore]
    """The checkpoint store of a run, by the run's name, on whichever backend its checkpoints are."""


class OpenBackend(Protocol):
    """A kind of backend, opened for one home."""

    def backend(self, run: str) -> Backend:
        """Return the backend for a run, by the run's name."""
        ...

    def checkpoints(self, run: str) -> CheckpointStore | None:
        """Return this backend's checkpoint store for a run; None if the checkpoints are in the run's folder."""
        ...


class BackendKind(Protocol):
    """Everything that a kind of backend provides; only `wiring`, which registers the kinds, names them."""

    @property
    def name(self) -> str:
        """The name that users type."""
        ...

    @property
    def trains_here(self) -> bool:
        """Whether its sessions run on this machine, so that they need its data and its training extra."""
        ...

    @property
    def has_live_check(self) -> bool:
        """Whether the platform has facts for `doctor --live-check` to measure."""
        ...

    @property
    def before_start(self) -> str:
        """The commands to type between `init` and `start`; empty: none."""
        ...

    @property
    def after_doctor(self) -> str:
        """The next command if `doctor` finds nothing missing."""
        ...

    def check_run(self, name: str) -> None:
        """Check that the platform can have a run of this name, without calling the platform.

        Raises:
            UserError: it cannot.
        """
        ...

    def config_file(self, environment: Mapping[str, str], wishes: ConfigWishes, say: Callable[[str], None]) -> str:
        """Return a commented config file for a run on this backend.

        Raises:
            UserError: a wish is invalid.
        """
        ...

    def examine(
        self, environment: Mapping[str, str], home: HomeLayout, say: Callable[[str], None], *, live_check: bool
    ) -> tuple[Finding, ...]:
        """Check what this backend's sessions need beyond what every run needs."""
        ...

    def advice(self, ports: Ports, record: RunRecord) -> str:
        """Return what the user should do about a run at the end of a command; empty if nothing."""
        ...

    def open(self, services: Services) -> OpenBackend:
        """Open the backend for a home; makes no call to a platform yet."""
        ...


class Preparer(Protocol):
    """Prepares a run's token shards, or finds them prepared."""

    def __call__(self, spec: RunSpec, keep_lease: Callable[[], None], *, version: int = 1, first_step: int = 0) -> DataRecord:
        """Prepare a data version, calling `keep_lease` every few seconds; killed, a second call resumes.

        Args:
            spec: The run's spec; for an added version, with that version's corpus or folder.
            keep_lease: Renews the lease; raises if the lease is lost.
            version: The version's number; a run starts with 1.
            first_step: Number of steps trained before the version is first read.
        """
        ...


@dataclass(frozen=True)
class Ports:
    """Everything through which a controller acts; `wiring` makes it."""

    runs: RunStore
    home: HomeLayout
    clock: Clock
    owner: ProcessIdentity
    backend: Callable[[str, str], Backend]
    """The backend of a name, for a run by its name."""
    checkpoints: Callable[[str], CheckpointStore]
    """The checkpoint store of a run, by the run's name."""
    prepare: Preparer
    kind: Callable[[str], BackendKind]
    """The kind of backend of a name; raises UserError for an unknown name."""
    has_data: Callable[[str, DataRecord], bool] = lambda _run, _data: True
    """Whether a data version of a run, by the run's name, is still complete."""

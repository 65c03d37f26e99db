"""The controller's ports: where sessions run, and where everything else takes effect."""

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
    """Which attempt is meant: enough to find it on a backend even when the answer to its launch was lost."""

    run: str
    session: int
    attempt: int
    handle: str | None = None
    """The backend's own id, once known."""
    launched_at: datetime | None = None
    """When it was last sent: a platform whose reads lag is not believed that it is missing for a while after that."""
    limit_s: float | None = None
    """Seconds that it may run."""


class Sighting(StrEnum):
    """What a backend says about an attempt."""

    MISSING = "missing"
    """It does not exist: it was never launched."""
    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"
    """The backend could not be asked, or its answer means nothing to us: never an error, never "failed"."""


@dataclass(frozen=True)
class Observation:
    """What a backend says about an attempt now."""

    sighting: Sighting
    detail: str = ""
    ended_at: datetime | None = None
    """When it ended, as far as the backend can tell."""


@dataclass(frozen=True)
class Quota:
    """Whether a backend takes another session now."""

    available: bool
    reason: str = ""
    until: datetime | None = None
    """When to ask again; none: soon."""


class Backend(Protocol):
    """A place where sessions run.

    Every method may raise TemporaryError (ask again later); a launch also AmbiguousError (look first), NotLaunchedError (nothing
    was sent, and the same attempt may be launched later) and UserError.
    """

    @property
    def name(self) -> str:
        """The name that users type."""
        ...

    @property
    def look_every_s(self) -> float:
        """Seconds between two ticks of a controller that waits: as often as looking is worth what it costs."""
        ...

    @property
    def can_be_run_by_hand(self) -> bool:
        """Whether somebody may run an attempt again with no controller, so that one that is over must be looked at."""
        ...

    @property
    def lag_s(self) -> float:
        """Seconds by which what it says may be behind what is; so much later than elsewhere is an attempt too late."""
        ...

    @property
    def killing(self) -> str:
        """What `kill` does beyond ending the session, in words for whoever asks for it; empty: nothing."""
        ...

    def quota(self, now: datetime) -> Quota:
        """Return whether another session would be taken now."""
        ...

    def make_ready(self, spec: SessionSpec) -> str | None:
        """Bring about what an attempt needs before it can be launched, a step at a time.

        Called in every tick until it returns None; it never waits itself.

        Returns:
            What it is waiting for, or None when the attempt can be launched now.
        """
        ...

    def launch(self, spec: SessionSpec) -> str:
        """Start an attempt and return the backend's id for it; launching the same attempt twice starts it once."""
        ...

    def observe(self, ref: AttemptRef) -> Observation:
        """Return what is known of an attempt; failures to find out are UNKNOWN."""
        ...

    def report(self, ref: AttemptRef) -> SessionReport | None:
        """Return the report of an attempt, once there is one."""
        ...

    def heartbeat(self, ref: AttemptRef) -> Heartbeat | None:
        """Return what a running attempt last said, if it can be read."""
        ...

    def ask_to_stop(self, ref: AttemptRef) -> None:
        """Ask an attempt to save at its next step boundary and end."""
        ...

    def kill(self, ref: AttemptRef) -> None:
        """End an attempt at once; what it has not saved is lost.

        Raises:
            OutOfReachError: it runs where it cannot be ended from here; it is asked to stop, and the error says where it runs.
        """
        ...

    def read_log(self, ref: AttemptRef, offset: int) -> tuple[str, int]:
        """Return what an attempt has printed from an offset on, and the offset after it."""
        ...


class Finding(Document):
    """One thing that `doctor` looked at."""

    subject: str
    found: str
    ok: bool
    remedy: str | None = None


class Ask(Protocol):
    """Asks the user something on a terminal."""

    def __call__(self, question: str, default: str | None, *checks: Callable[[str], object]) -> str:
        """Return the answer; ask again while a check refuses it with a UserError."""
        ...


@dataclass(frozen=True)
class ConfigWishes:
    """What a user says about the config file that `init` is to write."""

    name: str | None
    owner: str | None
    """The user's name on the platform."""
    ask: Ask | None
    """Asks for what was not said; None: the command was not typed on a terminal."""


@dataclass(frozen=True)
class Services:
    """What a backend is opened with."""

    environment: Mapping[str, str]
    """Environment variables of the command."""
    home: HomeLayout
    clock: Clock
    runs: RunStore
    checkpoints: Callable[[str], CheckpointStore]
    """The checkpoint store of a run, by the run's name, wherever its checkpoints lie."""


class OpenBackend(Protocol):
    """A kind of backend, opened over a home."""

    def backend(self, run: str) -> Backend:
        """Return the backend of a run, by the run's name."""
        ...

    def checkpoints(self, run: str) -> CheckpointStore | None:
        """Return the store of a run that has had sessions here; None: their checkpoints lie in the run's folder."""
        ...


class BackendKind(Protocol):
    """All that a kind of backend brings; `wiring` registers it, and nothing else knows its name."""

    @property
    def name(self) -> str:
        """The name that users type."""
        ...

    @property
    def trains_here(self) -> bool:
        """Whether its sessions are processes of this machine, which read the data and the training extra that are here."""
        ...

    @property
    def has_live_check(self) -> bool:
        """Whether `doctor --live-check` can measure something on the platform."""
        ...

    @property
    def before_start(self) -> str:
        """The commands to type between `init` and `start`; empty: none."""
        ...

    @property
    def after_doctor(self) -> str:
        """The next command once `doctor` has found nothing missing."""
        ...

    def check_run(self, name: str) -> None:
        """Check that a run of this name can have sessions here; asks no platform.

        Raises:
            UserError: it cannot.
        """
        ...

    def config_file(self, environment: Mapping[str, str], wishes: ConfigWishes, say: Callable[[str], None]) -> str:
        """Return a commented config file for a run here.

        Raises:
            UserError: what the user says cannot be.
        """
        ...

    def examine(
        self, environment: Mapping[str, str], home: HomeLayout, say: Callable[[str], None], *, live_check: bool
    ) -> tuple[Finding, ...]:
        """Look at what sessions here need beyond what every run needs."""
        ...

    def advice(self, ports: Ports, record: RunRecord) -> str:
        """Return what the user should do about a run that has had sessions here and that a command leaves; empty: nothing."""
        ...

    def open(self, services: Services) -> OpenBackend:
        """Open it over a home; nothing is asked of a platform yet."""
        ...


class Preparer(Protocol):
    """Makes a run's token shards, or finds them made."""

    def __call__(self, spec: RunSpec, keep_lease: Callable[[], None], *, version: int = 1, first_step: int = 0) -> DataRecord:
        """Prepare a data version, calling `keep_lease` every few seconds; may be killed and called again.

        Args:
            spec: The run's spec; for a version added later, with the source of that one's text.
            keep_lease: Prolongs the lease; raises when that is lost.
            version: 1 for what the run begins with.
            first_step: Steps that are done when the version is first read.
        """
        ...


@dataclass(frozen=True)
class Ports:
    """Where a controller's effects go; `wiring` fills it."""

    runs: RunStore
    home: HomeLayout
    clock: Clock
    owner: ProcessIdentity
    backend: Callable[[str, str], Backend]
    """A backend by name, for a run by its name."""
    checkpoints: Callable[[str], CheckpointStore]
    """The checkpoint store of a run, by the run's name."""
    prepare: Preparer
    kind: Callable[[str], BackendKind]
    """A kind of backend by its name; raises UserError when there is none."""
    has_data: Callable[[str, DataRecord], bool] = lambda _run, _data: True
    """Whether a data version of a run, by the run's name, is still there and whole."""

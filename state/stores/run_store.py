"""Stores the ledger: the port `RunStore` and its adapter for SQLite.

A run has one writer at a time: the controller that holds its lease. Each change checks in its own transaction that the lease is
still held. The user's requests (spec, stop, rerun) need no lease, so that a second terminal can always make one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from state import crash_points, files
from state.errors import DataError, GemmaOrchError, LeaseHeldError, LeaseLostError, TemporaryError, UserError
from state.ledger import (
    AddEvent,
    AttemptRecord,
    Change,
    CheckpointRecord,
    Event,
    Lease,
    PutAttempt,
    RerunWish,
    RunHeader,
    RunRecord,
    RunWishes,
    StopWish,
)
from state.process import ProcessIdentity, certainly_dead
from state.spec import RunSpec, SessionSpec

_BUSY_S = 10.0  # a transaction takes milliseconds; a longer wait means that another process is stuck in one


class RunStore(Protocol):
    """Durable home of the records of all runs of one home."""

    def names(self) -> tuple[str, ...]:
        """Return the names of all runs, the most recently resumed first."""
        ...

    def load(self, run: str) -> RunRecord:
        """Return all records of a run."""
        ...

    def create(self, header: RunHeader, wishes: RunWishes, changes: Sequence[Change] = ()) -> bool:
        """Add a run and apply changes to it; return False, and change nothing, if the name is taken."""
        ...

    def set_spec(self, run: str, spec: RunSpec, *, seen: RunRecord) -> bool:
        """Replace the run's spec if spec and data still equal those of `seen`; return whether it did. Needs no lease."""
        ...

    def set_stop(self, run: str, stop: StopWish | None) -> None:
        """Request a stop of the run, or cancel the request with None. Needs no lease."""
        ...

    def set_rerun(self, run: str, rerun: RerunWish | None) -> None:
        """Request a rerun of a session, or cancel the request with None. Needs no lease."""
        ...

    def lease(self, run: str) -> Lease | None:
        """Return the lease of a run, if it has one."""
        ...

    def acquire(self, run: str, owner: ProcessIdentity, now: datetime, ttl_s: float) -> None:
        """Acquire or renew a run's lease."""
        ...

    def release(self, run: str, owner: ProcessIdentity) -> None:
        """Release a run's lease if this owner holds it."""
        ...

    def apply(self, run: str, owner: ProcessIdentity, changes: Sequence[Change]) -> None:
        """Apply changes to a run's records: all of them or none."""
        ...

    def session_spec(self, run: str, session: int, attempt: int) -> SessionSpec:
        """Return the SessionSpec of an attempt."""
        ...

    def events(self, run: str, limit: int) -> tuple[Event, ...]:
        """Return the last lines of a run's history, oldest first."""
        ...


_MIGRATIONS: tuple[str, ...] = (
    # 1: runs, attempts and checkpoints as documents, one row each; leases; history.
    """
    CREATE TABLE runs (
        name TEXT PRIMARY KEY,
        header TEXT NOT NULL,
        wishes TEXT NOT NULL
    ) STRICT;
    CREATE TABLE attempts (
        run TEXT NOT NULL REFERENCES runs(name),
        session INTEGER NOT NULL,
        attempt INTEGER NOT NULL,
        fence INTEGER NOT NULL,
        record TEXT NOT NULL,
        session_spec TEXT NOT NULL,
        PRIMARY KEY (run, session, attempt),
        UNIQUE (run, fence)
    ) STRICT;
    CREATE TABLE checkpoints (
        run TEXT NOT NULL REFERENCES runs(name),
        id TEXT NOT NULL,
        record TEXT NOT NULL,
        PRIMARY KEY (run, id)
    ) STRICT;
    CREATE TABLE leases (
        run TEXT PRIMARY KEY REFERENCES runs(name),
        owner TEXT NOT NULL,
        until TEXT NOT NULL
    ) STRICT;
    CREATE TABLE events (
        number INTEGER PRIMARY KEY,
        run TEXT NOT NULL REFERENCES runs(name),
        event TEXT NOT NULL
    ) STRICT;
    CREATE INDEX events_of_a_run ON events(run, number);
    """,
)


class SqliteRunStore:
    """The ledger in one SQLite file; WAL mode lets readers work while another process writes."""

    def __init__(self, path: Path, busy_s: float = _BUSY_S) -> None:
        """Open the ledger; create or migrate it if needed.

        Args:
            path: The file.
            busy_s: Seconds to wait for another process that writes.

        Raises:
            UserError: the file cannot be opened, or a newer version of gemma-orch has written it.
            DataError: the file is not a ledger, or is damaged.
            TemporaryError: another process keeps it locked.
        """
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._translated():
                if not path.exists():
                    _make_empty(path)
        except OSError as error:
            raise _cannot_open(path, error) from error
        with self._translated():
            self._connection = sqlite3.connect(path, timeout=busy_s, isolation_level=None)
        try:
            with self._translated():
                self._connection.execute("PRAGMA journal_mode = WAL")
                self._connection.execute("PRAGMA synchronous = FULL")
                self._connection.execute("PRAGMA foreign_keys = ON")
                self._migrate()
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _migrate(self) -> None:
        if self._version() == len(_MIGRATIONS):
            return
        with self._transaction("migrate"):
            version = self._version()  # read again: another process may have migrated it since
            if version > len(_MIGRATIONS):
                raise UserError(
                    f"the ledger {self._path} has version {version}",
                    expected=f"at most {len(_MIGRATIONS)}, the newest that this gemma-orch supports",
                    remedy="install a newer gemma-orch",
                )
            for number, script in enumerate(_MIGRATIONS[version:], start=version + 1):
                for statement in script.split(";"):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {number}")

    def _version(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if type(error) not in (sqlite3.OperationalError, sqlite3.DatabaseError):
                raise  # a broken constraint is a bug
            raise _understood(self._path, error) from error

    @contextmanager
    def _transaction(self, what: str) -> Iterator[None]:
        try:
            with self._translated():
                self._connection.execute("BEGIN IMMEDIATE")
                yield
                self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        crash_points.done("commit", what)

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._translated():
            return self._connection.execute(query, values).fetchall()

    def names(self) -> tuple[str, ...]:
        """Return the names of all runs, the most recently resumed first."""
        rows = self._rows("SELECT name FROM runs ORDER BY json_extract(header, '$.resumed_at') DESC, name")
        return tuple(name for (name,) in rows)

    def load(self, run: str) -> RunRecord:
        """Return all records of a run, as of one instant.

        Raises:
            UserError: the run does not exist.
            DataError: a record cannot be read.
        """
        with self._translated():
            self._connection.execute("BEGIN")
        try:
            record = self._run(run)
            attempts = self._rows("SELECT record FROM attempts WHERE run = ? ORDER BY fence", run)
            checkpoints = self._rows("SELECT record FROM checkpoints WHERE run = ?", run)
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")  # nothing was written
        origin = _origin(run)
        known = [CheckpointRecord.from_json(checkpoint, origin) for (checkpoint,) in checkpoints]
        return replace(
            record,
            attempts=tuple(AttemptRecord.from_json(attempt, origin) for (attempt,) in attempts),
            checkpoints={each.id: each for each in sorted(known, key=lambda each: each.place)},
        )

    def _run(self, run: str) -> RunRecord:
        """Return a run's record without its attempts and checkpoints."""
        rows = self._rows("SELECT header, wishes FROM runs WHERE name = ?", run)
        if not rows:
            raise UserError(f"there is no run {run!r}", remedy="gemma-orch status lists the runs of this home")
        header, wishes = rows[0]
        return RunRecord(RunHeader.from_json(header, _origin(run)), RunWishes.from_json(wishes, _origin(run)))

    def create(self, header: RunHeader, wishes: RunWishes, changes: Sequence[Change] = ()) -> bool:
        """Add a run and apply changes to it; return False, and change nothing, if the name is taken.

        Run and changes appear in one transaction. Otherwise a controller could see an adopted run without its sessions, and start
        it from step 0.

        Raises:
            IllegalMoveError: a change breaks the state tables; nothing was added.
        """
        with self._transaction(f"create {header.name}"):
            cursor = self._connection.execute(
                "INSERT INTO runs(name, header, wishes) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                (header.name, header.model_dump_json(), wishes.model_dump_json()),
            )
            if cursor.rowcount == 1:
                self._make(header.name, changes)
        return cursor.rowcount == 1

    def set_spec(self, run: str, spec: RunSpec, *, seen: RunRecord) -> bool:
        """Replace the run's spec if spec and data still equal those of `seen`; return whether it did. Needs no lease.

        The caller has checked the new spec against those of `seen`; another command or controller may have changed them since.
        """
        with self._transaction(f"wish spec {run}"):
            now = self._run(run)
            is_as_seen = (now.spec, now.header.data) == (seen.spec, seen.header.data)
            if is_as_seen:
                self._write_wish(run, "spec", spec)
        return is_as_seen

    def set_stop(self, run: str, stop: StopWish | None) -> None:
        """Request a stop of the run, or cancel the request with None. Needs no lease."""
        self._wish(run, "stop", stop)

    def set_rerun(self, run: str, rerun: RerunWish | None) -> None:
        """Request a rerun of a session, or cancel the request with None. Needs no lease."""
        self._wish(run, "rerun", rerun)

    def _wish(self, run: str, wish: str, value: RunSpec | StopWish | RerunWish | None) -> None:
        with self._transaction(f"wish {wish} {run}"):
            self._write_wish(run, wish, value)

    def _write_wish(self, run: str, wish: str, value: RunSpec | StopWish | RerunWish | None) -> None:
        wishes = self._run(run).wishes.evolve(**{wish: value})
        self._connection.execute("UPDATE runs SET wishes = ? WHERE name = ?", (wishes.model_dump_json(), run))

    def lease(self, run: str) -> Lease | None:
        """Return the lease of a run, if it has one, even if it has expired or its owner is dead."""
        rows = self._rows("SELECT owner, until FROM leases WHERE run = ?", run)
        for owner, until in rows:
            return Lease(ProcessIdentity.from_json(owner, "the ledger's lease"), datetime.fromisoformat(until))
        return None

    def acquire(self, run: str, owner: ProcessIdentity, now: datetime, ttl_s: float) -> None:
        """Acquire or renew a run's lease; another owner's lease is taken over if it has expired or the owner is certainly dead.

        Raises:
            LeaseHeldError: another controller holds it.
            UserError: the run does not exist.
        """
        with self._transaction(f"lease {run}"):
            self._run(run)
            current = self.lease(run)
            if current is not None and current.owner != owner and is_in_force(current, now):
                raise LeaseHeldError(
                    f"another controller holds this run until {current.until.astimezone():%H:%M:%S} ({current.owner})"
                )
            self._connection.execute(
                "INSERT INTO leases(run, owner, until) VALUES (?, ?, ?) "
                "ON CONFLICT(run) DO UPDATE SET owner = excluded.owner, until = excluded.until",
                (run, owner.model_dump_json(), (now + timedelta(seconds=ttl_s)).isoformat()),
            )

    def release(self, run: str, owner: ProcessIdentity) -> None:
        """Release a run's lease if this owner holds it."""
        with self._transaction(f"release {run}"):
            self._connection.execute("DELETE FROM leases WHERE run = ? AND owner = ?", (run, owner.model_dump_json()))

    def apply(self, run: str, owner: ProcessIdentity, changes: Sequence[Change]) -> None:
        """Apply changes to a run's records: all of them or none.

        Raises:
            LeaseLostError: this owner does not hold the lease any more; nothing was changed.
            IllegalMoveError: a change breaks the state tables; nothing was changed.
        """
        if not changes:
            return
        with self._transaction(f"apply {run}: " + ", ".join(type(change).__name__ for change in changes)):
            current = self.lease(run)
            if current is None or current.owner != owner:
                raise lease_lost(run)
            self._make(run, changes)

    def _make(self, run: str, changes: Sequence[Change]) -> None:
        """Write the rows that the changes affect; `RunRecord.with_changes` computes the new values."""
        before = self._touched(run, changes)
        after = before.with_changes(changes)
        if (after.header, after.wishes) != (before.header, before.wishes):
            self._connection.execute(
                "UPDATE runs SET header = ?, wishes = ? WHERE name = ?",
                (after.header.model_dump_json(), after.wishes.model_dump_json(), run),
            )
        added = {
            change.attempt.key: change.session_spec
            for change in changes
            if isinstance(change, PutAttempt) and change.session_spec is not None
        }
        for attempt in after.attempts:
            self._put_attempt(run, attempt, added.get(attempt.key))
        for checkpoint in after.checkpoints.values():
            self._connection.execute(
                "INSERT INTO checkpoints(run, id, record) VALUES (?, ?, ?) "
                "ON CONFLICT(run, id) DO UPDATE SET record = excluded.record",
                (run, checkpoint.id, checkpoint.model_dump_json()),
            )
        for change in changes:
            if isinstance(change, AddEvent):
                self._connection.execute("INSERT INTO events(run, event) VALUES (?, ?)", (run, change.event.model_dump_json()))

    def _touched(self, run: str, changes: Sequence[Change]) -> RunRecord:
        """Return the part of a run's record that the changes need: the run itself and the attempts that they change."""
        named = {change.attempt.key for change in changes if isinstance(change, PutAttempt)}
        query = "SELECT record FROM attempts WHERE run = ? AND session = ? AND attempt = ?"
        rows = [row for key in named for row in self._rows(query, run, *key)]
        return replace(self._run(run), attempts=tuple(AttemptRecord.from_json(record, _origin(run)) for (record,) in rows))

    def _put_attempt(self, run: str, attempt: AttemptRecord, session_spec: SessionSpec | None) -> None:
        """Add an attempt if its SessionSpec is given; otherwise replace its record."""
        key, record = (run, *attempt.key), attempt.model_dump_json()
        if session_spec is not None:
            self._connection.execute(
                "INSERT INTO attempts(run, session, attempt, fence, record, session_spec) VALUES (?, ?, ?, ?, ?, ?)",
                (*key, attempt.fence, record, session_spec.model_dump_json()),
            )
        else:
            self._connection.execute(
                "UPDATE attempts SET record = ? WHERE run = ? AND session = ? AND attempt = ?", (record, *key)
            )

    def session_spec(self, run: str, session: int, attempt: int) -> SessionSpec:
        """Return the SessionSpec of an attempt.

        Raises:
            DataError: there is no such attempt.
        """
        rows = self._rows(
            "SELECT session_spec FROM attempts WHERE run = ? AND session = ? AND attempt = ?", run, session, attempt
        )
        if not rows:
            raise DataError(f"the ledger has no attempt {attempt} of session {session} of run {run}")
        return SessionSpec.from_json(rows[0][0], "the ledger's session spec")

    def events(self, run: str, limit: int) -> tuple[Event, ...]:
        """Return the last lines of a run's history, oldest first."""
        rows = self._rows("SELECT event FROM events WHERE run = ? ORDER BY number DESC LIMIT ?", run, limit)
        return tuple(Event.from_json(row[0], "the ledger's history") for row in reversed(rows))


def _origin(run: str) -> str:
    return f"the ledger's record of run {run}"


def is_in_force(lease: Lease, now: datetime) -> bool:
    """Return whether a lease excludes other owners: it has not expired, and its owner is not certainly dead."""
    return now < lease.until and not certainly_dead(lease.owner)


def lease_lost(run: str) -> LeaseLostError:
    """Return the error for a controller whose run was taken over by another one."""
    return LeaseLostError(f"run {run} was taken over by another controller", remedy="gemma-orch status shows it")


def _make_empty(path: Path) -> None:
    """Create the file, in WAL mode from the beginning: to switch it later, a process would need exclusive access to it."""
    with files.temporary_file(path) as part:
        connection = sqlite3.connect(part)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.close()
        files.create_exclusively(path, part.read_bytes())


def _cannot_open(path: Path, error: Exception) -> UserError:
    return UserError(f"the ledger {path} cannot be opened: {error}", remedy="check GEMMA_ORCH_HOME, its permissions and its disk")


def _understood(path: Path, error: sqlite3.Error) -> GemmaOrchError:
    """Translate an error of SQLite; the low byte of its code is the primary code."""
    match getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return TemporaryError(
                f"the ledger {path} is busy: {error}", remedy="try again; if it stays busy, end the process that has it open"
            )
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return _cannot_open(path, error)
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR:
            return TemporaryError(
                f"the ledger {path} could not be written: {error}",
                expected="free space on its disk",
                remedy="free some space, then try again",
            )
        case _:
            return DataError(
                f"the ledger {path} is damaged: {error}",
                remedy="move it away and restore a copy; the checkpoints beside it are not affected",
            )

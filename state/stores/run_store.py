"""Durable home of the ledger: the port, and its adapter for SQLite.

One writer at a time: a controller holds the run's lease, and every change checks in its own transaction that it still
does. The user's wishes (spec, stop, rerun) are written without it, so that a second terminal can always ask for something.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from state import effects, files
from state.errors import DataError, GemmaOrchError, LeaseHeldError, LeaseLostError, TemporaryError, UserError
from state.ledger import (
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
    Tell,
)
from state.process import ProcessIdentity, certainly_dead
from state.spec import RunSpec, SessionSpec

_BUSY_S = 10.0  # transactions here take milliseconds; longer means that another process is stuck inside one


class RunStore(Protocol):
    """Durable home of the records of all runs of one home."""

    def names(self) -> tuple[str, ...]:
        """Return the names of all runs, the most recently resumed first."""
        ...

    def load(self, run: str) -> RunRecord:
        """Return all that is remembered of a run."""
        ...

    def create(self, header: RunHeader, wishes: RunWishes, changes: Sequence[Change] = ()) -> bool:
        """Add a run, with what is known of it already; return False, and change nothing, when its name is taken."""
        ...

    def set_spec(self, run: str, spec: RunSpec, *, seen: RunRecord) -> bool:
        """Replace what the user asks for, if spec and data of the run are as they were seen; return whether; needs no lease."""
        ...

    def set_stop(self, run: str, stop: StopWish | None) -> None:
        """Ask for the run to stop, or take that back; needs no lease."""
        ...

    def set_rerun(self, run: str, rerun: RerunWish | None) -> None:
        """Ask for a session again, or take that back; needs no lease."""
        ...

    def lease(self, run: str) -> Lease | None:
        """Return who holds a run, if anybody does."""
        ...

    def acquire(self, run: str, owner: ProcessIdentity, now: datetime, ttl_s: float) -> None:
        """Take or prolong a run's lease."""
        ...

    def release(self, run: str, owner: ProcessIdentity) -> None:
        """Give a run's lease back, if this owner holds it."""
        ...

    def apply(self, run: str, owner: ProcessIdentity, changes: Sequence[Change]) -> None:
        """Make changes to a run's records: all of them or none."""
        ...

    def session_spec(self, run: str, session: int, attempt: int) -> SessionSpec:
        """Return what an attempt was told."""
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
    """The ledger in one SQLite file, in WAL mode, so that readers never wait for the writer."""

    def __init__(self, path: Path, busy_s: float = _BUSY_S) -> None:
        """Open the ledger, made and brought up to date when needed.

        Args:
            path: The file.
            busy_s: How long to wait for another process that is writing.

        Raises:
            UserError: the file cannot be opened, or a newer gemma-orch has written it.
            DataError: it is no ledger, or damaged.
            TemporaryError: another process does not let go of it.
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
            version = self._version()  # read again: another process may have migrated meanwhile
            if version > len(_MIGRATIONS):
                raise UserError(
                    f"the ledger {self._path} has version {version}",
                    expected=f"at most {len(_MIGRATIONS)}, which is what this gemma-orch knows",
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
                raise  # a broken constraint is a mistake of the program
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
        effects.done("commit", what)

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._translated():
            return self._connection.execute(query, values).fetchall()

    def names(self) -> tuple[str, ...]:
        """Return the names of all runs, the most recently resumed first."""
        rows = self._rows("SELECT name FROM runs ORDER BY json_extract(header, '$.resumed_at') DESC, name")
        return tuple(name for (name,) in rows)

    def load(self, run: str) -> RunRecord:
        """Return all that is remembered of a run, as of one instant.

        Raises:
            UserError: there is no such run.
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
        """Add a run, with what is known of it already; return False, and change nothing, when its name is taken.

        Nobody ever sees the run without the changes: a controller would begin from step 0 what has sessions elsewhere.

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
        """Replace what the user asks for, if spec and data of the run are as they were seen; return whether; needs no lease.

        Whether a run may change its spec depends on the two, so another command or controller must not come between.
        """
        with self._transaction(f"wish spec {run}"):
            now = self._run(run)
            is_as_seen = (now.spec, now.header.data) == (seen.spec, seen.header.data)
            if is_as_seen:
                self._write_wish(run, "spec", spec)
        return is_as_seen

    def set_stop(self, run: str, stop: StopWish | None) -> None:
        """Ask for the run to stop, or take that back; needs no lease."""
        self._wish(run, "stop", stop)

    def set_rerun(self, run: str, rerun: RerunWish | None) -> None:
        """Ask for a session again, or take that back; needs no lease."""
        self._wish(run, "rerun", rerun)

    def _wish(self, run: str, wish: str, value: RunSpec | StopWish | RerunWish | None) -> None:
        with self._transaction(f"wish {wish} {run}"):
            self._write_wish(run, wish, value)

    def _write_wish(self, run: str, wish: str, value: RunSpec | StopWish | RerunWish | None) -> None:
        wishes = self._run(run).wishes.evolve(**{wish: value})
        self._connection.execute("UPDATE runs SET wishes = ? WHERE name = ?", (wishes.model_dump_json(), run))

    def lease(self, run: str) -> Lease | None:
        """Return who holds a run, if anybody does; an expired lease or a dead owner is nobody's concern here."""
        rows = self._rows("SELECT owner, until FROM leases WHERE run = ?", run)
        for owner, until in rows:
            return Lease(ProcessIdentity.from_json(owner, "the ledger's lease"), datetime.fromisoformat(until))
        return None

    def acquire(self, run: str, owner: ProcessIdentity, now: datetime, ttl_s: float) -> None:
        """Take or prolong a run's lease; an expired one, or one of a process that is certainly dead, may be taken.

        Raises:
            LeaseHeldError: another controller holds it.
            UserError: there is no such run.
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
        """Give a run's lease back, if this owner holds it."""
        with self._transaction(f"release {run}"):
            self._connection.execute("DELETE FROM leases WHERE run = ? AND owner = ?", (run, owner.model_dump_json()))

    def apply(self, run: str, owner: ProcessIdentity, changes: Sequence[Change]) -> None:
        """Make changes to a run's records: all of them or none.

        Raises:
            LeaseLostError: this owner does not hold the run any more; nothing was changed.
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
        """Write what changes do to the rows that they touch; what that is, `RunRecord.with_changes` says."""
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
            if isinstance(change, Tell):
                self._connection.execute("INSERT INTO events(run, event) VALUES (?, ?)", (run, change.event.model_dump_json()))

    def _touched(self, run: str, changes: Sequence[Change]) -> RunRecord:
        """Return the part of a run's record that changes depend on: the run itself, and the attempts that they name."""
        named = {change.attempt.key for change in changes if isinstance(change, PutAttempt)}
        query = "SELECT record FROM attempts WHERE run = ? AND session = ? AND attempt = ?"
        rows = [row for key in named for row in self._rows(query, run, *key)]
        return replace(self._run(run), attempts=tuple(AttemptRecord.from_json(record, _origin(run)) for (record,) in rows))

    def _put_attempt(self, run: str, attempt: AttemptRecord, session_spec: SessionSpec | None) -> None:
        """Add an attempt that comes with its SessionSpec, or replace it."""
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
        """Return what an attempt was told.

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
    """Return whether others must leave a run alone: the lease has not run out, and its owner is not certainly dead."""
    return now < lease.until and not certainly_dead(lease.owner)


def lease_lost(run: str) -> LeaseLostError:
    """Return the error of a controller that another one has taken the run over from."""
    return LeaseLostError(f"run {run} was taken over by another controller", remedy="gemma-orch status shows it")


def _make_empty(path: Path) -> None:
    """Make the file in WAL mode before it gets its name: to switch later, a process would have to be alone with it."""
    with files.temporary_file(path) as part:
        connection = sqlite3.connect(part)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.close()
        files.create_exclusively(path, part.read_bytes())


def _cannot_open(path: Path, error: Exception) -> UserError:
    return UserError(f"the ledger {path} cannot be opened: {error}", remedy="check GEMMA_ORCH_HOME, its permissions and its disk")


def _understood(path: Path, error: sqlite3.Error) -> GemmaOrchError:
    """Return what an error of SQLite means for the user; its primary code is the low byte."""
    match getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return TemporaryError(
                f"the ledger {path} is busy: {error}", remedy="try again; if it lasts, end the process that holds it"
            )
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return _cannot_open(path, error)
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR:
            return TemporaryError(
                f"the ledger {path} could not be written: {error}",
                expected="room on its disk",
                remedy="free some, then try again",
            )
        case _:
            return DataError(
                f"the ledger {path} is damaged: {error}",
                remedy="put it aside and bring back a copy; the checkpoints beside it are untouched",
            )

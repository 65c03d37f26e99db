from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from state import crash_points
from state.errors import DataError, ExitCode, TemporaryError, UserError
from state.ledger import AddEvent, Event, RunWishes, StopWish
from state.stores.run_store import SqliteRunStore
from tests.factories import OWNER, RUN, START, header, run_spec


@pytest.fixture
def path(ram_path: Path) -> Path:
    return ram_path / "home" / "ledger.sqlite3"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteRunStore]:
    """A store with one run, held by OWNER."""
    made = SqliteRunStore(path, busy_s=0.05)
    made.create(header(), RunWishes(spec=run_spec()))
    made.acquire(RUN, OWNER, START, 60)
    yield made
    made.close()


def peek(path: Path, query: str) -> object:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchone()[0]
    finally:
        connection.close()


def test_the_ledger_is_in_wal_mode_from_its_first_byte(store: SqliteRunStore, path: Path) -> None:
    assert peek(path, "PRAGMA journal_mode") == "wal"
    assert sorted(entry.name.removeprefix(path.name) for entry in path.parent.iterdir()) == ["", "-shm", "-wal"]


def test_an_old_ledger_is_brought_up_to_date(path: Path) -> None:
    path.parent.mkdir()
    sqlite3.connect(path).close()  # version 0: nothing yet
    SqliteRunStore(path).close()
    assert peek(path, "PRAGMA user_version") == 1
    assert peek(path, "PRAGMA journal_mode") == "wal"
    again = SqliteRunStore(path)
    assert again.names() == ()
    again.close()


def test_a_ledger_of_a_newer_version_is_refused_and_left_alone(path: Path) -> None:
    SqliteRunStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(UserError, match="has version 99") as caught:
        SqliteRunStore(path)
    assert "install a newer gemma-orch" in str(caught.value)
    assert peek(path, "PRAGMA user_version") == 99


def test_a_ledger_that_another_process_is_writing_is_busy_and_says_so(store: SqliteRunStore, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(TemporaryError, match="is busy: database is locked") as caught:
        store.set_stop(RUN, StopWish.NOW)
    assert caught.value.exit_code == ExitCode.TEMPORARY
    assert store.load(RUN).wishes.stop is None  # readers never wait
    other.execute("ROLLBACK")
    other.close()
    store.set_stop(RUN, StopWish.NOW)


def test_a_file_that_is_no_ledger_is_a_data_error(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database, and long enough to be looked at" * 100)
    with pytest.raises(DataError, match="is damaged: file is not a database"):
        SqliteRunStore(path)


def test_a_ledger_that_rots_while_it_is_used_is_a_data_error(store: SqliteRunStore, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("DROP TABLE checkpoints")
    other.close()
    for _ in range(2):
        with pytest.raises(DataError, match="is damaged: no such table: checkpoints"):
            store.load(RUN)
    assert store.names() == (RUN,)


def test_a_record_that_makes_no_sense_is_a_data_error(store: SqliteRunStore, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("""UPDATE runs SET header = '{"name": "tamil"}'""")
    other.close()
    with pytest.raises(DataError, match="the ledger's record of run tamil is not a valid RunHeader"):
        store.load(RUN)
    assert store.names() == (RUN,)


def test_a_home_that_cannot_be_made_is_the_users_error(ram_path: Path) -> None:
    (ram_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be opened") as caught:
        SqliteRunStore(ram_path / "file" / "ledger.sqlite3")
    assert "GEMMA_ORCH_HOME" in str(caught.value)


def test_a_folder_where_the_ledger_should_be_is_the_users_error(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be opened: unable to open database file"):
        SqliteRunStore(path)


def test_every_commit_is_an_effect_and_a_failed_one_is_none(store: SqliteRunStore) -> None:
    heard: list[tuple[str, str]] = []
    crash_points.observe(lambda kind, what: heard.append((kind, what)))
    try:
        store.set_stop(RUN, StopWish.NOW)
        store.apply(RUN, OWNER, [AddEvent(Event(at=START, text="x"))])
        with pytest.raises(UserError):
            store.set_stop("nobody", StopWish.NOW)
    finally:
        crash_points.observe(None)
    assert heard == [("commit", "wish stop tamil"), ("commit", "apply tamil: AddEvent")]

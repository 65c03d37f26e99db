from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from state import effects
from state.errors import DataError, ExitCode, LeaseHeldError, TemporaryError, UserError
from state.ledger import Event, RunWishes, StopWish, Tell
from state.process import identify
from state.stores.run_store import SqliteRunStore
from tests.factories import OWNER, RUN, START, header, run_spec
from tests.repository import ROOT


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


def run_program(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


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


def test_a_migration_that_dies_half_way_is_done_again_from_its_beginning(path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from state import effects\n"
        "from state.stores.run_store import SqliteRunStore\n"
        "count = 0\n"
        "def die(kind, what):\n"
        "    global count\n"
        "    count += 1\n"
        "    if count == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "effects.observe(die)\n"
        "SqliteRunStore(Path(sys.argv[1]))\n"
        "os._exit(0)\n"
    )
    deaths = 0
    while run_program(program, str(path), str(deaths + 1)).returncode != 0:
        deaths += 1
        store = SqliteRunStore(path)
        assert store.names() == ()
        store.close()
        for entry in path.parent.iterdir():
            entry.unlink()
    assert deaths >= 2


def test_many_processes_open_a_new_ledger_at_once_and_none_of_them_sees_an_error(path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from state.stores.run_store import SqliteRunStore\n"
        "SqliteRunStore(Path(sys.argv[1])).close()\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", program, str(path)], cwd=ROOT, stderr=subprocess.PIPE) for _ in range(6)]
    assert [(child.communicate()[1], child.returncode) for child in children] == [(b"", 0)] * 6
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_processes_that_write_at_once_take_turns_and_lose_nothing(store: SqliteRunStore, path: Path) -> None:
    store.release(RUN, OWNER)
    program = (
        "import os, sys, time\n"
        "from datetime import UTC, datetime\n"
        "from pathlib import Path\n"
        "from state.errors import LeaseHeldError\n"
        "from state.ledger import Event, Tell\n"
        "from state.process import identify\n"
        "from state.stores.run_store import SqliteRunStore\n"
        "store, me, done = SqliteRunStore(Path(sys.argv[1])), identify(os.getpid()), 0\n"
        "while done < 25:\n"
        "    now = datetime.now(UTC)\n"
        "    try:\n"
        "        store.acquire('tamil', me, now, 60)\n"
        "    except LeaseHeldError:\n"
        "        time.sleep(0.001)\n"
        "        continue\n"
        "    number = len(store.events('tamil', 1000))\n"
        "    store.apply('tamil', me, [Tell(Event(at=now, text=f'{number}'))])\n"
        "    store.release('tamil', me)\n"
        "    done += 1\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", program, str(path)], cwd=ROOT, stderr=subprocess.PIPE) for _ in range(3)]
    assert [(child.communicate()[1], child.returncode) for child in children] == [(b"", 0)] * 3
    assert [event.text for event in store.events(RUN, 1000)] == [str(number) for number in range(75)]


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


def test_a_full_disk_fails_the_write_and_the_ledger_stays_as_it_was(path: Path) -> None:
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from state.errors import TemporaryError\n"
        "from state.ledger import RunWishes, StopWish\n"
        "from state.stores.run_store import SqliteRunStore\n"
        "from tests.factories import header, run_spec\n"
        "store = SqliteRunStore(Path(sys.argv[1]))\n"
        "store.create(header(), RunWishes(spec=run_spec()))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))\n"
        "try:\n"
        "    for number in range(200):\n"
        "        store.create(header(name=f'run-{number}'), RunWishes(spec=run_spec()))\n"
        "except TemporaryError as error:\n"
        "    print(number, error)\n"
        "assert len(store.names()) == number + 1, (len(store.names()), number)\n"
        "assert 'tamil' in store.names()\n"
    )
    answer = run_program(program, str(path))
    assert answer.returncode == 0, answer.stderr
    assert "could not be written" in answer.stdout
    store = SqliteRunStore(path)
    assert store.create(header(name="later"), RunWishes(spec=run_spec(name="later")))
    store.close()


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


def test_a_lease_of_a_process_that_has_died_on_this_machine_is_taken_at_once(store: SqliteRunStore) -> None:
    store.release(RUN, OWNER)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    theirs, mine = identify(child.pid), identify(os.getpid())
    store.acquire(RUN, theirs, START, 60)
    with pytest.raises(LeaseHeldError):
        store.acquire(RUN, mine, START, 60)
    child.communicate()
    store.acquire(RUN, mine, START, 60)
    store.apply(RUN, mine, [Tell(Event(at=START, text="x"))])


def test_every_commit_is_an_effect_and_a_failed_one_is_none(store: SqliteRunStore) -> None:
    heard: list[tuple[str, str]] = []
    effects.observe(lambda kind, what: heard.append((kind, what)))
    try:
        store.set_stop(RUN, StopWish.NOW)
        store.apply(RUN, OWNER, [Tell(Event(at=START, text="x"))])
        with pytest.raises(UserError):
            store.set_stop("nobody", StopWish.NOW)
    finally:
        effects.observe(None)
    assert heard == [("commit", "wish stop tamil"), ("commit", "apply tamil: Tell")]

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from state.errors import LeaseHeldError
from state.ledger import AddEvent, Event, RunWishes
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


def test_a_migration_that_dies_half_way_is_done_again_from_its_beginning(path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from state import crash_points\n"
        "from state.stores.run_store import SqliteRunStore\n"
        "count = 0\n"
        "def die(kind, what):\n"
        "    global count\n"
        "    count += 1\n"
        "    if count == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "crash_points.observe(die)\n"
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
        "from state.ledger import AddEvent, Event\n"
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
        "    store.apply('tamil', me, [AddEvent(Event(at=now, text=f'{number}'))])\n"
        "    store.release('tamil', me)\n"
        "    done += 1\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", program, str(path)], cwd=ROOT, stderr=subprocess.PIPE) for _ in range(3)]
    assert [(child.communicate()[1], child.returncode) for child in children] == [(b"", 0)] * 3
    assert [event.text for event in store.events(RUN, 1000)] == [str(number) for number in range(75)]


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


def test_a_lease_of_a_process_that_has_died_on_this_machine_is_taken_at_once(store: SqliteRunStore) -> None:
    store.release(RUN, OWNER)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    theirs, mine = identify(child.pid), identify(os.getpid())
    store.acquire(RUN, theirs, START, 60)
    with pytest.raises(LeaseHeldError):
        store.acquire(RUN, mine, START, 60)
    child.communicate()
    store.acquire(RUN, mine, START, 60)
    store.apply(RUN, mine, [AddEvent(Event(at=START, text="x"))])

"""Seconds and memory of the command line: `--help`, `status` with 1 000 sessions in the ledger, and watching a run.

Each command is a whole process; bare `python -c pass` takes turns with them, to show what the machine costs today.
Run: python -m benchmarks.command_line
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.measure import take_turns, verdict
from state.architecture import resolve_architecture
from state.layout import HomeLayout
from state.ledger import AttemptRecord, DataRecord, PutAttempt, RunHeader, RunWishes, SetHeader
from state.process import identify
from state.report import Outcome
from state.session import AttemptState
from state.spec import RunSpec, SessionData, SessionSpec
from state.stores.run_store import SqliteRunStore

NUM_SESSIONS = 1_000
NUM_ROUNDS = 15
WATCH_S = 12.0


def fill_ledger(home: HomeLayout) -> None:
    """Write a run of 1 000 sessions, the last of which runs."""
    store, owner = SqliteRunStore(home.ledger), identify(os.getpid())
    start = datetime.now(UTC) - timedelta(hours=12 * NUM_SESSIONS)
    spec = RunSpec(name="long", total_steps=10_000_000)
    data = DataRecord(sha256="0" * 64, vocab_size=2048, tokens={"english": 10_000}, mixture={"english": 1.0})
    header = RunHeader(name="long", created_at=start, resumed_at=start, data=(data,))
    store.create(header, RunWishes(spec=spec))
    store.acquire("long", owner, datetime.now(UTC), 60.0)
    changes = [PutAttempt(_attempt(number, start), _session_spec(spec, number)) for number in range(1, NUM_SESSIONS + 1)]
    store.apply("long", owner, [*changes, SetHeader(header.evolve(newest_fence=NUM_SESSIONS))])
    store.release("long", owner)
    store.close()


def _attempt(number: int, start: datetime) -> AttemptRecord:
    launched_at = start + timedelta(hours=12 * (number - 1))
    live = number == NUM_SESSIONS
    return AttemptRecord(
        session=number,
        attempt=1,
        fence=number,
        backend="local",
        state=AttemptState.RUNNING if live else AttemptState.DONE,
        start_checkpoint=None,
        start_step=1_000 * (number - 1),
        planned_at=launched_at,
        launched_at=launched_at,
        ended_at=None if live else launched_at + timedelta(hours=11, minutes=58),
        limit_s=12 * 3600.0,
        outcome=None if live else Outcome.BUDGET,
        reason=None if live else "the session's time is used up",
        saved_step=1_000 * number,
        train_s=42_000.0,
    )


def _session_spec(spec: RunSpec, number: int) -> SessionSpec:
    return SessionSpec(
        run=spec.name,
        session=number,
        attempt=1,
        fence=number,
        architecture=resolve_architecture(spec.model, 2048),
        training=spec.training,
        sequence_length=64,
        data=(SessionData(first_step=0, data_dir="data", data_sha256="0" * 64, mixture={"english": 1.0}),),
        checkpoints_dir="checkpoints",
        total_steps=spec.total_steps,
        limit_s=12 * 3600.0,
        checkpoint_every_s=600.0,
    )


def resident_mib_while_watching(environment: dict[str, str]) -> float:
    """Return the peak resident memory of a `start` that watches a session, in MiB."""
    command = [sys.executable, "-m", "orchestrator", "start", "--total-steps", "100000", "--name", "watched"]
    controller = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(WATCH_S)
        status = Path(f"/proc/{controller.pid}/status").read_text()
    finally:
        controller.terminate()
        controller.wait()
        subprocess.run(
            [sys.executable, "-m", "orchestrator", "stop", "--now", "watched"], env=environment, check=True, capture_output=True
        )
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return int(fields["VmHWM"].split()[0]) / 1024


def main() -> int:
    """Measure, print, and return 1 when a number is not reached."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "GEMMA_ORCH_HOME": folder}
        fill_ledger(HomeLayout(Path(folder)))

        def command(*arguments: str) -> None:
            subprocess.run([sys.executable, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)

        taken = take_turns(
            {
                "bare": lambda: command("-c", "pass"),
                "help": lambda: command("-m", "orchestrator", "--help"),
                "status": lambda: command("-m", "orchestrator", "status", "long"),
                "status --json": lambda: command("-m", "orchestrator", "status", "long", "--json"),
            },
            NUM_ROUNDS,
        )
        print(f"python -c pass: {taken['bare']:.3f} s")
        reached = [
            verdict("gemma-orch --help", taken["help"], at_most=0.3, unit="s"),
            verdict(f"gemma-orch status, {NUM_SESSIONS} sessions", taken["status"], at_most=0.3, unit="s"),
            verdict(f"gemma-orch status --json, {NUM_SESSIONS} sessions", taken["status --json"], at_most=0.3, unit="s"),
            verdict("controller while watching", resident_mib_while_watching(environment), at_most=80.0, unit="MiB"),
        ]
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Seconds and memory of the command line: `--help`, `status` with 1 000 sessions in the ledger, and watching a run.

Each command is a whole process. Two peers take turns with them: `python -c pass`, and `python -c "import typer, pydantic"`, the
libraries that such a command line is made of. With another checkout, its commands take turns as well, on the same ledger.
Run: python -m benchmarks.command_line [--before CHECKOUT] [--cores]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from benchmarks.measure import cores_of_children, take_turns, verdict
from state.architecture import resolve_architecture
from state.layout import HomeLayout
from state.ledger import AttemptRecord, DataRecord, PutAttempt, RunHeader, RunWishes, SetHeader
from state.process import identify
from state.report import Outcome
from state.session import AttemptState
from state.spec import RunSpec, SessionData, SessionSpec
from state.stores.run_store import SqliteRunStore

NUM_SESSIONS = 1_000
NUM_ROUNDS = 25
HERE = Path(__file__).resolve().parent.parent
COMMANDS = {
    "gemma-orch --help": ["--help"],
    f"gemma-orch status, {NUM_SESSIONS} sessions": ["status", "long"],
    f"gemma-orch status --json, {NUM_SESSIONS} sessions": ["status", "long", "--json"],
}
BARE, LIBRARIES = 'python -c "pass"', 'python -c "import typer, pydantic"'
WATCH_S = 12.0
NOISE = 1.02  # chosen, not measured: beside much other work, medians by the clock differ by more


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


def seconds_by_command(home: Path, checkouts: Mapping[str, Path], clock: Callable[[], float]) -> dict[str, float]:
    """Return the median seconds of the peers, and of each command of each checkout, under its name and the command's.

    A checkout's code comes first on the path, wherever gemma-orch is installed.
    """

    def run(*arguments: str, checkout: Path = HERE) -> None:
        environment = {**os.environ, "GEMMA_ORCH_HOME": str(home), "PYTHONPATH": str(checkout)}
        subprocess.run([sys.executable, *arguments], env=environment, cwd=checkout, check=True, stdout=subprocess.DEVNULL)

    peers = {BARE: partial(run, "-c", "pass"), LIBRARIES: partial(run, "-c", "import typer, pydantic")}
    commands = {
        name + command: partial(run, "-m", "orchestrator", *arguments, checkout=checkout)
        for command, arguments in COMMANDS.items()
        for name, checkout in checkouts.items()
    }
    return take_turns({**peers, **commands}, NUM_ROUNDS, clock)


def main() -> int:
    """Measure, print, and return 1 when a number is not reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="another checkout, which must not be faster than this one")
    parser.add_argument("--cores", action="store_true", help="count seconds of cores, for a machine that does other work as well")
    options = parser.parse_args()
    before: Path | None = options.before
    with tempfile.TemporaryDirectory() as folder:
        fill_ledger(HomeLayout(Path(folder)))
        checkouts = {"": HERE} if before is None else {"": HERE, "before: ": before.resolve()}
        taken = seconds_by_command(Path(folder), checkouts, cores_of_children if options.cores else time.perf_counter)
        reached = []
        for what, value in taken.items():
            print(f"{what}: {value:.3f} s, {value / taken[LIBRARIES]:.3f} x {LIBRARIES}", flush=True)
        for command in COMMANDS:
            reached.append(verdict(command, taken[command], at_most=0.3, unit="s"))
            if before is not None:
                ratio = taken[command] / taken[f"before: {command}"]
                reached.append(verdict(f"{command}, against {before.name}", ratio, at_most=NOISE))
        environment = {**os.environ, "GEMMA_ORCH_HOME": folder}
        reached.append(verdict("controller while watching", resident_mib_while_watching(environment), at_most=80.0, unit="MiB"))
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Commands as a user types them, into a home of their own, without a process for each."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from typer.testing import CliRunner, Result

from orchestrator.cli import app
from state.errors import GemmaOrchError
from state.layout import HomeLayout
from state.ledger import AttemptRecord, PutAttempt, RunHeader, RunWishes, SetHeader
from state.process import identify
from state.report import Outcome
from state.session import AttemptState, RunState
from state.spec import RunSpec
from state.stores.run_store import SqliteRunStore
from tests.factories import DATA, session_spec

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Terminal:
    """Types commands into a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def type(self, *arguments: str) -> Result:
        return CliRunner(env={"GEMMA_ORCH_HOME": str(self.home), "COLUMNS": "160"}).invoke(app, list(arguments))

    def fail(self, *arguments: str) -> GemmaOrchError:
        result = self.type(*arguments)
        assert isinstance(result.exception, GemmaOrchError), result.output
        return result.exception


def fill_with_runs(home: Path) -> None:
    """Make a finished run of two sessions and an active one that has none."""
    store, owner = SqliteRunStore(HomeLayout(home).ledger), identify(os.getpid())
    for name, state, age_s in (("finished-run", RunState.FINISHED, 60), ("fresh-run", RunState.ACTIVE, 3600)):
        header = RunHeader(name=name, created_at=NOW, resumed_at=NOW - timedelta(seconds=age_s), message="why", data=(DATA,))
        store.create(header, RunWishes(spec=RunSpec(name=name, total_steps=100)))
        store.acquire(name, owner, NOW, 60)
        store.apply(name, owner, [SetHeader(header.evolve(state=state))])
        store.release(name, owner)
    store.acquire("finished-run", owner, NOW, 60)
    for session in (1, 2):
        attempt = AttemptRecord(
            session=session,
            attempt=1,
            fence=session,
            backend="local",
            state=AttemptState.DONE,
            start_checkpoint=None,
            start_step=50 * (session - 1),
            planned_at=NOW,
            launched_at=NOW,
            ended_at=NOW + timedelta(seconds=30),
            limit_s=60,
            outcome=Outcome.BUDGET,
            reason="time is up",
            saved_step=50 * session,
        )
        store.apply("finished-run", owner, [PutAttempt(attempt, session_spec(run="finished-run", session=session))])
    store.release("finished-run", owner)
    store.close()


def run_command(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a process of its own, as a shell does."""
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *arguments],
        env={**os.environ, "GEMMA_ORCH_HOME": str(home), "COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=False,
    )

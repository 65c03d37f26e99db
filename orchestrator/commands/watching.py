"""What commands do that stay until a run, or a part of it, is over."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

import typer

from orchestrator.commands.context import INTERRUPTED, say

if TYPE_CHECKING:
    from orchestrator.monitoring.watch import Verdict
    from orchestrator.ports import Ports
    from state.ledger import AttemptRecord


def drive_to_the_end(ports: Ports, run: str) -> NoReturn:
    """Bring a run on until it is over, say how it ended, and exit as it did."""
    from orchestrator.monitoring.watch import drive

    with watching(ports, run):
        verdict = drive(ports, run)
    _conclude(verdict, advice_on(ports, run))


def advice_on(ports: Ports, run: str) -> str:
    """Return what the backends of a run advise about it now that a command leaves it; empty: nothing."""
    record = ports.runs.load(run)
    names = dict.fromkeys(attempt.backend for attempt in record.attempts)
    return "\n".join(filter(None, (ports.kind(name).advice(ports, record) for name in names)))


@contextlib.contextmanager
def watching(ports: Ports, run: str) -> Iterator[None]:
    """Let Ctrl-C end the watching, not the session, and say how to come back."""
    from state.session import AttemptState

    try:
        yield
    except KeyboardInterrupt:
        live = ports.runs.load(run).live_attempt
        say("")
        if live is not None and live.state is AttemptState.PLANNED:
            say(f"no longer watching; session {live.session} is not launched yet, and is not without a controller")
        elif live is not None:
            say(f"no longer watching; session {live.session} goes on by itself until its limit, and saves what it trains")
        say(f"come back: the same command, or gemma-orch start --name {run}; look: gemma-orch status; end: gemma-orch stop")
        raise typer.Exit(INTERRUPTED) from None


def _conclude(verdict: Verdict, advice: str) -> NoReturn:
    view = verdict.view
    if view.exit_code:
        say(f"run {view.run} {view.state} at step {view.step} of {view.total_steps}: {view.message}")
        say(f"look: gemma-orch status {view.run}, gemma-orch logs --run {view.run}; go on: the same start command")
        say(advice)
        raise typer.Exit(view.exit_code)
    typer.echo(f"run {view.run} {view.state}: {view.message}")
    if view.head is not None:
        typer.echo(f"checkpoint {view.head}, state sha256 {view.state_sha256}")
    say(advice)
    raise typer.Exit(0)


def exit_like(attempt: AttemptRecord) -> NoReturn:
    """Exit as an attempt ended."""
    from state.errors import ErrorClass, ExitCode
    from state.report import Outcome

    if attempt.outcome in (Outcome.COMPLETED, Outcome.BUDGET, Outcome.STOPPED):
        raise typer.Exit(ExitCode.DONE)
    codes = {ErrorClass.USER: ExitCode.USER, ErrorClass.DATA: ExitCode.DATA}
    raise typer.Exit(codes.get(attempt.error_class or ErrorClass.INFRA, ExitCode.TEMPORARY))

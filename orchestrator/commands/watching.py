"""For commands that stay until a run, or one session of it, is over: watch it, handle Ctrl-C, choose the exit code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

import typer

from orchestrator.commands.context import INTERRUPTED, say

if TYPE_CHECKING:
    from orchestrator.monitoring.watch import WatchResult
    from orchestrator.ports import Ports
    from state.ledger import AttemptRecord


def drive_to_the_end(ports: Ports, run: str) -> NoReturn:
    """Drive a run until it is over, print how it ended, and exit with its exit code."""
    from orchestrator.monitoring.watch import drive

    with watching(ports, run):
        verdict = drive(ports, run)
    _conclude(verdict, advice_on(ports, run))


def advice_on(ports: Ports, run: str) -> str:
    """Return the advice of all backends that the run has used, for the end of a command; empty if they have none."""
    record = ports.runs.load(run)
    names = dict.fromkeys(attempt.backend for attempt in record.attempts)
    return "\n".join(filter(None, (ports.kind(name).advice(ports, record) for name in names)))


@contextlib.contextmanager
def watching(ports: Ports, run: str) -> Iterator[None]:
    """Make Ctrl-C end only the watching, not the session; tell the user how to come back."""
    from state.session import AttemptState

    try:
        yield
    except KeyboardInterrupt:
        live = ports.runs.load(run).live_attempt
        say("")
        if live is not None and live.state is AttemptState.PLANNED:
            say(f"stopped watching; session {live.session} is not launched yet, and only a controller launches it")
        elif live is not None:
            say(f"stopped watching; session {live.session} continues until its limit and saves its checkpoints")
        say(f"continue: the same command, or gemma-orch start --name {run}; show: gemma-orch status; stop: gemma-orch stop")
        raise typer.Exit(INTERRUPTED) from None


def _conclude(verdict: WatchResult, advice: str) -> NoReturn:
    view = verdict.view
    if view.exit_code:
        say(f"run {view.run} {view.state} at step {view.step} of {view.total_steps}: {view.message}")
        say(f"show: gemma-orch status {view.run}, gemma-orch logs --run {view.run}; continue: the same start command")
        say(advice)
        raise typer.Exit(view.exit_code)
    typer.echo(f"run {view.run} {view.state}: {view.message}")
    if view.head is not None:
        typer.echo(f"checkpoint {view.head}, state sha256 {view.state_sha256}")
    say(advice)
    raise typer.Exit(0)


def exit_like(attempt: AttemptRecord) -> NoReturn:
    """Exit with the exit code that matches an attempt's outcome and error class."""
    from state.errors import ErrorClass, ExitCode
    from state.report import Outcome

    if attempt.outcome in (Outcome.COMPLETED, Outcome.BUDGET, Outcome.STOPPED):
        raise typer.Exit(ExitCode.DONE)
    codes = {ErrorClass.USER: ExitCode.USER, ErrorClass.DATA: ExitCode.DATA}
    raise typer.Exit(codes.get(attempt.error_class or ErrorClass.INFRA, ExitCode.TEMPORARY))

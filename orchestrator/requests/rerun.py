"""Checks a request to rerun a session, and records it for the controller."""

from __future__ import annotations

from orchestrator.controller.decide import first_attempt_with_progress
from orchestrator.controller.training_data import check_order
from orchestrator.ports import Ports
from state.errors import UserError
from state.ledger import CheckpointState, RerunWish


def ask_for_rerun(ports: Ports, run: str, session: int, *, adopt: bool) -> None:
    """Record the request to rerun a session.

    Raises:
        UserError: the session does not exist, another rerun is pending, or the checkpoint that it started from is gone.
    """
    record = ports.runs.load(run)
    check_order(record)
    attempts = [attempt for attempt in record.attempts if attempt.session == session]
    if not attempts:
        numbers = sorted({attempt.session for attempt in record.attempts})
        raise UserError(
            f"run {run} has no session {session}",
            expected=f"1 to {numbers[-1]}" if numbers else "a session that has run; the run has none yet",
            remedy="gemma-orch status shows them",
        )
    if record.wishes.rerun is not None:
        raise UserError(
            f"a rerun of session {record.wishes.rerun.session} is pending already", remedy="repeat the command when it is done"
        )
    start = first_attempt_with_progress(record, session).start_checkpoint
    if start is not None and record.checkpoints[start].state is not CheckpointState.VERIFIED:
        raise UserError(
            f"session {session} started from checkpoint {start}, which is {record.checkpoints[start].state}",
            remedy="to keep the starts of more sessions, raise keep_session_starts under [checkpoints] in the config file",
        )
    ports.runs.set_rerun(run, RerunWish(session=session, adopt=adopt, requested_at=ports.clock.now()))

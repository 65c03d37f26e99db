"""Request a rerun of a session: check it, and record it for the controller."""

from __future__ import annotations

from orchestrator.controller.decide import first_attempt_with_progress
from orchestrator.controller.training_data import check_order
from orchestrator.ports import Ports
from state.errors import UserError
from state.ledger import CheckpointState, RerunWish


def ask_for_rerun(ports: Ports, run: str, session: int, *, adopt: bool) -> None:
    """Write down that a session shall run again.

    Raises:
        UserError: there is no such session, or the checkpoint that it started at is gone.
    """
    record = ports.runs.load(run)
    check_order(record)
    attempts = [attempt for attempt in record.attempts if attempt.session == session]
    if not attempts:
        numbers = sorted({attempt.session for attempt in record.attempts})
        raise UserError(
            f"run {run} has no session {session}",
            expected=f"1 to {numbers[-1]}" if numbers else "a session that has run; there is none yet",
            remedy="gemma-orch status shows them",
        )
    if record.wishes.rerun is not None:
        raise UserError(
            f"session {record.wishes.rerun.session} is to run again already", remedy="wait until it has, then ask again"
        )
    start = first_attempt_with_progress(record, session).start_checkpoint
    if start is not None and record.checkpoints[start].state is not CheckpointState.VERIFIED:
        raise UserError(
            f"session {session} started at checkpoint {start}, which is {record.checkpoints[start].state}",
            remedy="to keep the starts of more sessions, raise keep_session_starts under [checkpoints] in the config file",
        )
    ports.runs.set_rerun(run, RerunWish(session=session, adopt=adopt, requested_at=ports.clock.now()))

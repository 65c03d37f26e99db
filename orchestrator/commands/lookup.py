"""Which run, checkpoint or attempt is meant by what the user typed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.ports import Ports
    from state.ledger import AttemptRecord, RunRecord


def run_named(ports: Ports, name: str | None) -> str:
    """Return the run with this name or unique prefix; the newest one when none is named.

    Raises:
        UserError: there is no such run, or none at all.
    """
    from state.errors import UserError
    from state.lineage import resolve

    names = ports.runs.names()
    if not names:
        raise UserError(f"there is no run in {ports.home.root}", remedy="gemma-orch start --total-steps 200 begins one")
    return resolve(name, names, "run") if name is not None else names[0]


def checkpoint_named(record: RunRecord, prefix: str | None) -> str:
    """Return the verified checkpoint with this unique prefix; the head when none is named.

    Raises:
        UserError: there is no such checkpoint, or none at all.
    """
    from state.errors import UserError
    from state.ledger import CheckpointState
    from state.lineage import resolve

    if prefix is None:
        if record.header.head is None:
            raise UserError(f"run {record.name} has no checkpoint yet", remedy="gemma-orch status shows how far it is")
        return record.header.head
    known = [each.id for each in record.checkpoints.values() if each.state is CheckpointState.VERIFIED]
    return resolve(prefix, known, "checkpoint")


def attempt_named(record: RunRecord, session: str | None) -> AttemptRecord:
    """Return an attempt by session number or by its own name; the newest one when none is named.

    Raises:
        UserError: there is none.
    """
    from state.errors import UserError
    from state.layout import attempt_name

    matching = [
        attempt
        for attempt in record.attempts
        if session in (None, str(attempt.session), attempt_name(attempt.session, attempt.attempt))
    ]
    if not matching:
        known = ", ".join(attempt_name(attempt.session, attempt.attempt) for attempt in record.attempts[-6:])
        raise UserError(f"run {record.name} has no session {session or 'yet'}", expected=f"one of {known}" if known else "")
    return matching[-1]

"""Resolve the name or prefix that the user typed to a run, checkpoint or attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.ports import Ports
    from state.ledger import AttemptRecord, RunRecord


def run_named(ports: Ports, name: str | None) -> str:
    """Return the run with this name or unique prefix; without a name, the newest run.

    Raises:
        UserError: no run matches, or the home has none.
    """
    from state.errors import UserError
    from state.lineage import resolve

    names = ports.runs.names()
    if not names:
        raise UserError(f"no run in {ports.home.root}", remedy="gemma-orch start --total-steps 200 starts one")
    return resolve(name, names, "run") if name is not None else names[0]


def checkpoint_named(record: RunRecord, prefix: str | None) -> str:
    """Return the verified checkpoint with this unique prefix; without a prefix, the head.

    Raises:
        UserError: no checkpoint matches, or the run has none.
    """
    from state.errors import UserError
    from state.ledger import CheckpointState
    from state.lineage import resolve

    if prefix is None:
        if record.header.head is None:
            raise UserError(f"run {record.name} has no checkpoint yet", remedy="gemma-orch status shows its progress")
        return record.header.head
    known = [each.id for each in record.checkpoints.values() if each.state is CheckpointState.VERIFIED]
    return resolve(prefix, known, "checkpoint")


def attempt_named(record: RunRecord, session: str | None) -> AttemptRecord:
    """Return the newest attempt of a session number, or the attempt of a name such as s003a1; by default the newest of all.

    Raises:
        UserError: no attempt matches.
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

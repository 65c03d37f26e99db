"""The status of a run: its record, the backend's latest observation, and what it waits for."""

from __future__ import annotations

import dataclasses

from orchestrator.controller.attempt import ref_of
from orchestrator.controller.decide import AskToStop, Drop, Finish, GiveUp, Kill, Launch, Resume, Wait, decide
from orchestrator.monitoring.views import StatusView, status_view
from orchestrator.ports import AttemptStatus, Ports, Quota
from state.ledger import RunRecord, Waiting
from state.report import Heartbeat
from state.session import AttemptState
from state.stores.run_store import is_in_force


def observe_run(ports: Ports, run: str) -> StatusView:
    """Return a run's status without changing the run."""
    record, detail = _as_seen(ports, ports.runs.load(run))
    waits = waiting_for(ports, record)
    if waits is not None and detail:
        waits = f"{waits}: {detail}"
    return status_view(record, _heartbeat(ports, record), waits, ports.clock.now())


def _as_seen(ports: Ports, record: RunRecord) -> tuple[RunRecord, str]:
    """Overlay the backend's current answer on the record; also return the answer's detail text.

    A live attempt that the backend shows as ended counts as ended, even if no controller has collected it yet.
    """
    live = record.live_attempt
    if live is None or live.state is AttemptState.PLANNED:
        return record, ""
    seen = ports.backend(live.backend, record.name).observe(ref_of(record, live))
    if seen.sighting is not AttemptStatus.ENDED:
        return record, seen.detail
    over = live.evolve(state=AttemptState.ENDED, ended_at=seen.ended_at or ports.clock.now())
    attempts = tuple(over if attempt is live else attempt for attempt in record.attempts)
    return dataclasses.replace(record, attempts=attempts), ""


def _heartbeat(ports: Ports, record: RunRecord) -> Heartbeat | None:
    live = record.live_attempt
    if live is None or live.state is AttemptState.ENDED:
        return None
    return ports.backend(live.backend, record.name).heartbeat(ref_of(record, live))


def waiting_for(ports: Ports, record: RunRecord) -> str | None:
    """Return a sentence about what a run waits for; None if the run is over."""
    now = ports.clock.now()
    lease = ports.runs.lease(record.name)
    watched = lease is not None and is_in_force(lease, now)
    again = f"continue: gemma-orch start --name {record.name}"
    live = record.live_attempt
    if live is not None and live.state is AttemptState.ENDED and not watched:
        return f"a controller, to collect session {live.session}, which has ended; {again}"
    match decide(record, Quota(available=True), now):
        case Wait(reason, until):
            return _in_words(Waiting(reason=reason, until=until))
        case Finish() | GiveUp():
            return None
        case AskToStop(attempt):
            return f"session {attempt.session} to save and end, as requested"
        case Kill(attempt, reason):
            return f"session {attempt.session} to end: {reason}"
        case Launch() | Resume() | Drop() as due:
            waiting = record.header.waiting
            if watched:
                return _in_words(waiting)
            next_tick = f"a controller, to {_verb(due)}; {again}"
            is_early = waiting is not None and waiting.until is not None and now < waiting.until
            return f"{_in_words(waiting)}; then {next_tick}" if is_early else next_tick


def _in_words(waiting: Waiting | None) -> str | None:
    if waiting is None or waiting.until is None:
        return waiting.reason if waiting is not None else None
    return f"{waiting.reason}, until {waiting.until.astimezone():%a %H:%M:%S}"


def _verb(decision: Launch | Resume | Drop) -> str:
    match decision:
        case Launch(session, attempt):
            return f"launch session {session} attempt {attempt}"
        case Resume(attempt):
            return f"launch session {attempt.session} attempt {attempt.attempt}"
        case Drop(attempt):
            return f"drop session {attempt.session} attempt {attempt.attempt}"

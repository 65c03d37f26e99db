from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.monitoring.speed import eta, goodput, steps_per_second
from orchestrator.monitoring.views import checkpoint_views, status_view
from state.ledger import (
    AttemptRecord,
    CheckpointRecord,
    CheckpointState,
    RunHeader,
    RunRecord,
    RunWishes,
)
from state.report import Heartbeat, Outcome, Phase
from state.session import AttemptState
from state.spec import RunSpec

START = datetime(2026, 1, 1, tzinfo=UTC)


def attempt(session: int, *, saved_step: int | None, start_step: int, train_s: float, live: bool = False) -> AttemptRecord:
    launched_at = START + timedelta(seconds=100 * (session - 1))
    return AttemptRecord(
        session=session,
        attempt=1,
        fence=session,
        backend="local",
        state=AttemptState.RUNNING if live else AttemptState.DONE,
        start_checkpoint=None,
        start_step=start_step,
        planned_at=launched_at,
        launched_at=launched_at,
        ended_at=None if live else launched_at + timedelta(seconds=100),
        limit_s=100,
        outcome=None if live else Outcome.BUDGET,
        saved_step=saved_step,
        train_s=train_s,
    )


def checkpoint(step: int, session: int, parent: str | None, train_s: float) -> CheckpointRecord:
    return CheckpointRecord(
        id=f"c{step}-{session}",
        step=step,
        parent=parent,
        session=session,
        attempt=1,
        fence=session,
        branch=None,
        state=CheckpointState.VERIFIED,
        state_sha256="0" * 64,
        manifest_sha256="0" * 64,
        total_bytes=1,
        created_at=START,
        verified_at=START,
        train_s=train_s,
    )


def record_of(attempts: list[AttemptRecord], checkpoints: list[CheckpointRecord], head: str | None) -> RunRecord:
    return RunRecord(
        RunHeader(name="r", created_at=START, resumed_at=START, head=head),
        RunWishes(spec=RunSpec(name="r", total_steps=100)),
        tuple(attempts),
        {each.id: each for each in checkpoints},
    )


def test_goodput_counts_only_training_that_the_head_holds() -> None:
    record = record_of(
        [
            attempt(1, start_step=0, saved_step=20, train_s=80),
            attempt(2, start_step=20, saved_step=None, train_s=0),
            attempt(3, start_step=20, saved_step=40, train_s=90),
        ],
        [
            checkpoint(10, 1, None, 40),
            checkpoint(20, 1, "c10-1", 80),
            checkpoint(40, 3, "c20-1", 90),
            checkpoint(30, 9, "c20-1", 50),  # a branch
        ],
        "c40-3",
    )
    assert goodput(record, START + timedelta(seconds=300)) == pytest.approx((80 + 90) / 300)


def test_nothing_is_said_about_goodput_before_the_first_launch() -> None:
    assert goodput(record_of([], [], None), START) is None


def test_the_eta_comes_from_all_seconds_billed_not_from_training_alone() -> None:
    record = record_of([attempt(1, start_step=0, saved_step=50, train_s=25)], [checkpoint(50, 1, None, 25)], "c50-1")
    now = START + timedelta(seconds=100)
    assert eta(record, now, step=50, live_steps_per_s=2.0) == now + timedelta(seconds=100)
    assert steps_per_second(record) == 2.0


def test_a_first_session_is_estimated_by_its_own_speed() -> None:
    record = record_of([attempt(1, start_step=0, saved_step=None, train_s=0, live=True)], [], None)
    assert eta(record, START, step=10, live_steps_per_s=3.0) == START + timedelta(seconds=30)
    assert eta(record, START, step=10, live_steps_per_s=None) is None
    assert eta(record, START, step=10, live_steps_per_s=1e-300) is None
    assert eta(record, START, step=100, live_steps_per_s=3.0) is None


def test_the_step_of_the_status_is_what_survives_and_the_live_session_shows_what_it_has_trained() -> None:
    record = record_of(
        [attempt(1, start_step=0, saved_step=20, train_s=80), attempt(2, start_step=20, saved_step=None, train_s=0, live=True)],
        [checkpoint(20, 1, None, 80)],
        "c20-1",
    )
    beat = Heartbeat(at=START, pid=1, phase=Phase.TRAINING, start_step=20, step=27, left_s=10, steps_per_s=0.5)
    view = status_view(record, beat, "session 2", START + timedelta(seconds=150))
    assert (view.step, view.sessions[1].end_step, view.sessions[1].duration_s) == (20, 27, 50.0)
    assert view.live == beat
    assert {
        "run", "state", "step", "total_steps", "waiting_for", "goodput", "eta", "sessions", "schema_version",
    } <= view.model_dump().keys()  # fmt: skip
    assert {
        "number", "attempt", "backend", "state", "outcome", "reason", "start_step", "end_step", "started_at", "ended_at",
    } <= view.sessions[0].model_dump().keys()  # fmt: skip


def test_the_checkpoints_of_the_contract_say_which_is_the_head_and_which_is_verified() -> None:
    good, bad = checkpoint(10, 1, None, 1), checkpoint(20, 1, "c10-1", 2)
    record = record_of([], [good, bad.evolve(state=CheckpointState.QUARANTINED)], good.id)
    views = checkpoint_views(record)
    assert [(view.id, view.head, view.verified) for view in views] == [("c10-1", True, True), ("c20-1", False, False)]
    assert {
        "id", "step", "parent", "session", "attempt", "fence", "head", "verified", "state_sha256", "total_bytes", "created_at",
    } <= views[0].model_dump().keys()  # fmt: skip

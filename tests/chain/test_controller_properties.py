"""Whatever goes wrong in whatever order, the rules of truth hold after every tick."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from orchestrator.backends.simulated import Scenario, SimulatedBackend
from orchestrator.controller.decide import Finish, GiveUp
from state import crash_points
from state.errors import ErrorClass, LeaseHeldError
from state.layout import checkpoint_id
from state.ledger import AttemptRecord, CheckpointState, RerunWish, RunRecord, StopWish
from state.process import ProcessIdentity
from state.session import RunState
from state.spec import Retention, SessionSpec
from tests.factories import RUN, after, commit_checkpoint
from tests.simulation import Simulation

_TOTAL_STEPS = 40
_MOST_TICKS = 400
_RAM = Path("/dev/shm")

courses = st.builds(
    Scenario,
    save_after=st.sampled_from([(10, 20), (5, 10), (3,), (40,), ()]),
    killed=st.booleans(),
    error_class=st.sampled_from([None, None, None, None, ErrorClass.INFRA, ErrorClass.QUOTA]),
    lost_answer=st.booleans(),
    refused=st.sampled_from([0, 0, 0, 1, 2]),
    unknown_looks=st.integers(0, 3),
    rots_after=st.sampled_from([None, None, 5, 10]),
    refuses_start=st.sampled_from([False, False, False, True]),
)
user_acts = st.sampled_from(
    ["nothing"] * 6 + ["stop", "stop now", "start", "rerun", "adopt", "damage", "damage", "late", "extend"]
)


class Killed(BaseException):
    """The process ends here."""


class OneAtATime(SimulatedBackend):
    """A world that watches its controllers."""

    def launch(self, spec: SessionSpec) -> str:
        assert self.alive() == (), f"{spec} is launched while another attempt is alive"
        return super().launch(spec)


def kill_after(num_effects: int) -> None:
    left = num_effects

    def count_down(kind: crash_points.EffectKind, what: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            crash_points.observe(None)
            raise Killed

    crash_points.observe(count_down)


def check(before: RunRecord, now: RunRecord) -> None:
    assert sum(attempt.is_live for attempt in now.attempts) <= 1
    fences = [attempt.fence for attempt in now.attempts]
    assert fences == sorted(set(fences))
    assert now.header.newest_fence == max(fences, default=0)
    if now.head is not None:
        assert now.head.state is CheckpointState.VERIFIED
    if now.head_step < before.head_step:
        lost = before.head is not None and now.checkpoints[before.head.id].state is CheckpointState.QUARANTINED
        adopted = now.head is not None and now.head.branch is not None
        assert lost or adopted, f"the head went from {before.head_step} to {now.head_step}"
    elif now.head is not None and now.header.head != before.header.head and now.head.branch is None:
        assert now.head.fence >= before.header.newest_fence, "an older attempt's commit became the head"
    if now.header.state in (RunState.FAILED, RunState.STOPPED, RunState.FINISHED):
        assert now.header.message


def commit_late(run: Simulation, old: AttemptRecord, step: int) -> None:
    """Commit a checkpoint as an old attempt that somebody runs by hand would."""
    if checkpoint_id(step, old.session, old.attempt) not in run.store.ids():
        by_hand = {"session": old.session, "number": old.attempt, "fence": old.fence, "branch": old.branch}
        commit_checkpoint(run.store, step, parent=old.start_checkpoint, **by_hand)


def act(run: Simulation, what: str) -> None:
    record = run.record
    match what:
        case "stop":
            run.runs.set_stop(RUN, StopWish.CHECKPOINT)
        case "stop now":
            run.runs.set_stop(RUN, StopWish.NOW)
        case "start":
            run.controller.activate(RUN)
        case "rerun" | "adopt":
            if record.attempts:
                session = record.attempts[len(record.attempts) // 2].session
                wish = RerunWish(session=session, adopt=what == "adopt", requested_at=run.clock.now())
                run.runs.set_rerun(RUN, wish)
        case "damage":
            if record.header.head in run.store.ids():
                run.damage(record.header.head)
        case "late":
            if record.attempts:
                commit_late(run, record.attempts[len(record.attempts) // 2], record.head_step + 3)
        case "extend":
            run.runs.set_spec(RUN, record.spec.evolve(total_steps=_TOTAL_STEPS + 10), seen=record)


@settings(
    max_examples=250, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(
    faults=st.lists(courses, min_size=1, max_size=6),
    healthy_from=st.integers(1, 12),
    lives=st.lists(st.integers(1, 60), max_size=6),
    acts=st.lists(user_acts, max_size=15),
)
def test_any_run_reaches_its_last_step_or_stops_with_an_explanation(
    faults: list[Scenario], healthy_from: int, lives: list[int], acts: list[str]
) -> None:
    def script(session: int, attempt: int) -> Scenario:
        return faults[(3 * session + attempt) % len(faults)] if session + attempt <= healthy_from else Scenario()

    with tempfile.TemporaryDirectory(dir=_RAM if _RAM.is_dir() else None, prefix="gemma-orch-test-") as folder:
        life = 0

        def be_born() -> Simulation:
            owner = ProcessIdentity(host=f"host-{life}", pid=1, started="")
            born = Simulation(Path(folder), script, start=after(3600.0 * life), owner=owner, backend=OneAtATime)
            kill_after(lives[life] if life < len(lives) else 0)
            return born

        crash_points.observe(None)
        Simulation(Path(folder), script).create(total_steps=_TOTAL_STEPS, retention=Retention(keep_last=2)).close()
        run = be_born()
        seen = run.record
        left = list(acts)
        try:
            for _ in range(_MOST_TICKS):
                try:
                    over = isinstance(run.tick().decision, Finish | GiveUp)
                    check(seen, run.record)
                    seen = run.record
                    if over and not left:
                        break
                    if left:
                        act(run, left.pop(0))
                        seen = run.record
                except Killed:
                    run.close()
                    life += 1
                    run = be_born()
                    check(seen, run.record)
                    seen = run.record
                except LeaseHeldError:
                    run.clock.advance(30)
            else:
                raise AssertionError(f"no end after {_MOST_TICKS} ticks: {run.record.header}")
            check_end(run)
            event(f"{run.record.header.state}, {min(len(run.record.attempts), 5)} attempts, {min(life, 3)} kills")
        finally:
            crash_points.observe(None)
            run.close()


def check_end(run: Simulation) -> None:
    record = run.record
    assert record.live_attempt is None
    assert run.backend.alive() == ()
    if record.header.state is RunState.FINISHED:
        assert record.head_step >= _TOTAL_STEPS or record.spec.total_steps > _TOTAL_STEPS
    verified = {known.id for known in record.checkpoints.values() if known.state is CheckpointState.VERIFIED}
    assert set(run.store.ids()) == verified

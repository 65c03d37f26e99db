"""What a ledger learns from an account is what the ledger knew that launched the sessions."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from orchestrator.backends.kaggle.adopt.replay import RunOnAccount, SeenAttempt, first_record, what_is_new
from orchestrator.backends.simulated import Scenario
from orchestrator.controller.attempt import ref_of
from orchestrator.controller.decide import Launch, Resume, decide
from orchestrator.controller.reconcile import Found
from orchestrator.ports import AttemptStatus, Quota
from state.errors import CorruptCheckpointError, DataError, ErrorClass, UserError
from state.kaggle.job import StopFlag
from state.ledger import AddEvent, CheckpointState, DataRecord, PutAttempt, RerunWish, RunRecord, StopWish
from state.session import AttemptState, RunState
from state.spec import ExpectedCheckpoint, RunSpec
from state.stores.run_store import SqliteRunStore
from tests.factories import DATA, OWNER, RUN, after, manifest, report, run_spec, session_spec
from tests.simulation import Simulation

_RAM = Path("/dev/shm")
_NOW = after(1000)


def found(step: int, session: int, number: int = 1, **values: Any) -> Found:
    return Found(*manifest(step, session, number, **values))


def start_at(step: int, session: int, number: int = 1) -> ExpectedCheckpoint:
    made = found(step, session, number)
    return ExpectedCheckpoint(
        id=made.manifest.id, step=step, manifest_sha256=made.manifest_sha256, state_sha256=made.manifest.state_sha256
    )


def seen(session: int, number: int = 1, *, start: ExpectedCheckpoint | None = None, **values: Any) -> SeenAttempt:
    """An attempt that has ended with a report, unless the values say otherwise."""
    fence = values.pop("fence", session)
    branch = values.pop("branch", None)
    sighting = values.pop("sighting", AttemptStatus.ENDED)
    made = values.get("found", ())
    said = report(session, number, fence=fence, head=made[-1].manifest.id if made else None)
    return SeenAttempt(
        session,
        number,
        sighting,
        **{
            "handle": "1",
            "spec": session_spec(session, number, fence=fence, start=start, branch=branch),
            "report": said if sighting is AttemptStatus.ENDED else None,
            "made_at": after(100 * fence),
            "pushed_at": after(100 * fence),
            "changed_at": after(100 * fence + 90),
            **values,
        },
    )


def name_of(session: int, number: int = 1, **values: Any) -> SeenAttempt:
    """An attempt of which only the kernel is left."""
    return SeenAttempt(
        session, number, AttemptStatus.ENDED, handle="1", has_dataset=False, pushed_at=after(100 * session), **values
    )


def account(*attempts: SeenAttempt, **values: Any) -> RunOnAccount:
    return RunOnAccount(run_spec(backend="kaggle"), (DATA,), attempts, **values)


def adopted(shown: RunOnAccount, record: RunRecord | None = None, now: datetime = _NOW) -> RunRecord:
    record = record or first_record(shown, now)
    return record.with_changes(what_is_new(record, shown, now))


def states(record: RunRecord) -> dict[str, str]:
    return {f"s{attempt.session:03d}a{attempt.attempt}": attempt.state.value for attempt in record.attempts}


def test_a_finished_chain_is_known_with_its_lineage_and_its_reports() -> None:
    pruned = found(40, 2, parent="step-00000030-s002a1")
    record = adopted(account(seen(1, found=(found(10, 1), found(20, 1))), seen(2, start=start_at(20, 1), found=(pruned,))))
    assert states(record) == {"s001a1": "done", "s002a1": "done"}
    assert record.header.head == "step-00000040-s002a1"
    assert record.header.newest_fence == 2
    assert record.checkpoints["step-00000040-s002a1"].parent == "step-00000020-s001a1"
    assert [attempt.saved_step for attempt in record.attempts] == [20, 40]
    assert record.header.data == (DATA,)
    assert record.live_attempt is None


@pytest.mark.parametrize(
    ("sighting", "state"),
    [(AttemptStatus.QUEUED, "queued"), (AttemptStatus.RUNNING, "running"), (AttemptStatus.UNKNOWN, "running")],
)
def test_a_live_session_is_followed_and_nothing_is_launched_beside_it(sighting: AttemptStatus, state: str) -> None:
    record = adopted(account(seen(1, found=(found(20, 1),)), seen(2, start=start_at(20, 1), sighting=sighting, handle="3")))
    live = record.live_attempt
    assert live is not None
    assert (live.session, live.state.value, live.handle) == (2, state, "3")
    assert not isinstance(decide(record, Quota(available=True), _NOW), Launch)


def test_a_session_that_left_no_report_is_lost_and_keeps_what_it_had_committed() -> None:
    lost = seen(1, found=(found(20, 1),), report=None, detail="its kernel is error")
    record = adopted(account(lost, seen(2, start=start_at(20, 1), sighting=AttemptStatus.QUEUED)))
    assert (states(record), record.header.head) == ({"s001a1": "lost", "s002a1": "queued"}, "step-00000020-s001a1")
    assert record.attempts[0].reason == "its kernel is error"
    assert record.attempts[0].ended_at == after(190)


@pytest.mark.parametrize(
    "newest",
    [
        seen(1, found=(found(20, 1),), report=None),
        seen(1, found=(found(20, 1),), report=report(1, head="step-00000030-s001a1")),
    ],
    ids=["without a report", "without its last checkpoint"],
)
def test_that_the_newest_attempt_is_over_is_not_believed_at_one_look(newest: SeenAttempt) -> None:
    record = adopted(account(newest))
    assert (states(record), record.header.head) == ({"s001a1": "running"}, "step-00000020-s001a1")


def test_the_newest_attempt_without_a_kernel_may_have_been_pushed_a_moment_ago() -> None:
    pending = seen(2, start=start_at(20, 1), sighting=AttemptStatus.MISSING, pushed_at=None, made_at=after(210))
    record = adopted(account(seen(1, found=(found(20, 1),)), pending))
    assert states(record)["s002a1"] == "launching"
    assert record.attempts[-1].launched_at == after(210), "reads settle however often a scheduled job adopts anew"


def test_a_newest_attempt_that_has_committed_was_launched_though_its_kernel_does_not_show() -> None:
    record = adopted(account(seen(1, sighting=AttemptStatus.MISSING, found=(found(20, 1),))))
    assert states(record) == {"s001a1": "running"}


def test_an_older_attempt_without_a_kernel_was_never_sent() -> None:
    record = adopted(account(seen(1, sighting=AttemptStatus.MISSING), seen(1, 2, fence=2, found=(found(20, 1, 2, fence=2),))))
    assert states(record) == {"s001a1": "dropped", "s001a2": "done"}


def test_a_late_commit_of_an_older_attempt_is_a_branch() -> None:
    late = found(60, 1)
    record = adopted(account(seen(1, found=(found(20, 1), late)), seen(2, start=start_at(20, 1), found=(found(40, 2),))))
    assert record.header.head == "step-00000040-s002a1"
    assert late.manifest.id in record.checkpoints


def test_two_live_attempts_are_both_waited_for() -> None:
    record = adopted(
        account(
            seen(1, found=(found(20, 1),), sighting=AttemptStatus.RUNNING),
            seen(2, start=start_at(20, 1), sighting=AttemptStatus.RUNNING),
        )
    )
    assert states(record) == {"s001a1": "running", "s002a1": "running"}
    one_over = adopted(
        account(
            seen(1, found=(found(20, 1),)),
            seen(2, start=start_at(20, 1), sighting=AttemptStatus.RUNNING),
            seen(3, start=start_at(20, 1), sighting=AttemptStatus.QUEUED),
        ),
        record,
    )
    assert states(one_over) == {"s001a1": "done", "s002a1": "running", "s003a1": "queued"}


def test_a_session_that_was_run_again_beside_the_line_stays_beside_it() -> None:
    again = seen(
        1,
        2,
        fence=3,
        branch="rerun-s001a2",
        found=(found(20, 1, 2, fence=3, branch="rerun-s001a2"),),
        report=report(1, 2, fence=3),
    )
    record = adopted(account(seen(1, found=(found(20, 1),)), seen(2, start=start_at(20, 1), found=(found(40, 2),)), again))
    assert record.header.head == "step-00000040-s002a1"
    assert record.attempts[-1].branch == "rerun-s001a2"
    assert not record.attempts[-1].adopt


def test_the_last_session_that_was_run_again_gives_the_head() -> None:
    again = seen(
        2,
        2,
        fence=3,
        start=start_at(20, 1),
        branch="rerun-s002a2",
        found=(found(30, 2, 2, fence=3, branch="rerun-s002a2"),),
    )
    record = adopted(account(seen(1, found=(found(20, 1),)), seen(2, start=start_at(20, 1)), again))
    assert record.header.head == "step-00000030-s002a2"


def test_attempts_whose_datasets_are_gone_keep_their_names_from_being_used_again() -> None:
    record = adopted(account(name_of(1), name_of(2), seen(3, start=start_at(40, 2), found=(found(60, 3),))))
    assert states(record) == {"s001a1": "lost", "s002a1": "lost", "s003a1": "done"}
    assert sorted(attempt.fence for attempt in record.attempts) == [-2, -1, 3]
    start = record.checkpoints["step-00000040-s002a1"]
    assert start.state is CheckpointState.PRUNED
    assert {attempt.session: attempt.saved_step for attempt in record.attempts} == {1: None, 2: 40, 3: 60}
    decision = decide(record, Quota(available=True), _NOW)
    assert isinstance(decision, Launch)
    assert (decision.session, decision.attempt, decision.start_checkpoint) == (4, 1, "step-00000060-s003a1")


def test_a_head_that_is_not_whole_on_the_account_is_stepped_back_from() -> None:
    corrupt = CorruptCheckpointError("step-00000040-s002a1", "state.safetensors is missing")
    record = adopted(
        account(
            seen(1, found=(found(20, 1),)),
            seen(2, start=start_at(20, 1), corrupt=(corrupt,)),
            seen(3, start=start_at(40, 2), report=None),
        )
    )
    assert record.header.head == "step-00000020-s001a1"
    assert record.checkpoints["step-00000040-s002a1"].state is CheckpointState.QUARANTINED


def test_a_run_without_any_whole_checkpoint_does_not_begin_again_by_itself() -> None:
    record = adopted(account(name_of(1), seen(2, start=start_at(20, 1), report=None)))
    assert record.header.state is RunState.FAILED
    assert "again at step 0" in str(record.header.message)


def test_a_start_that_the_account_does_not_show_to_be_pruned_is_never_deleted() -> None:
    record = adopted(account(seen(1), seen(2, start=start_at(20, 1), found=(found(40, 2),))))
    assert record.checkpoints["step-00000020-s001a1"].state is CheckpointState.QUARANTINED


def test_a_spec_that_is_gone_is_made_up_from_the_manifest_and_another_spec() -> None:
    record = adopted(
        account(seen(1, found=(found(20, 1),)), seen(2, spec=None, found=(found(40, 2),), sighting=AttemptStatus.RUNNING))
    )
    assert (record.header.newest_fence, record.header.head) == (2, "step-00000040-s002a1")


def test_an_account_that_says_of_no_session_what_it_was_told_is_refused() -> None:
    with pytest.raises(DataError, match=r"no session spec of run"):
        adopted(account(name_of(1)))


@pytest.mark.parametrize(
    ("sighting", "stop_at", "state", "wish"),
    [
        (AttemptStatus.ENDED, after(150), RunState.STOPPED, None),
        (AttemptStatus.RUNNING, after(150), RunState.ACTIVE, StopWish.CHECKPOINT),
        (AttemptStatus.ENDED, after(9999), RunState.ACTIVE, None),
        (AttemptStatus.RUNNING, after(9999), RunState.ACTIVE, None),
    ],
    ids=["stopped", "stopping", "was late", "is late"],
)
def test_a_stop_that_the_user_asked_for_holds_and_one_for_being_late_does_not(
    sighting: AttemptStatus, stop_at: datetime, state: RunState, wish: StopWish | None
) -> None:
    flag = StopFlag(session=1, attempt=1)
    record = adopted(account(seen(1, found=(found(20, 1),), sighting=sighting), stop=flag, stop_at=stop_at))
    assert (record.header.state, record.wishes.stop) == (state, wish)
    assert record.attempts[0].asked_at == stop_at


def test_a_stop_of_an_earlier_session_is_over() -> None:
    flag = StopFlag(session=1, attempt=1)
    shown = account(seen(1, found=(found(20, 1),)), seen(2, start=start_at(20, 1)), stop=flag, stop_at=after(150))
    assert adopted(shown).header.state is RunState.ACTIVE


def test_failures_before_an_adoption_count_after_it() -> None:
    record = adopted(account(*(seen(1, number, fence=number) for number in (1, 2, 3))))
    assert "without a new verified step" in str(decide(record, Quota(available=True), _NOW))


def test_what_is_known_is_not_brought_again() -> None:
    shown = account(seen(1, found=(found(20, 1),)), seen(2, start=start_at(20, 1), sighting=AttemptStatus.RUNNING))
    record = adopted(shown)
    assert what_is_new(record, shown, _NOW) == ()


def test_a_ledger_that_others_went_on_without_catches_up() -> None:
    record = adopted(account(seen(1, found=(found(20, 1),)), seen(2, start=start_at(20, 1), sighting=AttemptStatus.RUNNING)))
    shown = account(
        seen(2, start=start_at(20, 1), found=(found(40, 2),)),
        seen(3, start=start_at(40, 2), found=(found(60, 3),), sighting=AttemptStatus.RUNNING),
    )
    changes = what_is_new(record, shown, _NOW)
    assert sum(isinstance(change, PutAttempt) and change.session_spec is not None for change in changes) == 1
    later = record.with_changes(changes)
    assert states(later) == {"s001a1": "done", "s002a1": "done", "s003a1": "running"}
    assert (later.header.head, later.header.newest_fence) == ("step-00000060-s003a1", 3)


def test_an_attempt_that_was_planned_here_and_overtaken_is_never_sent() -> None:
    record = adopted(account(seen(1, found=(found(20, 1),))))
    planned = adopted(
        account(seen(1, found=(found(20, 1),)), seen(2, start=start_at(20, 1), sighting=AttemptStatus.MISSING)), record
    )
    shown = account(
        seen(2, start=start_at(20, 1), sighting=AttemptStatus.MISSING),
        seen(2, 2, fence=3, start=start_at(20, 1), sighting=AttemptStatus.RUNNING),
    )
    later = adopted(shown, planned)
    assert states(later) == {"s001a1": "done", "s002a1": "dropped", "s002a2": "running"}
    assert not isinstance(decide(later, Quota(available=True), _NOW), Resume | Launch)


def test_an_attempt_that_was_planned_here_and_pushed_elsewhere_is_followed() -> None:
    shown = account(seen(1, sighting=AttemptStatus.MISSING))
    record = adopted(shown)
    planned = record.with_changes([PutAttempt(record.attempts[0].evolve(state=AttemptState.PLANNED))])
    later = adopted(
        account(seen(1, found=(found(20, 1),)), seen(2, start=start_at(20, 1), sighting=AttemptStatus.QUEUED)), planned
    )
    assert states(later) == {"s001a1": "done", "s002a1": "queued"}


@pytest.mark.parametrize(
    "other",
    [
        seen(2, start=start_at(20, 1), sighting=AttemptStatus.RUNNING),
        seen(1, 2, fence=2, sighting=AttemptStatus.RUNNING, start=start_at(20, 1)),
    ],
    ids=["another start", "another attempt"],
)
def test_two_controllers_that_went_apart_are_not_mixed(other: SeenAttempt) -> None:
    record = adopted(
        account(seen(1, found=(found(10, 1), found(20, 1))), seen(2, start=start_at(10, 1), sighting=AttemptStatus.RUNNING))
    )
    with pytest.raises(DataError, match=r"have continued run tamil independently"):
        adopted(account(other, seen(3, start=start_at(20, 1))), record)


@pytest.mark.parametrize(
    ("spec", "data", "said"),
    [
        (run_spec(backend="kaggle", training={"seed": 7}), DATA, "training.seed"),
        (run_spec(backend="kaggle"), DATA.evolve(sha256="e" * 64), "its data differs"),
    ],
    ids=["another spec", "other data"],
)
def test_a_run_of_the_same_name_that_is_another_one_is_left_alone(spec: RunSpec, data: DataRecord, said: str) -> None:
    record = adopted(account(seen(1, found=(found(20, 1),))))
    with pytest.raises(UserError, match=r"this home has another run 'tamil'") as error:
        adopted(replace(account(seen(2)), spec=spec, data=(data,)), record)
    assert said in str(error.value)


def test_a_store_takes_the_whole_run_at_once_and_only_once(ram_path: Path) -> None:
    shown = account(name_of(1), seen(2, start=start_at(20, 1), found=(found(40, 2),)), seen(3, sighting=AttemptStatus.RUNNING))
    record = first_record(shown, _NOW)
    changes = what_is_new(record, shown, _NOW)
    store = SqliteRunStore(ram_path / "ledger")
    assert store.create(record.header, record.wishes, changes)
    assert store.load(RUN) == record.with_changes(changes)
    assert store.session_spec(RUN, 2, 1) == shown.attempts[1].spec
    assert not store.create(record.header, record.wishes, changes)
    store.acquire(RUN, OWNER, _NOW, 60)
    store.apply(RUN, OWNER, [AddEvent(event.event) for event in changes if isinstance(event, AddEvent)])
    store.close()


_TICKS_OF_A_RERUN = 20

courses = st.builds(
    Scenario,
    save_after=st.sampled_from([(10, 20), (5, 10), (3,), (40,), ()]),
    killed=st.booleans(),
    error_class=st.sampled_from([None, None, None, ErrorClass.INFRA, ErrorClass.QUOTA]),
    lost_answer=st.booleans(),
    rots_after=st.sampled_from([None, None, 5, 10]),
    refuses_start=st.sampled_from([False, False, False, True]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(script=st.lists(courses, min_size=1, max_size=8), num_ticks=st.integers(1, 30), rerun=st.booleans())
def test_whatever_happened_an_adopted_run_goes_on_where_the_original_does(
    script: list[Scenario], num_ticks: int, rerun: bool
) -> None:
    with tempfile.TemporaryDirectory(dir=_RAM if _RAM.is_dir() else None) as folder:
        course = lambda session, attempt: script[(session + 3 * attempt) % len(script)]  # noqa: E731
        with contextlib.closing(Simulation(Path(folder), course).create(total_steps=60)) as original:
            for _ in range(num_ticks):
                original.tick()
            last = next((known.session for known in reversed(original.record.attempts) if known.saved_step), None)
            if rerun and last is not None:
                original.runs.set_rerun(RUN, RerunWish(session=last, adopt=False, requested_at=original.clock.now()))
                for _ in range(_TICKS_OF_A_RERUN):  # not to the end: a platform may refuse for ever
                    original.tick()
            shown, before, now = as_an_account_shows(original), original.record, original.clock.now()
    after_it = adopted(shown, now=now)
    event(f"{len(before.attempts)} attempts, live: {before.live_attempt is not None}")
    if shown.attempts and before.live_attempt is None and not shown.in_order()[-1].is_surely_over:
        assert after_it.live_attempt is not None, "the controller finds out what became of it"
        return
    assert after_it.header.head == before.header.head
    assert after_it.header.newest_fence == before.header.newest_fence
    assert [key(known) for known in after_it.attempts if known.is_live] == [
        key(known) for known in before.attempts if known.is_live
    ]
    if before.header.state is RunState.ACTIVE:
        decisions = [decide(record, Quota(available=True), after(10**6)) for record in (before, after_it)]
        if all(isinstance(decision, Launch) for decision in decisions):
            assert decisions[0] == decisions[1]


def key(attempt: Any) -> tuple[int, int]:
    return attempt.session, attempt.attempt


def as_an_account_shows(simulation: Simulation) -> RunOnAccount:
    """What an account would show of a simulated run."""
    record, launched = simulation.record, simulation.backend.launches()
    attempts = []
    for known in record.attempts:
        mine = tuple(
            Found(*simulation.store.manifest(checkpoint))
            for checkpoint in simulation.store.ids()
            if (each := record.checkpoints.get(checkpoint)) is not None and key(each) == key(known)
        )
        made = [each.state for each in record.checkpoints.values() if key(each) == key(known)]
        name = f"s{known.session:03d}a{known.attempt}"
        over = known.state in (AttemptState.DONE, AttemptState.LOST)
        gone = bool(made) and set(made) == {CheckpointState.PRUNED} and over
        attempts.append(
            SeenAttempt(
                *key(known),
                AttemptStatus.MISSING if name not in launched else AttemptStatus.ENDED if over else AttemptStatus.RUNNING,
                handle=name,
                spec=None if gone else simulation.runs.session_spec(RUN, *key(known)),
                report=simulation.backend.report(ref_of(record, known))
                if known.state is AttemptState.DONE and not gone
                else None,
                found=mine,
                has_dataset=not gone,
                made_at=known.planned_at,
                pushed_at=known.launched_at,
            )
        )
    return RunOnAccount(record.spec, record.header.data, tuple(attempts))

"""What every run store promises: one suite, every adapter."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from state.errors import DataError, LeaseHeldError, LeaseLostError, UserError
from state.ledger import (
    AddEvent,
    Change,
    CheckpointState,
    ClearWish,
    Event,
    PutAttempt,
    PutCheckpoint,
    RerunWish,
    RunRecord,
    RunWishes,
    SetData,
    SetHeader,
    StopWish,
)
from state.session import ATTEMPT_MOVES, RUN_MOVES, AttemptState, IllegalMoveError, RunState
from state.stores.run_store import RunStore, SqliteRunStore
from tests.factories import DATA, OWNER, RIVAL, RUN, START, after, attempt, checkpoint, header, run_record, run_spec, session_spec

Open = Callable[[], RunStore]
RERUN = RerunWish(session=2, adopt=True, requested_at=START)


@pytest.fixture(params=[SqliteRunStore], ids=["sqlite"])
def open_store(request: pytest.FixtureRequest, ram_path: Path) -> Iterator[Open]:
    """Opens the adapter over one place, as each new process does."""
    opened: list[SqliteRunStore] = []

    def make() -> RunStore:
        opened.append(request.param(ram_path / "home" / "ledger"))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Open) -> RunStore:
    """A store with one run, held by OWNER."""
    made = open_store()
    made.create(header(), RunWishes(spec=run_spec()))
    made.acquire(RUN, OWNER, START, 60)
    return made


def tell(text: str) -> AddEvent:
    return AddEvent(Event(at=START, text=text))


def texts(store: RunStore, limit: int = 100) -> list[str]:
    return [event.text for event in store.events(RUN, limit)]


def test_a_run_is_created_once(store: RunStore) -> None:
    assert not store.create(header(message="another"), RunWishes(spec=run_spec(total_steps=7)))
    assert store.load(RUN).header == header()
    assert store.load(RUN).spec.total_steps == 100


def test_a_run_may_come_with_all_that_is_known_of_it_or_not_at_all(open_store: Open) -> None:
    store = open_store()
    done = attempt(1, state=AttemptState.DONE, head=checkpoint(20).id)
    known = [
        PutAttempt(done, session_spec()),
        PutCheckpoint(checkpoint(20)),
        SetHeader(header(head=checkpoint(20).id, newest_fence=1)),
        tell("adopted"),
    ]
    with pytest.raises(IllegalMoveError):
        store.create(header(), RunWishes(spec=run_spec()), [*known, PutAttempt(attempt(1, state=AttemptState.PLANNED))])
    assert store.names() == ()
    assert store.create(header(), RunWishes(spec=run_spec()), known)
    record = store.load(RUN)
    assert (record.attempts, record.header.head, record.head_step) == ((done,), checkpoint(20).id, 20)
    assert store.session_spec(RUN, 1, 1) == session_spec()
    assert texts(store) == ["adopted"]
    assert not store.create(header(), RunWishes(spec=run_spec()), known)
    assert texts(store) == ["adopted"]


def test_an_unknown_run_is_the_users_error_wherever_it_is_named(store: RunStore) -> None:
    acts: list[Callable[[], object]] = [
        lambda: store.load("tamul"),
        lambda: store.set_stop("tamul", StopWish.NOW),
        lambda: store.set_spec("tamul", run_spec(), seen=run_record()),
        lambda: store.set_rerun("tamul", RERUN),
        lambda: store.acquire("tamul", OWNER, START, 60),
    ]
    for act in acts:
        with pytest.raises(UserError, match="there is no run 'tamul'"):
            act()
    assert store.lease("tamul") is None
    assert store.events("tamul", 9) == ()


def test_the_run_that_was_resumed_last_comes_first(store: RunStore) -> None:
    for name, resumed_s in (("bengali", 50), ("tulu", -50)):
        store.create(header(name=name, resumed_at=after(resumed_s)), RunWishes(spec=run_spec(name=name)))
    assert store.names() == ("bengali", RUN, "tulu")


def test_everything_that_is_written_is_read_again_by_everybody(store: RunStore, open_store: Open) -> None:
    first, second, saved = attempt(1), attempt(2, state=AttemptState.PLANNED), checkpoint(20)
    changed = header(head=saved.id, newest_fence=2)
    store.apply(
        RUN,
        OWNER,
        [
            PutAttempt(second, session_spec(2)),
            PutAttempt(first, session_spec(1)),
            PutCheckpoint(saved),
            SetHeader(changed),
            tell("one"),
            tell("two"),
        ],
    )
    record = open_store().load(RUN)
    assert record.attempts == (first, second)
    assert record.checkpoints == {saved.id: saved}
    assert record.header == changed
    assert record == store.load(RUN)
    assert open_store().session_spec(RUN, 2, 1) == session_spec(2)
    assert texts(store) == ["one", "two"]
    assert texts(store, 1) == ["two"]


def test_records_are_replaced_and_not_doubled(store: RunStore) -> None:
    planned, saved = attempt(1, state=AttemptState.PLANNED), checkpoint(20)
    store.apply(RUN, OWNER, [PutAttempt(planned, session_spec()), PutCheckpoint(saved)])
    launching = planned.evolve(state=AttemptState.LAUNCHING)
    pruned = saved.evolve(state=CheckpointState.PRUNED)
    store.apply(RUN, OWNER, [PutAttempt(launching), PutCheckpoint(pruned)])
    record = store.load(RUN)
    assert record.attempts == (launching,)
    assert record.checkpoints == {saved.id: pruned}
    assert store.session_spec(RUN, 1, 1) == session_spec()


def test_checkpoints_are_listed_by_step_and_then_by_fence(store: RunStore) -> None:
    known = [checkpoint(20, 2), checkpoint(10, 3), checkpoint(20, 1)]
    store.apply(RUN, OWNER, [PutCheckpoint(one) for one in known])
    assert list(store.load(RUN).checkpoints) == ["step-00000010-s003a1", "step-00000020-s001a1", "step-00000020-s002a1"]


def test_changes_are_made_all_or_not_at_all(store: RunStore) -> None:
    store.apply(RUN, OWNER, [PutAttempt(attempt(1, state=AttemptState.DONE), session_spec())])
    before = store.load(RUN)
    illegal = attempt(1, state=AttemptState.RUNNING)
    with pytest.raises(IllegalMoveError, match="an attempt cannot go from done to running"):
        store.apply(RUN, OWNER, [SetHeader(header(newest_fence=9)), PutCheckpoint(checkpoint(5)), tell("x"), PutAttempt(illegal)])
    assert store.load(RUN) == before
    assert texts(store) == []


def test_a_run_makes_only_moves_that_the_table_allows(store: RunStore) -> None:
    store.apply(RUN, OWNER, [SetHeader(header(state=RunState.FINISHED))])
    with pytest.raises(IllegalMoveError, match="a run cannot go from finished to failed"):
        store.apply(RUN, OWNER, [SetHeader(header(state=RunState.FAILED))])
    store.apply(RUN, OWNER, [SetHeader(header(state=RunState.ACTIVE))])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (SetHeader(header(state=RunState.FAILED)), "a run cannot go from finished to failed"),
        (PutAttempt(attempt(1, state=AttemptState.RUNNING)), "an attempt cannot go from done to running"),
        (PutAttempt(attempt(2)), "attempt s002a1 cannot be changed: it does not exist"),
        (PutAttempt(attempt(1), session_spec()), "attempt s001a1 cannot be added: it exists already"),
    ],
)
def test_what_no_record_can_become_no_store_takes(store: RunStore, change: Change, said: str) -> None:
    store.apply(RUN, OWNER, [PutAttempt(attempt(1), session_spec()), SetHeader(header(state=RunState.FINISHED))])
    before = store.load(RUN)
    with pytest.raises(IllegalMoveError, match=said):
        before.with_changes([change])
    with pytest.raises(IllegalMoveError, match=said):
        store.apply(RUN, OWNER, [change])
    assert store.load(RUN) == before


_NUMBERS = itertools.count(1)
_WISHES = {"stop": [None, *StopWish], "rerun": [None, RERUN, RERUN.evolve(session=1)]}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_changes_are_made_the_store_loads_what_the_record_says_they_do(store: RunStore, data: st.DataObject) -> None:
    run = f"run-{next(_NUMBERS)}"
    wishes = {wish: data.draw(st.sampled_from(values)) for wish, values in _WISHES.items()}
    record = RunRecord(header(name=run), RunWishes.model_validate({"spec": run_spec(name=run), **wishes}))
    at_once = some_changes(data, record)
    assert store.create(record.header, record.wishes, at_once)
    store.acquire(run, OWNER, START, 60)
    record = record.with_changes(at_once)
    assert_same(store.load(run), record)
    for _ in range(data.draw(st.integers(0, 3))):
        later = some_changes(data, record)
        store.apply(run, OWNER, later)
        record = record.with_changes(later)
        assert_same(store.load(run), record)


def assert_same(loaded: RunRecord, computed: RunRecord) -> None:
    assert loaded == computed
    assert list(loaded.checkpoints) == list(computed.checkpoints)


def some_changes(data: st.DataObject, record: RunRecord) -> list[Change]:
    """A few changes that may be made to a record, each after those before it."""
    changes: list[Change] = []
    for _ in range(data.draw(st.integers(0, 6))):
        change = some_change(data, record)
        record = record.with_changes([change])
        changes.append(change)
    return changes


def some_change(data: st.DataObject, record: RunRecord) -> Change:
    """A change that may be made to a record."""
    kind = data.draw(st.sampled_from([SetHeader, SetData, PutAttempt, PutCheckpoint, ClearWish, AddEvent]))
    text = data.draw(st.text(max_size=3))
    if kind is SetHeader:
        state = data.draw(st.sampled_from([record.header.state, *sorted(RUN_MOVES[record.header.state])]))
        head = data.draw(st.sampled_from([None, *record.checkpoints]))
        return SetHeader(record.header.evolve(state=state, head=head, message=text))
    if kind is SetData:
        spec = data.draw(st.sampled_from([record.spec, run_spec(name=record.name, total_steps=7)]))
        return SetData(data.draw(st.sampled_from([(), (DATA,)])), spec)
    if kind is PutAttempt:
        session, number = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
        known = record.attempt(session, number)
        if known is None:
            free = sorted(set(range(-1, 8)) - {other.fence for other in record.attempts})
            state = data.draw(st.sampled_from(AttemptState))
            fence = data.draw(st.sampled_from(free))
            return PutAttempt(attempt(session, number, fence=fence, state=state, reason=text), session_spec(session, number))
        state = data.draw(st.sampled_from([known.state, *sorted(ATTEMPT_MOVES[known.state])]))
        return PutAttempt(known.evolve(state=state, reason=text))
    if kind is PutCheckpoint:
        step, session, fence = (data.draw(st.integers(1, 3)) for _ in range(3))
        return PutCheckpoint(checkpoint(step, session, fence=fence, state=data.draw(st.sampled_from(CheckpointState)), note=text))
    if kind is ClearWish:
        wish = data.draw(st.sampled_from(["stop", "rerun"]))
        return ClearWish(wish, data.draw(st.sampled_from(_WISHES[wish])))
    return tell(text)


def test_no_fence_token_is_given_out_twice(store: RunStore) -> None:
    store.apply(RUN, OWNER, [PutAttempt(attempt(1), session_spec())])
    with pytest.raises(Exception, match="UNIQUE"):
        store.apply(RUN, OWNER, [PutAttempt(attempt(2, fence=1), session_spec(2))])
    assert len(store.load(RUN).attempts) == 1


def test_an_attempt_that_never_was_has_no_spec(store: RunStore) -> None:
    with pytest.raises(DataError, match="no attempt 2 of session 1 of run tamil"):
        store.session_spec(RUN, 1, 2)


def test_wishes_need_no_lease(store: RunStore, open_store: Open) -> None:
    other = open_store()
    other.set_stop(RUN, StopWish.CHECKPOINT)
    other.set_rerun(RUN, RERUN)
    assert other.set_spec(RUN, run_spec(total_steps=7), seen=store.load(RUN))
    assert store.load(RUN).wishes == RunWishes(spec=run_spec(total_steps=7), stop=StopWish.CHECKPOINT, rerun=RERUN)
    other.set_stop(RUN, None)
    other.set_rerun(RUN, None)
    assert store.load(RUN).wishes == RunWishes(spec=run_spec(total_steps=7))


def test_a_spec_is_not_replaced_when_it_or_the_data_has_changed_since_it_was_seen(store: RunStore, open_store: Open) -> None:
    seen = store.load(RUN)
    store.apply(RUN, OWNER, [tell("x"), SetHeader(header(message="another message"))])  # what is asked for does not depend on it
    assert open_store().set_spec(RUN, run_spec(total_steps=7), seen=seen)
    assert not store.set_spec(RUN, run_spec(total_steps=8), seen=seen)
    seen = store.load(RUN)
    store.apply(RUN, OWNER, [SetHeader(header(data=()))])
    assert not store.set_spec(RUN, run_spec(total_steps=9), seen=seen)
    assert store.load(RUN).spec.total_steps == 7


def test_data_that_was_prepared_for_another_spec_than_is_asked_for_now_is_not_recorded(store: RunStore) -> None:
    other, seen = DATA.evolve(sha256="e" * 64), store.load(RUN)
    store.apply(RUN, OWNER, [SetData((other,), seen.spec)])
    assert store.load(RUN).header.data == (other,)
    assert store.set_spec(RUN, run_spec(total_steps=7), seen=store.load(RUN))
    store.apply(RUN, OWNER, [SetData((DATA,), seen.spec)])
    assert store.load(RUN).header.data == (other,)


def test_a_wish_that_was_carried_out_is_cleared(store: RunStore) -> None:
    store.set_stop(RUN, StopWish.NOW)
    store.set_rerun(RUN, RERUN)
    store.apply(RUN, OWNER, [ClearWish("stop", StopWish.NOW), ClearWish("rerun", RERUN)])
    assert store.load(RUN).wishes == RunWishes(spec=run_spec())


def test_a_wish_that_has_changed_meanwhile_is_not_cleared(store: RunStore) -> None:
    store.set_stop(RUN, StopWish.NOW)
    store.set_rerun(RUN, RERUN)
    earlier = RERUN.evolve(session=1)
    store.apply(RUN, OWNER, [ClearWish("stop", StopWish.CHECKPOINT), ClearWish("rerun", earlier)])
    assert store.load(RUN).wishes == RunWishes(spec=run_spec(), stop=StopWish.NOW, rerun=RERUN)


def test_only_the_holder_of_the_lease_writes(store: RunStore) -> None:
    with pytest.raises(LeaseLostError, match="run tamil was taken over by another controller"):
        store.apply(RUN, RIVAL, [tell("x")])
    store.release(RUN, RIVAL)  # not his to give back
    store.apply(RUN, OWNER, [tell("mine")])
    store.release(RUN, OWNER)
    assert store.lease(RUN) is None
    with pytest.raises(LeaseLostError):
        store.apply(RUN, OWNER, [tell("x")])
    assert texts(store) == ["mine"]


def test_nothing_to_change_needs_no_lease(store: RunStore) -> None:
    store.apply(RUN, RIVAL, [])


def test_a_held_lease_is_refused_and_says_whose_it_is(store: RunStore) -> None:
    with pytest.raises(LeaseHeldError, match=r"another controller holds this run until .* \(process 1 on desk\)"):
        store.acquire(RUN, RIVAL, after(59), 60)
    lease = store.lease(RUN)
    assert lease is not None
    assert (lease.owner, lease.until) == (OWNER, after(60))


def test_the_holder_prolongs_its_lease(store: RunStore) -> None:
    store.acquire(RUN, OWNER, after(59), 60)
    with pytest.raises(LeaseHeldError):
        store.acquire(RUN, RIVAL, after(118), 60)


def test_an_expired_lease_may_be_taken_and_its_holder_finds_out(store: RunStore) -> None:
    store.apply(RUN, OWNER, [tell("late, and nobody minds")])
    store.acquire(RUN, RIVAL, after(60), 60)
    with pytest.raises(LeaseLostError):
        store.apply(RUN, OWNER, [tell("x")])
    store.apply(RUN, RIVAL, [tell("rival")])
    assert texts(store) == ["late, and nobody minds", "rival"]


def test_leases_of_two_runs_do_not_meet(store: RunStore) -> None:
    store.create(header(name="tulu"), RunWishes(spec=run_spec(name="tulu")))
    store.acquire("tulu", RIVAL, START, 60)
    store.apply("tulu", RIVAL, [tell("x")])
    assert texts(store) == []

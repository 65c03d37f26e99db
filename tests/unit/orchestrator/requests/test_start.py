from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import pytest

from orchestrator.requests.start import begin, read_too_often
from state import crash_points
from state.clock import ManualClock
from state.errors import LeaseHeldError, UserError
from state.ledger import DataRecord, RunHeader, RunRecord, RunWishes, SetHeader, StopWish
from state.session import RunState
from state.spec import DataSpec, RunSpec, SessionLimits, TrainingSpec
from tests.factories import DATA, RIVAL, RUN, START, header, run_spec
from tests.simulation import Simulate, Simulation

UNIMAX = DataSpec(mixing="unimax", max_epochs=2.0)
MIXED = DATA.evolve(tokens={"a": 100_000, "b": 1_000}, mixture={"a": 0.9, "b": 0.1})


@pytest.mark.parametrize(("data", "words"), [(UNIMAX, "b 5.1 times"), (DataSpec(), "")])
def test_a_cap_on_epochs_that_more_steps_exceed_is_spoken_of(data: DataSpec, words: str) -> None:
    spec = run_spec(total_steps=100, data=data)  # 100 * 8 * 64 tokens
    header = RunHeader(name=RUN, created_at=START, resumed_at=START, data=(MIXED,))
    said = read_too_often(RunRecord(header, RunWishes(spec=spec)), spec)
    assert (words in said, bool(said)) == (True, bool(words))


def test_a_cap_that_holds_is_not_spoken_of() -> None:
    spec = run_spec(total_steps=30, data=UNIMAX)
    header = RunHeader(name=RUN, created_at=START, resumed_at=START, data=(MIXED,))
    assert read_too_often(RunRecord(header, RunWishes(spec=spec)), spec) == ""


class Interrupted(ManualClock):
    """Lets something happen when it is read first: after the run was looked at, and before anything is done about it."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__(START)
        self._act: Callable[[], object] | None = act

    def now(self) -> datetime:
        act, self._act = self._act, None
        if act is not None:
            act()
        return super().now()


def a_spec(**values: object) -> RunSpec:
    return run_spec(**{"total_steps": 60, "backend": "local", "training": TrainingSpec(threads=1), **values})


def start(run: Simulation, **said: object) -> list[str]:
    """Type `start`, and return what the user is told."""
    told: list[str] = []
    assert begin(run.ports, {"name": RUN, "backend": "local", **said}, None, num_cores=1, say=told.append) == RUN
    return told


def test_what_changes_is_told_and_nothing_is_written_where_nothing_changes(simulate: Simulate) -> None:
    run, heard = simulate(), list[str]()
    crash_points.observe(lambda _kind, what: heard.append(what))
    try:
        assert start(run, total_steps=60) == []
        assert start(run, total_steps=60) == []
        assert not any(what.startswith("wish spec") for what in heard)
        assert start(run, total_steps=80) == ["run tamil changes total_steps: 60 -> 80", ""]
        assert heard.count("wish spec tamil") == 1
    finally:
        crash_points.observe(None)
    assert run.record.spec.total_steps == 80


def test_a_run_that_another_command_begins_at_the_same_moment_is_gone_on_with(simulate: Simulate) -> None:
    other = simulate()
    run = simulate(clock=Interrupted(lambda: other.create(a_spec(training=TrainingSpec(threads=1, seed=7)))))
    assert "run tamil changes total_steps: 60 -> 80" in start(run, total_steps=80)
    assert (run.record.spec.total_steps, run.record.spec.training.seed) == (80, 7)


def test_what_another_command_changes_at_the_same_moment_is_not_undone(simulate: Simulate) -> None:
    other = simulate().create(a_spec())
    slower = a_spec(limits=SessionLimits(session_steps=5))
    run = simulate(clock=Interrupted(lambda: other.runs.set_spec(RUN, slower, seen=other.record)))
    assert start(run, total_steps=80).count("run tamil changes total_steps: 60 -> 80") == 1
    assert (run.record.spec.total_steps, run.record.spec.limits.session_steps) == (80, 5)


def test_what_data_that_is_prepared_at_the_same_moment_forbids_is_refused(simulate: Simulate) -> None:
    other = simulate()
    other.runs.create(header(data=()), RunWishes(spec=a_spec()))

    def prepare() -> None:
        other.runs.acquire(RUN, RIVAL, START, 60)
        other.runs.apply(RUN, RIVAL, [SetHeader(header())])
        other.runs.release(RUN, RIVAL)

    run = simulate(clock=Interrupted(prepare))
    with pytest.raises(UserError, match=r"exists with another spec:\n  data.alpha: 0.7 -> 0.5 \(not allowed"):
        start(run, data={"alpha": 0.5})
    assert run.record.spec == a_spec()


@pytest.mark.parametrize("data", [(), (DATA,)])
def test_a_controller_at_work_goes_on_with_what_may_change_and_a_stop_is_taken_back(
    simulate: Simulate, data: tuple[DataRecord, ...]
) -> None:
    run = simulate()
    run.runs.create(header(data=data), RunWishes(spec=a_spec(), stop=StopWish.CHECKPOINT))
    run.runs.acquire(RUN, RIVAL, START, 60)
    start(run, total_steps=80)
    assert (run.record.spec.total_steps, run.record.wishes.stop) == (80, None)


def test_a_controller_that_prepares_data_is_not_told_to_prepare_other_data(simulate: Simulate) -> None:
    run = simulate()
    run.runs.create(header(data=()), RunWishes(spec=a_spec(), stop=StopWish.CHECKPOINT))
    run.runs.acquire(RUN, RIVAL, START, 60)
    before = run.record
    with pytest.raises(LeaseHeldError, match=r"and prepares its data\nNext: gemma-orch stop tamil, then repeat the command"):
        start(run, data={"alpha": 0.5})
    assert run.record == before


def test_a_controller_that_does_not_bring_the_run_on_is_waited_for(simulate: Simulate) -> None:
    run = simulate()
    run.runs.create(header(state=RunState.STOPPED), RunWishes(spec=a_spec()))
    run.runs.acquire(RUN, RIVAL, START, 60)
    before = run.record
    with pytest.raises(LeaseHeldError, match="will leave it stopped\nNext: repeat the command when that controller has ended"):
        start(run, total_steps=80)
    assert run.record == before

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.controller.decide import Finish
from state.errors import DataError
from state.ledger import DataRecord, RerunWish, StopWish
from state.session import RunState
from state.spec import DataSpec, RunSpec
from tests.factories import DATA, RUN, START, run_spec
from tests.simulation import Simulate


def test_a_rerun_whose_data_cannot_be_had_is_called_off_and_says_so(simulate: Simulate) -> None:
    """Else the wish stays, and every tick tries again: a rerun, and each start after it, would never end."""
    run = simulate().create(total_steps=50)
    run.run_until_over()
    lost = simulate(prepare=failing_preparation, has_data=lambda _run, _data: False)
    lost.runs.set_rerun(RUN, RerunWish(session=1, adopt=False, requested_at=lost.clock.now()))
    tick = lost.run_until_over()
    assert isinstance(tick.decision, Finish)
    assert lost.record.wishes.rerun is None
    assert lost.record.header.state is RunState.FINISHED
    assert lost.events()[-1].startswith("the rerun of session 1 is cancelled: the corpus is gone")


def failing_preparation(spec: RunSpec, keep_lease: Callable[[], None], **_version: int) -> DataRecord:
    raise DataError("the corpus is gone")


def test_data_that_cannot_be_prepared_plans_nothing_and_ends_the_run(simulate: Simulate) -> None:
    def broken(_spec: RunSpec, _keep_lease: Callable[[], None], **_version: int) -> DataRecord:
        raise DataError("the corpus is empty", remedy="put text into it")

    simulation = simulate(prepare=broken).create()
    simulation.run_until_over()
    record = simulation.record
    assert (record.header.state, record.header.exit_code, record.attempts) == (RunState.FAILED, 4, ())
    assert record.header.message == "the corpus is empty\nNext: put text into it"


def test_a_stop_is_heard_before_data_is_prepared(simulate: Simulate) -> None:
    def never(_spec: RunSpec, _keep_lease: Callable[[], None], **_version: int) -> DataRecord:
        raise AssertionError("nobody wants this data any more")

    simulation = simulate(prepare=never).create()
    simulation.runs.set_stop(RUN, StopWish.CHECKPOINT)
    simulation.run_until_over()
    assert simulation.record.header.state is RunState.STOPPED


def test_data_prepared_for_what_is_no_longer_asked_for_is_not_taken(simulate: Simulate) -> None:
    prepared: list[float] = []

    def slowly(spec: RunSpec, _keep_lease: Callable[[], None], **_version: int) -> DataRecord:
        prepared.append(spec.data.alpha)
        if len(prepared) == 1:  # meanwhile, in another terminal
            changed = spec.evolve(data=spec.data.evolve(alpha=0.5))
            simulation.runs.set_spec(RUN, changed, seen=simulation.record)
        return DATA

    simulation = simulate(prepare=slowly).create()
    simulation.run_until(lambda tick: tick.record.live_attempt is not None)
    assert prepared == [0.7, 0.5]


def test_another_rerun_that_is_wished_for_while_data_is_prepared_again_is_the_one_that_runs(simulate: Simulate) -> None:
    lost: list[bool] = []

    def slowly(_spec: RunSpec, _keep_lease: Callable[[], None], **_version: int) -> DataRecord:
        if lost:  # meanwhile, in another terminal
            run.runs.set_rerun(RUN, RerunWish(session=2, adopt=False, requested_at=START))
        lost.clear()
        return DATA

    run = simulate(prepare=slowly, has_data=lambda _run, _data: not lost).create(total_steps=40)
    run.run_until_over()
    lost.append(True)
    assert [attempt.key for attempt in run.rerun(1).record.attempts] == [(1, 1), (2, 1), (2, 2)]


def test_data_that_was_lost_is_prepared_again_and_must_be_the_same(simulate: Simulate) -> None:
    data = [DATA, DATA, DATA.evolve(sha256="f" * 64)]
    simulation = simulate(prepare=lambda _spec, _keep_lease, **_version: data.pop(0), has_data=lambda _run, _data: False).create()
    simulation.run_until_over()
    record = simulation.record
    assert (record.header.state, record.header.exit_code, len(record.attempts)) == (RunState.FAILED, 4, 2)
    assert "its corpus has changed" in (record.header.message or "")


@pytest.mark.parametrize("finished", [True, False])
def test_a_data_folder_that_was_moved_is_read_where_the_user_says(simulate: Simulate, *, finished: bool) -> None:
    places = {"/old"}
    run = simulate(prepare=found_there(places), has_data=lambda _run, data: data.folder in places)
    run.create(total_steps=40, data=DataSpec(prepared="/old"))
    run.run_until_over()
    places.symmetric_difference_update({"/old", "/new"})
    spec = run_spec(total_steps=40 if finished else 60, data=DataSpec(prepared="/new"))
    assert run.runs.set_spec(RUN, spec, seen=run.record)
    run.controller.activate(RUN)
    run.run_until_over()
    header = run.record.header
    assert (header.state, [data.folder for data in header.data]) == (RunState.FINISHED, ["/new"])


def test_a_data_folder_with_other_data_is_not_taken_for_the_moved_one(simulate: Simulate) -> None:
    places = {"/old"}
    run = simulate(prepare=found_there(places, sha256="9" * 64), has_data=lambda _run, data: data.folder in places)
    run.create(total_steps=40, data=DataSpec(prepared="/old"))
    run.run_until_over()
    run.runs.set_spec(RUN, run_spec(total_steps=60, data=DataSpec(prepared="/other")), seen=run.record)
    run.controller.activate(RUN)
    run.run_until_over()
    header = run.record.header
    assert (header.state, header.data[0].folder) == (RunState.FAILED, "/old")
    assert "the data in /other is not the data of run tamil" in (header.message or "")


def found_there(places: set[str], sha256: str = DATA.sha256) -> Callable[..., DataRecord]:
    """A preparer of folders made already: what lies in another place than the known ones has this digest."""

    def prepare(spec: RunSpec, _keep_lease: Callable[[], None], **_version: int) -> DataRecord:
        folder = spec.data.prepared or ""
        return DATA.evolve(folder=folder, sha256=DATA.sha256 if folder in places else sha256)

    return prepare

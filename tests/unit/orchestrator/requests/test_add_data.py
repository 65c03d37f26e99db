from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.backends.simulated import Scenario
from orchestrator.controller.lease import LEASE_S
from orchestrator.requests.add_data import add_data
from orchestrator.requests.rerun import ask_for_rerun
from orchestrator.worker_process.verbs import show_data
from state.errors import DataError, LeaseHeldError, LeaseLostError, UserError
from state.ledger import CheckpointState, DataRecord, RunHeader, RunWishes, StopWish
from state.session import RunState
from state.spec import RunSpec
from tests.factories import DATA, OWNER, RIVAL, RUN, run_spec
from tests.simulation import Script, Simulation

MORE = Path("/corpus/more")


class Prepared:
    """A preparer that remembers what it was asked for."""

    def __init__(self, **changes: object) -> None:
        self.specs: list[tuple[int, RunSpec]] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self._changes = changes

    def __call__(self, spec: RunSpec, keep_lease: Callable[[], None], *, version: int = 1, first_step: int = 0) -> DataRecord:
        self.specs.append((version, spec))
        if version == 1:
            return DATA
        self.meanwhile()
        keep_lease()
        source = {"folder": spec.data.prepared or f"data-{version}", "corpus": spec.data.corpus, "sha256": str(version) * 64}
        return DATA.evolve(**{**source, "first_step": first_step, **self._changes})


def stopped(tmp_path: Path, script: Script = lambda _s, _a: Scenario(), **values: object) -> Simulation:
    """A run whose head is at step 30 of 80."""
    run = Simulation(tmp_path, script, **{"prepare": Prepared(), **values}).create(total_steps=80)
    run.run_until_launch(2)
    run.runs.set_stop(RUN, StopWish.CHECKPOINT)
    run.run_until_over()
    assert run.record.head_step == 30
    run.controller.release(RUN)
    return run


def add(run: Simulation, *corpus: Path, **values: object) -> DataRecord:
    said: list[str] = []
    return add_data(run.ports, RUN, **{"corpus": corpus, "say": said.append, **values})


def resume(run: Simulation) -> None:
    run.controller.activate(RUN)
    run.run_until_over()


def test_added_data_is_read_from_the_step_after_the_head_on(tmp_path: Path) -> None:
    run = stopped(tmp_path)
    said: list[str] = []
    added = add(run, MORE, say=said.append)
    assert (added.first_step, added.folder, added.corpus) == (30, "data-2", (str(MORE),))
    assert run.record.header.data == (DATA, added)
    assert "from step 31 on" in said[0]
    assert run.events()[-1] == f"data version 2 is read from step 31 on: 1,000 tokens, sha256 {'2' * 12}"
    resume(run)
    assert run.record.header.state is RunState.FINISHED
    last = run.store.manifest(run.record.header.head or "")[0]
    assert last.data_sha256 == added.sha256


def test_adding_data_leaves_the_run_stopped_and_free_for_others(tmp_path: Path) -> None:
    run = stopped(tmp_path)
    add(run, MORE)
    assert run.record.header.state is RunState.STOPPED
    assert run.runs.lease(RUN) is None


def test_the_new_text_is_cut_by_the_runs_own_tokenizer(tmp_path: Path) -> None:
    prepare = Prepared()
    run = stopped(tmp_path, prepare=prepare)
    add(run, MORE, Path("/corpus/old"), from_step=50)
    version, spec = prepare.specs[-1]
    assert (version, spec.data.corpus, spec.data.prepared) == (2, ("/corpus/more", "/corpus/old"), None)
    assert spec.data.tokenizer == str(run.home.run(RUN).data / "tokenizer.model")
    assert run.record.header.data[1].first_step == 49


def test_a_prepared_folder_is_read_where_it_lies(tmp_path: Path) -> None:
    prepare = Prepared()
    run = stopped(tmp_path, prepare=prepare)
    folder = tmp_path / "prepared"
    assert add(run, prepared=folder).folder == str(folder)
    spec = prepare.specs[-1][1]
    assert (spec.data.corpus, spec.data.prepared, spec.data.tokenizer) == ((), str(folder), None)


def test_the_same_command_again_says_that_it_is_done(tmp_path: Path) -> None:
    prepare = Prepared()
    run = stopped(tmp_path, prepare=prepare)
    first = add(run, MORE)
    before = run.record
    said: list[str] = []
    assert add(run, MORE, say=said.append) == first
    assert add(run, MORE, from_step=31, say=said.append) == first
    assert said == [f"run {RUN} already reads this data from step 31 on"] * 2
    assert run.record == before


def test_text_that_was_forgotten_at_first_is_read_when_the_same_command_is_given_again(tmp_path: Path) -> None:
    add(stopped(tmp_path), MORE, from_step=50)
    run = Simulation(tmp_path, prepare=Prepared(sha256="9" * 64))  # a file more lies in the corpus now
    added = add(run, MORE)
    assert (added.sha256, added.first_step, added.folder) == ("9" * 64, 49, "data-2")
    assert run.record.header.data == (DATA, added)


def test_a_version_that_no_step_has_read_gives_way_to_another_one(tmp_path: Path) -> None:
    run = stopped(tmp_path)
    wrong = add(run, Path("/corpus/wrong"))
    right = add(run, MORE)
    assert (right.first_step, right.folder, right.corpus) == (wrong.first_step, "data-2", (str(MORE),))
    assert run.record.header.data == (DATA, right)


def test_a_version_that_was_read_stays(tmp_path: Path) -> None:
    run = stopped(tmp_path)
    first = add(run, MORE)
    resume(run)
    run.runs.set_spec(RUN, run.record.spec.evolve(total_steps=90), seen=run.record)
    with pytest.raises(UserError, match="step 31 of run tamil is already trained"):
        add(run, MORE, from_step=31)
    second = add(run, MORE)
    assert run.record.header.data == (DATA, first, second)


def test_a_third_version_follows_the_second(tmp_path: Path) -> None:
    run = stopped(tmp_path)
    add(run, MORE)
    third = add(run, Path("/corpus/third"), from_step=60)
    assert (third.folder, third.first_step) == ("data-3", 59)
    assert [data.first_step for data in run.record.header.data] == [0, 30, 59]


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        (1, "step 1 of run tamil is already trained"),
        (30, "the head is at step 30"),
        (81, "the end of run tamil at step 80"),
    ],
)
def test_a_step_that_is_trained_or_does_not_exist_is_refused(tmp_path: Path, step: int, problem: str) -> None:
    prepare = Prepared()
    run = stopped(tmp_path, prepare=prepare)
    with pytest.raises(UserError, match=problem):
        add(run, MORE, from_step=step)
    assert len(run.record.header.data) == 1
    assert [version for version, _ in prepare.specs if version > 1] == []


def test_versions_cannot_be_put_before_one_that_is_there(tmp_path: Path) -> None:
    run = stopped(tmp_path)
    add(run, MORE, from_step=60)
    with pytest.raises(UserError, match=r"reads data version 2 from step 60 on\n.*\nNext: .*--from-step 60 to replace"):
        add(run, Path("/corpus/third"), from_step=59)


def test_a_run_that_has_ended_may_get_data_before_it_is_extended(tmp_path: Path) -> None:
    run = Simulation(tmp_path, prepare=Prepared()).create(total_steps=20)
    run.run_until_over()
    assert add(run, MORE).first_step == 20
    run.runs.set_spec(RUN, run.record.spec.evolve(total_steps=40), seen=run.record)
    resume(run)
    assert run.record.head_step == 40


@pytest.mark.parametrize(
    ("values", "message"),
    [({}, "the new data is missing"), ({"corpus": [MORE], "prepared": MORE}, "--corpus cannot be combined with --data")],
)
def test_which_data_is_meant_must_be_said_once(tmp_path: Path, values: dict[str, object], message: str) -> None:
    run = stopped(tmp_path)
    with pytest.raises(UserError, match=message):
        add(run, **values)


def test_a_run_with_a_living_session_is_refused(tmp_path: Path) -> None:
    run = Simulation(tmp_path, prepare=Prepared()).create(total_steps=80)
    run.run_until_launch(1)
    with pytest.raises(UserError, match=f"s001a1\n.*\nNext: gemma-orch stop {RUN}"):
        add(run, MORE)
    assert run.runs.lease(RUN) is None


def test_a_run_that_another_controller_holds_is_refused(tmp_path: Path) -> None:
    run = stopped(tmp_path, owner=OWNER)
    run.runs.acquire(RUN, RIVAL, run.clock.now(), LEASE_S)
    with pytest.raises(LeaseHeldError, match=f"gemma-orch stop {RUN}"):
        add(run, MORE)


def test_a_run_whose_first_data_is_not_there_yet_is_refused(tmp_path: Path) -> None:
    run = Simulation(tmp_path).create()
    with pytest.raises(UserError, match="run tamil has no prepared data yet"):
        add(run, MORE)


@pytest.mark.parametrize("changes", [{"vocab_size": 301}, {"tokenizer_sha256": "e" * 64}])
def test_data_of_another_tokenizer_is_refused_and_not_recorded(tmp_path: Path, changes: dict[str, object]) -> None:
    run = stopped(tmp_path, prepare=Prepared(**changes))
    with pytest.raises(UserError, match="the new data has another tokenizer"):
        add(run, MORE)
    assert run.record.header.data == (DATA,)


def test_a_run_that_was_taken_over_during_the_preparation_is_left_as_it_is(tmp_path: Path) -> None:
    prepare = Prepared()
    run = stopped(tmp_path, prepare=prepare, owner=OWNER)

    def taken_over() -> None:
        run.clock.advance(2 * LEASE_S)
        run.runs.acquire(RUN, RIVAL, run.clock.now(), LEASE_S)

    prepare.meanwhile = taken_over
    with pytest.raises(LeaseLostError):
        add(run, MORE)
    assert run.record.header.data == (DATA,)
    lease = run.runs.lease(RUN)
    assert lease is not None
    assert lease.owner == RIVAL


def test_a_late_commit_of_an_older_attempt_is_no_head_once_the_data_has_changed(tmp_path: Path) -> None:
    """An attempt that was thought lost trained the old data beyond that step."""
    run = stopped(tmp_path)
    spec = run.runs.session_spec(RUN, 2, 1)
    add(run, MORE)
    world = Simulation(tmp_path, prepare=Prepared())
    late = world.backend._load(RUN, 2, 1)
    assert late is not None
    world.backend._train_to(late.evolve(spec=spec), 45, rots=False)
    world.controller.tick(RUN)
    record = world.record
    late_record = record.checkpoints["step-00000045-s002a1"]
    assert late_record.state is CheckpointState.VERIFIED
    assert record.head_step == 30


def test_lost_data_of_a_later_version_is_made_again_from_its_own_corpus(tmp_path: Path) -> None:
    prepare, lost = Prepared(), set[str]()
    run = stopped(tmp_path, prepare=prepare, has_data=lambda _run, data: data.folder not in lost)
    added = add(run, MORE)
    lost.add("data-2")
    prepare.specs.clear()
    resume(run)
    assert {version for version, _ in prepare.specs} == {2}
    assert prepare.specs[0][1].data.corpus == (str(MORE),)
    assert run.record.header.data == (DATA, added)


def test_lost_data_whose_corpus_has_changed_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    lost = set[str]()
    run = stopped(tmp_path, has_data=lambda _run, data: data.folder not in lost)
    add(run, MORE)
    lost.add("data-2")
    changed = Simulation(tmp_path, prepare=Prepared(sha256="9" * 64), has_data=lambda _run, data: data.folder not in lost)
    changed.controller.activate(RUN)
    changed.run_until_over()
    header = changed.record.header
    assert (header.state, header.exit_code) == (RunState.FAILED, DataError.exit_code)
    assert "its corpus has changed" in (header.message or "")


def test_a_run_of_another_reading_order_is_left_as_the_gemma_orch_that_began_it_wrote_it(tmp_path: Path) -> None:
    """What is written now, the older one cannot read any more: the remedy, to go on with it, would be none."""
    run = Simulation(tmp_path)
    now = run.clock.now()
    old = RunHeader(name=RUN, created_at=now, resumed_at=now, data=(DATA.evolve(order_version=1),))
    run.runs.create(old, RunWishes(spec=run_spec()))
    before = run.record
    for ask in (
        run.tick,
        lambda: run.controller.activate(RUN),
        lambda: add(run, MORE),
        lambda: ask_for_rerun(run.ports, RUN, 1, adopt=False),
        lambda: show_data(run.ports, run.record, []),
    ):
        with pytest.raises(UserError, match="uses data order 1"):
            ask()
    assert run.record == before

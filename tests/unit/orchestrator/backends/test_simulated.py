from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.simulated import Scenario, SimulatedBackend
from orchestrator.ports import AttemptStatus
from state.clock import ManualClock
from state.errors import AmbiguousError, CorruptCheckpointError, ErrorClass, TemporaryError
from state.report import Outcome
from state.spec import ExpectedCheckpoint
from state.stores.checkpoint_store import DirectoryCheckpointStore
from tests.factories import session_spec
from tests.stages import ref, wait_until_over

START = ExpectedCheckpoint(id="step-00000020-s001a1", step=20, manifest_sha256="m", state_sha256="s")


class World:
    def __init__(self, root: Path, course: Scenario) -> None:
        self.store = DirectoryCheckpointStore(root / "checkpoints")
        self.backend = SimulatedBackend(root / "world", self.store, ManualClock(), lambda _s, _a: course)

    def play(self, **values: Any) -> World:
        self.backend.launch(session_spec(**values))
        wait_until_over(self.backend)
        return self


def test_a_session_leaves_checkpoints_that_verify_and_descend_from_each_other(tmp_path: Path) -> None:
    world = World(tmp_path, Scenario((5, 10))).play(start=START)
    first, second = (world.store.verify(name) for name in world.store.ids())
    assert (first.step, first.parent) == (25, START.id)
    assert (second.step, second.parent) == (30, first.id)


def test_equal_steps_are_equal_states_whoever_trains_them(tmp_path: Path) -> None:
    long = World(tmp_path / "long", Scenario((10, 20))).play()
    short = World(tmp_path / "short", Scenario((10,))).play()
    equal = "step-00000010-s001a1"
    assert long.store.verify(equal).state_sha256 == short.store.verify(equal).state_sha256


def test_no_session_trains_beyond_the_last_step_or_its_own_limit(tmp_path: Path) -> None:
    assert World(tmp_path / "total", Scenario((10, 200))).play(total_steps=15).store.ids()[-1] == "step-00000015-s001a1"
    assert World(tmp_path / "steps", Scenario((10, 200))).play(max_steps=12).store.ids()[-1] == "step-00000012-s001a1"


def test_an_error_is_reported_with_a_fingerprint(tmp_path: Path) -> None:
    report = World(tmp_path, Scenario(error_class=ErrorClass.INFRA)).play().backend.report(ref())
    assert report is not None
    assert (report.outcome, report.error_class, report.saved_step) == (Outcome.FAILED, ErrorClass.INFRA, None)
    assert report.error_fingerprint is not None


def test_a_session_that_refuses_its_start_names_it(tmp_path: Path) -> None:
    report = World(tmp_path, Scenario(refuses_start=True)).play(start=START).backend.report(ref())
    assert report is not None
    assert (report.outcome, report.corrupt_checkpoint) == (Outcome.FAILED, START.id)


def test_a_checkpoint_that_rots_is_committed_and_does_not_verify(tmp_path: Path) -> None:
    world = World(tmp_path, Scenario((5, 10), rots_after=5)).play()
    with pytest.raises(CorruptCheckpointError):
        world.store.verify("step-00000005-s001a1")
    assert world.store.verify("step-00000010-s001a1").step == 10


def test_refusals_are_counted_across_controllers(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(TemporaryError, match="refuses s001a1"):
            World(tmp_path, Scenario(refused=2)).backend.launch(session_spec())
    World(tmp_path, Scenario(refused=2)).play()


def test_a_lost_answer_is_ambiguous_and_the_session_runs(tmp_path: Path) -> None:
    world = World(tmp_path, Scenario(lost_answer=True))
    with pytest.raises(AmbiguousError):
        world.backend.launch(session_spec())
    assert world.backend.alive() == ("s001a1",)
    wait_until_over(world.backend)
    assert world.backend.alive() == ()


def test_looks_that_find_nothing_out_let_no_time_pass(tmp_path: Path) -> None:
    world = World(tmp_path, Scenario((5,), unknown_looks=2))
    world.backend.launch(session_spec())
    seen = [world.backend.observe(ref()).sighting for _ in range(4)]
    assert seen == [AttemptStatus.UNKNOWN, AttemptStatus.UNKNOWN, AttemptStatus.RUNNING, AttemptStatus.ENDED]


def test_every_launch_is_counted(tmp_path: Path) -> None:
    world = World(tmp_path, Scenario()).play()
    world.backend.launch(session_spec())
    assert world.backend.launches() == {"s001a1": 2}

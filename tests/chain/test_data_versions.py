"""Data that is added to a run later: sessions that meet it on the way equal one session that knew of it from the beginning."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from state.report import ErrorClass, Outcome
from state.spec import SessionData, SessionSpec
from tests.patience import PATIENCE_S
from tests.repository import ROOT
from tests.sessions import SmallRun, asked_after, make_data

STEPS = 24
FIRST_STEP = 11


def second(run: SmallRun, first_step: int = FIRST_STEP) -> SessionData:
    folder = run.layout.root / "data-2"
    data = make_data(folder, seed=2)
    return run.version(
        first_step=first_step, data_dir=str(folder), data_sha256=data.data_sha256, mixture={"english": 0.25, "konkani": 0.75}
    )


def next_spec(run: SmallRun, session: int, *data: SessionData, **values: object) -> SessionSpec:
    return run.spec(session, start=run.expected(), total_steps=STEPS, data=data, **values)


def ends(run: SmallRun, spec: SessionSpec, **host: object) -> str:
    assert run.run(spec, **host) == 0, run.said
    newest = run.newest()
    assert newest is not None
    return newest.state_sha256


@pytest.fixture(scope="module")
def straight_sha256(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The state after one session that reads both versions."""
    run = SmallRun(tmp_path_factory.mktemp("straight"))
    return ends(run, next_spec(run, 1, run.version(), second(run)))


def test_sessions_that_know_both_versions_equal_one(ram_path: Path, straight_sha256: str):
    run = SmallRun(ram_path)
    both = (run.version(), second(run))
    ends(run, next_spec(run, 1, *both, max_steps=5))
    ends(run, next_spec(run, 2, *both), asked_to_stop=asked_after(3))
    ends(run, next_spec(run, 3, *both, max_steps=9))
    assert ends(run, next_spec(run, 4, *both)) == straight_sha256


def test_a_version_that_is_added_between_two_sessions_equals_one_that_was_always_there(ram_path: Path, straight_sha256: str):
    run = SmallRun(ram_path)
    ends(run, next_spec(run, 1, run.version(), max_steps=5))
    ends(run, next_spec(run, 2, run.version(), second(run), max_steps=9))
    assert ends(run, next_spec(run, 3, run.version(), second(run))) == straight_sha256


@pytest.mark.parametrize("knew", [True, False], ids=["known", "added there"])
def test_a_session_may_end_exactly_where_the_new_version_begins(ram_path: Path, straight_sha256: str, *, knew: bool):
    """The checkpoint promises the loss of the step after it; when it did not know of the new data, that is no longer true."""
    run = SmallRun(ram_path)
    both = (run.version(), second(run))
    ends(run, next_spec(run, 1, *(both if knew else both[:1]), max_steps=FIRST_STEP))
    assert ends(run, next_spec(run, 2, *both)) == straight_sha256


def test_the_checkpoints_say_which_version_they_have_read(ram_path: Path):
    run = SmallRun(ram_path)
    both = (run.version(), second(run))
    for session in (1, 2):
        ends(run, next_spec(run, session, *both, max_steps=FIRST_STEP))
    manifests = [run.store.manifest(name)[0] for name in sorted(run.store.ids())]
    assert [manifest.step for manifest in manifests] == [11, 22]
    assert [manifest.data_sha256 for manifest in manifests] == [version.data_sha256 for version in both]
    assert [manifest.data_position.samples for manifest in manifests] == [44, 88]


def test_other_data_is_not_the_same_run(ram_path: Path, straight_sha256: str):
    run = SmallRun(ram_path)
    assert ends(run, next_spec(run, 1, run.version())) != straight_sha256


def test_a_checkpoint_that_has_read_the_old_data_beyond_that_step_is_refused(ram_path: Path):
    run = SmallRun(ram_path)
    ends(run, next_spec(run, 1, run.version(), max_steps=FIRST_STEP + 1))
    spec = next_spec(run, 2, run.version(), second(run))
    assert run.run(spec) == 2
    report = run.report(spec)
    assert (report.outcome, report.error_class) == (Outcome.FAILED, ErrorClass.USER)
    assert "it was trained on other data" in report.reason


def test_adding_data_killed_after_any_side_effect_and_done_again_ends_the_same(ram_path: Path):
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.chain.added_data_scenario", str(ram_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert answer.returncode == 0, answer.stderr
    played = json.loads(answer.stdout)
    assert played["differences"] == []
    assert played["kills"] >= 4
    reference = played["reference"]
    assert [data["first_step"] for data in reference["data"]] == [0, 30]
    assert reference["told"] == 1
    assert len({data for _, data, _ in reference["trained"]}) == 2

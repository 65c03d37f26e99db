"""The Kaggle backend over the official client's library against an emulator: what was pushed really runs, and really ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.backends.kaggle.context import KaggleContext
from orchestrator.backends.kaggle.session.backend import KaggleRun, open_kaggle_run
from orchestrator.ports import AttemptRef, AttemptStatus, Observation
from state.backend_settings import KaggleSettings
from state.errors import AmbiguousError, NotLaunchedError
from state.kaggle.api import KaggleApi
from state.kaggle.credentials import Credentials
from state.kaggle.errors import DeniedError
from state.kaggle.job import StopFlag
from state.kaggle.names import attempt_kernel_slug, control_slug
from state.layout import HomeLayout
from state.spec import SessionData
from tests.factories import RUN, run_record, run_spec, session_spec
from tests.fake_kaggle import source_root
from tests.kaggle_accounts import EmulatorTime
from tests.kaggle_clients import USER, Sdk, connected
from tests.kaggle_emulator import Fault, refused_reads
from tests.kaggle_stage import ReadySources
from tests.patience import wait_until

SETTINGS = KaggleSettings(accelerator="cpu", poll_every_s=1.0, settle_s=10.0, processing_limit_s=200.0)
SLUG = attempt_kernel_slug(RUN, 1, 1)


class NoData(ReadySources):
    """A session that is over before it looks for its data."""

    def of(self, data: SessionData) -> tuple[str, ...]:
        return ()


class World:
    """One emulator, and a controller of one run on it."""

    def __init__(self, root: Path, sdk: Sdk) -> None:
        self.root = root
        self.emulator = sdk.emulator
        self.clock = EmulatorTime(sdk.emulator)
        self.api = KaggleApi(Credentials("a test", user=USER, key=sdk.emulator.settings.key), clock=self.clock)
        self.code = source_root(root / "code")
        self.run = self.open()

    def open(self) -> KaggleRun:
        record = run_record(spec=run_spec(backend="kaggle"))
        home = HomeLayout(self.root / "home-of-runs")
        context = KaggleContext(lambda: self.api, RUN, home.run(RUN), self.clock, SETTINGS)
        return open_kaggle_run(context, lambda: record, self.code, sources=NoData())

    def script(self, text: str) -> None:
        """Let kernels run this, instead of a session."""
        (self.code / "worker" / "kaggle" / "bootstrap.py").write_text(
            f"import os, sys, time\n{text}\nrun = lambda *_: 0\nleave = lambda _: None\n"
        )

    def launch(self) -> AttemptRef:
        self.poll(lambda: self.run.backend.make_ready(session_spec()) is None)
        launched_at = self.clock.now()
        return AttemptRef(RUN, 1, 1, self.run.backend.launch(session_spec()), launched_at)

    def poll(self, look: Callable[[], bool]) -> None:
        """Look once a poll interval, as a controller does, until something is so."""

        def is_so() -> bool:
            self.clock.sleep(SETTINGS.poll_every_s)
            return look()

        wait_until(is_so)

    def until(self, sighting: AttemptStatus, ref: AttemptRef) -> Observation:
        seen: list[Observation] = []

        def is_so() -> bool:
            seen.append(self.run.backend.observe(ref))
            return seen[-1].sighting is sighting

        self.poll(is_so)
        return seen[-1]


@pytest.fixture
def world_of(tmp_path: Path) -> Iterator[Callable[..., World]]:
    with ExitStack() as stack:
        worlds: list[World] = []

        def make(**settings: Any) -> World:
            sdk = stack.enter_context(connected(tmp_path, **{"processing_s": 2.0, "queue_s": 2.0, **settings}))
            worlds.append(World(tmp_path, sdk))
            return worlds[-1]

        yield make
        for world in worlds:
            assert world.emulator.sessions.max_live("gemma-orch-") <= 1
            assert world.emulator.leaks() == []


def test_a_session_is_queued_runs_and_ends_and_leaves_its_log(world_of: Callable[..., World]) -> None:
    world = world_of(queue_s=15.0)
    go = world.root / "go"
    world.script(f"print('hello from a kernel', flush=True)\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)")
    ref = world.launch()
    world.until(AttemptStatus.QUEUED, ref)
    world.until(AttemptStatus.RUNNING, ref)
    world.poll(lambda: "hello from a kernel" in world.run.backend.read_log(ref, 0)[0])
    go.touch()
    over = world.until(AttemptStatus.ENDED, ref)
    assert "completed without a report" in over.detail
    assert "hello from a kernel" in world.run.backend.read_log(ref, 0)[0]
    with pytest.raises(AmbiguousError):
        world.run.backend.launch(session_spec())


def test_a_script_that_fails_has_its_decision(world_of: Callable[..., World]) -> None:
    world = world_of()
    world.script("sys.exit(3)")
    assert "failed without a report" in world.until(AttemptStatus.ENDED, world.launch()).detail


def test_a_session_that_kaggle_ends_at_its_limit_has_its_decision(world_of: Callable[..., World]) -> None:
    world = world_of()
    world.script("time.sleep(600)")
    ref = world.launch()
    world.until(AttemptStatus.RUNNING, ref)
    world.clock.sleep(world.emulator.settings.session_limit_s)
    assert "at its limit" in world.until(AttemptStatus.ENDED, ref).detail


def test_a_session_is_found_by_its_name_when_the_answer_to_its_push_was_lost(world_of: Callable[..., World]) -> None:
    world = world_of()
    world.script("time.sleep(600)")
    world.emulator.faults.add(Fault("SaveKernel", "drop_after", calls=[1]))
    with pytest.raises(AmbiguousError):
        world.launch()
    ref = AttemptRef(RUN, 1, 1, None, world.clock.now())
    world.until(AttemptStatus.RUNNING, ref)


def test_a_push_that_never_arrived_is_missing_after_a_while_and_is_pushed_again(world_of: Callable[..., World]) -> None:
    world = world_of()
    world.script("time.sleep(600)")
    world.emulator.faults.add(Fault("SaveKernel", "drop_before", calls=[1]))
    with pytest.raises(AmbiguousError):
        world.launch()
    ref = AttemptRef(RUN, 1, 1, None, world.clock.now())
    assert world.run.backend.observe(ref).sighting is AttemptStatus.UNKNOWN
    world.until(AttemptStatus.MISSING, ref)
    world.until(AttemptStatus.RUNNING, world.launch())


@pytest.mark.parametrize("status", [403, 404])
@pytest.mark.parametrize("is_known", [True, False])
def test_a_session_that_lives_is_not_over_while_reads_of_it_are_refused(
    world_of: Callable[..., World], status: int, *, is_known: bool
) -> None:
    world = world_of()
    world.script("time.sleep(600)")
    ref = world.launch()
    ref = ref if is_known else replace(ref, handle=None)
    if is_known:
        world.until(AttemptStatus.RUNNING, ref)
    faults = refused_reads(SLUG, status=status)
    world.emulator.faults.add(*faults)
    seen: list[Observation] = []
    ends_s = world.clock.monotonic() + 4 * SETTINGS.settle_s

    def is_long_enough() -> bool:
        seen.append(world.run.backend.observe(ref))
        return world.clock.monotonic() >= ends_s

    world.poll(is_long_enough)
    assert {one.sighting for one in seen} <= {AttemptStatus.RUNNING, AttemptStatus.UNKNOWN}
    assert "Kaggle has refused to show the kernel" in seen[-1].detail
    assert len(world.emulator.journal.of("ListKernels")) >= 3
    world.emulator.faults.remove(*faults)
    world.until(AttemptStatus.RUNNING, ref)


@pytest.mark.parametrize("status", [403, 404])
def test_a_kernel_that_was_deleted_on_kaggle_is_over_when_lists_do_not_show_it(
    world_of: Callable[..., World], status: int
) -> None:
    world = world_of(unknown_kernel_status=status)
    world.script("time.sleep(600)")
    ref = world.launch()
    world.until(AttemptStatus.RUNNING, ref)
    world.api.delete_kernel(SLUG)
    assert "it was deleted" in world.until(AttemptStatus.ENDED, ref).detail


def test_a_kernel_that_refuses_everything_is_not_called_deleted(world_of: Callable[..., World]) -> None:
    world = world_of()
    world.script("time.sleep(600)")
    ref = world.launch()
    world.until(AttemptStatus.RUNNING, ref)
    faults = refused_reads(SLUG, deletes=True)
    world.emulator.faults.add(*faults)
    with pytest.raises(DeniedError):
        world.api.delete_kernel(SLUG)
    world.run.backend.kill(ref)
    world.until(AttemptStatus.UNKNOWN, ref)
    world.run.backend.kill(ref)
    assert world.run.backend.observe(ref).sighting is AttemptStatus.UNKNOWN
    world.emulator.faults.remove(*faults)
    world.until(AttemptStatus.RUNNING, ref)


def test_a_full_account_takes_it_later(world_of: Callable[..., World]) -> None:
    world = world_of()
    world.script("time.sleep(0.5)")
    said = "Maximum batch CPU session count of 5 reached"
    world.emulator.faults.add(Fault("SaveKernel", "refuse", calls=[1], value=said))
    with pytest.raises(NotLaunchedError, match="session count of 5"):
        world.launch()
    world.until(AttemptStatus.ENDED, world.launch())


def test_a_session_is_asked_to_stop_and_then_deleted(world_of: Callable[..., World]) -> None:
    world = world_of()
    world.script("time.sleep(600)")
    ref = world.launch()
    world.until(AttemptStatus.RUNNING, ref)

    def flag() -> StopFlag:
        world.run.backend.ask_to_stop(ref)
        info = world.api.dataset(control_slug(RUN))
        assert info is not None
        path = world.root / "stop.json"
        path.unlink(missing_ok=True)
        world.api.download(control_slug(RUN), info.current_version or 1, "stop.json", path)
        return StopFlag.from_json(path.read_bytes(), "the flag")

    world.poll(lambda: flag() == StopFlag(session=1, attempt=1))
    world.run.backend.kill(ref)
    assert world.api.kernel(SLUG) is None
    assert world.run.backend.observe(ref).sighting is AttemptStatus.ENDED
    assert world.open().backend.observe(replace(ref, handle=None)).sighting is AttemptStatus.ENDED


def test_an_outage_of_the_status_is_unknown(world_of: Callable[..., World]) -> None:
    world = world_of()
    world.script("time.sleep(600)")
    ref = world.launch()
    world.until(AttemptStatus.RUNNING, ref)
    fault = Fault("GetKernelSessionStatus", "status", status=500)
    world.emulator.faults.add(fault)
    assert "last seen running" in world.until(AttemptStatus.UNKNOWN, ref).detail
    world.emulator.faults.remove(fault)
    world.until(AttemptStatus.RUNNING, ref)

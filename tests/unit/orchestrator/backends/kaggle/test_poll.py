from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from orchestrator.backends.kaggle.poll import Looks
from orchestrator.backends.kaggle.sightings import JITTER, Look, Seen, due_looks, with_dataset, with_status
from state.backend_settings import KaggleSettings
from state.errors import TemporaryError
from state.kaggle.records import DatasetInfo, DatasetVersion, KernelPush, SessionStatus
from state.layout import RunLayout
from state.ledger import AttemptRecord
from tests.factories import after, attempt
from tests.fake_kaggle import FakeKaggle
from tests.kaggle_stage import DATASET, SLUG, kaggle_context

EVERY_S = 60.0
SETTINGS = KaggleSettings(poll_every_s=EVERY_S)


def due(seen: Seen, at_s: float) -> tuple[Look, ...]:
    return due_looks(seen, after(at_s), EVERY_S, "seed")


def looked(at_s: float = 0.0, last: Look = Look.STATUS, **values: object) -> Seen:
    return Seen.model_validate({"looked_at": after(at_s), "last": last, "shape_asked": True, **values})


def test_the_first_look_asks_for_everything() -> None:
    assert due(Seen(), 0) == (Look.STATUS, Look.DATASET)


def test_nothing_is_asked_before_a_poll_interval_is_over() -> None:
    assert due(looked(), 59.9) == ()


def test_one_thing_is_asked_at_a_time_in_turn() -> None:
    assert due(looked(last=Look.STATUS), 70) == (Look.DATASET,)
    assert due(looked(last=Look.DATASET), 70) == (Look.STATUS,)
    assert due(looked(last=Look.KERNEL), 70) == (Look.DATASET,)


def test_every_interval_is_at_least_the_poll_interval_and_at_most_its_jitter_longer_and_can_be_replayed() -> None:
    waits = []
    for number in range(50):
        seen = looked(looks=number)
        waits.append(next(step / 10 for step in range(590, 700) if due(seen, step / 10)))
    assert min(waits) >= EVERY_S
    assert max(waits) <= EVERY_S * (1 + JITTER) + 0.1
    assert len(set(waits)) > 10
    assert waits[:3] == [next(step / 10 for step in range(590, 700) if due(looked(looks=n), step / 10)) for n in range(3)]


def test_after_a_long_silence_everything_is_asked_again() -> None:
    assert due(looked(), 181) == (Look.STATUS, Look.DATASET)


def test_a_controller_that_polls_seldom_asks_for_the_list_as_well_while_reads_are_refused() -> None:
    assert due(looked(missing_since=after(0)), 181) == (Look.STATUS, Look.KERNELS, Look.DATASET)


def test_a_clock_that_was_set_back_makes_everything_due() -> None:
    assert due(looked(at_s=1000), 0) == (Look.STATUS, Look.DATASET)


def test_the_machine_of_a_session_that_runs_is_asked_for_once() -> None:
    running = looked(status=SessionStatus.RUNNING, shape_asked=False, looks=6)
    assert due(running.evolve(looks=5), 70) == (Look.DATASET,)
    assert due(running, 70) == (Look.KERNEL,)
    assert due(running.evolve(shape_asked=True), 70) == (Look.DATASET,)


def test_of_what_is_over_for_certain_only_the_dataset_is_looked_at() -> None:
    over = looked(last=Look.DATASET, ended=SessionStatus.COMPLETE, ended_again=True, over="how")
    assert due(over, 70) == (Look.DATASET,)
    assert due(over, 10_000) == (Look.DATASET,)


def test_a_session_that_is_said_to_be_over_is_asked_about_until_that_is_believed() -> None:
    assert due(looked(last=Look.DATASET, ended=SessionStatus.COMPLETE, ended_again=True), 70) == (Look.STATUS,)


def test_a_session_that_is_seen_alive_after_it_was_said_to_be_over_is_alive() -> None:
    over = with_status(Seen(), SessionStatus.COMPLETE, after(0))
    assert (over.ended, over.ended_at, over.ended_again) == (SessionStatus.COMPLETE, after(0), False)
    assert with_status(over, SessionStatus.COMPLETE, after(60)).ended_again
    alive = with_status(over, SessionStatus.RUNNING, after(60))
    assert (alive.ended, alive.ended_at, alive.alive_at) == (None, None, after(60))


def test_a_look_at_a_dataset_that_shows_less_than_before_changes_nothing() -> None:
    def info(current: int | None) -> DatasetInfo:
        versions = tuple(DatasetVersion(number, "", "Ready", None) for number in range(1, (current or 0) + 1))
        return DatasetInfo(DATASET, current, 10, True, versions)

    seen = with_dataset(Seen(), info(3), after(0))
    for older in (info(2), info(None), None):
        assert with_dataset(seen, older, after(60)) == seen
    newer = with_dataset(seen, info(4), after(60)).dataset
    assert newer is not None
    assert newer.current == 4


@pytest.fixture
def account() -> FakeKaggle:
    account = FakeKaggle()
    account.push_kernel(KernelPush(SLUG, "", "None", internet=True, timeout_s=1, dataset_sources=()))
    account.kernel_table[SLUG].status = SessionStatus.RUNNING
    account.add_version(DATASET, "Initial release", {"session.json": b"{}"})
    account.calls.clear()
    return account


def looks_at(account: FakeKaggle, folder: Path, *others: AttemptRecord) -> Looks:
    return Looks(kaggle_context(account, RunLayout(folder), SETTINGS), lambda: others)


def test_a_session_costs_at_most_one_call_a_minute(account: FakeKaggle, tmp_path: Path) -> None:
    looks = looks_at(account, tmp_path)
    looks.refresh(1, 1, f"{SLUG}/v1")
    begun_s, before = account.clock.monotonic(), account.count()
    for _ in range(2000):
        account.clock.advance(6.0)
        looks.refresh(1, 1, f"{SLUG}/v1")
    assert account.count() - before <= (account.clock.monotonic() - begun_s) / EVERY_S
    moments = [at_s for at_s, *_ in account.calls[before:]]
    assert min(late - early for early, late in itertools.pairwise(moments)) >= EVERY_S
    assert account.count("session_status") > 50
    assert account.count("dataset") > 50


def test_a_controller_that_starts_anew_and_a_command_beside_it_do_not_ask_again(account: FakeKaggle, tmp_path: Path) -> None:
    first = looks_at(account, tmp_path).refresh(1, 1, f"{SLUG}/v1")
    before = account.count()
    account.clock.advance(30.0)
    assert looks_at(account, tmp_path).refresh(1, 1, f"{SLUG}/v1") == first
    assert account.count() == before


def test_a_session_that_is_said_to_be_over_has_its_dataset_looked_at_at_once(account: FakeKaggle, tmp_path: Path) -> None:
    looks = looks_at(account, tmp_path)
    looks.refresh(1, 1, f"{SLUG}/v1")
    looks.change(1, 1, last=Look.DATASET, shape_asked=True)
    account.kernel_table[SLUG].status = SessionStatus.COMPLETE
    account.add_version(DATASET, "notes", {"report.json": b"{}"})
    account.clock.advance(70.0)
    seen = looks.refresh(1, 1, f"{SLUG}/v1")
    assert account.names()[-2:] == ["session_status", "dataset"]
    assert seen.dataset is not None
    assert seen.dataset.current == 2


def test_looks_that_fail_leave_what_was_known_and_say_so(account: FakeKaggle, tmp_path: Path) -> None:
    looks = looks_at(account, tmp_path)
    before = looks.refresh(1, 1, f"{SLUG}/v1")
    account.broken = {"session_status", "dataset", "kernel"}
    account.clock.advance(1000.0)
    seen = looks.refresh(1, 1, f"{SLUG}/v1")
    assert seen.failure == "session_status does not answer"
    assert (seen.status, seen.alive_at, seen.dataset) == (before.status, before.alive_at, before.dataset)
    account.broken.clear()
    account.clock.advance(1000.0)
    assert looks.refresh(1, 1, f"{SLUG}/v1").failure is None


def refused(account: FakeKaggle, looks: Looks, num_looks: int) -> Seen:
    """Look so often while reads of the kernel are refused."""
    account.hidden = {SLUG}
    for _ in range(num_looks):
        account.clock.advance(70.0)
        looks.refresh(1, 1, f"{SLUG}/v1")
    return looks.seen(1, 1)


def test_the_list_of_all_kernels_is_asked_for_only_while_reads_of_one_are_refused(account: FakeKaggle, tmp_path: Path) -> None:
    looks = looks_at(account, tmp_path)
    for _ in range(10):
        account.clock.advance(70.0)
        looks.refresh(1, 1, f"{SLUG}/v1")
    assert account.count("kernels") == 0
    before = account.count()
    seen = refused(account, looks, 12)
    assert account.count() - before == 12, "one call a poll interval, as ever"
    assert account.count("kernels") >= 3
    assert seen.missing_since is not None
    assert (seen.status, seen.listed_at is not None, seen.unlisted_at) == (SessionStatus.RUNNING, True, None)
    account.hidden.clear()
    lists = account.count("kernels")
    for _ in range(6):
        account.clock.advance(70.0)
        seen = looks.refresh(1, 1, f"{SLUG}/v1")
    assert (seen.missing_since, seen.missing_at, account.count("kernels") - lists <= 1) == (None, None, True)


def test_what_lists_do_not_show_is_noted_until_one_shows_it(account: FakeKaggle, tmp_path: Path) -> None:
    looks = looks_at(account, tmp_path)
    looks.refresh(1, 1, f"{SLUG}/v1")
    kernel = account.kernel_table.pop(SLUG)
    seen = refused(account, looks, 8)
    assert seen.unlisted_since is not None
    assert seen.unlisted_at is not None
    assert seen.unlisted_since < seen.unlisted_at
    account.kernel_table[SLUG] = kernel
    seen = refused(account, looks, 3)
    assert (seen.unlisted_since, seen.unlisted_at) == (None, None)


def test_a_list_that_fails_or_is_empty_where_others_must_be_proves_nothing(account: FakeKaggle, tmp_path: Path) -> None:
    looks = looks_at(account, tmp_path, attempt(2, backend="kaggle", handle="x/v1"))
    looks.refresh(1, 1, f"{SLUG}/v1")
    account.broken = {"kernels"}
    assert refused(account, looks, 9).unlisted_at is None
    account.broken.clear()
    account.kernel_table.clear()
    assert refused(account, looks, 9).unlisted_at is None
    assert account.count("kernels") == 6


def test_what_another_gemma_orch_has_seen_is_seen_again(account: FakeKaggle, tmp_path: Path) -> None:
    (tmp_path / "s001a1.json").write_text('{"schema_version": 99}')
    assert looks_at(account, tmp_path).seen(1, 1) == Seen()


def test_a_lost_look_at_the_machine_is_made_up_for(account: FakeKaggle, tmp_path: Path) -> None:
    looks = looks_at(account, tmp_path)
    looks.refresh(1, 1, f"{SLUG}/v1")
    account.failures["kernel"] = [TemporaryError("no")]
    for _ in range(8):
        account.clock.advance(70.0)
        looks.refresh(1, 1, f"{SLUG}/v1")
    assert (looks.seen(1, 1).shape_asked, looks.seen(1, 1).shape) == (True, "None")

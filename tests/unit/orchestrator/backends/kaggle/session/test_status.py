from __future__ import annotations

from datetime import datetime

import pytest

from orchestrator.backends.kaggle.session.status import judge, substituted
from orchestrator.backends.kaggle.sightings import DatasetSeen, Seen, VersionSeen
from orchestrator.ports import AttemptRef, AttemptStatus, Observation
from state.backend_settings import KaggleSettings
from state.kaggle.names import attempt_kernel_slug
from state.kaggle.records import SessionStatus
from state.report import SessionReport
from tests.factories import RUN, after, report

LAUNCHED_AT = after(0)
LIMIT_S = 36_000.0
SETTINGS = KaggleSettings(settle_s=600.0)
HANDLE = "kernel/v1"


def verdict(
    at_s: float,
    *,
    launched_at: datetime | None = LAUNCHED_AT,
    handle: str | None = None,
    said: SessionReport | None = None,
    delivered: bool = False,
    salvaged: bool = True,
    **seen: object,
) -> Observation:
    return judge(
        Seen.model_validate(seen),
        AttemptRef(RUN, 1, 1, handle, launched_at, LIMIT_S),
        report=said,
        delivered=delivered,
        salvaged=salvaged,
        settings=SETTINGS,
        now=after(at_s),
    )


def test_a_session_that_is_queued_for_hours_is_queued() -> None:
    assert verdict(36_000, status=SessionStatus.QUEUED, alive_at=after(36_000)).sighting is AttemptStatus.QUEUED


def test_a_session_that_runs_for_ever_runs_for_the_ceiling_is_the_controllers() -> None:
    assert verdict(1e6, status=SessionStatus.RUNNING, alive_at=after(1e6)).sighting is AttemptStatus.RUNNING


def test_nothing_known_a_word_that_is_not_known_and_a_look_that_failed_are_unknown() -> None:
    assert verdict(0).sighting is AttemptStatus.UNKNOWN
    assert verdict(0, status=SessionStatus.UNKNOWN).sighting is AttemptStatus.UNKNOWN
    told = verdict(50_000, status=SessionStatus.RUNNING, alive_at=after(3661), failure="HTTP 500")
    assert told == Observation(AttemptStatus.UNKNOWN, "HTTP 500; last seen running at 01:01:01 UTC")


@pytest.mark.parametrize("status", [SessionStatus.COMPLETE, SessionStatus.ERROR, SessionStatus.CANCELLED])
def test_one_answer_that_it_is_over_is_not_believed(status: SessionStatus) -> None:
    told = verdict(100_000, ended=status, ended_at=after(60))
    assert told.sighting is AttemptStatus.UNKNOWN
    assert "the next poll must confirm that" in told.detail


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (SessionStatus.COMPLETE, "completed without a report"),
        (SessionStatus.ERROR, "failed without a report"),
        (SessionStatus.CANCELLED, "ended it at its limit, or it was cancelled"),
    ],
)
def test_what_is_over_without_a_report_is_over_when_reads_cannot_lag_any_more(status: SessionStatus, words: str) -> None:
    waiting = verdict(659, ended=status, ended_at=after(60), ended_again=True)
    assert waiting.sighting is AttemptStatus.UNKNOWN
    assert "until 00:11:00 UTC" in waiting.detail
    over = verdict(660, ended=status, ended_at=after(60), ended_again=True)
    assert (over.sighting, over.ended_at) == (AttemptStatus.ENDED, after(60))
    assert words in over.detail


def test_what_a_session_has_left_is_looked_through_before_it_counts_as_over_unless_that_cannot_be_done() -> None:
    over = {"ended": SessionStatus.COMPLETE, "ended_at": after(60), "ended_again": True}
    told = verdict(1e6, salvaged=False, looks_after_end=29, **over)
    assert (told.sighting, told.detail) == (AttemptStatus.UNKNOWN, "it has ended; its dataset or its output cannot be read now")
    assert verdict(1e6, salvaged=False, looks_after_end=30, **over).sighting is AttemptStatus.ENDED
    assert verdict(1e6, looks_after_end=2, **over).sighting is AttemptStatus.ENDED


def test_a_report_and_what_it_says_was_delivered_make_one_answer_enough() -> None:
    over = verdict(61, said=report(1), delivered=True, ended=SessionStatus.COMPLETE, ended_at=after(60))
    assert over == Observation(AttemptStatus.ENDED, "", after(60))


def test_what_a_report_says_was_saved_is_waited_for_as_long_as_processing_may_take() -> None:
    assert verdict(3659, said=report(1), ended=SessionStatus.COMPLETE, ended_at=after(60)).sighting is AttemptStatus.UNKNOWN
    assert verdict(3660, said=report(1), ended=SessionStatus.COMPLETE, ended_at=after(60)).sighting is AttemptStatus.ENDED


@pytest.mark.parametrize(("status", "waits"), [("Blobs_Received", True), ("", True), ("Failed", False), ("Deleted", False)])
def test_a_version_that_is_processed_when_a_session_is_cut_off_is_waited_for(status: str, *, waits: bool) -> None:
    shown = DatasetSeen(current=1, versions=(VersionSeen(number=2, notes="", status=status),))
    cut_off = {"ended": SessionStatus.CANCELLED, "ended_at": after(60), "ended_again": True, "dataset": shown}
    assert (verdict(700, **cut_off).sighting is AttemptStatus.UNKNOWN) == waits
    assert verdict(3660, **cut_off).sighting is AttemptStatus.ENDED


def test_what_was_never_launched_is_missing_at_once() -> None:
    assert verdict(0, launched_at=None, missing_since=after(0)).sighting is AttemptStatus.MISSING


def refused(since_s: float, until_s: float, *, lists: tuple[float, float] | None = None, **values: object) -> dict[str, object]:
    """What was seen of a kernel that reads refuse to show; `lists`: the first and the last list that did not show it either."""
    unlisted = {"unlisted_since": after(lists[0]), "unlisted_at": after(lists[1])} if lists is not None else {}
    return {"missing_since": after(since_s), "missing_at": after(until_s), **unlisted, **values}


ALIVE = {"status": SessionStatus.RUNNING, "alive_at": after(5000), "running_at": after(100)}
PAST_CEILING_S = 100 + 37_080 + 120 + 600  # its first look as running, what its push allowed, the grace, what may lag


def test_a_push_whose_answer_was_lost_is_missing_when_a_list_that_cannot_lag_does_not_show_it() -> None:
    assert verdict(7e4, **refused(5, 7e4)).sighting is AttemptStatus.UNKNOWN
    assert verdict(7e4, **refused(5, 7e4, lists=(70, 599))).sighting is AttemptStatus.UNKNOWN
    assert verdict(1e6, **refused(5, 599, lists=(70, 600))).sighting is AttemptStatus.UNKNOWN
    assert verdict(1e6, **refused(5, 600, lists=(600, 600))).sighting is AttemptStatus.UNKNOWN
    assert verdict(600, **refused(5, 600, lists=(70, 600))).sighting is AttemptStatus.MISSING


def test_a_push_whose_answer_was_lost_and_whose_kernel_a_list_shows_did_arrive() -> None:
    told = verdict(5000, **refused(5, 5000, listed_at=after(900)))
    assert told.sighting is AttemptStatus.UNKNOWN
    assert "it was pushed and counts as alive until 22:30 UTC" in told.detail


@pytest.mark.parametrize("known", [{"alive_at": after(1)}, {"handle": HANDLE}, {"listed_at": after(1)}])
def test_what_is_known_to_have_been_there_is_not_gone_because_reads_of_it_are_refused(known: dict[str, object]) -> None:
    assert verdict(30_000, **refused(900, 30_000), **known).sighting is AttemptStatus.UNKNOWN
    early = refused(900, 30_000, lists=(1000, 1499))
    assert verdict(30_000, **early, **known).sighting is AttemptStatus.UNKNOWN, "that list may have lagged"
    gone = verdict(30_000, **refused(900, 30_000, lists=(1000, 1500)), **known)
    assert (gone.sighting, gone.detail) == (AttemptStatus.ENDED, "its kernel is gone: it was deleted")


def test_one_list_is_not_enough_for_what_was_alive() -> None:
    assert verdict(1e4, **refused(5100, 1e4, lists=(9000, 9000)), **ALIVE).sighting is AttemptStatus.UNKNOWN


def test_looks_that_did_not_show_it_while_reads_could_lag_prove_nothing_later() -> None:
    early = refused(5, 500, lists=(70, 500), failure="HTTP 500")
    assert verdict(1e6, **early).sighting is AttemptStatus.UNKNOWN


def test_what_a_kernel_that_is_gone_has_delivered_is_waited_for_and_looked_through() -> None:
    gone = {**ALIVE, **refused(9000, 9900, lists=(9100, 9900))}
    on_its_way = DatasetSeen(current=1, versions=(VersionSeen(number=2, notes=""),))
    assert verdict(9900, **gone).sighting is AttemptStatus.ENDED
    assert verdict(9900, salvaged=False, looks_after_end=29, **gone).sighting is AttemptStatus.UNKNOWN
    assert verdict(9900, salvaged=False, looks_after_end=30, **gone).sighting is AttemptStatus.ENDED
    assert verdict(12_599, dataset=on_its_way, **gone).sighting is AttemptStatus.UNKNOWN
    assert verdict(12_600, dataset=on_its_way, **gone).sighting is AttemptStatus.ENDED
    assert verdict(9900, said=report(1), delivered=True, **gone).sighting is AttemptStatus.ENDED


def test_a_kernel_that_is_refused_for_ever_is_over_past_its_ceiling() -> None:
    over_s = PAST_CEILING_S
    assert verdict(1e6, **ALIVE, **refused(5100, over_s - 1)).sighting is AttemptStatus.UNKNOWN, "no look was made since"
    assert verdict(1e6, **ALIVE, **refused(over_s, over_s + 599)).sighting is AttemptStatus.UNKNOWN, "it may be shown again soon"
    assert verdict(over_s + 599, **ALIVE, **refused(5100, over_s)).sighting is AttemptStatus.UNKNOWN, (
        "it may have delivered something"
    )
    over = verdict(over_s + 600, **ALIVE, **refused(5100, over_s))
    assert (over.sighting, over.ended_at) == (AttemptStatus.ENDED, after(over_s))
    assert over.detail == "Kaggle has refused to show its kernel since 01:25 UTC, and its time limit has passed"


def test_a_kernel_that_was_last_seen_queued_may_have_been_queued_for_long() -> None:
    queued = {"status": SessionStatus.QUEUED, "alive_at": after(5000)}
    over_s = 5000 + 12 * 3600 + PAST_CEILING_S - 100
    assert verdict(1e6, **queued, **refused(5100, over_s - 1)).sighting is AttemptStatus.UNKNOWN
    assert verdict(1e6, **queued, **refused(5100, over_s)).sighting is AttemptStatus.ENDED


def test_a_word_that_it_is_over_and_lists_that_do_not_show_it_end_a_session() -> None:
    once = {"ended": SessionStatus.COMPLETE, "ended_at": after(8000)}
    assert verdict(1e4, **once, **refused(8100, 1e4)).sighting is AttemptStatus.UNKNOWN
    assert verdict(1e4, **once, **refused(8100, 1e4, lists=(8200, 1e4))).sighting is AttemptStatus.ENDED
    assert verdict(1e6, **once, **refused(8100, 1e6), running_at=after(100)).sighting is AttemptStatus.ENDED


def test_what_is_refused_is_said_with_since_when_and_until_when_it_counts_as_alive() -> None:
    told = verdict(4000, status=SessionStatus.RUNNING, alive_at=after(3000), running_at=after(100), **refused(3060, 3900))
    assert told.detail == (
        f"Kaggle has refused to show the kernel {attempt_kernel_slug(RUN, 1, 1)} (403 or 404) since 00:51 UTC; "
        "it was running at 00:50 UTC and counts as alive until 10:31 UTC"
    )
    doubtful = verdict(4000, handle=HANDLE, **refused(3060, 3900, lists=(3100, 3100)))
    assert doubtful.detail.endswith(
        "it was pushed and counts as alive until 22:30 UTC, "
        "unless a list of the account's kernels read after 01:01 UTC does not show it either"
    )
    lost = verdict(4000, **refused(60, 70))
    assert lost.detail.endswith(
        "it is unknown whether its push arrived: it did not if "
        "a list of the account's kernels read after 00:10 UTC does not show it"
    )
    next_day = verdict(90_000, handle=HANDLE, launched_at=after(80_000), **refused(80_100, 89_000))
    assert "since 2026-01-01 22:15 UTC" in next_day.detail


def test_a_report_ends_a_session_whose_status_cannot_be_had() -> None:
    silent = {"status": SessionStatus.RUNNING, "failure": "HTTP 500", "report_at": after(1000)}
    assert verdict(1599, said=report(1), delivered=True, **silent).sighting is AttemptStatus.UNKNOWN
    assert verdict(1600, said=report(1), delivered=True, **silent).sighting is AttemptStatus.ENDED
    assert verdict(4599, said=report(1), **silent).sighting is AttemptStatus.UNKNOWN
    assert verdict(4600, said=report(1), **silent).sighting is AttemptStatus.ENDED
    assert verdict(1e6, said=report(1), status=SessionStatus.RUNNING, report_at=after(1000)).sighting is AttemptStatus.RUNNING
    told = verdict(1600, said=report(1), delivered=True, report_at=after(1000), **refused(900, 1500))
    assert told.detail.endswith("Kaggle gives no status: it refuses to show the kernel (403 or 404)")


def test_another_machine_than_was_asked_for_is_said() -> None:
    assert substituted(Seen(shape="NvidiaTeslaT4"), SETTINGS) is None
    assert substituted(Seen(), SETTINGS) is None
    assert substituted(Seen(shape="None"), SETTINGS) == "Kaggle gave it None instead of NvidiaTeslaT4"
    cpu = KaggleSettings(accelerator="cpu")
    assert substituted(Seen(shape=""), cpu) is None
    assert substituted(Seen(shape="NvidiaTeslaT4"), cpu) == "Kaggle gave it NvidiaTeslaT4 instead of None"
    assert "instead of" in verdict(9, status=SessionStatus.RUNNING, shape="None").detail

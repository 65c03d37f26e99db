from __future__ import annotations

from datetime import datetime

import pytest

from orchestrator.backends.base import Observation, Sighting
from orchestrator.kaggle.seen import DatasetSeen, Seen, VersionSeen
from orchestrator.kaggle.verdict import judge, substituted
from state.kaggle.records import SessionStatus
from state.kaggle.settings import KaggleSettings
from state.report import SessionReport
from tests.factories import after, report

LAUNCHED_AT = after(0)
SETTINGS = KaggleSettings(settle_s=600.0)


def verdict(
    at_s: float,
    *,
    launched_at: datetime | None = LAUNCHED_AT,
    said: SessionReport | None = None,
    delivered: bool = False,
    salvaged: bool = True,
    **seen: object,
) -> Observation:
    return judge(
        Seen.model_validate(seen),
        launched_at=launched_at,
        report=said,
        delivered=delivered,
        salvaged=salvaged,
        settings=SETTINGS,
        now=after(at_s),
    )


def test_a_session_that_is_queued_for_hours_is_queued() -> None:
    assert verdict(36_000, status=SessionStatus.QUEUED, alive_at=after(36_000)).sighting is Sighting.QUEUED


def test_a_session_that_runs_for_ever_runs_for_the_ceiling_is_the_controllers() -> None:
    assert verdict(1e6, status=SessionStatus.RUNNING, alive_at=after(1e6)).sighting is Sighting.RUNNING


def test_nothing_known_a_word_that_is_not_known_and_a_look_that_failed_are_unknown() -> None:
    assert verdict(0).sighting is Sighting.UNKNOWN
    assert verdict(0, status=SessionStatus.UNKNOWN).sighting is Sighting.UNKNOWN
    told = verdict(50_000, status=SessionStatus.RUNNING, alive_at=after(3661), failure="HTTP 500")
    assert told == Observation(Sighting.UNKNOWN, "HTTP 500; last seen running at 01:01:01 UTC")


@pytest.mark.parametrize("status", [SessionStatus.COMPLETE, SessionStatus.ERROR, SessionStatus.CANCELLED])
def test_one_answer_that_it_is_over_is_not_believed(status: SessionStatus) -> None:
    told = verdict(100_000, ended=status, ended_at=after(60))
    assert told.sighting is Sighting.UNKNOWN
    assert "believed when it says so again" in told.detail


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (SessionStatus.COMPLETE, "complete and left no report"),
        (SessionStatus.ERROR, "failed without a report"),
        (SessionStatus.CANCELLED, "ended it at its limit, or somebody cancelled it"),
    ],
)
def test_what_is_over_without_a_report_is_over_when_reads_cannot_lag_any_more(status: SessionStatus, words: str) -> None:
    waiting = verdict(659, ended=status, ended_at=after(60), ended_again=True)
    assert waiting.sighting is Sighting.UNKNOWN
    assert "until 00:11:00 UTC" in waiting.detail
    over = verdict(660, ended=status, ended_at=after(60), ended_again=True)
    assert (over.sighting, over.ended_at) == (Sighting.ENDED, after(60))
    assert words in over.detail


def test_what_a_session_has_left_is_looked_through_before_it_counts_as_over_unless_that_cannot_be_done() -> None:
    over = {"ended": SessionStatus.COMPLETE, "ended_at": after(60), "ended_again": True}
    told = verdict(1e6, salvaged=False, looks_after_end=29, **over)
    assert (told.sighting, told.detail) == (Sighting.UNKNOWN, "it is over; what it has left behind cannot be looked through now")
    assert verdict(1e6, salvaged=False, looks_after_end=30, **over).sighting is Sighting.ENDED
    assert verdict(1e6, looks_after_end=2, **over).sighting is Sighting.ENDED


def test_a_report_and_what_it_says_was_delivered_make_one_answer_enough() -> None:
    over = verdict(61, said=report(1), delivered=True, ended=SessionStatus.COMPLETE, ended_at=after(60))
    assert over == Observation(Sighting.ENDED, "", after(60))


def test_what_a_report_says_was_saved_is_waited_for_as_long_as_processing_may_take() -> None:
    assert verdict(3659, said=report(1), ended=SessionStatus.COMPLETE, ended_at=after(60)).sighting is Sighting.UNKNOWN
    assert verdict(3660, said=report(1), ended=SessionStatus.COMPLETE, ended_at=after(60)).sighting is Sighting.ENDED


@pytest.mark.parametrize(("status", "waits"), [("Blobs_Received", True), ("", True), ("Failed", False), ("Deleted", False)])
def test_a_version_that_is_processed_when_a_session_is_cut_off_is_waited_for(status: str, *, waits: bool) -> None:
    shown = DatasetSeen(current=1, versions=(VersionSeen(number=2, notes="", status=status),))
    cut_off = {"ended": SessionStatus.CANCELLED, "ended_at": after(60), "ended_again": True, "dataset": shown}
    assert (verdict(700, **cut_off).sighting is Sighting.UNKNOWN) == waits
    assert verdict(3660, **cut_off).sighting is Sighting.ENDED


def test_what_was_never_launched_is_missing_at_once() -> None:
    assert verdict(0, launched_at=None, missing_since=after(0)).sighting is Sighting.MISSING


def test_what_was_pushed_is_missing_when_reads_cannot_lag_any_more() -> None:
    assert verdict(599, missing_since=after(5), missing_at=after(599)).sighting is Sighting.UNKNOWN
    assert verdict(600, missing_since=after(5), missing_at=after(600)).sighting is Sighting.MISSING


def test_one_look_that_does_not_show_it_is_not_believed_however_long_ago_it_was_pushed() -> None:
    assert verdict(1e6, missing_since=after(1e6), missing_at=after(1e6)).sighting is Sighting.UNKNOWN
    assert verdict(1e6, missing_since=after(900), missing_at=after(900), alive_at=after(1)).sighting is Sighting.UNKNOWN


def test_looks_that_did_not_show_it_while_reads_could_lag_prove_nothing_later() -> None:
    early = {"missing_since": after(5), "missing_at": after(500), "failure": "HTTP 500"}
    assert verdict(1e6, **early).sighting is Sighting.UNKNOWN


def test_what_was_alive_is_gone_when_it_was_missing_for_that_long() -> None:
    gone = {"alive_at": after(5000), "missing_since": after(9000), "missing_at": after(9600)}
    assert verdict(9599, **{**gone, "missing_at": after(9599)}).sighting is Sighting.UNKNOWN
    over = verdict(9600, **gone)
    assert (over.sighting, over.detail) == (Sighting.ENDED, "its kernel is gone: somebody has deleted it")
    assert verdict(9600, said=report(1), **gone).sighting is Sighting.ENDED


def test_a_report_ends_a_session_whose_status_cannot_be_had() -> None:
    silent = {"status": SessionStatus.RUNNING, "failure": "HTTP 500", "report_at": after(1000)}
    assert verdict(1599, said=report(1), delivered=True, **silent).sighting is Sighting.UNKNOWN
    assert verdict(1600, said=report(1), delivered=True, **silent).sighting is Sighting.ENDED
    assert verdict(4599, said=report(1), **silent).sighting is Sighting.UNKNOWN
    assert verdict(4600, said=report(1), **silent).sighting is Sighting.ENDED
    assert verdict(1e6, said=report(1), status=SessionStatus.RUNNING, report_at=after(1000)).sighting is Sighting.RUNNING


def test_another_machine_than_was_asked_for_is_said() -> None:
    assert substituted(Seen(shape="NvidiaTeslaT4"), SETTINGS) is None
    assert substituted(Seen(), SETTINGS) is None
    assert substituted(Seen(shape="None"), SETTINGS) == "Kaggle gave it None instead of NvidiaTeslaT4"
    cpu = KaggleSettings(accelerator="cpu")
    assert substituted(Seen(shape=""), cpu) is None
    assert substituted(Seen(shape="NvidiaTeslaT4"), cpu) == "Kaggle gave it NvidiaTeslaT4 instead of None"
    assert "instead of" in verdict(9, status=SessionStatus.RUNNING, shape="None").detail

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.backends.kaggle.checkpoints.index import Index
from orchestrator.backends.kaggle.checkpoints.known import (
    Known,
    is_believed,
    made_anew,
    next_look,
    with_contents,
    with_doubt,
    with_examined,
    with_look,
    with_report,
)
from orchestrator.backends.kaggle.sightings import DatasetSeen, VersionSeen
from state.backend_settings import KaggleSettings
from state.errors import DataError
from tests.factories import after

SETTLE_S, PROCESSING_S, POLL_S = 600.0, 3600.0, 60.0
SETTINGS = KaggleSettings(poll_every_s=POLL_S, settle_s=SETTLE_S, processing_limit_s=PROCESSING_S)


def shows(current: int, *numbers: int, **status: str) -> DatasetSeen:
    """A dataset of these versions; `v3="deleted"` gives one of them another word than Kaggle's usual one."""
    versions = (VersionSeen(number=n, notes="", status=status.get(f"v{n}", "Ready")) for n in numbers)
    return DatasetSeen(current=current, total_bytes=10, versions=tuple(versions))


def look_at_s(known: Known, now_s: float, newest: int = 0, over_at_s: float = 0.0) -> float | None:
    """In how many seconds the next look is due."""
    due = next_look(known, after(over_at_s), after(now_s), SETTINGS, newest=newest)
    return (due - after(now_s)).total_seconds() if due is not None else None


def looked(at_s: float = 0.0, **values: object) -> Known:
    return with_look(Known(), after(at_s), is_shown=True).evolve(**values)


def test_what_is_wrong_is_believed_when_a_look_after_the_settling_time_still_says_so() -> None:
    assert not is_believed(Known(), 3, after(10**6), SETTLE_S)
    doubted = with_doubt(Known(), 3, after(0))
    assert not is_believed(doubted, 3, after(SETTLE_S - 1), SETTLE_S)
    assert is_believed(doubted, 3, after(SETTLE_S), SETTLE_S)
    assert not is_believed(doubted, 4, after(SETTLE_S), SETTLE_S)


def test_a_doubt_begins_with_the_first_look_that_finds_something_wrong() -> None:
    again = with_doubt(with_doubt(Known(), 3, after(0)), 3, after(60))
    assert again.wrong == {3: after(0)}


def test_an_examined_version_is_not_doubted_any_more_and_is_named_once() -> None:
    known = with_examined(with_examined(with_doubt(Known(), 3, after(0)), 3), 3)
    assert (known.examined, known.wrong) == ((3,), {})


def test_a_version_that_was_deleted_is_not_doubted_any_more() -> None:
    doubted = with_doubt(with_doubt(Known(), 2, after(0)), 3, after(0))
    assert with_contents(doubted, shows(3, 2, 3)).wrong.keys() == {2, 3}
    assert with_contents(doubted, shows(4, 3, 4)).wrong.keys() == {3}
    assert with_contents(doubted, shows(4, 2, 3, 4, v3="Deleted")).wrong.keys() == {2}
    assert with_contents(doubted, shows(2, 2)).wrong.keys() == {2, 3}, "one that is newer than the current one is processed"


def test_the_current_version_is_one_that_was_looked_into() -> None:
    known = with_contents(with_examined(Known(), 2), shows(2, 2))
    assert (known.current, known.total_bytes) == (2, 10)
    assert with_contents(known, shows(3, 2, 3)).current == 2


def test_the_newest_report_counts() -> None:
    assert with_report(with_report(Known(), 4), 3).report_version == 4


def test_a_dataset_that_is_shown_again_is_not_hidden() -> None:
    hidden = with_look(with_look(Known(), after(0), is_shown=False), after(60), is_shown=False)
    assert hidden.hidden_since == after(0)
    assert with_look(hidden, after(120), is_shown=True).hidden_since is None


def test_a_dataset_that_was_made_anew_has_no_version_that_is_known() -> None:
    known = looked(examined=(1, 2), current=2, wrong={3: after(0)}, is_gone=True, hidden_since=after(0), report_version=2)
    assert made_anew(known) == looked(report_version=2)


@pytest.mark.parametrize(
    ("known", "now_s", "newest", "due_s"),
    [
        pytest.param(looked(), 0, 0, POLL_S, id="while lists may lag, a poll interval later"),
        pytest.param(looked(report_version=2, current=2), SETTLE_S - 1, 2, POLL_S, id="a report does not shorten that"),
        pytest.param(looked(report_version=2, current=2), SETTLE_S, 2, None, id="after its report nothing comes"),
        pytest.param(looked(report_version=2, current=2), SETTLE_S, 3, POLL_S, id="but for what is being processed"),
        pytest.param(looked(current=2), SETTLE_S, 2, PROCESSING_S, id="a version may be shown only once it is processed"),
        pytest.param(looked(current=2), SETTLE_S + PROCESSING_S, 2, None, id="and is, by then"),
        pytest.param(looked(current=2), SETTLE_S + PROCESSING_S, 3, None, id="what is processed for ever is not waited for"),
        pytest.param(looked(SETTLE_S), SETTLE_S, 0, POLL_S, id="one look may lag, however long the attempt is over"),
        pytest.param(looked(wrong={3: after(0)}), 10**6, 3, POLL_S, id="a doubt is cleared up first"),
        pytest.param(looked(wrong={3: after(0)}, examined=(3,)), 10**6, 3, None, id="of what was examined there is no doubt"),
        pytest.param(looked(hidden_since=after(10**6)), 10**6, 0, POLL_S, id="what is hidden may be shown again"),
        pytest.param(looked(hidden_since=after(0)), 10**6, 0, None, id="until the settling time is over"),
    ],
)
def test_when_to_look_again(known: Known, now_s: float, newest: int, due_s: float | None) -> None:
    assert look_at_s(known, now_s, newest) == due_s


STORED_BEFORE = {
    "current": 2,
    "examined": [1, 2],
    "wrong": {"0": "2026-01-01T00:00:00Z", "3": "2026-01-02T00:00:00Z"},
    "report_version": None,
    "total_bytes": 10,
    "looked_since": "2026-01-01T00:00:00Z",
    "is_closed": False,
    "is_gone": False,
}


def test_an_index_of_before_is_read_and_written_as_it_was() -> None:
    text = json.dumps({"schema_version": 1, "checkpoints": {}, "attempts": {"s001a1": STORED_BEFORE}})
    index = Index.from_json(text, "the index")
    known = index.attempts["s001a1"]
    assert known.hidden_since == known.looked_since
    assert known.wrong.keys() == {3}
    assert json.loads(index.to_json()) == json.loads(text)


@pytest.mark.parametrize("wrong", [{"0": "never"}, {"first": "2026-01-01T00:00:00Z"}, {"3": None}, [], "0"])
def test_a_doubt_that_makes_no_sense_is_refused(wrong: object) -> None:
    with pytest.raises(DataError):
        Known.from_json(json.dumps({**STORED_BEFORE, "wrong": wrong}), "the index")


NUMBERS = st.integers(1, 6)
EVENTS = st.one_of(
    st.tuples(st.just("examined"), NUMBERS),
    st.tuples(st.just("doubted"), NUMBERS),
    st.tuples(st.just("report"), NUMBERS),
    st.tuples(st.just("look"), st.booleans()),
    st.tuples(st.just("contents"), st.tuples(NUMBERS, st.frozensets(NUMBERS))),
    st.tuples(st.just("anew"), st.none()),
)


@given(st.lists(st.tuples(st.floats(0.0, 2000.0), EVENTS), max_size=30))
def test_whatever_is_seen_in_whatever_order_what_is_known_makes_sense(steps: list[tuple[float, tuple[str, object]]]) -> None:
    known, now_s = Known(), 0.0
    for pause_s, event in steps:
        before, now_s = known, now_s + pause_s
        now = after(now_s)
        match event:
            case ("examined", int(number)):
                known = with_examined(known, number)
            case ("doubted", int(number)) if number not in known.examined:  # what is examined is not looked into again
                known = with_doubt(known, number, now)
            case ("report", int(number)):
                known = with_report(known, number)
            case ("look", bool(is_shown)):
                known = with_look(known, now, is_shown=is_shown)
            case ("contents", (int(current), frozenset() as numbers)):
                known = with_contents(known, shows(current, *numbers))
            case ("anew", None):
                known = made_anew(known)
        assert Known.from_json(known.to_json(), "the index") == known
        assert known.wrong.keys().isdisjoint(known.examined)
        assert len(set(known.examined)) == len(known.examined)
        assert known.current in (0, *known.examined)
        assert all(before.wrong.get(number, now) == since for number, since in known.wrong.items()), "a doubt keeps its beginning"
        assert (known.report_version or 0) >= (before.report_version or 0)
        assert before.looked_since in (None, known.looked_since)
        due = next_look(known, after(0), now, SETTINGS, newest=0)
        assert due is None or due > now
        if due is None:
            first = known.looked_since
            assert first is None or now >= first + timedelta(seconds=SETTLE_S)
            assert not known.wrong
        forgotten = known.evolve(wrong={}, looked_since=known.looked_since or now)
        assert next_look(forgotten, after(0), now + timedelta(days=1), SETTINGS, newest=9) is None, "it ends"

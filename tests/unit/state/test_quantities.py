from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state.errors import UserError
from state.quantities import format_duration, parse_duration_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("11h30m", 41_400), ("1.5h", 5400), ("2d", 172_800), (" 1H 30M ", 5400), ("0.5s", 0.5)],
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "10 minutes", "-5m", "1h-5m", "5m!", "1e3s", "ten"])
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UserError, match="such as 90s, 10m or 11h30m"):
        parse_duration_s(text)


def test_no_time_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="is zero"):
        parse_duration_s("0m")


def test_more_time_than_there_is_is_refused() -> None:
    with pytest.raises(UserError, match="is too long"):
        parse_duration_s("9" * 400 + "d")
    with pytest.raises(UserError, match="is too long"):
        parse_duration_s("999999999d")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (4.24, "4.2s"),
        (4, "4s"),
        (42.4, "42s"),
        (59.7, "1m"),
        (60, "1m"),
        (65, "1m05s"),
        (3599.7, "1h"),
        (41_400, "11h30m"),
        (273_600, "3d04h"),
        (172_800, "2d"),
        (-65, "-1m05s"),
    ],
)
def test_durations_are_written_as_people_read_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@settings(derandomize=True, deadline=None)
@given(st.floats(min_value=1.0, max_value=1e8))
def test_what_is_written_can_be_read_and_means_nearly_the_same(seconds: float) -> None:
    read_s = parse_duration_s(format_duration(seconds))
    assert read_s == pytest.approx(seconds, rel=0.06)

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state.errors import UserError
from state.quantities import format_duration, format_size, numbers_by_language, parse_duration_s, parse_size_bytes


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


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("256MB", 256 * 10**6),
        ("20GB", 20 * 10**9),
        ("512MiB", 512 * 2**20),
        ("1.5GB", 1_500_000_000),
        (" 4 kib ", 4096),
        ("2TB", 2 * 10**12),
        ("1TiB", 2**40),
        ("1000B", 1000),
        ("0.5MB", 500_000),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size_bytes: int) -> None:
    assert parse_size_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["", "10", "MB", "10 megabytes", "-5MB", "1e3MB", "ten", "1GB2MB", "5M", "1ib", "٣MB"])
def test_what_is_no_size_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UserError, match="such as 256MB, 20GB or 512MiB"):
        parse_size_bytes(text)


@pytest.mark.parametrize("text", ["0MB", "0.1B"])
def test_no_bytes_at_all_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="is zero"):
        parse_size_bytes(text)


@pytest.mark.parametrize("text", ["9999999TB", "9" * 400 + "B"])
def test_more_bytes_than_any_disk_has_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="too large"):
        parse_size_bytes(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0B"),
        (812, "812B"),
        (4_100_000, "4.1MB"),
        (4_000_000, "4MB"),
        (256 * 2**20, "256MiB"),
        (2**30, "1GiB"),
        (20 * 10**9, "20GB"),
        (123_456_789, "123MB"),
        (99_970, "100kB"),
        (7 * 10**15, "7000TB"),
    ],
)
def test_sizes_are_said_as_people_read_them(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@settings(derandomize=True, max_examples=200)
@given(st.integers(min_value=1, max_value=2**59))
def test_what_is_said_is_near_what_it_is(size_bytes: int) -> None:
    assert parse_size_bytes(format_size(size_bytes)) == pytest.approx(size_bytes, rel=0.06)


def test_each_language_has_its_number_in_the_order_given() -> None:
    numbers = numbers_by_language("--weight", ["konkani=0.2", "हिन्दी=3", "a=b=1e-3"])
    assert list(numbers.items()) == [("konkani", 0.2), ("हिन्दी", 3.0), ("a=b", 0.001)]


@pytest.mark.parametrize("text", ["konkani", "konkani=", "=0.2", "konkani=much", "konkani=-1", "konkani=nan", "konkani=inf"])
def test_what_is_no_language_with_a_number_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match=r"--weight is invalid: .*\n.*--weight konkani=0.2"):
        numbers_by_language("--weight", ["hindi=1", text])


def test_a_language_that_is_named_twice_is_refused() -> None:
    with pytest.raises(UserError, match="names 'hindi' twice"):
        numbers_by_language("--weight", ["hindi=1", "hindi=2"])

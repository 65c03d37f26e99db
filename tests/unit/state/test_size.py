from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from state.errors import UserError
from state.size import format_size, parse_size_bytes


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

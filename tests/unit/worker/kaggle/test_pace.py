from __future__ import annotations

import pytest

from worker.kaggle.pace import Pace, copy_s

GIB = 1024**3


def test_before_the_first_upload_a_guess_is_kept():
    assert Pace().reserve_s(1_000, 12 * 3600.0) == 60.0
    assert Pace().reserve_s(10 * GIB, 12 * 3600.0) == pytest.approx(2 * 10 * GIB / 20e6)


def test_a_guess_never_takes_more_than_a_tenth_of_the_session():
    assert Pace().reserve_s(1_000, 20.0) == pytest.approx(2.0)


def test_what_was_measured_is_kept_twice():
    pace = Pace().after(100_000_000, 10.0, 13.0)
    assert pace.reserve_s(200_000_000, 3600.0) == pytest.approx(2 * 20.0 + 3.0 + 5.0)
    assert pace.reserve_s(200_000_000, 100.0) == pytest.approx(2 * 20.0 + 3.0 + 2.0)


def test_the_longest_fixed_time_is_remembered_and_the_last_speed():
    pace = Pace().after(100, 1.0, 9.0).after(200, 1.0, 2.0)
    assert (pace.bytes_per_s, pace.fixed_s) == (200.0, 8.0)


def test_an_upload_too_quick_to_measure_changes_no_speed():
    assert Pace(bytes_per_s=5.0).after(100, 0.0, 1.0).bytes_per_s == 5.0
    assert Pace().after(100, 0.0, 1.0).bytes_per_s is None


def test_a_copy_takes_the_time_of_a_slow_disk():
    assert copy_s(1_000_000_000) == pytest.approx(10.0)

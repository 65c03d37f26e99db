from __future__ import annotations

from datetime import UTC, timedelta

import pytest

from state.clock import ManualClock, SystemClock


def test_a_manual_clock_moves_only_when_it_is_turned() -> None:
    clock = ManualClock()
    begun = clock.now()
    assert clock.now() == begun
    clock.advance(90.5)
    clock.sleep(9.5)
    assert clock.now() - begun == timedelta(seconds=100)
    assert clock.monotonic() == 100.0


def test_a_manual_clock_is_never_turned_back() -> None:
    with pytest.raises(ValueError, match="a clock cannot go back"):
        ManualClock().advance(-1)


def test_the_systems_clock_is_utc_aware_and_moves_on() -> None:
    clock = SystemClock()
    before, before_s = clock.now(), clock.monotonic()
    clock.sleep(0.001)
    assert clock.now().tzinfo is UTC
    assert clock.now() >= before
    assert clock.monotonic() >= before_s + 0.001

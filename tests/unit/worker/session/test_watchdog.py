from __future__ import annotations

import threading

from state.clock import ManualClock, SystemClock
from worker.session.watchdog import FIRST_STEP_S, LEAST_STEP_S, PHASE_S, Watchdog


def watchdog(clock: ManualClock) -> Watchdog:
    return Watchdog(clock, on_hang=lambda problem: None)


def test_the_first_step_may_take_as_long_as_compiling_does():
    clock = ManualClock()
    dog = watchdog(clock)
    dog.step_begins(1)
    clock.advance(FIRST_STEP_S)
    assert dog.problem() is None
    clock.advance(1)
    assert dog.problem() == "step 1 has not ended for 30m01s, 30m are allowed"


def test_later_steps_may_take_a_multiple_of_the_usual_time():
    clock = ManualClock()
    dog = watchdog(clock)
    for number in range(1, 6):
        dog.step_begins(number)
        dog.step_done(10.0 if number > 1 else 900.0)  # compiling does not count as usual
    assert dog.allowed_step_s() == 200.0
    dog.step_begins(6)
    clock.advance(200)
    assert dog.problem() is None
    clock.advance(1)
    assert dog.problem() == "step 6 has not ended for 3m21s, 3m20s are allowed; a step usually takes 10s"


def test_quick_steps_are_given_a_minute():
    dog = watchdog(ManualClock())
    dog.step_done(0.01)
    assert dog.allowed_step_s() == LEAST_STEP_S


def test_every_phase_has_a_deadline_of_its_own():
    clock = ManualClock()
    dog = watchdog(clock)
    dog.phase("saving", allowed_s=40.0)
    clock.advance(41)
    assert dog.problem() == "saving has not ended for 41s, 40s are allowed"
    dog.phase("ending")
    clock.advance(PHASE_S)
    assert dog.problem() is None


def test_a_thread_of_its_own_tells_once_what_hangs():
    clock = ManualClock()
    told: list[str] = []
    heard = threading.Event()

    def on_hang(problem: str) -> None:
        told.append(problem)
        heard.set()

    dog = Watchdog(clock, on_hang)
    dog.phase("restoring")
    clock.advance(PHASE_S + 1)
    dog.watch(every_s=0.001)
    assert heard.wait(10)
    assert told == ["restoring has not ended for 30m01s, 30m are allowed"]


def test_a_watchdog_that_is_closed_says_nothing():
    told: list[str] = []
    dog = Watchdog(SystemClock(), told.append)
    dog.phase("ending", allowed_s=0.0)
    dog.close()
    dog.watch(every_s=0.001)
    dog.watch(every_s=0.001)
    assert told == []

"""What all measurements share: taking turns, medians, and one printed line for each number that we want to reach."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping


def seconds(act: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how long an act takes."""
    began = clock()
    act()
    return clock() - began


def cores_of_children() -> float:
    """Return the seconds of cores that child processes which are over have used: a clock that other work hardly moves."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def take_turns(
    acts: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return the median seconds of each act; they take turns, so that load on the machine hits all of them."""
    taken: dict[str, list[float]] = {name: [] for name in acts}
    for _ in range(rounds):
        for name, act in acts.items():
            taken[name].append(seconds(act, clock))
    return {name: statistics.median(values) for name, values in taken.items()}


def verdict(what: str, value: float, *, at_most: float | None = None, at_least: float | None = None, unit: str = "x") -> bool:
    """Print a number beside what it should reach, and return whether it does."""
    reached = (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
    bound = f"at most {at_most:g}" if at_most is not None else f"at least {at_least:g}"
    print(f"{what}: {value:.3f} {unit} ({bound} {unit}: {'reached' if reached else 'NOT reached'})", flush=True)
    return reached

"""What all measurements share: taking turns, medians, and one printed line for each number that we want to reach."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def seconds(act: Callable[[], object]) -> float:
    """Return how long an act takes."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def take_turns(acts: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each act; they take turns, so that load on the machine hits all of them."""
    taken: dict[str, list[float]] = {name: [] for name in acts}
    for _ in range(rounds):
        for name, act in acts.items():
            taken[name].append(seconds(act))
    return {name: statistics.median(values) for name, values in taken.items()}


def verdict(what: str, value: float, *, at_most: float | None = None, at_least: float | None = None, unit: str = "x") -> bool:
    """Print a number beside what it should reach, and return whether it does."""
    reached = (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
    bound = f"at most {at_most:g}" if at_most is not None else f"at least {at_least:g}"
    print(f"{what}: {value:.3f} {unit} ({bound} {unit}: {'reached' if reached else 'NOT reached'})", flush=True)
    return reached

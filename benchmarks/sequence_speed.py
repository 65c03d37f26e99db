"""Sequences per second of an epoch, and milliseconds to the first batch at 90 % of one, against mosaicml-streaming and litdata.

The same tokens on a local disk, in the page cache, one process (no loader workers), each contender in a process of its own; they
take turns, and the best of the rounds counts. Ours mixes three languages and verifies every block that it touches; the
peers read the tokens as one set and verify nothing.
Run: python -m benchmarks.sequence_speed
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import verdict
from benchmarks.peers import run_ours, run_peer

PEERS = ("streaming", "litdata")
SEQUENCE_LENGTH = 1024
BATCH_SIZES = (8, 16)
NUM_ROUNDS = 3
LARGEST_MS = 50.0

Measure = Callable[..., dict[str, Any]]


def contenders(folder: Path) -> dict[str, Measure]:
    """Return what measures each contender, given what to do and the batch size."""

    def ours(what: str, batch_size: int) -> dict[str, Any]:
        return run_ours("our_sequences", what, str(folder), str(SEQUENCE_LENGTH), str(batch_size))

    def peer(name: str) -> Measure:
        def measure(what: str, batch_size: int) -> dict[str, Any]:
            return run_peer("peer_sequences", what, name, str(folder), str(SEQUENCE_LENGTH), str(batch_size))

        return measure

    return {"ours": ours, **{name: peer(name) for name in PEERS}}


def rounds(measures: dict[str, Measure], what: str, key: str, batch_size: int) -> dict[str, list[float]]:
    """Return what each contender measured in each round; they take turns."""
    taken: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(NUM_ROUNDS):
        for name, measure in measures.items():
            taken[name].append(measure(what, batch_size)[key])
    return taken


def compare(measures: dict[str, Measure], batch_size: int) -> bool:
    """Measure both with one batch size, print them, and return whether all numbers are reached."""
    shape = f"{batch_size} x {SEQUENCE_LENGTH}"
    for name in PEERS:
        measures[name]("stop", batch_size)
    speed = {name: max(values) for name, values in rounds(measures, "epoch", "sequences_per_s", batch_size).items()}
    wait = {name: min(values) for name, values in rounds(measures, "resume", "first_batch_ms", batch_size).items()}
    result = {
        "benchmark": "sequence_speed",
        "batch": shape,
        "sequences_per_s": {name: round(value) for name, value in speed.items()},
        "first_batch_at_90_percent_ms": {name: round(value, 1) for name, value in wait.items()},
    }
    print(json.dumps(result))
    reached = [verdict(f"first batch at 90 % of an epoch, {shape}", wait["ours"], at_most=LARGEST_MS, unit="ms")]
    for name in PEERS:
        reached.append(verdict(f"sequences/s, {shape}, against {name}", speed["ours"] / speed[name], at_least=1.0))
        reached.append(verdict(f"first batch at 90 %, {shape}, against {name}", wait["ours"] / wait[name], at_most=1.0))
    return all(reached)


def main() -> int:
    """Measure everything, and return 1 when any number is not reached."""
    with tempfile.TemporaryDirectory() as name:
        measures = contenders(Path(name))
        for measure in measures.values():  # ours first: it makes the tokens
            measure("write", BATCH_SIZES[0])
        reached = [compare(measures, batch_size) for batch_size in BATCH_SIZES]
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())

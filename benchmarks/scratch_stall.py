"""Seconds that training waits for its data after the first batch, with scratch against without, on a slow mount.

The mount is simulated: whatever is read from it to be verified or copied takes its bytes at 100 MB/s, one read at a
time, as over one line. Every step trains for a few milliseconds. Both ways read one epoch and the begin of the next, and
must get the same bytes. What a batch takes beyond 5 ms, more than any from memory should, counts as waited for.
Run: python -m benchmarks.scratch_stall
"""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
import tempfile
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from state.data_manifest import BLOCK_TOKENS, DataManifest
from tests.token_data import write_data
from worker.data.batches import Batches, TokenData
from worker.data.blocks import read_at
from worker.data.scratch import Scratch

MOUNT_BYTES_PER_S = 100e6
NUM_BLOCKS = {"english": 130, "hindi": 70, "konkani": 4}
WEIGHTS = {"english": 0.6, "hindi": 0.3, "konkani": 0.1}
SEQUENCE_LENGTH = 1024
BATCH_SIZE = 64
NUM_STEPS = 3600
STEP_S = 0.003
FROM_MEMORY_S = 0.005
BUDGET_BYTES = 600 * 1024**2
LARGEST_RATIO = 0.02


class SlowMount:
    """Reads at the speed of the mount."""

    def __init__(self) -> None:
        self.reads_by_trainer = 0
        self._line = threading.Lock()

    def __call__(self, path: Path, offset: int, num_bytes: int) -> bytes:
        """Return bytes of a file, when the line has brought them."""
        self.reads_by_trainer += threading.current_thread().name != "scratch"
        with self._line:
            due = time.perf_counter() + num_bytes / MOUNT_BYTES_PER_S
            data = read_at(path, offset, num_bytes)
            time.sleep(max(0.0, due - time.perf_counter()))
        return data


@dataclass(frozen=True)
class Reading:
    """How one way of reading went."""

    first_batch_s: float
    waited_s: float
    longest_s: float
    median_ms: float
    reads_by_trainer: int
    sha256: str


def read(folder: Path, manifest: DataManifest, scratch: Scratch | None) -> Reading:
    digest = hashlib.sha256()
    taken = []
    mount = SlowMount()
    data = TokenData(folder, manifest, SEQUENCE_LENGTH, scratch, read=mount)
    with closing(Batches(data, seed=0, batch_size=BATCH_SIZE, weights=WEIGHTS, say=print)) as batches:
        for step in range(NUM_STEPS):
            began = time.perf_counter()
            inputs, _ = batches.batch(step)
            taken.append(time.perf_counter() - began)
            digest.update(inputs[:, :8].tobytes())
            time.sleep(STEP_S)
    later = taken[1:]
    return Reading(
        first_batch_s=taken[0],
        waited_s=sum(max(0.0, one - FROM_MEMORY_S) for one in later),
        longest_s=max(later),
        median_ms=statistics.median(later) * 1000,
        reads_by_trainer=mount.reads_by_trainer,
        sha256=digest.hexdigest(),
    )


def main() -> int:
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        tokens = {
            language: generator.integers(4, 32_768, count * BLOCK_TOKENS, dtype=np.uint16)
            for language, count in NUM_BLOCKS.items()
        }
        manifest = write_data(root / "mount", tokens, shard_tokens=32 * BLOCK_TOKENS, document_tokens=1000)
        del tokens
        without = read(root / "mount", manifest, None)
        scratched = read(root / "mount", manifest, Scratch(root / "scratch", BUDGET_BYTES))
    ratio = scratched.waited_s / without.waited_s
    result = {
        "benchmark": "scratch_stall",
        "waited_after_first_batch_without_s": round(without.waited_s, 3),
        "waited_after_first_batch_with_s": round(scratched.waited_s, 3),
        "longest_batch_without_ms": round(without.longest_s * 1000, 1),
        "longest_batch_with_ms": round(scratched.longest_s * 1000, 1),
        "median_batch_with_ms": round(scratched.median_ms, 3),
        "reads_of_the_mount_by_the_trainer_with": scratched.reads_by_trainer,
        "first_batch_with_s": round(scratched.first_batch_s, 3),
        "same_bytes": scratched.sha256 == without.sha256,
        "ratio": round(ratio, 4),
        "reach": f"at most {LARGEST_RATIO}",
    }
    print(json.dumps(result))
    return 0 if ratio <= LARGEST_RATIO and scratched.sha256 == without.sha256 else 1


if __name__ == "__main__":
    sys.exit(main())

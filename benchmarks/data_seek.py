"""Milliseconds to the first batch of a new session at step 10 000 000, against the same at step 0.

Each measurement reads the manifest, opens the data and draws one batch, with its blocks verified; the two steps take
turns, so that load on the machine hits both.
Run: python -m benchmarks.data_seek
"""

from __future__ import annotations

import json
import sys
import tempfile
from itertools import count
from pathlib import Path

import numpy as np

from benchmarks.measure import take_turns
from state.mixture import mixture_weights
from tests.token_data import write_data
from worker.data.batches import Batches, TokenData, read_data_manifest

FAR_STEP = 10_000_000
NUM_TOKENS = {"english": 60_000_000, "hindi": 16_000_000, "konkani": 4_000_000}
SHARD_TOKENS = 4 * 1024 * 1024
SEQUENCE_LENGTH = 512
BATCH_SIZE = 8
NUM_ROUNDS = 100
LARGEST_RATIO = 1.5
LARGEST_MS = 50.0


def first_batch(folder: Path, step: int) -> None:
    manifest = read_data_manifest(folder)
    data = TokenData.open(folder, manifest, SEQUENCE_LENGTH)
    batches = Batches(data, seed=0, batch_size=BATCH_SIZE, weights=mixture_weights(manifest.tokens_by_language))
    batches.batch(step)
    batches.settle()  # in a session, beside the first step; here it would disturb the next round


def main() -> int:
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens = {language: generator.integers(4, 32_768, size, dtype=np.uint16) for language, size in NUM_TOKENS.items()}
        write_data(folder, tokens, shard_tokens=SHARD_TOKENS, document_tokens=1000)
        near, far = count(), count(FAR_STEP)
        taken_s = take_turns(
            {"near": lambda: first_batch(folder, next(near)), "far": lambda: first_batch(folder, next(far))}, NUM_ROUNDS
        )
    ratio, far_ms = taken_s["far"] / taken_s["near"], taken_s["far"] * 1000
    result = {
        "benchmark": "data_seek",
        "first_batch_at_step_0_ms": round(taken_s["near"] * 1000, 3),
        "first_batch_at_step_10000000_ms": round(far_ms, 3),
        "ratio": round(ratio, 3),
        "reach": f"a ratio of at most {LARGEST_RATIO}, and at most {LARGEST_MS} ms",
    }
    print(json.dumps(result))
    return 0 if ratio <= LARGEST_RATIO and far_ms <= LARGEST_MS else 1


if __name__ == "__main__":
    sys.exit(main())

"""Seconds to the first batch of a new process' data at step 10 000 000, against the same at step 0.

Each measurement opens the data anew and draws one batch; the two steps take turns, so that load on the machine hits both.
Run: python -m benchmarks.data_seek
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from state.data_manifest import DataManifest, LanguageData, mixture_weights
from worker.corpus.shards import ShardWriter
from worker.data import Batches, TokenData

FAR_STEP = 10_000_000
NUM_TOKENS = {"english": 30_000_000, "hindi": 8_000_000, "konkani": 2_000_000}
SEQUENCE_LENGTH = 512
BATCH_SIZE = 8
NUM_ROUNDS = 200
LARGEST_RATIO = 1.5


def make_data(folder: Path) -> DataManifest:
    generator = np.random.default_rng(0)
    languages = {}
    for name, num_tokens in NUM_TOKENS.items():
        writer = ShardWriter(folder, name, token_bytes=2, shard_bytes=8 * 1024 * 1024)
        writer.append(generator.integers(4, 32_768, num_tokens, dtype=np.uint16))
        languages[name] = LanguageData(num_documents=1, num_tokens=num_tokens, num_bytes_text=1, shards=writer.finish())
    return DataManifest.sealed(
        token_bytes=2,
        vocab_size=32_768,
        bos_id=2,
        eos_id=1,
        pad_id=0,
        unk_id=3,
        tokenizer_sha256="0" * 64,
        languages=languages,
    )


def first_batch_s(folder: Path, manifest: DataManifest, weights: dict[str, float], step: int) -> float:
    started = time.perf_counter()
    data = TokenData.open(folder, manifest, SEQUENCE_LENGTH)
    Batches(data, seed=0, batch_size=BATCH_SIZE, weights=weights).batch(step)
    return time.perf_counter() - started


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = make_data(folder)
        weights = mixture_weights(manifest.tokens_by_language)
        near, far = [], []
        for number in range(NUM_ROUNDS):
            near.append(first_batch_s(folder, manifest, weights, number))
            far.append(first_batch_s(folder, manifest, weights, FAR_STEP + number))
    near_s, far_s = statistics.median(near), statistics.median(far)
    result = {
        "benchmark": "data_seek",
        "first_batch_at_step_0_ms": round(near_s * 1000, 3),
        "first_batch_at_step_10000000_ms": round(far_s * 1000, 3),
        "ratio": round(far_s / near_s, 3),
        "reach": f"at most {LARGEST_RATIO}",
    }
    print(json.dumps(result))
    return 0 if far_s / near_s <= LARGEST_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())

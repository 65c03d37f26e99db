"""Our reading, measured in this very process, as the peers are in peer_sequences.

A batch counts when it is there as the training loop takes it: int64 inputs and targets, torch tensors of [B, T]. Three
languages are mixed in proportion to their tokens, and every block is verified when it is first touched.
Run: python -m benchmarks.our_sequences {write | epoch | resume} FOLDER T B
     write makes the data folder FOLDER/ours, and FOLDER/tokens.bin, the same tokens for the peers.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from state.mixture import mixture_weights
from tests.token_data import write_data
from worker.data.batches import Batches, TokenData, read_data_manifest

NUM_TOKENS = {"english": 96_000_000, "hindi": 25_000_000, "konkani": 7_000_000}
_SHARD_TOKENS = 16 * 1024 * 1024
_LONGEST_S = 8.0


def write(folder: Path) -> dict[str, Any]:
    """Write the same tokens for us and for the peers."""
    generator = np.random.default_rng(0)
    tokens = {language: generator.integers(4, 32_768, size, dtype=np.uint16) for language, size in NUM_TOKENS.items()}
    write_data(folder / "ours", tokens, shard_tokens=_SHARD_TOKENS, document_tokens=1000)
    np.concatenate(list(tokens.values())).tofile(folder / "tokens.bin")
    return {"tokens": sum(NUM_TOKENS.values())}


def opened(folder: Path, sequence_length: int, batch_size: int) -> Batches:
    manifest = read_data_manifest(folder / "ours")
    data = TokenData.open(folder / "ours", manifest, sequence_length)
    return Batches(data, seed=0, batch_size=batch_size, weights=mixture_weights(manifest.tokens_by_language, alpha=1.0))


def batch(batches: Batches, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = batches.batch(step)
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def steps_in_epoch(batches: Batches, batch_size: int) -> int:
    return sum(batches.data.num_sequences.values()) // batch_size


def epoch(folder: Path, sequence_length: int, batch_size: int) -> dict[str, Any]:
    """Return the sequences per second of an epoch, from its second batch on."""
    batches = opened(folder, sequence_length, batch_size)
    batch(batches, 0)
    began, step = time.perf_counter(), 0
    for step in range(1, steps_in_epoch(batches, batch_size)):
        batch(batches, step)
        if time.perf_counter() - began > _LONGEST_S:
            break
    batches.settle()
    return {"sequences_per_s": step * batch_size / (time.perf_counter() - began), "sequences": step * batch_size}


def resume(folder: Path, sequence_length: int, batch_size: int) -> dict[str, Any]:
    """Return the milliseconds from opening to the first batch at 90 % of an epoch; imports are done before."""
    began = time.perf_counter()
    batches = opened(folder, sequence_length, batch_size)
    inputs, _ = batch(batches, int(steps_in_epoch(batches, batch_size) * 0.9))
    first_batch_ms = (time.perf_counter() - began) * 1000
    batches.settle()
    verified_ms = (time.perf_counter() - began) * 1000
    return {"first_batch_ms": first_batch_ms, "verified_ms": verified_ms, "sequences": len(inputs)}


def main() -> None:
    what, folder, sequence_length, batch_size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    match what:
        case "write":
            result = write(folder)
        case "epoch":
            result = epoch(folder, sequence_length, batch_size)
        case "resume":
            result = resume(folder, sequence_length, batch_size)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

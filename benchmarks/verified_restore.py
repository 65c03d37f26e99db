"""Seconds to restore a verified checkpoint of the 50 M-parameter configuration, against verifying it first and loading it then.

    python -m benchmarks.verified_restore [--rounds 7] [--folder DIR]

Both read the same files, which the page cache holds, into the same live tensors, in turn:

* in two passes: the sha256 of every file is compared with the manifest, then safetensors loads the file and its tensors are
  copied into the live ones (what a session did before, and what one does with the libraries alone);
* in one pass: `DirectoryCheckpointStore.read` with `restore_state`, which digests the bytes on their way into the live tensors.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks.measure import take_turns, verdict
from state.architecture import ModelSpec, resolve_architecture
from state.files import sha256_of_file
from state.stores.checkpoint_store import DirectoryCheckpointStore
from tests.factories import commit_checkpoint
from worker.checkpoint.snapshot import StateImage, restore_state
from worker.model.weights import parameter_shapes

VOCAB_SIZE, FILE = 32_768, "state.safetensors"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where the checkpoint is written; a temporary folder when left out")
    options = parser.parse_args()
    shapes = parameter_shapes(resolve_architecture(ModelSpec(size="50m"), VOCAB_SIZE))
    kinds = ("model.", "optimizer.exp_avg.", "optimizer.exp_avg_sq.")
    state = {kind + name: torch.randn(shape) for kind in kinds for name, shape in shapes.items()}
    state = dict(sorted(state.items()))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = DirectoryCheckpointStore(Path(folder))
        image = StateImage(state)
        image.take()
        checkpoint_id = commit_checkpoint(store, 10, files={FILE: image.buffer[:]}).id
        live = {name: torch.empty_like(tensor) for name, tensor in state.items()}
        taken = take_turns(
            {
                "two passes": lambda: _two_passes(store, checkpoint_id, live),
                "one pass": lambda: store.read(
                    checkpoint_id, lambda path, manifest: restore_state(path, manifest.file_names, live)
                ),
                "sha256 alone": lambda: hashlib.sha256(image.buffer).hexdigest(),
            },
            options.rounds,
        )
    print(f"{image.size_bytes / 1e6:.0f} MB: " + ", ".join(f"{name} {value:.3f} s" for name, value in taken.items()))
    return int(
        not verdict("verified restore against verifying, then loading", taken["one pass"] / taken["two passes"], at_most=1.0)
    )


def _two_passes(store: DirectoryCheckpointStore, checkpoint_id: str, live: dict[str, Tensor]) -> None:
    manifest, _ = store.manifest(checkpoint_id)
    for entry in manifest.files:
        path = store.folder(checkpoint_id) / entry.name
        assert sha256_of_file(path) == entry.sha256
        with safe_open(path, framework="pt") as file:
            for name, tensor in live.items():
                tensor.copy_(file.get_tensor(name))


if __name__ == "__main__":
    sys.exit(main())

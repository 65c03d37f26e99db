"""Seconds that a checkpoint of the 50 M-parameter configuration stops training, against torch.save of the same state.

    python -m benchmarks.checkpoint_stall [--rounds 5] [--threads 2] [--folder DIR]

Each round saves the same state both ways, in turn:

* torch.save into a file, flushed and fsynced, while the training waits;
* ours: the copy that the training waits for, and then the steps that are trained until the checkpoint is committed (digests,
  file, fsync, manifest; all verified afterwards).

While it is made in the background the training goes on, but shares the processor with it: as many steps without a
checkpoint follow, and the difference is shown beside the seconds stopped. Nearly all of it is sha256, twice over the
state (of the file, and of every tensor), which torch.save does not have.
"""

# ruff: noqa: E402 - OpenMP reads its settings when torch is imported

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from worker.process import settle_threads

settle_threads(os.environ)  # as in every session; before torch is imported

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measure import seconds, verdict
from state.architecture import ModelSpec, resolve_architecture
from state.clock import SystemClock
from state.layout import checkpoint_id
from state.manifest import DataPosition, Manifest, state_sha256
from state.spec import TrainingSpec
from state.stores.checkpoint_store import DirectoryCheckpointStore
from worker.checkpoint.saver import Saver, SaveRequest, WrittenState
from worker.checkpoint.snapshot import StateImage, training_state
from worker.device import environment
from worker.model.gemma3 import Gemma3
from worker.model.weights import initial_state
from worker.train.optim import AdamW
from worker.train.trainer import Trainer

BATCH_SIZE, NUM_POSITIONS, VOCAB_SIZE = 4, 512, 32_768
CPU = torch.device("cpu")


class RandomBatches:
    """Batches of random tokens."""

    def batch(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (inputs, targets), a pure function of the step."""
        ids = np.random.default_rng(step).integers(1, VOCAB_SIZE, (BATCH_SIZE, NUM_POSITIONS + 1))
        return np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])


class Bench:
    """A training of the 50 M-parameter configuration, and two ways to save it."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.training = TrainingSpec(batch_size=BATCH_SIZE, threads=threads)
        torch.set_num_threads(threads)
        arch = resolve_architecture(ModelSpec(size="50m"), VOCAB_SIZE)
        model = Gemma3(arch)
        model.load_state_dict(initial_state(arch, 0))
        optimizer = AdamW(dict(model.named_parameters()), self.training)
        self.trainer = Trainer(
            model, optimizer, RandomBatches(), self.training, total_steps=1_000, step=0, device=CPU, clock=SystemClock()
        )
        self.state = training_state(model, optimizer)
        self.image = StateImage(self.state)
        self.folder = folder
        self.store = DirectoryCheckpointStore(folder / "checkpoints")
        (folder / "checkpoints").mkdir()
        self.saver = Saver(self.store, self.image, root=folder, clock=SystemClock())

    def step(self) -> None:
        """Train one step, as the runner does."""
        self.saver.next_loss(self.trainer.gradients())
        self.trainer.update()

    def save_with_torch(self) -> None:
        """Save the way most training scripts do, but so that it survives a power cut."""
        with open(self.folder / "state.pt", "wb") as file:
            torch.save(self.state, file)
            file.flush()
            os.fsync(file.fileno())

    def begin(self) -> None:
        """Begin a checkpoint; the training waits for this."""
        self.saver.begin(SaveRequest(self.checkpoint_id, self.trainer.step, self._manifest))

    @property
    def checkpoint_id(self) -> str:
        """The id of a checkpoint of the step that the training stands at."""
        return checkpoint_id(self.trainer.step, 1, 1)

    def _manifest(self, written: WrittenState) -> Manifest:
        position = DataPosition(samples=written.step * BATCH_SIZE)
        return Manifest(
            id=checkpoint_id(written.step, 1, 1),
            run="bench",
            session=1,
            attempt=1,
            fence=1,
            branch=None,
            step=written.step,
            parent=None,
            created_at=datetime.now(UTC),
            trajectory_sha256="",
            data_sha256="",
            data_position=position,
            next_loss=written.next_loss,
            train_s=0.0,
            environment=environment(self.training, CPU),
            state_sha256=state_sha256(written.tensors, written.step, position),
            tensors=written.tensors,
            files=(written.file,),
        )


def main() -> int:
    """Measure, print, and return 1 when the number is not reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, help="on the disk to be measured (default: the folder for temporary files)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        bench = Bench(Path(folder), options.threads)
        for _ in range(3):
            bench.step()
        bench.save_with_torch()
        print(f"state of {bench.image.size_bytes / 2**20:.0f} MiB")
        rounds = [one_round(bench, number) for number in range(options.rounds)]
    torch_s, blocked_s, slowed_s = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"medians: torch.save + fsync {torch_s:.3f} s; ours {blocked_s:.3f} s stopped, {slowed_s:.3f} s of slower steps")
    reached = [
        verdict("stopped, against torch.save + fsync", blocked_s / torch_s, at_most=0.2),
        verdict("stopped and slowed, against torch.save + fsync", (blocked_s + max(0.0, slowed_s)) / torch_s, at_most=0.2),
    ]
    return int(not all(reached))


def one_round(bench: Bench, number: int) -> tuple[float, float, float]:
    """Return seconds of torch.save, seconds blocked by ours, and seconds that steps took longer because of ours."""
    torch_s = seconds(bench.save_with_torch)
    bench.step()
    name = bench.checkpoint_id
    blocked_s = seconds(bench.begin)
    busy: list[float] = []
    while (saved := bench.saver.poll()) is None:
        busy.append(seconds(bench.step))
    free = [seconds(bench.step) for _ in busy]
    slowed_s = sum(busy) - sum(free)
    bench.store.verify_tensors(name)
    bench.store.delete(name)
    print(
        f"round {number + 1}: torch.save + fsync {torch_s:.3f} s; ours blocked {blocked_s:.3f} s, saved in {saved.seconds:.2f} s "
        f"beside {len(busy)} steps of {statistics.mean(busy):.3f} s against {statistics.mean(free):.3f} s ({slowed_s:+.3f} s)",
        flush=True,
    )
    return torch_s, blocked_s, slowed_s


if __name__ == "__main__":
    sys.exit(main())

"""Speed of training while a checkpoint is uploaded in the background, against none.

    python -m benchmarks.kaggle_upload_stall [--rounds 8] [--megabytes-per-s 40] [--threads N]

The 50 M-parameter configuration trains as in a session, on all cores unless told otherwise, and never stops. In every round it
trains alone for a while, and then beside the delivery of a checkpoint of 512 MiB, made on a thread of lowest priority in the
same process as in a kernel: to an emulator in another process, whose line takes twice as many bytes a second as the product
expects of a line that it does not know yet. The median step beside each upload is compared with the median of the steps right
before and right after it, and the median of these ratios is judged, so that load on the machine hits both. What share of all
cores the delivery's thread has used is shown, which no other load changes.

The emulator runs on the same cores, and so the training pays for what the storage does with the bytes as well: on Kaggle that
is another machine.
"""

# ruff: noqa: E402 - OpenMP reads its settings when torch is imported

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from worker.process import lower_priority, settle_threads

settle_threads(os.environ)  # as in every session; before torch is imported

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.kaggle_account import emulator
from benchmarks.kaggle_upload import Machine
from benchmarks.measure import seconds, verdict
from state.architecture import ModelSpec, resolve_architecture
from state.clock import SystemClock
from state.spec import TrainingSpec
from worker.model.gemma3 import Gemma3
from worker.model.weights import initial_state
from worker.train.optim import AdamW
from worker.train.trainer import Trainer

BATCH_SIZE, NUM_POSITIONS, VOCAB_SIZE = 1, 128, 32_768
CHECKPOINT_BYTES = 512 * 1024**2
ALONE_S = 13.0
NUM_WARM_UP = 10
SMALLEST_RATIO = 0.97


class RandomBatches:
    """Batches of random tokens."""

    def batch(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (inputs, targets), a pure function of the step."""
        ids = np.random.default_rng(step).integers(1, VOCAB_SIZE, (BATCH_SIZE, NUM_POSITIONS + 1))
        return np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])


class Training:
    """A training of the 50 M-parameter configuration."""

    def __init__(self, threads: int) -> None:
        self.deliveries_s = 0.0
        """Processor seconds of what was done beside the training."""
        training = TrainingSpec(batch_size=BATCH_SIZE, threads=threads)
        torch.set_num_threads(threads)
        arch = resolve_architecture(ModelSpec(size="50m"), VOCAB_SIZE)
        model = Gemma3(arch)
        model.load_state_dict(initial_state(arch, 0))
        optimizer = AdamW(dict(model.named_parameters()), training)
        cpu, clock = torch.device("cpu"), SystemClock()
        self._trainer = Trainer(
            model, optimizer, RandomBatches(), training, total_steps=1_000_000, step=0, device=cpu, clock=clock
        )

    def step(self) -> None:
        """Train one step, as the runner does."""
        self._trainer.gradients()
        self._trainer.update()

    def steps_while(self, condition: Callable[[], bool]) -> list[float]:
        """Train as long as a condition holds after a step; return the seconds of the steps."""
        taken = []
        while True:
            taken.append(seconds(self.step))
            if not condition():
                return taken[:-1]

    def steps_for(self, for_s: float) -> list[float]:
        """Train for a while; return the seconds of the steps."""
        until_s = time.monotonic() + for_s
        return self.steps_while(lambda: time.monotonic() < until_s)

    def steps_beside(self, act: Callable[[], None]) -> list[float]:
        """Train while a thread of lowest priority does something; return the seconds of the steps."""

        def do() -> None:
            lower_priority()
            act()
            self.deliveries_s += time.thread_time()

        thread = threading.Thread(target=do)
        thread.start()
        taken = self.steps_while(thread.is_alive)
        thread.join()
        return taken


def main() -> int:
    """Measure, print, and return 1 when the number is not reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--megabytes-per-s", type=float, default=40.0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    speed = options.megabytes_per_s * 1e6
    alone, beside = [], []
    with (
        tempfile.TemporaryDirectory() as name,
        emulator(Path(name), processing_s=0, upload_bytes_per_real_s=speed) as account,
    ):
        machine, training = Machine(Path(name), account, CHECKPOINT_BYTES), Training(options.threads)
        for _ in range(NUM_WARM_UP):
            training.step()
        for _ in range(options.rounds):
            machine.make_dataset()
            alone.append(training.steps_for(ALONE_S))
            beside.append(training.steps_beside(machine.deliver))
            machine.clear()
        alone.append(training.steps_for(ALONE_S))
    ratios = []
    tokens = BATCH_SIZE * NUM_POSITIONS
    for number, (before, during, after) in enumerate(zip(alone, beside, alone[1:], strict=False), start=1):
        around_s, during_s = statistics.median([*before, *after]), statistics.median(during)
        ratios.append(around_s / during_s)
        print(
            f"upload {number}: {tokens / during_s:,.0f} tokens/s in {len(during)} steps of {sum(during):.0f} s beside it, "
            f"{tokens / around_s:,.0f} in {len(before) + len(after)} steps around it, {ratios[-1]:.3f} x"
        )
    cores = len(os.sched_getaffinity(0))
    share = training.deliveries_s / (sum(sum(during) for during in beside) * cores)
    print(f"the delivery's thread used {training.deliveries_s / options.rounds:.2f} s each time: {share:.1%} of {cores} cores")
    what = f"training speed beside an upload, median of {len(ratios)}, {options.threads} of {cores} cores"
    return int(not verdict(what, statistics.median(ratios), at_least=SMALLEST_RATIO))


if __name__ == "__main__":
    sys.exit(main())

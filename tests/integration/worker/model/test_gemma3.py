from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.patience import PATIENCE_S
from tests.repository import ROOT

TRAIN_AND_PRINT_DIGEST = """
import hashlib, sys, torch
from state.architecture import ModelSpec, resolve_architecture
from worker.model.gemma3 import Gemma3
from worker.model.weights import initial_state
torch.set_num_threads(2)
architecture = resolve_architecture(ModelSpec(size="tiny"), 512)
model = Gemma3(architecture)
model.load_state_dict(initial_state(architecture, seed=0))
if sys.argv[1] == "compiled":
    model.compile_layers()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
ids = torch.randint(0, 512, (4, 97), generator=torch.Generator().manual_seed(1))
for _ in range(3):
    optimizer.zero_grad()
    model.loss(ids[:, :-1], ids[:, 1:]).backward()
    optimizer.step()
digest = hashlib.sha256()
for name, tensor in sorted(model.state_dict().items()):
    digest.update(name.encode() + tensor.numpy().tobytes())
print(digest.hexdigest())
"""


def digest_of_a_process_that_trains(mode: str) -> str:
    command = [sys.executable, "-c", TRAIN_AND_PRINT_DIGEST, mode]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_two_processes_train_the_same_bits() -> None:
    first, second = (digest_of_a_process_that_trains("eager") for _ in range(2))

    assert len(first) == 64
    assert first == second


@pytest.mark.skipif("GEMMA_ORCH_TEST_COMPILE" not in os.environ, reason="takes a minute: set GEMMA_ORCH_TEST_COMPILE=1")
def test_two_processes_with_compiled_layers_train_the_same_bits() -> None:
    first, second = (digest_of_a_process_that_trains("compiled") for _ in range(2))

    assert len(first) == 64
    assert first == second

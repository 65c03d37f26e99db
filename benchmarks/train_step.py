"""One training step of the 50 M-parameter configuration, side by side with transformers: speed, limit, peak memory.

    python -m benchmarks.train_step [--rounds 7] [--threads 2] [--skip-compiled] [--skip-memory]

Speed: every contender (ours and transformers' Gemma3ForCausalLM with sdpa, each eager and compiled, all with fused AdamW)
takes one step per round, in turn, so that what else the machine does meets them alike; medians are compared.

Limit: 6 x parameters x tokens operations at the rate of `torch.mm`, measured in the same run at the step's own shapes and
weighted as the step uses them. oneDNN's rate is shown as well, because it is the faster product on some processors.

Ours is judged with compiled layers, the peer in whichever way it is faster.

Memory: each contender in a process of its own; the largest anonymous resident memory that was sampled every 2 ms in three
steps, less that before the model was made, so that neither imported modules nor the code of libraries, which is paged in
as it is used, count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measure import seconds, take_turns, verdict
from state.architecture import Architecture, ModelSpec, resolve_architecture
from worker.model.gemma3 import Gemma3
from worker.model.matmul import product_nt
from worker.model.weights import initial_state, to_transformers, transformers_config

BATCH_SIZE, NUM_POSITIONS, VOCAB_SIZE = 4, 512, 32_768
NUM_TOKENS = BATCH_SIZE * NUM_POSITIONS
CONTENDERS = ("ours eager", "ours compiled", "transformers eager", "transformers compiled")

Step = Callable[[], float]


def architecture() -> Architecture:
    return resolve_architecture(ModelSpec(size="50m"), VOCAB_SIZE)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1, VOCAB_SIZE, (BATCH_SIZE, NUM_POSITIONS + 1), generator=torch.Generator().manual_seed(0))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def make_step(contender: str) -> Step:
    """Return a function that takes one training step and returns its loss."""
    arch = architecture()
    inputs, targets = batch()
    weights = initial_state(arch, seed=0)
    if contender.startswith("ours"):
        model = Gemma3(arch)
        model.load_state_dict(weights)
        if contender.endswith("compiled"):
            model.compile_layers()

        def loss_of_batch() -> torch.Tensor:
            return model.loss(inputs, targets)

        parameters = list(model.parameters())
    else:
        from transformers import Gemma3ForCausalLM, Gemma3TextConfig

        config = Gemma3TextConfig(**transformers_config(arch))
        peer = Gemma3ForCausalLM._from_config(config, attn_implementation="sdpa")
        peer.load_state_dict(to_transformers(weights, arch), strict=False)
        peer.tie_weights()
        peer.train()
        call = torch.compile(peer) if contender.endswith("compiled") else peer

        def loss_of_batch() -> torch.Tensor:
            # shift_labels: the same targets as ours, with no position left out.
            return call(input_ids=inputs, labels=targets, shift_labels=targets, use_cache=False).loss

        parameters = list(peer.parameters())
    del weights
    optimizer = torch.optim.AdamW(parameters, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of_batch()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def product_rates() -> dict[str, float]:
    """Return operations a second of all matrix products of a step, by library."""
    arch = architecture()
    query_width = arch.num_heads * arch.head_dim
    shapes = [  # outputs, inputs, how many
        (query_width + 2 * arch.num_kv_heads * arch.head_dim, arch.hidden_size, arch.num_layers),
        (arch.hidden_size, query_width, arch.num_layers),
        (arch.intermediate_size, arch.hidden_size, 2 * arch.num_layers),
        (arch.hidden_size, arch.intermediate_size, arch.num_layers),
        (arch.vocab_size, arch.hidden_size, 1),
    ]
    libraries: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
        "torch.mm": lambda a, b: a @ b.T,
        "oneDNN": product_nt,
    }
    taken = dict.fromkeys(libraries, 0.0)
    operations = 0.0
    for num_outputs, num_inputs, count in shapes:
        x, weight = torch.randn(NUM_TOKENS, num_inputs), torch.randn(num_outputs, num_inputs)
        grad = torch.randn(NUM_TOKENS, num_outputs)
        for name, product in libraries.items():
            for a, b in ((x, weight), (grad, weight.T), (grad.T, x.T)):
                taken[name] += count * min(
                    seconds(lambda a=a, b=b, product=product: product(a, b))
                    for _ in range(5)  # type: ignore[misc]
                )
        operations += 3 * 2 * NUM_TOKENS * num_inputs * num_outputs * count
    return {name: operations / total for name, total in taken.items()}


def peak_bytes(contender: str, threads: int) -> int:
    """Return the peak of a contender's steps over the size before it was made, measured in a child process."""
    command = [sys.executable, "-m", "benchmarks.train_step", "--memory-of", contender, "--threads", str(threads)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(json.loads(output.splitlines()[-1])["peak_bytes"])


def resident_bytes() -> int:
    """Return this process's resident memory that no file backs."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def measure_own_peak(contender: str) -> int:
    import torch._inductor.compile_fx  # imported for all, so that nobody's libraries count
    import transformers  # noqa: F401

    torch.ones(64, 64) @ torch.ones(64, 64)
    before = resident_bytes()
    peak, done = before, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident_bytes())

    sampler = threading.Thread(target=sample)
    step = make_step(contender)
    step()  # what compiling needs at its height is not what is asked
    sampler.start()
    for _ in range(3):
        step()
    done.set()
    sampler.join()
    return peak - before


def main() -> int:
    """Measure, print, and return 1 when a number is not reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--skip-compiled", action="store_true", help="eager contenders only: some minutes less")
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--memory-of", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(json.dumps({"peak_bytes": measure_own_peak(options.memory_of)}))
        return 0

    contenders = [name for name in CONTENDERS if not (options.skip_compiled and name.endswith("compiled"))]
    steps = {name: make_step(name) for name in contenders}
    losses = {name: [step(), step()][1] for name, step in steps.items()}
    print("losses of the second step: " + ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()), flush=True)
    rates = product_rates()
    medians = take_turns(steps, options.rounds)
    steps.clear()
    rates = {name: max(rate, rates[name]) for name, rate in product_rates().items()}
    for name, median_s in medians.items():
        print(f"{name:22} {median_s:7.3f} s a step, {NUM_TOKENS / median_s:6.0f} tokens/s")

    # One configuration of ours for speed and memory: the one whose layers are compiled.
    ours = "ours eager" if options.skip_compiled else "ours compiled"
    peer = min((name for name in medians if name.startswith("transformers")), key=medians.__getitem__)
    reached = [verdict("tokens/s against transformers", medians[peer] / medians[ours], at_least=1.1)]
    limits = {name: 6 * architecture().num_parameters() * NUM_TOKENS / rate for name, rate in rates.items()}
    reached.append(
        verdict(
            f"tokens/s against torch.mm at {rates['torch.mm'] / 1e9:.0f} GFLOP/s",
            limits["torch.mm"] / medians[ours],
            at_least=0.85,
        )
    )
    print(f"tokens/s against oneDNN at {rates['oneDNN'] / 1e9:.0f} GFLOP/s: {limits['oneDNN'] / medians[ours]:.3f} x")
    if not options.skip_memory:
        peaks = {name: peak_bytes(name, options.threads) for name in contenders}
        for name, peak in peaks.items():
            print(f"{name:22} {peak / 2**20:6.0f} MiB peak")
        reached.append(verdict("peak memory against transformers", peaks[ours] / peaks[peer], at_most=0.75))
    return int(not all(reached))


if __name__ == "__main__":
    sys.exit(main())

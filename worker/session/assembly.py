"""Builds a session's training from its SessionSpec: data, model, optimizer and state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from state.clock import Clock
from state.errors import UserError
from state.manifest import Environment, Manifest
from state.spec import ORDER_VERSION, SessionSpec
from worker.checkpoint.snapshot import StateImage, training_state
from worker.data.versions import VersionedBatches, open_versions
from worker.device import configure, environment, pick_device
from worker.model.gemma3 import Gemma3
from worker.model.matmul import check_products
from worker.model.memory_efficient_ops import check_gate
from worker.model.weights import initial_state, parameter_shapes
from worker.train.optim import AdamW
from worker.train.trainer import Trainer


@dataclass(frozen=True)
class Training:
    """The parts of a session's training."""

    trainer: Trainer
    batches: VersionedBatches
    image: StateImage
    environment: Environment
    start: Manifest | None
    """The manifest of the checkpoint that it continues from; None: the run's beginning."""


def assemble(
    spec: SessionSpec,
    restore: Callable[[Mapping[str, Tensor]], Manifest | None],
    clock: Clock,
    say: Callable[[str], None] = lambda _: None,
) -> Training:
    """Build the training in the state of a verified checkpoint, or at the run's beginning.

    Args:
        spec: The session's spec.
        restore: Fills the state's tensors from a checkpoint, verifies the bytes and returns the manifest. Without a checkpoint
            it returns None; then the state is initialised from the seed.
        clock: Measures the steps.
        say: Receives a line for the user; may be called from another thread.

    Returns:
        The training; the caller closes its batches.

    Raises:
        UserError: the data belongs to another training.
        DataError: shards or tensors differ from their manifest.
    """
    batches = open_versions(spec, say=say)
    device = pick_device()
    configure(spec.training, device, spec.cache_dir)
    if device.type == "cpu":
        check_products(say)
    check_gate(say)
    # Weights are initialised on the CPU for every device, so that a run begins with the same bits everywhere.
    model = Gemma3(spec.architecture).to(device)
    optimizer = AdamW(dict(model.named_parameters()), spec.training)
    state = training_state(model, optimizer)
    start = restore(state)
    if start is None:
        model.load_state_dict(initial_state(spec.architecture, spec.training.seed))
        optimizer.reset()
    if spec.training.compile:
        model.compile_layers(say)
    trainer = Trainer(
        model,
        optimizer,
        batches,
        spec.training,
        total_steps=spec.total_steps,
        step=start.step if start else 0,
        device=device,
        clock=clock,
    )
    return Training(trainer, batches, StateImage(state), environment(spec.training, device), start)


def check_trajectory(spec: SessionSpec, start: Manifest) -> None:
    """Refuse a checkpoint that was trained with other settings.

    Raises:
        UserError: names the difference as far as the manifest shows it.
    """
    if start.trajectory_sha256 != spec.trajectory_sha256(start.step):
        raise UserError(
            f"checkpoint {start.id} belongs to another training: {_difference(spec, start)}",
            expected="the settings, tokenizer and data that the checkpoint was trained with",
            remedy="restore them, or start another run with --name",
        )


def _difference(spec: SessionSpec, start: Manifest) -> str:
    if start.order_version != ORDER_VERSION:
        return f"it uses data order {start.order_version}, this version supports only order {ORDER_VERSION}"
    prefix = "model."
    found = {tensor.name.removeprefix(prefix): tensor.shape for tensor in start.tensors if tensor.name.startswith(prefix)}
    wanted = parameter_shapes(spec.architecture)
    pieces = found.get("embedder.weight", (0,))[0]
    if pieces != spec.architecture.vocab_size:
        return f"its vocabulary has {pieces} pieces, this session's tokenizer has {spec.architecture.vocab_size}"
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            return f"its {name} has the shape {found.get(name)}, this session's model {wanted.get(name)}"
    if start.data_sha256 != spec.data_until(start.step)[-1].data_sha256:
        return "it was trained on other data"
    return "its training settings, sequence length or mixture of languages differ"

"""Gemma 3 against the official implementation (golden files) and against transformers (a second configuration)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from state.architecture import OFFICIAL_VOCAB_SIZE, SIZES, Architecture, ModelSpec, resolve_architecture
from tests.repository import ROOT
from worker.model.gemma3 import Gemma3
from worker.model.weights import initial_state, parameter_shapes, to_transformers, transformers_config

GOLDEN = ROOT / "tests" / "golden" / "gemma_pytorch_tiny"
GOLDEN_ARCHITECTURE = Architecture(
    vocab_size=256,
    num_layers=7,
    hidden_size=64,
    intermediate_size=128,
    num_heads=4,
    num_kv_heads=1,
    head_dim=16,
    sliding_window=8,
    query_scale_dim=16,
    max_position=128,
)
# Above numerical noise (2.3e-5), below the smallest real mistake (eps 1e-5 instead of 1e-6: 3e-4).
LOGITS_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden_model() -> Gemma3:
    model = Gemma3(GOLDEN_ARCHITECTURE)
    model.load_state_dict(load_file(f"{GOLDEN}.safetensors"), strict=True)
    return model


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(f"{GOLDEN}_io.safetensors")


def assert_gradients_agree(model: Gemma3, expected: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        error = (parameter.grad - expected[name]).abs().max() / expected[name].abs().max()
        assert error <= GRADIENT_TOLERANCE, f"{name}: {error:.2e}"


def test_names_and_shapes_are_those_of_the_official_state_dict(golden_model: Gemma3) -> None:
    official = json.loads(GOLDEN.with_suffix(".json").read_text())["state_dict"]
    expected = {name: tuple(shape) for name, shape in official.items() if not name.endswith("_freqs_cis")}

    assert {name: tuple(tensor.shape) for name, tensor in golden_model.state_dict().items()} == expected


def test_logits_equal_the_official_ones(golden_model: Gemma3, golden: dict[str, Tensor]) -> None:
    logits = golden_model.logits(golden["input_ids"])

    torch.testing.assert_close(logits, golden["logits"], atol=LOGITS_TOLERANCE, rtol=0)


def test_loss_and_gradients_equal_the_official_ones(golden_model: Gemma3, golden: dict[str, Tensor]) -> None:
    golden_model.zero_grad()
    ids = golden["input_ids"]
    loss = golden_model.loss(ids[:, :-1], ids[:, 1:])
    loss.backward()

    torch.testing.assert_close(loss.detach(), golden["loss"].squeeze(), atol=LOGITS_TOLERANCE, rtol=0)
    assert_gradients_agree(golden_model, load_file(f"{GOLDEN}_grads.safetensors"))


def test_greedy_continuations_equal_the_official_ones(golden_model: Gemma3, golden: dict[str, Tensor]) -> None:
    generated = golden_model.generate(golden["generate_prompt"], golden["generate_output"].shape[1])

    assert torch.equal(generated, golden["generate_output"])


@pytest.mark.parametrize("row", [0, 1])
def test_greedy_continuations_of_a_ragged_batch_equal_the_official_ones(
    golden_model: Gemma3, golden: dict[str, Tensor], row: int
) -> None:
    num_tokens = int(golden["generate_ragged_prompt_lens"][row])
    prompt = golden["input_ids"][row : row + 1, :num_tokens]
    expected = golden["generate_ragged_output"][row : row + 1]

    assert torch.equal(golden_model.generate(prompt, expected.shape[1]), expected)


# Grouped heads (3 query heads to a key head), a query width (6 x 24) that is not the hidden size, a query scale of its
# own, scaled rope, two global layers, and a window that sequences outgrow.
SECOND_ARCHITECTURE = Architecture(
    vocab_size=300,
    num_layers=6,
    hidden_size=96,
    intermediate_size=112,
    num_heads=6,
    num_kv_heads=2,
    head_dim=24,
    sliding_window=70,
    local_layers_per_global=2,
    query_scale_dim=20,
    rope_global_scaling=8.0,
    max_position=512,
)


@pytest.fixture(scope="module")
def second_weights() -> dict[str, Tensor]:
    weights = initial_state(SECOND_ARCHITECTURE, seed=3)
    generator = torch.Generator().manual_seed(4)
    # Larger than at the start of training, and norms that are not zero, so that every part has a say.
    return {
        name: 0.3 * torch.randn(tensor.shape, generator=generator) if tensor.dim() == 1 else 5.0 * tensor
        for name, tensor in weights.items()
    }


@pytest.fixture(scope="module")
def peer(second_weights: dict[str, Tensor]) -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(**transformers_config(SECOND_ARCHITECTURE))
    model = Gemma3ForCausalLM._from_config(config, attn_implementation="sdpa")
    missing, unexpected = model.load_state_dict(to_transformers(second_weights, SECOND_ARCHITECTURE), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    return model


@pytest.mark.parametrize(
    "num_positions",
    [41, 140, 193],
    ids=["shorter than the window", "two windows", "neither windows nor blocks come out even"],
)
def test_logits_loss_and_gradients_equal_those_of_transformers(
    second_weights: dict[str, Tensor], peer: Any, num_positions: int
) -> None:
    model = Gemma3(SECOND_ARCHITECTURE)
    model.load_state_dict(second_weights)
    peer.zero_grad()
    # From 1: transformers gives token 0, its padding, no gradient.
    ids = torch.randint(1, 300, (2, num_positions + 1), generator=torch.Generator().manual_seed(num_positions))
    inputs, targets = ids[:, :-1], ids[:, 1:]

    expected = peer(inputs).logits
    expected_loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), targets.flatten())
    expected_loss.backward()
    loss = model.loss(inputs, targets)
    loss.backward()

    torch.testing.assert_close(model.logits(inputs), expected, atol=LOGITS_TOLERANCE, rtol=0)
    torch.testing.assert_close(loss, expected_loss, atol=LOGITS_TOLERANCE, rtol=0)
    gradients = {name: parameter.grad for name, parameter in peer.named_parameters()}
    ours = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    renamed = to_transformers(ours, SECOND_ARCHITECTURE)
    assert renamed.keys() == gradients.keys()
    for name, gradient in renamed.items():
        error = (gradient - gradients[name]).abs().max() / gradients[name].abs().max()
        assert error <= GRADIENT_TOLERANCE, f"{name}: {error:.2e}"


def make_tiny() -> Gemma3:
    architecture = resolve_architecture(ModelSpec(size="tiny"), 512)
    model = Gemma3(architecture)
    model.load_state_dict(initial_state(architecture, seed=0))
    return model


def random_batch(batch_size: int, num_positions: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, 512, (batch_size, num_positions + 1), generator=torch.Generator().manual_seed(1))
    return ids[:, :-1], ids[:, 1:]


@pytest.mark.parametrize("size", SIZES)
def test_every_size_has_as_many_parameters_as_its_architecture_says(size: str) -> None:
    architecture = resolve_architecture(ModelSpec(size=size), OFFICIAL_VOCAB_SIZE)
    with torch.device("meta"):
        model = Gemma3(architecture)

    assert sum(parameter.numel() for parameter in model.parameters()) == architecture.num_parameters()
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == parameter_shapes(architecture)
    assert list(model.state_dict()) == list(parameter_shapes(architecture))


def test_a_forgotten_initialisation_shows_in_the_loss() -> None:
    model = Gemma3(resolve_architecture(ModelSpec(size="tiny"), 512))

    assert model.loss(*random_batch(1, 8)).isnan()


def test_the_first_loss_of_a_new_model_is_close_to_that_of_guessing() -> None:
    loss = make_tiny().loss(*random_batch(4, 64))

    assert abs(loss.item() - torch.tensor(512.0).log().item()) < 0.1


def test_micro_batches_add_up_to_their_batch() -> None:
    inputs, targets = random_batch(4, 48)
    whole, parts = make_tiny(), make_tiny()

    loss = whole.loss(inputs, targets)
    loss.backward()
    part_losses = []
    for rows in (slice(0, 1), slice(1, 4)):
        part = parts.loss(inputs[rows], targets[rows], num_targets=targets.numel())
        part.backward()
        part_losses.append(part.detach())

    torch.testing.assert_close(sum(part_losses), loss.detach())
    expected = {name: parameter.grad for name, parameter in whole.named_parameters() if parameter.grad is not None}
    assert_gradients_agree(parts, expected)


def test_the_loss_can_be_computed_without_gradients() -> None:
    model, batch = make_tiny(), random_batch(2, 40)
    with torch.no_grad():
        loss = model.loss(*batch)

    assert not loss.requires_grad
    assert torch.equal(loss, model.loss(*batch).detach())


def test_rope_tables_grow_with_the_sequence_and_change_nothing_before() -> None:
    model = make_tiny()
    inputs, _ = random_batch(1, 64)

    short = model.logits(inputs[:, :40])
    long = model.logits(inputs)

    torch.testing.assert_close(long[:, :40], short, atol=1e-5, rtol=0)


def test_no_rope_table_is_part_of_the_state() -> None:
    model = make_tiny()
    model.logits(random_batch(1, 40)[0])

    assert not list(model.buffers())
    assert model.state_dict().keys() == parameter_shapes(model.arch).keys()


class LargestTensor(TorchDispatchMode):
    """Remembers how many numbers the largest result of any operation had."""

    num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.num_elements = max(self.num_elements, tensor.numel())
        return result


def test_a_training_step_never_holds_the_logits_of_all_positions() -> None:
    architecture = resolve_architecture(
        ModelSpec(num_layers=1, hidden_size=16, intermediate_size=16, head_dim=8), vocab_size=20_000
    )
    model = Gemma3(architecture)
    model.load_state_dict(initial_state(architecture, seed=0))
    ids = torch.randint(0, 20_000, (8, 129))

    with LargestTensor() as largest:
        model.loss(ids[:, :-1], ids[:, 1:]).backward()

    all_logits = 8 * 128 * 20_000
    assert largest.num_elements <= all_logits / 4


# PyTorch's compiler, when it is imported, uses something that PyTorch deprecates.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiling_keeps_the_names_of_parameters() -> None:
    model = make_tiny()
    names = list(model.state_dict())
    model.compile_layers()

    assert list(model.state_dict()) == names

"""New weights are a pure function of the seed; other programs' names are a renaming and nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from state.architecture import Architecture, ModelSpec, resolve_architecture
from state.errors import DataError
from worker.model.weights import (
    INITIAL_CUTOFF,
    INITIAL_STD,
    from_gemma_pytorch,
    from_transformers,
    gemma_pytorch_config,
    initial_state,
    parameter_shapes,
    to_transformers,
    transformers_config,
)

ARCHITECTURE = resolve_architecture(ModelSpec(size="tiny"), 700)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return initial_state(ARCHITECTURE, seed=0)


def test_the_same_seed_gives_the_same_bits(weights: dict[str, Tensor]) -> None:
    again = initial_state(ARCHITECTURE, seed=0)

    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_another_seed_gives_other_matrices(weights: dict[str, Tensor]) -> None:
    other = initial_state(ARCHITECTURE, seed=1)

    assert all(not torch.equal(weights[name], other[name]) for name in weights if weights[name].dim() == 2)


def test_new_weights_ask_nothing_of_the_global_random_state(weights: dict[str, Tensor]) -> None:
    before = torch.get_rng_state()
    torch.manual_seed(123)
    again = initial_state(ARCHITECTURE, seed=0)
    torch.set_rng_state(before)

    assert torch.equal(weights["embedder.weight"], again["embedder.weight"])


def test_a_tensor_does_not_depend_on_how_many_layers_come_after_it(weights: dict[str, Tensor]) -> None:
    deeper = initial_state(resolve_architecture(ModelSpec(size="tiny", num_layers=7), 700), seed=0)

    name = "model.layers.2.self_attn.qkv_proj.weight"
    assert torch.equal(weights[name], deeper[name])


def test_no_two_matrices_are_alike(weights: dict[str, Tensor]) -> None:
    gate, up = (weights[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up"))

    assert not torch.equal(gate, up)
    assert not torch.equal(gate, weights["model.layers.1.mlp.gate_proj.weight"])


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("embedder.weight", INITIAL_STD),
        ("model.layers.0.self_attn.qkv_proj.weight", INITIAL_STD),
        ("model.layers.0.mlp.gate_proj.weight", INITIAL_STD),
        ("model.layers.0.self_attn.o_proj.weight", INITIAL_STD / math.sqrt(12)),
        ("model.layers.5.mlp.down_proj.weight", INITIAL_STD / math.sqrt(12)),
    ],
)
def test_matrices_are_normal_and_cut_and_smaller_where_they_write_to_the_stream(
    weights: dict[str, Tensor], name: str, std: float
) -> None:
    tensor = weights[name]

    assert tensor.std().item() == pytest.approx(std, rel=0.03)  # cutting at 3 sigma takes 1.3 % of it
    assert abs(tensor.mean().item()) < 0.03 * std
    assert tensor.abs().max().item() <= INITIAL_CUTOFF * std


def test_norm_weights_are_zero_which_means_a_factor_of_one(weights: dict[str, Tensor]) -> None:
    norms = [tensor for tensor in weights.values() if tensor.dim() == 1]

    assert len(norms) == 6 * ARCHITECTURE.num_layers + 1
    assert all(not tensor.any() for tensor in norms)


def test_shapes_are_those_of_the_architecture(weights: dict[str, Tensor]) -> None:
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == parameter_shapes(ARCHITECTURE)
    assert sum(tensor.numel() for tensor in weights.values()) == ARCHITECTURE.num_parameters()


def test_the_way_to_transformers_and_back_changes_nothing(weights: dict[str, Tensor]) -> None:
    back = from_transformers(to_transformers(weights, ARCHITECTURE), ARCHITECTURE)

    assert list(back) == list(weights)
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_image_rows_of_a_published_embedding_are_left_out(weights: dict[str, Tensor]) -> None:
    published = to_transformers(weights, ARCHITECTURE)
    embedding = published["model.embed_tokens.weight"]
    published["model.embed_tokens.weight"] = torch.cat([embedding, torch.ones(64, embedding.shape[1])])

    assert torch.equal(from_transformers(published, ARCHITECTURE)["embedder.weight"], embedding)


def test_a_missing_transformers_weight_is_named(weights: dict[str, Tensor]) -> None:
    incomplete = to_transformers(weights, ARCHITECTURE)
    del incomplete["model.layers.3.self_attn.k_proj.weight"]

    with pytest.raises(DataError, match=r"model\.layers\.3\.self_attn\.k_proj\.weight"):
        from_transformers(incomplete, ARCHITECTURE)


def test_an_official_checkpoint_loses_its_rope_tables(weights: dict[str, Tensor]) -> None:
    tables = {f"{kind}_freqs_cis": torch.ones(4, 2, dtype=torch.complex64) for kind in ("local", "global")}

    assert from_gemma_pytorch(tables | weights).keys() == weights.keys()


def test_a_multimodal_official_checkpoint_gives_its_text_model(weights: dict[str, Tensor]) -> None:
    multimodal = {name.replace("embedder.", "text_token_embedder."): tensor for name, tensor in weights.items()}
    multimodal |= {
        "mm_soft_embedding_norm.weight": torch.ones(4),
        "mm_input_projection.weight": torch.ones(4, 4),
        "siglip_vision_model.patch_embedding.weight": torch.ones(4),
    }

    assert from_gemma_pytorch(multimodal).keys() == weights.keys()


def test_the_official_config_carries_the_official_values() -> None:
    config = gemma_pytorch_config(resolve_architecture(ModelSpec(size="27b"), 262_144))

    assert config["attn_types"] == ["LOCAL_SLIDING"] * 5 + ["GLOBAL"]
    assert config["query_pre_attn_scalar"] == 168
    assert config["rope_wave_length"] == {"LOCAL_SLIDING": 10_000, "GLOBAL": 1_000_000}
    assert config["rope_scaling_factor"] == 8
    assert config["sliding_window_size"] == 1_024


def test_an_unscaled_rope_is_none_in_the_official_config_and_default_in_that_of_transformers() -> None:
    assert gemma_pytorch_config(ARCHITECTURE)["rope_scaling_factor"] is None
    assert transformers_config(ARCHITECTURE)["rope_parameters"]["full_attention"]["rope_type"] == "default"


def test_the_layers_of_the_transformers_config_are_of_the_right_kind() -> None:
    architecture: Architecture = resolve_architecture(ModelSpec(size="1b"), 1_000)

    kinds = transformers_config(architecture)["layer_types"]
    assert [i for i, kind in enumerate(kinds) if kind == "full_attention"] == [5, 11, 17, 23]

"""The published numbers, and what a user may change about them."""

import pytest
from pydantic import ValidationError

from state.architecture import OFFICIAL_VOCAB_SIZE, SIZES, Architecture, ModelSpec, resolve_architecture
from state.errors import UserError

# Text parameters of the official implementation's models, built and counted; 1b with 64k and 32k likewise.
PUBLISHED_PARAMETERS = {
    ("270m", OFFICIAL_VOCAB_SIZE): 268_098_176,
    ("1b", OFFICIAL_VOCAB_SIZE): 999_885_952,
    ("4b", OFFICIAL_VOCAB_SIZE): 3_880_099_328,
    ("12b", OFFICIAL_VOCAB_SIZE): 11_765_788_416,
    ("27b", OFFICIAL_VOCAB_SIZE): 27_009_002_240,
    ("270m", 65_536): 142_269_056,
    ("270m", 32_768): 121_297_536,
    ("1b", 65_536): 773_393_536,
    ("1b", 32_768): 735_644_800,
}
PUBLISHED_BODY_PARAMETERS = {
    "270m": 100_326_016,
    "1b": 697_896_064,
    "4b": 3_209_010_688,
    "12b": 10_759_155_456,
    "27b": 25_599_716_096,
}


@pytest.mark.parametrize(("size", "vocab_size"), PUBLISHED_PARAMETERS)
def test_every_published_size_has_its_published_number_of_parameters(size: str, vocab_size: int) -> None:
    architecture = resolve_architecture(ModelSpec(size=size), vocab_size)

    assert architecture.num_parameters() == PUBLISHED_PARAMETERS[size, vocab_size]


@pytest.mark.parametrize("size", PUBLISHED_BODY_PARAMETERS)
def test_the_embedding_is_counted_once_because_it_is_tied(size: str) -> None:
    architecture = resolve_architecture(ModelSpec(size=size), OFFICIAL_VOCAB_SIZE)

    body = architecture.num_parameters() - architecture.num_embedding_parameters()
    assert body == PUBLISHED_BODY_PARAMETERS[size]


@pytest.mark.parametrize(
    ("size", "global_layers"),
    [("tiny", [5]), ("270m", [5, 11, 17]), ("1b", [5, 11, 17, 23]), ("4b", [5, 11, 17, 23, 29])],
)
def test_every_sixth_layer_is_global(size: str, global_layers: list[int]) -> None:
    architecture = resolve_architecture(ModelSpec(size=size), 256)

    assert [i for i in range(architecture.num_layers) if architecture.is_global(i)] == global_layers


def test_without_local_layers_every_layer_is_global() -> None:
    architecture = resolve_architecture(ModelSpec(local_layers_per_global=0), 256)

    assert all(architecture.is_global(i) for i in range(architecture.num_layers))


def test_only_the_27b_scales_queries_by_another_number_than_the_head_width() -> None:
    assert {size for size, shape in SIZES.items() if shape.query_scale_dim != shape.head_dim} == {"27b"}
    assert SIZES["27b"].query_scale_dim == 168


def test_the_benchmark_configuration_is_the_one_that_the_targets_are_about() -> None:
    architecture = resolve_architecture(ModelSpec(size="50m"), 32_768)

    assert architecture.num_parameters() == 47_204_864
    assert (architecture.num_layers, architecture.hidden_size, architecture.intermediate_size) == (8, 512, 2048)
    assert (architecture.num_heads, architecture.num_kv_heads, architecture.head_dim) == (4, 1, 128)
    assert architecture.sliding_window == 256


def test_a_change_replaces_the_number_of_the_size_and_nothing_else() -> None:
    architecture = resolve_architecture(ModelSpec(size="1b", num_layers=2), 4_096)

    assert architecture == Architecture(**{**SIZES["1b"].model_dump(), "num_layers": 2, "vocab_size": 4_096})


def test_the_query_scale_follows_a_changed_head_width_unless_it_is_given() -> None:
    assert resolve_architecture(ModelSpec(head_dim=64), 256).query_scale_dim == 64
    assert resolve_architecture(ModelSpec(head_dim=64, query_scale_dim=8), 256).query_scale_dim == 8
    assert resolve_architecture(ModelSpec(size="27b", head_dim=64), 256).query_scale_dim == 168


def test_an_unknown_size_names_the_known_ones_and_the_closest() -> None:
    with pytest.raises(UserError) as failure:
        resolve_architecture(ModelSpec(size="270M"), 256)

    assert "'270M'" in str(failure.value)
    assert "did you mean '270m'?" in str(failure.value)
    assert "tiny, 50m, 270m, 1b, 4b, 12b, 27b" in str(failure.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "num_heads 3 is not a multiple of num_kv_heads 2"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
    ],
)
def test_numbers_that_do_not_fit_together_are_named(changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_architecture(ModelSpec.model_validate(changes), 256)


def test_a_vocabulary_that_is_none_is_named() -> None:
    with pytest.raises(UserError, match="vocab_size: Input should be greater than or equal to 2"):
        resolve_architecture(ModelSpec(), 0)


@pytest.mark.parametrize("changes", [{"num_layers": 0}, {"rms_norm_eps": 0.0}, {"rope_global_scaling": 0.5}])
def test_numbers_out_of_range_are_refused_when_the_spec_is_read(changes: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        ModelSpec.model_validate(changes)


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="num_experts"):
        ModelSpec.model_validate({"num_experts": 8})


def test_an_architecture_survives_its_own_json() -> None:
    architecture = resolve_architecture(ModelSpec(size="27b"), OFFICIAL_VOCAB_SIZE)

    assert Architecture.from_json(architecture.to_json(), "a test") == architecture

"""The dimensions of a Gemma 3: the published sizes, the user's changes to them, the parameter count."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from state.document import Document
from state.errors import UserError, did_you_mean

OFFICIAL_VOCAB_SIZE = 262_144
"""Vocabulary size of the tokenizer that the published Gemma 3 weights were trained with."""

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Base = Annotated[float, Field(gt=1.0, le=1e12)]
Epsilon = Annotated[float, Field(gt=0.0, lt=1e-2)]
Scaling = Annotated[float, Field(ge=1.0, le=1024.0)]
Positions = Annotated[int, Field(ge=1, le=16_777_216)]


class Shape(Document):
    """All dimensions of a Gemma 3 except the vocabulary size, which the tokenizer sets."""

    num_layers: Count = Field(description="decoder layers")
    hidden_size: Count = Field(description="width of the residual stream")
    intermediate_size: Count = Field(description="width inside the feed-forward")
    num_heads: Count = Field(description="query heads")
    num_kv_heads: Count = Field(description="key and value heads; each serves num_heads / num_kv_heads query heads")
    head_dim: Count = Field(description="width of one head; even, because rope rotates pairs")
    sliding_window: Count = Field(description="keys that a local layer's query sees, itself included")
    local_layers_per_global: Annotated[int, Field(ge=0, le=1_000)] = Field(
        default=5, description="local layers before each global one"
    )
    query_scale_dim: Count = Field(description="queries are scaled by this ** -0.5 (query_pre_attn_scalar)")
    rope_local_theta: Base = Field(default=10_000.0, description="rope base of local layers")
    rope_global_theta: Base = Field(default=1_000_000.0, description="rope base of global layers")
    rope_global_scaling: Scaling = Field(default=1.0, description="divides the rope frequencies of global layers")
    rms_norm_eps: Epsilon = 1e-6
    max_position: Positions = Field(description="longest sequence that the model supports")

    @model_validator(mode="after")
    def _heads_fit_together(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd, and rope rotates pairs")
        return self


class Architecture(Shape):
    """All numbers that determine the shapes and the arithmetic of one Gemma 3."""

    schema_version: Literal[1] = 1
    vocab_size: Annotated[int, Field(ge=2, le=16_777_216)] = Field(description="pieces of the tokenizer")

    def is_global(self, layer: int) -> bool:
        """Return whether a layer attends to all earlier positions instead of the sliding window."""
        return (layer + 1) % (self.local_layers_per_global + 1) == 0

    def num_embedding_parameters(self) -> int:
        """Return the number of parameters of the embedding, which is also the output matrix."""
        return self.vocab_size * self.hidden_size

    def num_parameters(self) -> int:
        """Return the number of trained parameters; the tied embedding counts once."""
        query_width = self.num_heads * self.head_dim
        qkv_width = query_width + 2 * self.num_kv_heads * self.head_dim
        attention = self.hidden_size * (qkv_width + query_width) + 2 * self.head_dim
        feed_forward = 3 * self.hidden_size * self.intermediate_size
        norms = 4 * self.hidden_size
        layers = self.num_layers * (attention + feed_forward + norms)
        return self.num_embedding_parameters() + layers + self.hidden_size


class ModelSpec(Document):
    """The model that the user asks for: a published size, and changes to its numbers."""

    size: str = "tiny"
    num_layers: Count | None = None
    hidden_size: Count | None = None
    intermediate_size: Count | None = None
    num_heads: Count | None = None
    num_kv_heads: Count | None = None
    head_dim: Count | None = None
    sliding_window: Count | None = None
    local_layers_per_global: Annotated[int, Field(ge=0, le=1_000)] | None = None
    query_scale_dim: Count | None = Field(default=None, description="none: equals head_dim if that is changed")
    rope_local_theta: Base | None = None
    rope_global_theta: Base | None = None
    rope_global_scaling: Scaling | None = None
    rms_norm_eps: Epsilon | None = None
    max_position: Positions | None = None


def resolve_architecture(model: ModelSpec, vocab_size: int) -> Architecture:
    """Return the architecture: the size's numbers, overridden by the user's, with the tokenizer's vocabulary size.

    Raises:
        UserError: the size is unknown, or the numbers contradict each other.
    """
    shape = SIZES.get(model.size)
    if shape is None:
        known = ", ".join(SIZES)
        hint = did_you_mean(model.size, list(SIZES))
        raise UserError(
            f"unknown model size: {model.size!r}",
            expected=f"one of {known}",
            remedy=hint or "choose a known size, and change its numbers in the config file's [model] table",
        )
    changes = model.model_dump(exclude={"size"}, exclude_none=True)
    if "head_dim" in changes and shape.query_scale_dim == shape.head_dim:
        changes.setdefault("query_scale_dim", changes["head_dim"])
    try:
        return Architecture.model_validate({**shape.model_dump(), **changes, "vocab_size": vocab_size})
    except ValidationError as error:
        problems = "; ".join(": ".join([*map(str, problem["loc"]), problem["msg"]]) for problem in error.errors())
        raise UserError(
            f"the model is invalid: size {model.size!r}, changes {changes}, vocabulary {vocab_size}: {problems}",
            remedy="change the numbers in the config file's [model] table",
        ) from error


# Sources: 1b, 4b, 12b, 27b: gemma/config.py of google/gemma_pytorch at 014acb7 (2025-03-12), functions
# get_config_for_1b, _4b, _12b and _27b_v3; the 4b's max_position is missing there (a default of 8192 remains) and is
# that of the published Hugging Face configuration. 270m: class Gemma3_270M in gemma/gm/nn/_gemma.py of
# google-deepmind/gemma; its layer count and max_position agree in three independent ports. All: five local layers to
# one global, rope bases 10 000 (local) and 1 000 000 (global), eps 1e-6, no soft-capping, tied embedding. A window of W
# is W keys, the query's own included.
SIZES: Mapping[str, Shape] = MappingProxyType(
    {
        # Ours, for tests and demonstrations: a whole Gemma 3 (its last layer is global, two query heads share a key
        # head, the window is shorter than a sequence of 64) whose step of 8 x 64 tokens takes some 30 ms on two cores.
        "tiny": Shape(
            num_layers=6,
            hidden_size=128,
            intermediate_size=384,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            sliding_window=32,
            query_scale_dim=32,
            max_position=2_048,
        ),
        # Ours, the configuration of the benchmarks: 47 million parameters with a vocabulary of 32 768.
        "50m": Shape(
            num_layers=8,
            hidden_size=512,
            intermediate_size=2_048,
            num_heads=4,
            num_kv_heads=1,
            head_dim=128,
            sliding_window=256,
            query_scale_dim=128,
            max_position=8_192,
        ),
        "270m": Shape(
            num_layers=18,
            hidden_size=640,
            intermediate_size=2_048,
            num_heads=4,
            num_kv_heads=1,
            head_dim=256,
            sliding_window=512,
            query_scale_dim=256,
            max_position=32_768,
        ),
        "1b": Shape(
            num_layers=26,
            hidden_size=1_152,
            intermediate_size=6_912,
            num_heads=4,
            num_kv_heads=1,
            head_dim=256,
            sliding_window=512,
            query_scale_dim=256,
            max_position=32_768,
        ),
        "4b": Shape(
            num_layers=34,
            hidden_size=2_560,
            intermediate_size=10_240,
            num_heads=8,
            num_kv_heads=4,
            head_dim=256,
            sliding_window=1_024,
            query_scale_dim=256,
            rope_global_scaling=8.0,
            max_position=131_072,
        ),
        "12b": Shape(
            num_layers=48,
            hidden_size=3_840,
            intermediate_size=15_360,
            num_heads=16,
            num_kv_heads=8,
            head_dim=256,
            sliding_window=1_024,
            query_scale_dim=256,
            rope_global_scaling=8.0,
            max_position=131_072,
        ),
        # The only size whose query scale is not its head width: 168 = 5376 / 32, hidden size over heads.
        "27b": Shape(
            num_layers=62,
            hidden_size=5_376,
            intermediate_size=21_504,
            num_heads=32,
            num_kv_heads=16,
            head_dim=128,
            sliding_window=1_024,
            query_scale_dim=168,
            rope_global_scaling=8.0,
            max_position=131_072,
        ),
    }
)

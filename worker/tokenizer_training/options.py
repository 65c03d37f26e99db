"""How a tokenizer is trained; apart from the training, so that the options' help needs no training extra."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingOptions:
    """How a tokenizer is trained."""

    vocab_size: int = 32_768
    sample_bytes: int = 200_000_000
    """Text that is trained on; memory is in proportion to it."""
    alpha: float = 0.3
    """A language's share of the sample is as its bytes to this power."""
    character_coverage: float = 0.9999
    """Share of the sample's characters that get a piece of their own; the rest is written as bytes."""

"""The options of training a tokenizer; in their own module, so that the command's help needs no training extra."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingOptions:
    """The options of training a tokenizer."""

    vocab_size: int = 32_768
    sample_bytes: int = 200_000_000
    """Size of the text to train on; memory use is proportional to it."""
    alpha: float = 0.3
    """A language's share of the sample is proportional to its bytes to this power."""
    character_coverage: float = 0.9999
    """Share of the sample's characters that get their own pieces; the rest is written as bytes."""

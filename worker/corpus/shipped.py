"""The sample corpus that ships with the project: the default when a user names none."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def sample_corpus_dir() -> Path:
    """Return the folder of the sample corpus: one folder for each of english, hindi and konkani."""
    return Path(str(files("worker.corpus") / "sample" / "text"))


def sample_tokenizer_path() -> Path:
    """Return the SentencePiece model that was trained on the sample corpus."""
    return sample_corpus_dir().parent / "tokenizer.model"

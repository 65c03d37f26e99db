"""Trains the sample corpus' SentencePiece model: `python -m worker.tokenizer_training.build_sample`."""

from __future__ import annotations

from state.data_manifest import Recipe
from state.files import write_atomically
from worker.corpus.documents import CorpusDocuments
from worker.corpus.progress import Silent
from worker.corpus.shipped import sample_corpus_dir, sample_tokenizer_path
from worker.tokenizer_training.process import train_in_process

VOCAB_SIZE = 2048


def train_sample_tokenizer() -> bytes:
    """Return the model, trained on all texts of the sample corpus without cleaning: a pure function of them."""
    documents = CorpusDocuments([sample_corpus_dir()], Recipe()).read(Silent())
    return train_in_process((document.text for document in documents), VOCAB_SIZE, character_coverage=1.0)


if __name__ == "__main__":
    write_atomically(sample_tokenizer_path(), train_sample_tokenizer())

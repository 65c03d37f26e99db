"""Trains the sample corpus' SentencePiece model: `python -m worker.corpus.sample_tokenizer`, after a change of its texts."""

from __future__ import annotations

import io

import sentencepiece

from state.files import write_atomically
from worker.corpus.reader import DocumentReader, find_sources
from worker.corpus.shipped import sample_corpus_dir, sample_tokenizer_path

VOCAB_SIZE = 2048


def train_sample_tokenizer() -> bytes:
    """Return the model: BPE with byte fallback and Gemma's special ids, a pure function of the sample's texts.

    Source of the ids (pad 0, eos 1, bos 2, unk 3): the Gemma 3 tokenizer.
    """
    sources = find_sources([sample_corpus_dir()])
    texts = [text for files in sources.by_language.values() for file in files for text in DocumentReader(file).texts()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        max_sentence_length=1_000_000,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


if __name__ == "__main__":
    write_atomically(sample_tokenizer_path(), train_sample_tokenizer())

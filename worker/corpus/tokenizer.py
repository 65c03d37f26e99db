"""A SentencePiece model, loaded and checked for what training needs of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from state.errors import UserError

_TRAIN_ANEW = "train the model with bos_id=2 and eos_id=1 (Gemma's special ids are pad 0, eos 1, bos 2, unk 3)"


@dataclass(frozen=True)
class Tokenizer:
    """A usable SentencePiece model: it has a begin and an end of document."""

    processor: sentencepiece.SentencePieceProcessor
    model_bytes: bytes
    sha256: str
    vocab_size: int
    bos_id: int
    eos_id: int
    unk_id: int
    pad_id: int | None

    def encode_documents(self, texts: list[str], num_threads: int) -> list[list[int]]:
        """Return each text as [bos] ids [eos]; threads pay off for lists of a thousand texts and more."""
        ids: list[list[int]] = self.processor.encode(texts, add_bos=True, add_eos=True, num_threads=num_threads)
        return ids


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a SentencePiece model file.

    Raises:
        UserError: the file is missing, cannot be read, is no SentencePiece model, or has no bos or eos.
    """
    try:
        model = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"the tokenizer {path} cannot be read ({error.strerror})", expected="a SentencePiece .model file"
        ) from error
    processor = _load(path, model)
    bos_id, eos_id = processor.bos_id(), processor.eos_id()
    for name, value in (("bos", bos_id), ("eos", eos_id)):
        if value < 0:
            raise UserError(
                f"the tokenizer {path} has no {name} piece",
                expected="bos and eos, which mark where documents begin and end",
                remedy=_TRAIN_ANEW,
            )
    pad_id = processor.pad_id()
    return Tokenizer(
        processor=processor,
        model_bytes=model,
        sha256=hashlib.sha256(model).hexdigest(),
        vocab_size=processor.get_piece_size(),
        bos_id=bos_id,
        eos_id=eos_id,
        unk_id=processor.unk_id(),
        pad_id=pad_id if pad_id >= 0 else None,
    )


def _load(path: Path, model: bytes) -> sentencepiece.SentencePieceProcessor:
    refusal = UserError(
        f"the tokenizer {path} is no SentencePiece model",
        expected="a file as SentencePiece writes it, usually named .model (a tokenizer.json is another format)",
    )
    if not model:
        raise refusal  # SentencePiece takes an empty file for a model without pieces
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise refusal from error
    if processor.get_piece_size() < 1:
        raise refusal
    return processor

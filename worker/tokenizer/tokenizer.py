"""Loads a SentencePiece model and checks that it can be used for training."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from state.errors import UserError
from worker.tokenizer.model_file import SentencePieceModel, parse_model
from worker.tokenizer.split_text import CutRule, cut_rule
from worker.tokenizer.word_cache import Words, cutter

_TRAIN_ANEW = "train the model with bos_id=2 and eos_id=1 (Gemma's special ids are pad 0, eos 1, bos 2, unk 3)"

_LONG_CHARACTERS = 256 * 1024


@dataclass(frozen=True)
class Tokenizer:
    """A usable SentencePiece model: it has bos and eos, the marks of a document's begin and end."""

    processor: sentencepiece.SentencePieceProcessor
    model_bytes: bytes
    sha256: str
    vocab_size: int
    bos_id: int
    eos_id: int
    unk_id: int
    pad_id: int | None
    gives_arrays: bool = hasattr(sentencepiece.SentencePieceProcessor, "EncodeAsNumpy")
    """Whether it can encode into arrays. Older versions (0.2.1 is one) give lists of Python integers of 36 bytes each."""

    def encode(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """Return each text as [bos] ids [eos]; uses this thread only.

        The ids are those that `SentencePieceProcessor.encode` gives for the whole text. To save memory (up to 150 bytes a
        character), a text of more than 262 144 characters is encoded in parts, if the model's pieces allow that.
        """
        short = [text for text in texts if len(text) <= _LONG_CHARACTERS]
        encoded = iter(self._encode_whole(short, with_ends=True) if short else [])
        return [next(encoded) if len(text) <= _LONG_CHARACTERS else self._encode_long(text) for text in texts]

    def _encode_long(self, text: str) -> NDArray[np.int32]:
        if self._cut_rule is None:
            return self._encode_whole([text], with_ends=True)[0]
        parts = [self._encode_whole([part], with_ends=False)[0] for part in self._cut_rule.parts(text, _LONG_CHARACTERS)]
        return np.concatenate([_ids([self.bos_id]), *parts, _ids([self.eos_id])])

    def _encode_whole(self, texts: list[str], *, with_ends: bool) -> list[NDArray[np.int32]]:
        if self.gives_arrays:
            arrays: list[NDArray[np.int32]] = self.processor.encode(
                texts, add_bos=with_ends, add_eos=with_ends, num_threads=1, return_type="numpy"
            )
            return arrays
        return [_ids(ids) for ids in self.processor.encode(texts, add_bos=with_ends, add_eos=with_ends, num_threads=1)]

    def words(self) -> Words | None:
        """Return an encoder that gives the same ids as `encode`, but faster; None if this model's pieces reach across words."""
        cut = cutter(self._cut_rule) if self._cut_rule is not None else None
        return Words(cut, self._encode_words, bos_id=self.bos_id, eos_id=self.eos_id) if cut is not None else None

    def _encode_words(self, words: list[str]) -> list[NDArray[np.int32]]:
        if max(map(len, words)) <= _LONG_CHARACTERS:
            return self._encode_whole(words, with_ends=False)
        long = _LONG_CHARACTERS
        return [self._encode_long(each)[1:-1] if len(each) > long else self._encode_words([each])[0] for each in words]

    @functools.cached_property
    def model(self) -> SentencePieceModel | None:
        """The parsed model file; None if only SentencePiece itself can read it."""
        try:
            return parse_model(self.model_bytes)
        except ValueError:
            return None

    @functools.cached_property
    def _cut_rule(self) -> CutRule | None:
        return cut_rule(self.model) if self.model is not None else None


def _ids(ids: list[int]) -> NDArray[np.int32]:
    return np.array(ids, dtype=np.int32)


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a SentencePiece model file.

    Raises:
        UserError: the file cannot be read, is not a SentencePiece model, or has no bos or eos.
    """
    processor, model = load_processor(path)
    bos_id, eos_id = processor.bos_id(), processor.eos_id()
    for name, value in (("bos", bos_id), ("eos", eos_id)):
        if value < 0:
            raise UserError(
                f"the tokenizer {path} has no {name} piece",
                expected="bos and eos, the marks of a document's begin and end",
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


def load_processor(path: Path) -> tuple[sentencepiece.SentencePieceProcessor, bytes]:
    """Return a SentencePiece model, with any special pieces, and the bytes of its file.

    Raises:
        UserError: the file cannot be read or is not a SentencePiece model.
    """
    try:
        model = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"the tokenizer {path} cannot be read ({error.strerror})", expected="a SentencePiece .model file"
        ) from error
    refusal = UserError(
        f"the tokenizer {path} is no SentencePiece model",
        expected="a file as SentencePiece writes it, usually named .model (a tokenizer.json is another format)",
    )
    if not model:
        raise refusal  # SentencePiece accepts an empty file as a model without pieces
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise refusal from error
    if processor.get_piece_size() < 1:
        raise refusal
    return processor, model

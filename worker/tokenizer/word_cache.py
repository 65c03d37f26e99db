"""Encoding by words that are remembered: what SentencePiece gives for the whole text, several times as fast.

A BPE model whose pieces never reach across the space before a word (see split_text.py) encodes each word as if it stood
alone, and most words of a text were seen before. So texts are cut before spaces and after line feeds, each word that is
new is encoded once, and a text's tokens are gathered from those of its words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from worker.tokenizer.model_file import SPACE
from worker.tokenizer.split_text import CutRule

MAX_WORDS = 3 * 2**16  # some 200 bytes each; a language's running text has most of its words among fewer
_BATCH_CHARACTERS = 256 * 1024
_CUT = "\0"  # a text with this character in it is encoded otherwise
_BETWEEN_WORDS = re.compile(r"(?<=[^\W_]) (?=[^\W_])")
_BEGIN, _END = "\ud800", "\ud801"  # halves of surrogate pairs: no text that is UTF-8 has these

EncodeTexts = Callable[[list[str]], list[NDArray[np.int32]]]
I32Array = NDArray[np.int32]
I64Array = NDArray[np.int64]


class Words:
    """Encodes texts of one model, and remembers the words.

    Args:
        cut: Splits a text into words that have, one after another, the ids of the whole.
        encode: Gives each text's ids, without bos and eos.
        bos_id: What each text begins with.
        eos_id: What it ends with.
        max_words: How many are remembered, a batch's more or less; then the rarer half is forgotten.
    """

    def __init__(
        self, cut: Callable[[str], list[str]], encode: EncodeTexts, *, bos_id: int, eos_id: int, max_words: int = MAX_WORDS
    ) -> None:
        self._cut = cut
        self._encode = encode
        self._ends = np.array([bos_id, eos_id], dtype=np.int32)
        self._max_words = max_words
        self._places: _Places
        self._tokens: I32Array
        """[sum of lengths] of all words, one after another."""
        self._starts: I64Array
        self._lengths: I64Array
        self._uses: I64Array
        """[number of words] how often each has come, less so long ago."""
        self._begin()

    def encode(self, texts: list[str]) -> tuple[I32Array, I64Array]:
        """Return (all tokens, joined; number of tokens of each text, at least 2 each), with bos and eos; one text or more."""
        done = [self._encode_some(some) for some in _batches(texts)]
        return np.concatenate([tokens for tokens, _ in done]), np.concatenate([lengths for _, lengths in done])

    def _encode_some(self, texts: list[str]) -> tuple[I32Array, I64Array]:
        words: list[str] = []
        begins = []
        for text in texts:
            begins.append(len(words))
            words.append(_BEGIN)
            words += self._cut(text)
            words.append(_END)
        places = np.fromiter(map(self._places.__getitem__, words), dtype=np.int64, count=len(words))
        self._learn()
        self._uses += np.bincount(places, minlength=len(self._uses))
        tokens, lengths = self._tokens_of(places)
        if len(self._places) > self._max_words:
            self._forget_the_rare()
        return tokens, np.add.reduceat(lengths, begins)

    def _tokens_of(self, places: I64Array) -> tuple[I32Array, I64Array]:
        """Return (the words' tokens, joined; number of tokens of each)."""
        lengths = self._lengths[places]
        at = np.repeat(self._starts[places] - (np.cumsum(lengths) - lengths), lengths)
        at += np.arange(len(at))
        return self._tokens[at], lengths

    def _learn(self) -> None:
        """Encode the words that were new; a long one is remembered as well, until it is forgotten."""
        new = self._places.new
        if not new:
            return
        ids = self._encode(new)
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        self._starts = np.concatenate([self._starts, len(self._tokens) + np.cumsum(lengths) - lengths])
        self._lengths = np.concatenate([self._lengths, lengths])
        self._tokens = np.concatenate([self._tokens, *ids])
        self._uses = np.concatenate([self._uses, np.zeros(len(ids), dtype=np.int64)])
        self._places.new = []

    def _begin(self) -> None:
        self._places = _Places({_BEGIN: 0, _END: 1})
        self._tokens = self._ends
        self._starts = np.array([0, 1], dtype=np.int64)
        self._lengths = np.array([1, 1], dtype=np.int64)
        self._uses = np.zeros(2, dtype=np.int64)

    def _forget_the_rare(self) -> None:
        frequent = 2 + np.argsort(-self._uses[2:], kind="stable")[: self._max_words // 2]
        kept = np.concatenate([[0, 1], frequent])  # begin and end keep their places
        words = list(self._places)
        self._places = _Places({words[place]: number for number, place in enumerate(kept.tolist())})
        self._tokens, self._lengths = self._tokens_of(kept)
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._uses = self._uses[kept] // 2


def _batches(texts: list[str]) -> Iterator[list[str]]:
    """Yield the texts in their order, a few at a time: their words take many times as much memory as they do."""
    batch: list[str] = []
    num_characters = 0
    for text in texts:
        batch.append(text)
        num_characters += len(text)
        if num_characters >= _BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


class _Places(dict[str, int]):
    """Numbers the words as they come, and notes the new ones."""

    def __init__(self, known: Mapping[str, int]) -> None:
        super().__init__(known)
        self.new: list[str] = []

    def __missing__(self, word: str) -> int:
        place = self[word] = len(self)
        self.new.append(word)
        return place


def cutter(rule: CutRule) -> Callable[[str], list[str]] | None:
    """Return what splits a text of this model into words; None: its pieces reach across spaces."""
    if any(pair[1] == SPACE and pair[0] != SPACE for pair in rule.pairs):
        return None
    if rule.at_spaces_only:
        if rule.drops_space:
            return _BETWEEN_WORDS.split
        return lambda text: [text] if _CUT in text else _BETWEEN_WORDS.sub(f"{_CUT} ", text).split(_CUT)
    runs = (SPACE + SPACE) in rule.pairs
    lines = not any(pair[0] == "\n" for pair in rule.pairs)

    def cut(text: str) -> list[str]:
        if _CUT in text or (runs and ("  " in text or SPACE in text)):
            return [text]
        if lines:
            text = text.replace("\n", f"\n{_CUT}")
        return text.replace(" ", f"{_CUT} ").split(_CUT)

    return cut

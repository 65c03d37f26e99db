"""Encodes texts word by word with a cache: the same ids as SentencePiece gives for the whole text, several times as fast.

If no piece of a BPE model reaches across the space before a word (see split_text.py), each word's ids do not depend on its
neighbours, and most words of a text have been seen before. So texts are cut before spaces and after line feeds, each new
word is encoded once, and a text's tokens are gathered from those of its words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from worker.tokenizer.model_file import SPACE
from worker.tokenizer.split_text import CutRule

MAX_WORDS = 3 * 2**16  # about 200 bytes each; most of a language's running text consists of fewer different words
_BATCH_CHARACTERS = 256 * 1024
_CUT = "\0"  # marks the cuts; a text that contains this character is not cut
_BETWEEN_WORDS = re.compile(r"(?<=[^\W_]) (?=[^\W_])")
_BEGIN, _END = "\ud800", "\ud801"  # halves of surrogate pairs, which cannot occur in UTF-8 text

EncodeTexts = Callable[[list[str]], list[NDArray[np.int32]]]
I32Array = NDArray[np.int32]
I64Array = NDArray[np.int64]


class Words:
    """Encodes texts for one model, with a cache of the words' ids.

    Args:
        cut: Splits a text into words whose ids, joined, are those of the whole text.
        encode: Returns each text's ids, without bos and eos.
        bos_id: Id at each text's begin.
        eos_id: Id at each text's end.
        max_words: Size of the cache, give or take one batch; when it is full, the rarer half is dropped.
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
        """[sum of lengths] the ids of all words, joined."""
        self._starts: I64Array
        self._lengths: I64Array
        self._uses: I64Array
        """[number of words] how often each was used; halved each time the cache is full, so that old uses count less."""
        self._begin()

    def encode(self, texts: list[str]) -> tuple[I32Array, I64Array]:
        """Return (all tokens with bos and eos, joined; number of tokens of each text, at least 2). Needs at least one text."""
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
        """Encode the new words and add them to the cache, long ones as well."""
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
    """Yield the texts in their order, a few at a time, because words take many times as much memory as their text."""
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
    """Numbers words in the order of their first use, and collects the new ones."""

    def __init__(self, known: Mapping[str, int]) -> None:
        super().__init__(known)
        self.new: list[str] = []

    def __missing__(self, word: str) -> int:
        place = self[word] = len(self)
        self.new.append(word)
        return place


def cutter(rule: CutRule) -> Callable[[str], list[str]] | None:
    """Return the function that splits this model's texts into words; None if its pieces reach across spaces."""
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

"""A sample of each language's text, in which small languages are not drowned, of a size that does not grow with the corpus.

The sample is a matter of the texts alone: the order in which they come makes no difference. Text is sampled in passages, and
a passage belongs to the sample when its hash is below the share of its language that is wanted. That share can only shrink
while more text comes (see `rates`), so that what was let go is never missed later, and one reading is enough.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

PASSAGE_CHARACTERS = 8192
MAX_TIMES = 4.0
"""A language's text counts at most so many times over, as in mixtures: more would teach the sample's accidents."""
_HASHES = 2.0**64
_BESIDE_BYTES = 128  # what a passage takes in memory beside its text
_SLACK = 1.25  # how far the sample may outgrow its size before what is no longer wanted is let go


def passages(text: str, max_characters: int = PASSAGE_CHARACTERS) -> Iterator[str]:
    """Yield a text in passages, each cut before a white space where there is one."""
    start = 0
    while len(text) - start > max_characters:
        end = start + max_characters
        cut = next((place for place in range(end, start, -1) if text[place].isspace()), end)
        yield text[start:cut]
        start = cut
    yield text[start:]


def rates(num_bytes: Mapping[str, float], budget_bytes: float, alpha: float) -> dict[str, float]:
    """Return how many times over the text of each language is wanted: less than 1 is a share, 1.5 is all of it and half again.

    Languages are wanted in proportion to bytes ** alpha. The largest comes once at most, others up to `MAX_TIMES`; what a
    language cannot give goes to the others. All rates together, times the bytes, are at most the budget.

    No rate that is below 1 ever grows when bytes are added, of whatever language: until the budget is used up all rates are
    1 and more, and from then on what all have in common, budget over sum, only falls.

    Args:
        num_bytes: Of each language's text, more than none.
        budget_bytes: Of the sample.
        alpha: From 0, all languages alike, to 1, in proportion to their text.
    """
    largest = max(num_bytes.values(), default=1.0)
    favour = {name: (largest / size) ** (1.0 - alpha) for name, size in num_bytes.items()}
    left_bytes, left_wanted = float(budget_bytes), sum(favour[name] * size for name, size in num_bytes.items())
    factor = 1.0
    for name, size in sorted(num_bytes.items(), key=lambda language: language[1]):
        if left_bytes / left_wanted * favour[name] <= MAX_TIMES:
            factor = min(1.0, left_bytes / left_wanted)
            break
        left_bytes -= MAX_TIMES * size
        left_wanted -= favour[name] * size
    return {name: min(MAX_TIMES, factor * favour[name]) for name in num_bytes}


@dataclass(frozen=True)
class LanguageSample:
    """What was taken of a language."""

    num_documents: int
    """All that were read."""
    num_bytes: int
    """Of all text that was read, in UTF-8."""
    num_passages: int
    """In the sample, each counted once."""
    sampled_bytes: int
    """Of the sample, passages that come more than once counted so often."""


@dataclass
class _Language:
    num_documents: int = 0
    num_bytes: int = 0
    weighed_bytes: int = 0
    threshold: float = 1.0
    kept: dict[bytes, bytes] = field(default_factory=dict)
    """Passages in UTF-8, by their hashes."""


class TextSample:
    """Takes documents and keeps a sample of them; equal passages of a language are kept once.

    Args:
        budget_bytes: Size of the sample; at most a quarter more is held while it is made.
        alpha: See `rates`.
    """

    def __init__(self, budget_bytes: int, alpha: float) -> None:
        self._budget_bytes = budget_bytes
        self._alpha = alpha
        self._languages: dict[str, _Language] = {}
        self._kept_bytes = 0
        self._limit_bytes = _SLACK * budget_bytes

    def add(self, language: str, text: str) -> None:
        """Take one document."""
        state = self._languages.setdefault(language, _Language())
        state.num_documents += 1
        for passage in passages(text):
            data = passage.encode()
            state.num_bytes += len(data)
            state.weighed_bytes += len(data) + _BESIDE_BYTES
            key = hashlib.blake2b(data, digest_size=16).digest()
            if _place(key) < state.threshold and key not in state.kept:
                state.kept[key] = data
                self._kept_bytes += len(data) + _BESIDE_BYTES
        if self._kept_bytes > self._limit_bytes:
            self._let_go()

    def summary(self) -> dict[str, LanguageSample]:
        """Return what the sample has of each language, in the order of their names."""
        self._let_go()
        wanted = self._rates()
        summaries = {}
        for name, state in sorted(self._languages.items()):
            sampled = sum(_times(key, wanted[name]) * len(data) for key, data in state.kept.items())
            summaries[name] = LanguageSample(state.num_documents, state.num_bytes, len(state.kept), sampled)
        return summaries

    def drain(self) -> Iterator[bytes]:
        """Yield the sample, each passage as often as it is wanted, in the order of languages and hashes; it is empty then."""
        self._let_go()
        wanted = self._rates()
        for name, state in sorted(self._languages.items()):
            for key in sorted(state.kept):
                data = state.kept.pop(key)
                for _ in range(_times(key, wanted[name])):
                    yield data

    def _rates(self) -> dict[str, float]:
        weighed = {name: float(state.weighed_bytes) for name, state in self._languages.items()}
        return rates(weighed, self._budget_bytes, self._alpha)

    def _let_go(self) -> None:
        for name, rate in self._rates().items():
            state = self._languages[name]
            state.threshold = min(1.0, rate)
            state.kept = {key: data for key, data in state.kept.items() if _place(key) < state.threshold}
        kept_bytes = sum(len(data) + _BESIDE_BYTES for state in self._languages.values() for data in state.kept.values())
        self._kept_bytes = kept_bytes
        self._limit_bytes = max(_SLACK * self._budget_bytes, 1.1 * kept_bytes)  # else a few large passages are looked at forever


def _place(key: bytes) -> float:
    """Return where a passage stands among all, from 0 to less than 1."""
    return (int.from_bytes(key[:8], "big") >> 11) / (_HASHES / 2**11)


def _times(key: bytes, rate: float) -> int:
    return int(rate) + (_place(key) < rate - int(rate))

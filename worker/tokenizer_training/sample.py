"""Takes a sample of each language's text, of bounded size, in which small languages have a larger share than in the corpus.

The sample depends on the texts only, not on their order. Text is sampled in passages. A passage is in the sample if its
hash, as a number from 0 to 1, is below the rate of its language. A rate below 1 can only fall while more text comes (see
`rates`), so a passage that was dropped is never needed later, and reading the corpus once is enough.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

PASSAGE_CHARACTERS = 8192
MAX_TIMES = 4.0
"""A language's text is repeated at most this many times, as in mixtures: more would overfit to the sample's accidents."""
_HASHES = 2.0**64
_BESIDE_BYTES = 128  # memory that a passage takes in addition to its text
_SLACK = 1.25  # the sample may exceed its size by this factor before passages are dropped


def passages(text: str, max_characters: int = PASSAGE_CHARACTERS) -> Iterator[str]:
    """Yield a text in passages, cut before white space if there is any."""
    start = 0
    while len(text) - start > max_characters:
        end = start + max_characters
        cut = next((place for place in range(end, start, -1) if text[place].isspace()), end)
        yield text[start:cut]
        start = cut
    yield text[start:]


def rates(num_bytes: Mapping[str, float], budget_bytes: float, alpha: float) -> dict[str, float]:
    """Return each language's rate: how often its text is in the sample. 0.2 is a fifth of it, 1.5 all of it and half again.

    Languages get room in proportion to bytes ** alpha. The largest is taken at most once, others up to `MAX_TIMES`; room
    that a language cannot fill goes to the others. The sum of rate times bytes is at most the budget.

    A rate below 1 never grows when text of any language is added: as long as the budget is not used up, all rates are 1 or
    more; after that their common factor, budget over sum, only falls.

    Args:
        num_bytes: Bytes of each language's text, more than 0.
        budget_bytes: Bytes of the sample.
        alpha: From 0 (all languages alike) to 1 (in proportion to their text).
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
    """The counts of one language: text read, and text in the sample."""

    num_documents: int
    """Documents read."""
    num_bytes: int
    """Bytes of all text read, in UTF-8."""
    num_passages: int
    """Different passages in the sample."""
    sampled_bytes: int
    """Bytes of the sample, with repetitions of passages."""


@dataclass
class _Language:
    num_documents: int = 0
    num_bytes: int = 0
    weighed_bytes: int = 0
    threshold: float = 1.0
    kept: dict[bytes, bytes] = field(default_factory=dict)
    """Passages in UTF-8, by their hashes."""


class TextSample:
    """Keeps a sample of the documents that are added; equal passages of a language are kept once.

    Args:
        budget_bytes: Size of the sample; up to a quarter more is held while documents are added.
        alpha: See `rates`.
    """

    def __init__(self, budget_bytes: int, alpha: float) -> None:
        self._budget_bytes = budget_bytes
        self._alpha = alpha
        self._languages: dict[str, _Language] = {}
        self._kept_bytes = 0
        self._limit_bytes = _SLACK * budget_bytes

    def add(self, language: str, text: str) -> None:
        """Add one document."""
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
        """Return the counts of each language, in the order of their names."""
        self._let_go()
        wanted = self._rates()
        summaries = {}
        for name, state in sorted(self._languages.items()):
            sampled = sum(_times(key, wanted[name]) * len(data) for key, data in state.kept.items())
            summaries[name] = LanguageSample(state.num_documents, state.num_bytes, len(state.kept), sampled)
        return summaries

    def drain(self) -> Iterator[bytes]:
        """Yield and remove the sample, ordered by language and hash; passages are repeated according to the rates."""
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
        # The second limit: a few large passages may exceed the first one, and would be checked at every call.
        self._limit_bytes = max(_SLACK * self._budget_bytes, 1.1 * kept_bytes)


def _place(key: bytes) -> float:
    """Return a passage's hash as a number from 0 to less than 1."""
    return (int.from_bytes(key[:8], "big") >> 11) / (_HASHES / 2**11)


def _times(key: bytes, rate: float) -> int:
    return int(rate) + (_place(key) < rate - int(rate))

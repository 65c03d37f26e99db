"""Measures how well a tokenizer suits a corpus, per language: text bytes per token, and text that it cannot represent."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from rich.table import Table

from state.data_manifest import Recipe
from state.document import Document
from state.errors import DataError
from state.quantities import format_size
from worker.corpus.documents import CorpusDocuments, file_bytes
from worker.corpus.progress import PrepareProgress, Silent
from worker.corpus.records import Record
from worker.corpus.sources import SourceFile, not_read
from worker.tokenizer.model_file import SPACE, SentencePieceModel
from worker.tokenizer.tokenizer import Tokenizer

DEFAULT_MAX_BYTES = 50_000_000
_BATCH_DOCUMENTS = 1024
_BATCH_CHARACTERS = 1024**2
_MAX_FAILURES = 3
_EXCERPT_CHARACTERS = 40


class RoundTripFailure(Document):
    """A document whose decoded ids differ from its text."""

    file: str
    record: int = Field(description="line, row, or document of a text file")
    text: str = Field(description="what stands where the two first differ")
    decoded: str = Field(description="what came back there")

    def __str__(self) -> str:
        return f"{self.file}, line {self.record}: {self.text!r} came back as {self.decoded!r}"


class LanguageReport(Document):
    """A tokenizer's counts and rates for one language; tokens are counted without bos and eos."""

    num_documents: int = Field(ge=1)
    num_bytes: int = Field(ge=1, description="of the text, in UTF-8")
    num_words: int = Field(ge=0, description="parts between white space")
    num_tokens: int = Field(ge=0)
    num_unknown: int = Field(ge=0, description="tokens that stand for text that is lost")
    num_byte_fallback: int = Field(ge=0, description="tokens that are single bytes of characters without a piece")
    num_round_trip_failures: int = Field(ge=0, description="documents that do not come back from their ids")
    bytes_per_token: float
    tokens_per_word: float
    unknown_rate: float = Field(description="share of the tokens")
    byte_fallback_rate: float = Field(description="share of the tokens")
    round_trip_rate: float = Field(description="share of the documents that come back as they were")
    failures: tuple[RoundTripFailure, ...] = Field(description="the first ones")


class TokenizerReport(Document):
    """A tokenizer's counts and rates for the languages of a corpus."""

    schema_version: Literal[1] = 1
    tokenizer_sha256: str
    vocab_size: int
    is_sample: bool = Field(description="whether text was left unread, as there is more than was to be looked at")
    skipped: dict[str, int] = Field(description="records without usable text, by reason")
    languages: dict[str, LanguageReport]


def report_tokenizer(
    tokenizer: Tokenizer,
    corpora: Sequence[Path],
    recipe: Recipe,
    *,
    max_bytes: int | None = DEFAULT_MAX_BYTES,
    progress: PrepareProgress | None = None,
) -> TokenizerReport:
    """Encode a corpus, decode it again, and count.

    Every usable record counts with its text as in the file, without cleaning.

    Args:
        tokenizer: The model.
        corpora: Corpus folders.
        recipe: Defines the documents of a file.
        max_bytes: Text to read per language, spread over the begins of its files; None: all text.
        progress: Receives the progress.

    Raises:
        UserError: the corpus cannot be used.
        DataError: a file cannot be read, or there is no text.
    """
    progress = progress or Silent()
    documents = CorpusDocuments(corpora, recipe)
    if documents.ignored:
        progress.say(not_read(documents.ignored))
    progress.stage("encoding", documents.num_bytes)
    counter = _Counter(tokenizer)
    limits = _Limits(documents.files, max_bytes)
    for file in documents.files:
        for batch in _batches(limits.within(file, documents.read_file(file, progress))):
            progress.advance(0, counter.count(file, batch))
    if not counter.languages:
        raise DataError("the corpus has no usable text", remedy="--text-field says which field holds the text")
    return TokenizerReport(
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        is_sample=limits.left_out,
        skipped=dict(sorted(documents.skipped.items())),
        languages={name: counts.report() for name, counts in sorted(counter.languages.items())},
    )


def as_table(report: TokenizerReport) -> Table:
    """Return the report for people."""
    table = Table(box=None, pad_edge=False)
    table.add_column("language")
    for heading in ("documents", "text", "tokens", "bytes/token", "tokens/word", "unknown", "byte fallback", "round trip"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, language in report.languages.items():
        failures = language.num_round_trip_failures
        table.add_row(
            name,
            f"{language.num_documents:,}",
            format_size(language.num_bytes),
            f"{language.num_tokens:,}",
            f"{language.bytes_per_token:.3f}",
            f"{language.tokens_per_word:.3f}",
            f"{language.unknown_rate:.3%}",
            f"{language.byte_fallback_rate:.3%}",
            "exact" if not failures else f"{failures:,} differ",
        )
    return table


def _batches(found: Iterator[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    num_characters = 0
    for record in found:
        batch.append(record)
        num_characters += len(record.text)
        if len(batch) == _BATCH_DOCUMENTS or num_characters >= _BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


@dataclass
class _Counts:
    num_documents: int = 0
    num_bytes: int = 0
    num_words: int = 0
    num_tokens: int = 0
    num_unknown: int = 0
    num_byte_fallback: int = 0
    num_failures: int = 0
    failures: list[RoundTripFailure] = field(default_factory=list)

    def report(self) -> LanguageReport:
        tokens = max(1, self.num_tokens)
        return LanguageReport(
            num_documents=self.num_documents,
            num_bytes=self.num_bytes,
            num_words=self.num_words,
            num_tokens=self.num_tokens,
            num_unknown=self.num_unknown,
            num_byte_fallback=self.num_byte_fallback,
            num_round_trip_failures=self.num_failures,
            bytes_per_token=self.num_bytes / tokens,
            tokens_per_word=self.num_tokens / max(1, self.num_words),
            unknown_rate=self.num_unknown / tokens,
            byte_fallback_rate=self.num_byte_fallback / tokens,
            round_trip_rate=1.0 - self.num_failures / self.num_documents,
            failures=tuple(self.failures),
        )


class _Counter:
    """Encodes records and counts tokens per language."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._is_byte = np.array([tokenizer.processor.is_byte(i) for i in range(tokenizer.vocab_size)])
        self._round_trip = RoundTrip(tokenizer)
        self.languages: dict[str, _Counts] = {}

    def count(self, file: SourceFile, batch: Sequence[Record]) -> int:
        """Count these records of a file; return their number of tokens."""
        ids = self._tokenizer.encode([record.text for record in batch])
        for record, with_ends in zip(batch, ids, strict=True):
            self._count(file, record, with_ends[1:-1])
        return sum(map(len, ids))

    def _count(self, file: SourceFile, record: Record, ids: NDArray[np.int32]) -> None:
        counts = self.languages.setdefault(record.language, _Counts())
        counts.num_documents += 1
        counts.num_bytes += len(record.text.encode())
        counts.num_words += len(record.text.split())
        counts.num_tokens += len(ids)
        counts.num_unknown += int(np.count_nonzero(ids == self._tokenizer.unk_id))
        counts.num_byte_fallback += int(np.count_nonzero(self._is_byte[ids]))
        if difference := self._round_trip.difference(record.text, ids):
            counts.num_failures += 1
            if len(counts.failures) < _MAX_FAILURES:
                text, decoded = difference
                counts.failures.append(RoundTripFailure(file=file.name, record=record.number, text=text, decoded=decoded))


class RoundTrip:
    """Compares a text with its decoded ids; changes by the model's own normalisation are not counted as differences."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._processor = tokenizer.processor
        self._expected = _expectation(tokenizer.model, tokenizer.processor.normalize)

    def difference(self, text: str, ids: NDArray[np.int32]) -> tuple[str, str] | None:
        """Return excerpts of text and decoded text where they first differ; None if they are equal."""
        decoded = self._processor.decode(ids.tolist())
        expected = self._expected(text)
        if decoded == expected:
            return None
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(expected, decoded, strict=False))
        place = sum(1 for _ in same)
        start = max(0, place - _EXCERPT_CHARACTERS // 4)
        return expected[start : start + _EXCERPT_CHARACTERS], decoded[start : start + _EXCERPT_CHARACTERS]


def _expectation(model: SentencePieceModel | None, normalize: Callable[[str], str]) -> Callable[[str], str]:
    """Return the function that gives the text that a round trip should return."""
    if model is None or not (model.charsmap or model.adds_dummy_prefix or model.removes_extra_whitespace):
        return lambda text: text

    def normalised(text: str) -> str:
        spaced = normalize(text).replace(SPACE, " ")
        decoder_takes_space = model.adds_dummy_prefix and not model.whitespace_is_suffix
        return spaced.removeprefix(" ") if decoder_takes_space else spaced

    return normalised


class _Limits:
    """Limits how much of each file is read: the same share of all files of a language."""

    def __init__(self, files: Sequence[SourceFile], max_bytes: int | None) -> None:
        self._max_bytes = max_bytes
        self._file_bytes = {file: file_bytes(file) for file in files}
        self._language_bytes: dict[str | None, int] = {}
        for file, size in self._file_bytes.items():
            self._language_bytes[file.language] = self._language_bytes.get(file.language, 0) + size
        self._taken: dict[str, int] = {}
        self.left_out = False

    def within(self, file: SourceFile, found: Iterator[Record]) -> Iterator[Record]:
        """Yield a file's records up to the limit; if records name their own language, up to the limit of each language."""
        if self._max_bytes is None:
            yield from found
            return
        limit = self._max_bytes * self._file_bytes[file] / max(1, self._language_bytes[file.language])
        taken = 0
        for record in found:
            of_language = self._taken.get(record.language, 0)
            if of_language >= self._max_bytes or (file.language is not None and taken >= limit):
                self.left_out = True
                if file.language is not None:
                    return
                continue
            size = len(record.text.encode())
            taken += size
            self._taken[record.language] = of_language + size
            yield record

"""Makes units from packs of chunks, in worker processes: parse, clean, hash, encode, write."""

from __future__ import annotations

import hashlib
import multiprocessing
import pickle
import unicodedata
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from state.data_manifest import Recipe, token_bytes_for
from state.errors import TemporaryError
from worker.corpus.chunks import Chunk
from worker.corpus.cleaning import clean, hash_of, is_held_out
from worker.corpus.records import BadRecord, Record, excerpt, records
from worker.corpus.units import DOCUMENT, MAX_EXAMPLES, UNIT_VERSION, Example, Portion, UnitHeader, write_unit
from worker.process import belong_to_the_parent, deaf_to_interrupts
from worker.tokenizer.tokenizer import load_tokenizer

_QUEUED_PER_WORKER = 2  # one in work and one queued: workers do not wait, and memory stays small


@dataclass(frozen=True)
class Pack:
    """Consecutive chunks, which become one unit.

    Attributes:
        unit: The unit's file; its name is a hash of the content.
        payload: The chunks, pickled.
        num_bytes: Bytes of the corpus that were read for it.
    """

    unit: Path
    payload: bytes
    num_bytes: int


@dataclass(frozen=True)
class Encoded:
    """The result of encoding a pack: its size, and the header of the unit."""

    pack_bytes: int
    header: UnitHeader


@dataclass(frozen=True)
class EncoderSetup:
    """The settings that are sent to each encoding process."""

    recipe: Recipe
    tokenizer: Path

    def digest(self, tokenizer_sha256: str) -> bytes:
        """Return a digest of the settings and of the program's versions; it is part of every unit's name."""
        versions = f"{UNIT_VERSION} {unicodedata.unidata_version} {sentencepiece.__version__}"
        return hashlib.sha256(f"{versions} {tokenizer_sha256} {self._text_rules()}".encode()).digest()

    def _text_rules(self) -> str:
        return self.recipe.model_dump_json(exclude={"shard_bytes", "max_part_bytes", "max_malformed_share", "deduplicate"})


def pack_of(chunks: Sequence[Chunk], num_bytes: int, folder: Path, settings: bytes) -> Pack:
    """Return a pack of these chunks. Its unit is named by the settings and the chunks' content, not by the file's path."""
    name = hashlib.blake2b(digest_size=16, key=settings)
    for chunk in chunks:
        data = chunk.data if isinstance(chunk.data, bytes) else pickle.dumps(chunk.data, protocol=pickle.HIGHEST_PROTOCOL)
        name.update(f"{chunk.source.language!r} {chunk.source.kind} {chunk.first_record} {len(data)}\n".encode())
        name.update(data)
    payload = pickle.dumps(tuple(chunks), protocol=pickle.HIGHEST_PROTOCOL)
    return Pack(folder / f"{name.hexdigest()}.unit", payload, num_bytes)


def encode_packs(packs: Iterator[Pack], setup: EncoderSetup, num_workers: int) -> Generator[Encoded]:
    """Make units from packs, with one encoder in each worker process; yield them as they are done, in any order.

    With one worker, this process encodes itself.

    Raises:
        OSError: a unit cannot be written.
        TemporaryError: a process was killed.
    """
    if num_workers == 1:
        encoder = Encoder(setup)
        for pack in packs:
            yield encoder.encode(pack)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the progress bar's thread and the folder's lock
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_begin, initargs=(setup,)) as pool:
        waiting: set[Future[Encoded]] = set()
        try:
            for pack in packs:
                with deaf_to_interrupts():  # the pool starts its processes here, one by one
                    waiting.add(pool.submit(_encode, pack))
                if len(waiting) >= _QUEUED_PER_WORKER * num_workers:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool as error:
            raise TemporaryError(
                "an encoding process was killed, perhaps because the memory ran out",
                remedy="repeat the command, which resumes; fewer --workers need less memory",
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class Encoder:
    """Makes units, one pack at a time."""

    def __init__(self, setup: EncoderSetup) -> None:
        self._recipe = setup.recipe
        self._tokenizer = load_tokenizer(setup.tokenizer)
        self._words = self._tokenizer.words()

    def encode(self, pack: Pack) -> Encoded:
        """Make a pack's unit and write it.

        Raises:
            OSError: it cannot be written.
        """
        batch = _Batch(self._recipe)
        for number, chunk in enumerate(pickle.loads(pack.payload)):  # noqa: S301 (made by this program)
            batch.take_chunk(number, chunk)
        tokens, lengths = self._tokens(batch.texts)
        documents = batch.documents(lengths)
        header = write_unit(pack.unit, batch.portions(), batch.languages(), documents, tokens)
        return Encoded(pack.num_bytes, header)

    def _tokens(self, texts: list[str]) -> tuple[NDArray[np.unsignedinteger], NDArray[np.int64]]:
        """Return (all tokens, joined; number of tokens of each text)."""
        dtype = np.dtype(f"<u{token_bytes_for(self._tokenizer.vocab_size)}")
        if not texts:
            return np.empty(0, dtype=dtype), np.empty(0, dtype=np.int64)
        if self._words is not None:
            tokens, lengths = self._words.encode(texts)
            return tokens.astype(dtype), lengths
        ids = self._tokenizer.encode(texts)
        return np.concatenate(ids).astype(dtype), np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))


class _Batch:
    """Collects the documents of a unit while its chunks are parsed."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.texts: list[str] = []
        self._rows: list[tuple[int, int, int, int, int, int, bool]] = []
        self._languages: dict[str, int] = {}
        self._portions: list[_PortionCount] = []

    def take_chunk(self, number: int, chunk: Chunk) -> None:
        portion = _PortionCount()
        self._portions.append(portion)
        for record in records(chunk, self._recipe):
            portion.num_records += 1
            match record:
                case BadRecord():
                    _count(portion.skipped, record.reason)
                    portion.example(record.reason, record.number, record.excerpt)
                case Record():
                    self._take(number, portion, record)

    def _take(self, number: int, portion: _PortionCount, record: Record) -> None:
        cleaned = clean(record.text, self._recipe)
        for rule in cleaned.changed:
            _count(portion.changed.setdefault(record.language, {}), rule)
        if cleaned.dropped is not None:
            _count(portion.dropped.setdefault(record.language, {}), cleaned.dropped)
            portion.example(cleaned.dropped, record.number, excerpt(cleaned.text))
            return
        text = cleaned.text.encode()
        text_hash = hash_of(text)
        self.texts.append(cleaned.text)
        language = self._languages.setdefault(record.language, len(self._languages))
        share = self._recipe.validation_shares.get(record.language, self._recipe.validation_share)
        high, low = int.from_bytes(text_hash[:8], "little"), int.from_bytes(text_hash[8:], "little")
        self._rows.append((high, low, len(text), record.number, number, language, is_held_out(text_hash, share)))

    def documents(self, lengths: NDArray[np.int64]) -> NDArray[np.void]:
        """Return the documents' table, [D] of DOCUMENT."""
        table = np.empty(len(self._rows), dtype=DOCUMENT)
        columns = ("hash_high", "hash_low", "num_bytes", "record", "portion", "language", "held_out")
        for name, values in zip(columns, zip(*self._rows, strict=True), strict=bool(self._rows)):
            table[name] = values
        table["num_tokens"] = lengths
        return table

    def portions(self) -> list[Portion]:
        return [portion.document() for portion in self._portions]

    def languages(self) -> list[str]:
        return list(self._languages)


@dataclass
class _PortionCount:
    """The counts of a Portion, while its chunk is parsed."""

    num_records: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    changed: dict[str, dict[str, int]] = field(default_factory=dict)
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)
    examples: dict[str, list[Example]] = field(default_factory=dict)

    def example(self, reason: str, record: int, beginning: str) -> None:
        kept = self.examples.setdefault(str(reason), [])
        if len(kept) < MAX_EXAMPLES:
            kept.append(Example(record=record, excerpt=beginning))

    def document(self) -> Portion:
        return Portion(
            num_records=self.num_records,
            skipped=self.skipped,
            changed=self.changed,
            dropped=self.dropped,
            examples={reason: tuple(kept) for reason, kept in self.examples.items()},
        )


def _count(counts: dict[str, int], reason: str) -> None:
    counts[str(reason)] = counts.get(str(reason), 0) + 1


_encoder: Encoder | None = None  # this process's encoder, if it is a worker of the pool


def _begin(setup: EncoderSetup) -> None:
    """Initialise a worker process of the pool."""
    global _encoder
    belong_to_the_parent()
    _encoder = Encoder(setup)


def _encode(pack: Pack) -> Encoded:
    assert _encoder is not None
    return _encoder.encode(pack)

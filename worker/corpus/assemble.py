"""Writes the units into a data folder: leaves duplicates out, writes each language's streams, and counts per source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from state.data_manifest import LanguageData, Recipe, Source, SourceShare, TokenStream, token_bytes_for
from state.errors import DataError
from worker.corpus.cleaning import Rule
from worker.corpus.duplicates import UNIQUE
from worker.corpus.records import EXCERPT_CHARACTERS, excerpt
from worker.corpus.shards import ShardWriter
from worker.corpus.units import MAX_EXAMPLES, Example, Unit, read_documents, read_unit
from worker.tokenizer.tokenizer import Tokenizer

TRAIN, VALIDATION = "train", "validation"

BoolArray = NDArray[np.bool_]
I64Array = NDArray[np.int64]


@dataclass(frozen=True)
class UnitPlace:
    """A unit's file; `sources` has the source's number for each of its portions."""

    path: Path
    sources: tuple[int, ...]
    num_documents: int


@dataclass(frozen=True)
class Assembled:
    """The written languages, and examples of left-out records by the source's number and by reason."""

    languages: dict[str, LanguageData]
    examples: dict[int, dict[str, list[Example]]]


class Assembly:
    """Writes the streams of a data folder.

    Args:
        folder: The folder for the shards.
        recipe: Has the size of a shard.
        tokenizer: The tokenizer that encoded the units.
        sources: The files of text, in reading order.
    """

    def __init__(self, folder: Path, recipe: Recipe, tokenizer: Tokenizer, sources: Sequence[Source]) -> None:
        self._folder = folder
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._sources = sources
        self._writers: dict[tuple[str, str], ShardWriter] = {}
        self._shares: dict[tuple[str, int], _ShareCount] = {}
        self._examples: dict[int, dict[str, list[Example]]] = {}
        self._repeats: list[tuple[int, int, int]] = []  # source, its example's place, number of the document that it repeats

    def write(self, units: Sequence[UnitPlace], first: I64Array | None) -> Assembled:
        """Write all documents of the units except the duplicates.

        Args:
            units: The units in reading order.
            first: The result of `find_duplicates`; None: write all documents.

        Raises:
            OSError: the disk is full.
            DataError: a language has no document to train on.
        """
        start = 0
        for place in units:
            end = start + place.num_documents
            self._write_unit(read_unit(place.path), place, first[start:end] if first is not None else None)
            start = end
        self._name_the_repeated(units)
        return Assembled(self._languages(), self._examples)

    def _write_unit(self, unit: Unit, place: UnitPlace, first: I64Array | None) -> None:
        self._take_counts(unit, place)
        sources = np.array(place.sources, dtype=np.int64)[unit.documents["portion"]]
        kept = np.ones(len(unit.documents), dtype=bool)
        if first is not None:
            kept = first == UNIQUE
            self._take_repeats(unit, sources, first)
        for number, language in enumerate(unit.header.languages):
            for split, held_out in ((TRAIN, False), (VALIDATION, True)):
                mine = kept & (unit.documents["language"] == number) & (unit.documents["held_out"] == held_out)
                if mine.any():
                    self._write_documents(unit, sources, mine, language, split)

    def _write_documents(self, unit: Unit, sources: I64Array, mine: BoolArray, language: str, split: str) -> None:
        documents = unit.documents[mine]
        lengths = documents["num_tokens"].astype(np.int64)
        tokens = unit.tokens if mine.all() else unit.tokens[np.repeat(mine, unit.documents["num_tokens"])]
        self._writer(language, split).append(
            tokens, lengths, sources[mine], documents["record"], int(documents["num_bytes"].sum(dtype=np.int64))
        )
        numbers, begins = np.unique(sources[mine], return_index=True)  # documents of a source follow one another
        ends = [*begins[1:].tolist(), len(lengths)]
        for source, begin, end in zip(numbers.tolist(), begins.tolist(), ends, strict=True):
            share = self._share(language, source)
            if split == VALIDATION:
                share.num_held_out += end - begin
            else:
                share.num_documents += end - begin
                share.num_tokens += int(lengths[begin:end].sum())

    def _take_counts(self, unit: Unit, place: UnitPlace) -> None:
        for source, portion in zip(place.sources, unit.header.portions, strict=True):
            for language, counts in portion.changed.items():
                _add(self._share(language, source).changed, counts)
            for language, counts in portion.dropped.items():
                _add(self._share(language, source).dropped, counts)
            for reason, examples in portion.examples.items():
                kept = self._examples.setdefault(source, {}).setdefault(reason, [])
                kept += examples[: MAX_EXAMPLES - len(kept)]

    def _take_repeats(self, unit: Unit, sources: I64Array, first: I64Array) -> None:
        repeats = np.flatnonzero(first != UNIQUE)
        if not len(repeats):
            return
        ends = np.cumsum(unit.documents["num_tokens"], dtype=np.int64)
        for number in repeats.tolist():
            document, source = unit.documents[number], int(sources[number])
            dropped = self._share(unit.header.languages[document["language"]], source).dropped
            _add(dropped, {Rule.DUPLICATE.value: 1})
            kept = self._examples.setdefault(source, {}).setdefault(Rule.DUPLICATE.value, [])
            if len(kept) < MAX_EXAMPLES:
                begin = int(ends[number]) - int(document["num_tokens"])
                tokens = unit.tokens[begin : int(ends[number])][:EXCERPT_CHARACTERS]
                kept.append(
                    Example(record=int(document["record"]), excerpt=excerpt(self._tokenizer.processor.decode(tokens.tolist())))
                )
                self._repeats.append((source, len(kept) - 1, int(first[number])))

    def _name_the_repeated(self, units: Sequence[UnitPlace]) -> None:
        """Add to each example of a duplicate the place of the document that is kept."""
        starts = np.cumsum([0, *(place.num_documents for place in units)])
        for source, place, repeated in self._repeats:
            number = int(np.searchsorted(starts, repeated, side="right")) - 1
            document = read_documents(units[number].path)[repeated - int(starts[number])]
            origin = self._sources[units[number].sources[document["portion"]]]
            examples = self._examples[source][Rule.DUPLICATE.value]
            same_as = f"corpus {origin.corpus}: {origin.name}, line {document['record']}"  # two corpora may have one name
            examples[place] = examples[place].evolve(same_as=same_as)

    def _languages(self) -> dict[str, LanguageData]:
        streams = {key: writer.finish() for key, writer in self._writers.items()}
        sources: dict[str, list[SourceShare]] = {}
        for (language, source), share in sorted(self._shares.items()):
            sources.setdefault(language, []).append(share.document(source))
        languages = {}
        for name in sorted({*(language for language, _ in streams), *sources}):
            stream = streams.get((name, TRAIN))
            if stream is None:
                raise self._nothing_left(name, streams.get((name, VALIDATION)))
            languages[name] = LanguageData(
                **{field: getattr(stream, field) for field in TokenStream.model_fields},
                validation=streams.get((name, VALIDATION)),
                sources=tuple(sources.get(name, ())),
            )
        return languages

    def _nothing_left(self, name: str, validation: TokenStream | None) -> DataError:
        counts: dict[str, int] = {"held out": validation.num_documents} if validation else {}
        for (language, _), share in self._shares.items():
            if language == name:
                _add(counts, share.dropped)
        listed = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        hold_less = f"hold nothing out of it with --validation {name}=0, " if validation else ""
        return DataError(
            f"{name!r} has no document left to train on: {listed}",
            expected="at least one",
            remedy=f"add text in {name!r}, {hold_less}or take it out of the corpus",
        )

    def _writer(self, language: str, split: str) -> ShardWriter:
        if (language, split) not in self._writers:
            self._writers[language, split] = ShardWriter(
                self._folder,
                f"{language}.{split}",
                token_bytes=token_bytes_for(self._tokenizer.vocab_size),
                shard_bytes=self._recipe.shard_bytes,
            )
        return self._writers[language, split]

    def _share(self, language: str, source: int) -> _ShareCount:
        return self._shares.setdefault((language, source), _ShareCount())


@dataclass
class _ShareCount:
    """The counts of a SourceShare, while units are written."""

    num_documents: int = 0
    num_tokens: int = 0
    num_held_out: int = 0
    changed: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)

    def document(self, source: int) -> SourceShare:
        return SourceShare(
            source=source,
            num_documents=self.num_documents,
            num_tokens=self.num_tokens,
            num_held_out=self.num_held_out,
            changed=dict(sorted(self.changed.items())),
            dropped=dict(sorted(self.dropped.items())),
        )


def _add(counts: dict[str, int], more: dict[str, int]) -> None:
    for reason, count in more.items():
        counts[reason] = counts.get(reason, 0) + count

"""Reads all documents of corpus folders one after another, in this process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from state.data_manifest import Recipe
from state.errors import DataError
from worker.corpus.chunks import Chunk, ChunkReader
from worker.corpus.progress import PrepareProgress
from worker.corpus.records import BadRecord, Record, records
from worker.corpus.sources import SourceFile, find_sources


class CorpusDocuments:
    """Reads the texts of corpus folders; records without usable text are counted and skipped."""

    def __init__(self, corpora: Sequence[Path], recipe: Recipe) -> None:
        """Find the files.

        Raises:
            UserError: the folders cannot be used; see `find_sources`.
        """
        sources = find_sources(corpora, recipe)
        self.files = sources.files
        self._recipe = recipe
        self.ignored = sources.ignored
        self.skipped: Counter[str] = Counter()
        """Records without usable text so far, by reason."""
        self.num_records = 0

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(map(file_bytes, self.files))

    def read(self, progress: PrepareProgress) -> Iterator[Record]:
        """Yield every usable record of all files.

        Raises:
            DataError: a file cannot be read, or more records than the recipe allows have no usable text.
        """
        for file in self.files:
            yield from self.read_file(file, progress)
        self._check_skipped()

    def read_file(self, file: SourceFile, progress: PrepareProgress) -> Iterator[Record]:
        """Yield every usable record of one file; the caller may stop before its end.

        Raises:
            DataError: the file cannot be read.
        """
        reader = ChunkReader(file, self._recipe)
        told_bytes = 0
        try:
            for chunk in reader.chunks():
                yield from self._usable(chunk)
                progress.advance(reader.bytes_read - told_bytes)
                told_bytes = reader.bytes_read
        finally:
            progress.advance(max(0, file_bytes(file) - told_bytes))

    def _usable(self, chunk: Chunk) -> Iterator[Record]:
        for record in records(chunk, self._recipe):
            self.num_records += 1
            match record:
                case BadRecord():
                    self.skipped[str(record.reason)] += 1
                case Record():
                    yield record

    @property
    def passed_over(self) -> str:
        """The skipped records by reason, in words; empty if there are none."""
        return ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.skipped.items()))

    def _check_skipped(self) -> None:
        if self.skipped.total() > self._recipe.max_malformed_share * self.num_records:
            raise DataError(
                f"{self.skipped.total():,} of {self.num_records:,} records have no usable text: {self.passed_over}",
                expected=f"at most {self._recipe.max_malformed_share:.2%} (--max-malformed)",
                remedy="--text-field says which field holds the text; gemma-orch prepare names the first such places",
            )


def file_bytes(file: SourceFile) -> int:
    """Return a file's size, for showing progress; 0 if it is gone (reading it raises the error)."""
    try:
        return file.path.stat().st_size
    except OSError:
        return 0

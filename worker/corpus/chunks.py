"""Reads a file as chunks of whole records: the parent process reads and cuts cheaply, worker processes parse."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from state.data_manifest import Recipe
from state.errors import DataError
from worker.corpus.decompression import DamagedError, gunzip, unzstd
from worker.corpus.parquet import Row, row_batches
from worker.corpus.sources import Compression, Form, SourceFile

CHUNK_BYTES = 8 * 1024**2
_BLOCK_BYTES = 1024**2
_LANGUAGE_BYTES = 1024  # more than the name of a language can have
_ROW_BYTES = 64  # what a row takes beside its text, so that rows without any are bounded too
_OTHER_BYTE_ORDER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # UTF-32 LE begins as UTF-16 LE
_REMEDY = "replace it or take it out of the corpus folder; the same command then resumes"


@dataclass(frozen=True)
class Chunk:
    """Consecutive whole records of a file.

    A record longer than `Recipe.max_document_bytes` is truncated, but stays longer than that, so that the parser finds it
    too long. Only the last record of a chunk can be truncated.
    """

    source: SourceFile
    number: int
    """Of the chunk within its file, from 0."""
    first_record: int
    """Number, from 1, of the first line or row."""
    data: bytes | tuple[Row, ...]
    """Lines, or rows where the file is Parquet."""


class ChunkReader:
    """Reads one file once, in bounded memory: about one chunk and two documents of the largest size.

    The same file, recipe and chunk size always give the same chunks.

    Args:
        source: The file.
        recipe: Defines what a document is, and how large it may be.
        chunk_bytes: Least size of a chunk; the record that reaches this size is its last.
    """

    def __init__(self, source: SourceFile, recipe: Recipe, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._source = source
        self._recipe = recipe
        self._chunk_bytes = chunk_bytes
        self._kept_bytes = recipe.max_document_bytes + 2  # kept of a record that is too long; the last byte may be a line feed
        self._digest = hashlib.sha256()
        self._num_bytes = 0
        self._num_lines = 0  # yielded so far
        self._open = bytearray()  # text that is not yielded yet
        self.bytes_read = 0
        """Bytes of the file read so far, for showing progress."""

    @property
    def num_bytes(self) -> int:
        """Size of the file; known once `chunks` has ended."""
        return self._num_bytes

    @property
    def sha256(self) -> str:
        """Digest of the file as stored (compressed, if it is); known once `chunks` has ended."""
        return self._digest.hexdigest()

    def chunks(self) -> Iterator[Chunk]:
        """Yield the chunks. Call it once.

        Raises:
            DataError: the file cannot be read, is damaged, or has another format than its name says.
        """
        found: Iterator[tuple[int, bytes | tuple[Row, ...]]] = (
            self._rows() if self._source.kind.form is Form.PARQUET else self._text()
        )
        for number, (first_record, data) in enumerate(found):
            yield Chunk(self._source, number, first_record, data)

    def _rows(self) -> Iterator[tuple[int, tuple[Row, ...]]]:
        """Yield rows with the number of the first one; then read the file a second time for its digest."""
        try:
            file_bytes = self._source.path.stat().st_size
            rows: list[Row] = []
            first_row, num_bytes = 1, 0
            for batch, share in row_batches(self._source, self._recipe, batch_bytes=self._chunk_bytes):
                self.bytes_read = int(file_bytes * share)
                for text, language in batch:
                    rows.append((text and text[: self._kept_bytes], language and language[:_LANGUAGE_BYTES]))
                    num_bytes += len(text or b"") + _ROW_BYTES
                    if num_bytes >= self._chunk_bytes:
                        yield first_row, tuple(rows)
                        first_row, num_bytes, rows = first_row + len(rows), 0, []
            if rows:
                yield first_row, tuple(rows)
            with open(self._source.path, "rb", buffering=0) as file:
                while block := file.read(_BLOCK_BYTES):
                    self._digest.update(block)
                    self._num_bytes += len(block)
            self.bytes_read = self._num_bytes
        except OSError as error:
            raise self._unusable(f"cannot be read ({error.strerror})") from error

    def _text(self) -> Iterator[tuple[int, bytes]]:
        """Yield text with the number of its first line."""
        try:
            with open(self._source.path, "rb", buffering=_BLOCK_BYTES) as file:
                pieces = self._in_utf8(self._decompressed(file))
                if self._source.kind.form is Form.JSONL or self._recipe.text_documents == "lines":
                    yield from self._lines(pieces)
                elif self._recipe.text_documents == "paragraphs":
                    yield from self._paragraphs(self._lines(pieces))
                else:
                    yield from self._whole(pieces)
        except OSError as error:
            raise self._unusable(f"cannot be read ({error.strerror})") from error
        except DamagedError as error:
            raise self._unusable(str(error)) from error
        self._num_bytes = self.bytes_read

    def _unusable(self, problem: str, remedy: str = _REMEDY) -> DataError:
        line = self._num_lines + self._open.count(b"\n")
        place = f"; {line:,} lines of it were read" if line else ""
        return DataError(f"{self._source.path} {problem}{place}", remedy=remedy)

    def _decompressed(self, file: BinaryIO) -> Iterator[bytes]:
        def read(num_bytes: int) -> bytes:
            data = file.read(num_bytes)
            self._digest.update(data)
            self.bytes_read += len(data)
            return data

        match self._source.kind.compression:
            case Compression.NONE:
                return iter(lambda: read(_BLOCK_BYTES), b"")
            case Compression.GZIP:
                return gunzip(read)
            case Compression.ZSTD:
                return unzstd(read, str(self._source.path))

    def _in_utf8(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Remove the byte order mark that some editors write; refuse the marks of UTF-16 and UTF-32."""
        start = b""
        for piece in pieces:
            start += piece
            if len(start) >= 4:
                break
        if start.startswith(_OTHER_BYTE_ORDER_MARKS):
            raise self._unusable(
                "is UTF-16 or UTF-32, not UTF-8",
                remedy="convert it (iconv -f UTF-16 -t UTF-8 OLD > NEW); the same command then resumes",
            )
        yield start.removeprefix(codecs.BOM_UTF8)
        yield from pieces

    def _lines(self, pieces: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
        """Yield whole lines, cut after the first line feed that completes a chunk."""
        dropping = False  # the rest of a line that is too long
        for piece in pieces:
            if dropping:
                end = piece.find(b"\n")
                if end < 0:
                    continue
                piece, dropping = piece[end:], False
            self._open += piece
            while (end := self._open.find(b"\n", self._chunk_bytes - 1)) >= 0:
                yield self._take(self._cut_off(end) + 1)
            num_open = len(self._open)
            dropping = self._cut_off(num_open) < num_open
        if self._open:
            yield self._take(len(self._open))

    def _cut_off(self, end: int) -> int:
        """Truncate the line that ends at `end` if it is too long and completes the chunk; return its new end."""
        kept = max(self._chunk_bytes, self._open.rfind(b"\n", 0, end) + 1 + self._kept_bytes)
        del self._open[kept:end]
        return min(kept, end)

    def _take(self, num_bytes: int) -> tuple[int, bytes]:
        first_line = self._num_lines + 1
        with memoryview(self._open) as view:
            data = bytes(view[:num_bytes])
        del self._open[:num_bytes]
        self._num_lines += data.count(b"\n")
        return first_line, data

    def _paragraphs(self, chunks_of_lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
        """Yield lines, cut only after blank lines, so that no paragraph lies in two chunks."""
        max_bytes = self._recipe.max_document_bytes
        first_line, data = 1, b""
        dropping = False  # the rest of a paragraph that is too long
        for number, lines in chunks_of_lines:
            if dropping:
                start = _start_of_first_blank_line(lines, max_bytes)
                if start is None:
                    continue
                yield first_line, data
                first_line, data = number + lines.count(b"\n", 0, start), lines[start:]
                dropping = False
            else:
                data += lines
            end = _end_of_last_blank_line(data, max_bytes)
            if end:
                yield first_line, data[:end]
                first_line, data = first_line + data.count(b"\n", 0, end), data[end:]
            if len(data) > self._kept_bytes:
                data, dropping = data[: self._kept_bytes].replace(b"\n", b" "), True  # as one line, which cannot count as blank
        if data:
            yield first_line, data

    def _whole(self, pieces: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
        """Yield the whole file as one document, even if it is empty."""
        for piece in pieces:
            self._open += piece[: self._kept_bytes - len(self._open)]
        yield self._take(len(self._open))


def is_blank(line: bytes, max_bytes: int) -> bool:
    """Return whether a line is blank. A line that is too long is not: its letters may have been truncated."""
    return len(line) <= max_bytes and not line.strip()


def _start_of_first_blank_line(lines: bytes, max_bytes: int) -> int | None:
    """Return the begin of the first blank line that ends with a line feed."""
    start = 0
    while (end := lines.find(b"\n", start)) >= 0:
        if is_blank(lines[start:end], max_bytes):
            return start
        start = end + 1
    return None


def _end_of_last_blank_line(lines: bytes, max_bytes: int) -> int:
    """Return the end of the last blank line that ends with a line feed; 0 if there is none."""
    end = lines.rfind(b"\n")
    while end >= 0:
        before = lines.rfind(b"\n", 0, end)
        if is_blank(lines[before + 1 : end], max_bytes):
            return end + 1
        end = before
    return 0

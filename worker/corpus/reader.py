"""Raw text to documents: finds JSONL files by language and reads their lines, counting those that it leaves out."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from state.data_manifest import SkippedLine, Source, language_problem
from state.errors import DataError, UserError

SUFFIX = ".jsonl"
MAX_LINE_BYTES = 64 * 1024 * 1024  # a longer line is no document but a broken file, and must not fill the memory
MAX_PLACES = 20  # places of skipped lines that are remembered per file: enough to find the cause

_LAYOUT = 'a folder per language with .jsonl files in it, each line {"text": "..."}'


class BadLine(StrEnum):
    """Why a line was left out."""

    NOT_UTF8 = "not UTF-8"
    NOT_JSON = "not JSON"
    NOT_AN_OBJECT = "not a JSON object"
    NO_TEXT = 'no "text"'
    TEXT_NOT_A_STRING = '"text" is not a string'
    EMPTY_TEXT = '"text" is empty'
    TOO_LONG = "too long for a document"


@dataclass(frozen=True)
class SourceFile:
    """One file of a corpus: `name` is its path within the corpus folder number `corpus`."""

    corpus: int
    name: str
    path: Path
    language: str


@dataclass(frozen=True)
class Sources:
    """What was found in the corpus folders: files by language, in reading order, and the names of files not read."""

    by_language: dict[str, tuple[SourceFile, ...]]
    ignored: tuple[str, ...]


def find_sources(corpora: Sequence[Path]) -> Sources:
    """Find the JSONL files of some corpus folders.

    The first folder level names the language, and all files below it belong to it; a file directly in a corpus folder
    has its stem as language (`konkani.jsonl`). Languages are read in name order, in each the corpora as given, in each
    the files in path order. Hidden files are passed over; files of other kinds are listed as ignored.

    Raises:
        UserError: a folder is missing, cannot be listed, holds no JSONL file, or a name cannot be used.
    """
    found: dict[str, list[SourceFile]] = {}
    ignored: list[str] = []
    for corpus, root in enumerate(corpora):
        if not root.is_dir():
            raise UserError(
                f"the corpus folder {root} {'is not a folder' if root.exists() else 'does not exist'}", expected=_LAYOUT
            )
        num_files = 0
        for name, path in sorted(_walk(root, "", ())):
            if path is None or not name.lower().endswith(SUFFIX):
                ignored.append(name)
                continue
            num_files += 1
            language = _language_of(name, root)
            found.setdefault(language, []).append(SourceFile(corpus, name, path, language))
        if not num_files:
            raise UserError(f"the corpus folder {root} has no {SUFFIX} file in it", expected=_LAYOUT)
    if not found:
        raise UserError("no corpus folder was given", expected=_LAYOUT)
    return Sources({language: tuple(found[language]) for language in sorted(found)}, tuple(ignored))


class DocumentReader:
    """Reads one file's documents and counts what it reads; the counts are complete once `texts` has ended."""

    def __init__(self, source: SourceFile, *, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._source = source
        self._max_line_bytes = max_line_bytes
        self._digest = hashlib.sha256()
        self._num_bytes = 0
        self._num_lines = 0
        self._num_documents = 0
        self._skipped: Counter[str] = Counter()
        self.first_skipped: list[SkippedLine] = []

    def texts(self) -> Iterator[str]:
        """Yield the texts, line by line.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            with open(self._source.path, "rb") as file:
                for number, line in enumerate(self._lines(file), start=1):
                    text = self._text(number, line)
                    if text is not None:
                        self._num_documents += 1
                        yield text
        except OSError as error:
            raise DataError(
                f"{self._source.path} cannot be read ({error.strerror})",
                remedy="make it readable, or take it out of the corpus folder",
            ) from error

    def summary(self) -> Source:
        """Return what has been read."""
        return Source(
            corpus=self._source.corpus,
            name=self._source.name,
            num_bytes=self._num_bytes,
            sha256=self._digest.hexdigest(),
            num_lines=self._num_lines,
            num_documents=self._num_documents,
            skipped=dict(sorted(self._skipped.items())),
        )

    def _lines(self, file: BinaryIO) -> Iterator[bytes | None]:
        """Yield lines; None stands for one that is too long, of which only the digest sees the bytes."""
        while line := file.readline(self._max_line_bytes):
            self._take(line)
            if self._num_bytes == len(line):
                line = line.removeprefix(b"\xef\xbb\xbf")  # the byte order mark that some editors put first
            if len(line) < self._max_line_bytes or line.endswith(b"\n"):
                yield line
                continue
            while (rest := file.readline(self._max_line_bytes)) and not rest.endswith(b"\n"):
                self._take(rest)
            self._take(rest)
            yield None

    def _take(self, data: bytes) -> None:
        self._digest.update(data)
        self._num_bytes += len(data)

    def _text(self, number: int, line: bytes | None) -> str | None:
        if line is not None and not line.strip():
            return None  # blank lines hold nothing that could be lost
        self._num_lines += 1
        text = BadLine.TOO_LONG if line is None else text_of(line)
        if not isinstance(text, BadLine):
            return text
        self._skipped[text.value] += 1
        if len(self.first_skipped) < MAX_PLACES:
            self.first_skipped.append(SkippedLine(file=str(self._source.path), line=number, reason=text.value))
        return None


def text_of(line: bytes) -> str | BadLine:
    """Return the text of a JSONL line, or why it has none."""
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return BadLine.NOT_UTF8
    except (ValueError, RecursionError):  # ValueError also covers integers of thousands of digits
        return BadLine.NOT_JSON
    if not isinstance(value, dict):
        return BadLine.NOT_AN_OBJECT
    if "text" not in value:
        return BadLine.NO_TEXT
    text = value["text"]
    if not isinstance(text, str):
        return BadLine.TEXT_NOT_A_STRING
    if not text.strip():
        return BadLine.EMPTY_TEXT
    return text if _is_unicode(text) else BadLine.NOT_UTF8


def _is_unicode(text: str) -> bool:
    """Say whether a text can be written as UTF-8: JSON escapes can smuggle in halves of surrogate pairs."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, Path | None]]:
    """Yield (path within the corpus, file); None for the file where a link leads back to a folder above it."""
    try:
        status = folder.stat()
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be listed ({error.strerror})", remedy="make it readable") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        yield f"{prefix} (a link to a folder above it)", None
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        name = f"{prefix}/{entry.name}" if prefix else entry.name
        if not _is_unicode(name):
            raise UserError(f"the file name {os.fsencode(entry.path)!r} is not UTF-8", remedy="rename it")
        if entry.is_dir():
            yield from _walk(Path(entry.path), name, (*above, here))
        else:
            yield name, Path(entry.path)


def _language_of(name: str, root: Path) -> str:
    first, _, rest = name.partition("/")
    language = first if rest else first[: -len(SUFFIX)]
    if problem := language_problem(language):
        raise UserError(f"{root / name}: {language!r} cannot name a language: {problem}", remedy="rename it")
    return language

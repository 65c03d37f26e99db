"""Parses the records of a chunk: each gives a text with its language, or the reason why it is left out."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from state.data_manifest import Recipe, language_problem
from worker.corpus.chunks import Chunk, is_blank
from worker.corpus.parquet import Row
from worker.corpus.sources import Form

EXCERPT_CHARACTERS = 80

_language_problem = lru_cache(maxsize=1024)(language_problem)


class Reason(StrEnum):
    """Why a record has no usable text."""

    NOT_UTF8 = "not UTF-8"
    NOT_JSON = "not JSON"
    NOT_AN_OBJECT = "not a JSON object"
    NOT_TEXT = "has NUL characters: UTF-16, or no text at all"
    NO_TEXT = "no text field"
    TEXT_NOT_A_STRING = "text is not a string"
    EMPTY_TEXT = "text is empty"
    TOO_LONG = "too long for a document"
    NO_LANGUAGE = "no language field"
    LANGUAGE_NAME = "cannot name a language"


class Record(NamedTuple):
    """A text with its language; `number` is its first line, or its row, in its file, from 1."""

    number: int
    text: str
    language: str


class BadRecord(NamedTuple):
    """A record that is left out; `excerpt` is its beginning, on one line."""

    number: int
    reason: Reason
    excerpt: str


def records(chunk: Chunk, recipe: Recipe) -> Iterator[Record | BadRecord]:
    """Yield all records of a chunk in their order. Blank lines are not records: they are not counted as left out."""
    if not isinstance(chunk.data, bytes):
        yield from _rows(chunk, chunk.data, recipe)
    elif chunk.source.kind.form is Form.JSONL:
        yield from _json_lines(chunk, chunk.data, recipe)
    else:
        language = chunk.source.language or ""
        for number, data in _documents(chunk.data, chunk.first_record, recipe):
            yield _plain(number, data, language, recipe)


def excerpt(text: str) -> str:
    """Return the first characters of a text; characters that cannot be printed become spaces."""
    head = text[:EXCERPT_CHARACTERS]
    return "".join(character if character.isprintable() else " " for character in head).strip()


def excerpt_of(data: bytes) -> str:
    """Return the first characters of a record's bytes, like `excerpt`."""
    return excerpt(data[: 4 * EXCERPT_CHARACTERS].decode("utf-8", "replace"))


def _json_lines(chunk: Chunk, data: bytes, recipe: Recipe) -> Iterator[Record | BadRecord]:
    for number, line in enumerate(data.split(b"\n"), chunk.first_record):
        if not is_blank(line, recipe.max_document_bytes):
            found = _json_line(line, chunk.source.language, recipe)
            if isinstance(found, Reason):
                yield BadRecord(number, found, excerpt_of(line))
            else:
                yield Record(number, *found)


def _json_line(line: bytes, language: object, recipe: Recipe) -> tuple[str, str] | Reason:
    """Return text and language; `language` is the file's, or None if the record names its own."""
    if len(line) > recipe.max_document_bytes:
        return Reason.TOO_LONG
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return Reason.NOT_UTF8
    except (ValueError, RecursionError):  # ValueError also covers integers of thousands of digits
        return Reason.NOT_JSON
    if not isinstance(value, dict):
        return Reason.NOT_AN_OBJECT
    if recipe.text_field not in value:
        return Reason.NO_TEXT
    text = value[recipe.text_field]
    if not isinstance(text, str):
        return Reason.TEXT_NOT_A_STRING
    if b"\\u" in line and not _is_unicode(text):
        return Reason.NOT_UTF8
    if language is None and recipe.language_field is not None:
        language = value.get(recipe.language_field)
    return _checked(text, language)


def _is_unicode(text: str) -> bool:
    """Return whether a text can be written as UTF-8: escapes in JSON can contain halves of surrogate pairs."""
    try:
        return text.isascii() or bool(text.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def _rows(chunk: Chunk, rows: tuple[Row, ...], recipe: Recipe) -> Iterator[Record | BadRecord]:
    for number, (text, language) in enumerate(rows, chunk.first_record):
        found = _row(text, language, chunk.source.language, recipe)
        if isinstance(found, Reason):
            yield BadRecord(number, found, excerpt_of(text or b""))
        else:
            yield Record(number, *found)


def _row(data: bytes | None, named: bytes | None, language: str | None, recipe: Recipe) -> tuple[str, str] | Reason:
    if data is None:
        return Reason.NO_TEXT
    if len(data) > recipe.max_document_bytes:
        return Reason.TOO_LONG
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return Reason.NOT_UTF8
    if recipe.language_field is not None:
        language = None if named is None else named.decode("utf-8", "surrogateescape")  # an invalid name is refused
    return _checked(text, language)


def _checked(text: str, language: object) -> tuple[str, str] | Reason:
    if not text or text.isspace():
        return Reason.EMPTY_TEXT
    if language is None:
        return Reason.NO_LANGUAGE
    if not isinstance(language, str) or _language_problem(language):
        return Reason.LANGUAGE_NAME
    return text, language


def _documents(data: bytes, first_line: int, recipe: Recipe) -> Iterator[tuple[int, bytes]]:
    """Yield the documents of plain text, each with its first line's number, without the last line feed."""
    if recipe.text_documents == "file":
        yield first_line, data.removesuffix(b"\n")
        return
    lines = data.split(b"\n")
    blank = [is_blank(line, recipe.max_document_bytes) for line in lines]
    if recipe.text_documents == "lines":
        yield from ((first_line + index, line) for index, line in enumerate(lines) if not blank[index])
        return
    start = 0
    for end in itertools.chain((index for index, gap in enumerate(blank) if gap), [len(lines)]):
        if end > start:
            yield first_line + start, b"\n".join(lines[start:end])
        start = end + 1


def _plain(number: int, data: bytes, language: str, recipe: Recipe) -> Record | BadRecord:
    found = _plain_text(data, recipe)
    return BadRecord(number, found, excerpt_of(data)) if isinstance(found, Reason) else Record(number, found, language)


def _plain_text(data: bytes, recipe: Recipe) -> str | Reason:
    """Return the text with line feeds as the only line ends, or the reason why it is left out."""
    if len(data) > recipe.max_document_bytes:
        return Reason.TOO_LONG
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return Reason.NOT_UTF8
    if b"\0" in data:
        return Reason.NOT_TEXT
    if not text or text.isspace():
        return Reason.EMPTY_TEXT
    return text.replace("\r\n", "\n").removesuffix("\r")

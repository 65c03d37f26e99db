"""Finds the text files of corpus folders, their formats and their languages."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from state.data_manifest import Recipe, language_problem
from state.errors import UserError
from worker.corpus.extras import required

_LAYOUT = 'a folder per language, in it .jsonl (each line {"text": "..."}), .txt, either also as .gz or .zst, or .parquet files'


class Form(StrEnum):
    """How a file stores records."""

    JSONL = "JSON lines"
    TEXT = "plain text"
    PARQUET = "Parquet"


class Compression(StrEnum):
    """How a file is compressed as a whole."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


@dataclass(frozen=True)
class Kind:
    """The format of a file."""

    form: Form
    compression: Compression = Compression.NONE

    @property
    def record_word(self) -> str:
        """The unit that a record's number counts."""
        return "row" if self.form is Form.PARQUET else "line"


_FORMS = {".jsonl": Form.JSONL, ".ndjson": Form.JSONL, ".txt": Form.TEXT}
_COMPRESSIONS = {"": Compression.NONE, ".gz": Compression.GZIP, ".zst": Compression.ZSTD}
_KINDS = {
    **{form + packed: Kind(_FORMS[form], _COMPRESSIONS[packed]) for form in _FORMS for packed in _COMPRESSIONS},
    ".parquet": Kind(Form.PARQUET),
}


@dataclass(frozen=True)
class SourceFile:
    """One file of a corpus: `name` is its path within the corpus folder number `corpus`.

    `language` is None if each record names its own.
    """

    corpus: int
    name: str
    path: Path
    language: str | None
    kind: Kind


@dataclass(frozen=True)
class Sources:
    """The files found in the corpus folders, in reading order, and the ignored files, each with its reason."""

    files: tuple[SourceFile, ...]
    ignored: tuple[str, ...]


_IGNORED_SHOWN = 10  # a folder of pictures has tens of thousands of them


def not_read(ignored: Sequence[str]) -> str:
    """Return the ignored files as a line for people."""
    more = f" and {len(ignored) - _IGNORED_SHOWN:,} more" if len(ignored) > _IGNORED_SHOWN else ""
    return f"not read: {', '.join(ignored[:_IGNORED_SHOWN])}{more}"


@dataclass(frozen=True)
class _Entry:
    """An entry of a corpus folder; `size_bytes` is None if it is not read, for the reason `problem`."""

    name: str
    path: Path
    size_bytes: int | None
    problem: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.problem})" if self.problem else self.name


def kind_of(name: str) -> tuple[str, Kind] | None:
    """Return the suffix of a file's name, in its own spelling, and its format; None for files that are not read."""
    for suffix, kind in _KINDS.items():
        if name.lower().endswith(suffix):
            return name[-len(suffix) :], kind
    return None


def find_sources(corpora: Sequence[Path], recipe: Recipe) -> Sources:
    """Find the text files of corpus folders.

    The first folder level names the language of all files below it. The name of a file directly in a corpus folder, without
    its suffix, names the file's language (`konkani.jsonl.gz`). If the recipe has a language field, records of JSON lines and
    Parquet name their own. Files are ordered by language, corpus and name. Hidden files are skipped; files of other kinds
    are listed as ignored.

    Raises:
        UserError: a folder is missing, given twice, unreadable or has no text file; a name is invalid; a link is broken; a
            file is too large for one document; or a library for its format is missing.
    """
    if not corpora:
        raise UserError("no corpus folder is given", expected=_LAYOUT)
    _check_folders(corpora)
    files: list[SourceFile] = []
    ignored: list[str] = []
    for corpus, root in enumerate(corpora):
        num_files = len(files)
        for entry in _walk(root, "", ()):
            found = kind_of(entry.name)
            if entry.size_bytes is None or found is None:
                ignored.append(str(entry))
                continue
            suffix, kind = found
            _check_size(entry.path, entry.size_bytes, kind, recipe)
            language = None if _names_its_language(kind, recipe) else _language_of(entry, suffix)
            files.append(SourceFile(corpus, entry.name, entry.path, language, kind))
        if len(files) == num_files:
            raise UserError(f"the corpus folder {root} has no file in it that can be read", expected=_LAYOUT)
    _check_libraries(files)
    files.sort(key=lambda file: (file.language or "", file.corpus, file.name))
    return Sources(tuple(files), tuple(sorted(ignored)))


def _check_folders(corpora: Sequence[Path]) -> None:
    resolved: list[tuple[Path, Path]] = []
    for root in corpora:
        if not root.is_dir():
            raise UserError(
                f"the corpus folder {root} {'is not a folder' if root.exists() else 'does not exist'}", expected=_LAYOUT
            )
        here = root.resolve()
        for other, there in resolved:
            if here == there:
                raise UserError(f"the corpus folders {other} and {root} are the same", remedy="give it once")
            if here in there.parents or there in here.parents:
                inner, outer = (other, root) if here in there.parents else (root, other)
                raise UserError(
                    f"the corpus folder {inner} lies inside the corpus folder {outer}", remedy=f"give {outer} alone, or move it"
                )
        resolved.append((root, here))


def _check_size(path: Path, size_bytes: int, kind: Kind, recipe: Recipe) -> None:
    whole = kind == Kind(Form.TEXT) and recipe.text_documents == "file"
    if whole and size_bytes > recipe.max_document_bytes:
        raise UserError(
            f"{path} has {size_bytes:,} bytes, which is too much for one document",
            expected=f"at most {recipe.max_document_bytes:,} bytes, as a plain text file is one document",
            remedy="say where its documents end: --text-documents paragraphs (at blank lines), or --text-documents lines",
        )


def _check_libraries(files: Sequence[SourceFile]) -> None:
    for file in files:
        if file.kind.form is Form.PARQUET:
            required("pyarrow.parquet", str(file.path))
        elif file.kind.compression is Compression.ZSTD:
            required("zstandard", str(file.path))


def _names_its_language(kind: Kind, recipe: Recipe) -> bool:
    return recipe.language_field is not None and kind.form is not Form.TEXT


def _language_of(entry: _Entry, suffix: str) -> str:
    first, _, rest = entry.name.partition("/")
    language = first if rest else first[: -len(suffix)]
    if problem := language_problem(language):
        raise UserError(f"{entry.path}: {language!r} cannot name a language: {problem}", remedy="rename it")
    return language


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[_Entry]:
    """Yield all entries of a folder that are not hidden, at any depth; follows links, but never in circles."""
    try:
        status = folder.stat()
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be listed ({error.strerror})", remedy="make it readable") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        yield _Entry(prefix, folder, None, "a link to a folder above it")
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        name = f"{prefix}/{entry.name}" if prefix else entry.name
        if not _is_unicode(name):
            raise UserError(f"the file name {os.fsencode(entry.path)!r} is not UTF-8", remedy="rename it")
        found = _entry(name, Path(entry.path))
        if found is None:
            yield from _walk(Path(entry.path), name, (*above, here))
        else:
            yield found


def _entry(name: str, path: Path) -> _Entry | None:
    """Return the entry of a file, a bad link or a special file; None for a folder."""
    try:
        status = path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return _Entry(name, path, None, "a link that leads back to itself")
        raise UserError(
            f"{path} cannot be read ({error.strerror})",
            expected="a file, a folder, or a link that leads to one",
            remedy="bring back what it points to, or take it out of the corpus folder",
        ) from error
    if stat.S_ISDIR(status.st_mode):
        return None
    if not stat.S_ISREG(status.st_mode):
        return _Entry(name, path, None, "not a regular file")
    return _Entry(name, path, status.st_size)


def _is_unicode(name: str) -> bool:
    """Return whether a name is UTF-8; Python represents other bytes as halves of surrogate pairs."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True

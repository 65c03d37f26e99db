"""Units: the encoded documents of a pack of chunks, one file each, named by a hash of everything that determines them.

The hash covers the recipe, the tokenizer and the bytes that were read. So an existing unit is always right: a preparation
that was killed reads the corpus again and reuses the units that exist. If files were changed, renamed or removed meanwhile,
their old units are simply not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from state.document import Document
from state.files import write_atomically

DOCUMENT = np.dtype(
    [
        ("hash_high", "<u8"),
        ("hash_low", "<u8"),
        ("num_tokens", "<u4"),
        ("num_bytes", "<u4"),
        ("record", "<u4"),
        ("portion", "<u4"),  # 16 bits would not do: a unit can hold a hundred thousand files of a line each
        ("language", "<u4"),
        ("held_out", "?"),
    ]
)

UNIT_VERSION = 2
"""Part of every unit's name. Raise it whenever the same text gives another unit, in form or in content."""

MAX_EXAMPLES = 3  # of each reason and source: enough to see the pattern


class Example(Document):
    """One record that was left out, or one document that was dropped."""

    record: int = Field(ge=1, description="line where it begins, or row of a Parquet file")
    excerpt: str = Field(description="how it begins")
    same_as: str | None = Field(default=None, description="of a duplicate: where the text came first")


class Portion(Document):
    """The part of a unit that comes from one chunk: counts of its records, by language."""

    num_records: int = Field(ge=0)
    skipped: dict[str, int] = Field(default_factory=dict, description="records without a usable text, by reason")
    changed: dict[str, dict[str, int]] = Field(default_factory=dict, description="by language and rule")
    dropped: dict[str, dict[str, int]] = Field(default_factory=dict, description="by language and rule; no duplicates")
    examples: dict[str, tuple[Example, ...]] = Field(default_factory=dict, description="the first few, by reason or rule")


class UnitHeader(Document):
    """The header of a unit's file."""

    schema_version: int = 1
    portions: tuple[Portion, ...]
    languages: tuple[str, ...]
    num_documents: int
    num_tokens: int
    token_bytes: int


@dataclass(frozen=True)
class Unit:
    """Documents as tokens, in reading order.

    Attributes:
        header: Counts, and the names that the columns of `documents` point to.
        documents: [num_documents] of DOCUMENT.
        tokens: [num_tokens], all documents' tokens joined, with bos and eos.
    """

    header: UnitHeader
    documents: NDArray[np.void]
    tokens: NDArray[np.unsignedinteger]


def write_unit(
    path: Path,
    portions: Sequence[Portion],
    languages: Sequence[str],
    documents: NDArray[np.void],
    tokens: NDArray[np.unsignedinteger],
) -> UnitHeader:
    """Write a unit atomically: the file appears complete or not at all.

    Raises:
        OSError: the disk is full.
    """
    header = UnitHeader(
        portions=tuple(portions),
        languages=tuple(languages),
        num_documents=len(documents),
        num_tokens=len(tokens),
        token_bytes=tokens.dtype.itemsize,
    )
    text = header.to_json()
    write_atomically(path, len(text).to_bytes(8, "little") + text + documents.tobytes() + tokens.tobytes())
    return header


def read_header(path: Path) -> UnitHeader:
    """Return a unit's header."""
    with open(path, "rb") as file:
        return _header(file, path)


def read_documents(path: Path) -> NDArray[np.void]:
    """Return a unit's documents, [num_documents] of DOCUMENT, without its tokens."""
    with open(path, "rb") as file:
        header = _header(file, path)
        return np.fromfile(file, DOCUMENT, header.num_documents)


def read_unit(path: Path) -> Unit:
    """Return a unit."""
    with open(path, "rb") as file:
        header = _header(file, path)
        documents = np.fromfile(file, DOCUMENT, header.num_documents)
        return Unit(header, documents, np.fromfile(file, f"<u{header.token_bytes}", header.num_tokens))


def _header(file: BinaryIO, path: Path) -> UnitHeader:
    num_bytes = int.from_bytes(file.read(8), "little")
    return UnitHeader.from_json(file.read(num_bytes), str(path))

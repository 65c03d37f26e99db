"""Computes the digests of tensors in safetensors files, without torch.

The controller has no torch, and must still tell whether two states are equal, and which tensor differs first.
Source of the format: the safetensors specification (8 bytes little-endian header length, JSON header with dtype, shape and
data_offsets, then the data). `torch.distributed.checkpoint` stores the offset of each piece of a sharded tensor under the
metadata key `DCP_SHARDING_INFO` (torch 2.13, torch/distributed/checkpoint/_hf_utils.py).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

from pydantic import BaseModel, Field, Json, NonNegativeInt, ValidationError

from state.errors import DataError
from state.manifest import TensorEntry

_HEADER_LIMIT_BYTES = 100_000_000  # the format's own limit
_CHUNK_BYTES = 4 * 1024 * 1024


class _Entry(BaseModel, defer_build=True):
    """The entry of one tensor in a header."""

    dtype: str
    shape: tuple[NonNegativeInt, ...]
    data_offsets: tuple[NonNegativeInt, NonNegativeInt]


class _Sharding(BaseModel, defer_build=True):
    """Offset of a file's piece within the whole tensor."""

    saved_offsets: tuple[NonNegativeInt, ...]


class _Metadata(BaseModel, defer_build=True):
    """The part of the metadata that describes how tensors are cut."""

    sharding: Json[dict[str, _Sharding]] = Field(default={}, alias="DCP_SHARDING_INFO")


class _Header(BaseModel, extra="allow", defer_build=True):
    """The header of a file: its metadata, and one entry per tensor name."""

    metadata: _Metadata = Field(default_factory=_Metadata, alias="__metadata__")
    __pydantic_extra__: dict[str, _Entry]

    @property
    def entries(self) -> dict[str, _Entry]:
        """The tensors' entries."""
        return self.__pydantic_extra__


@dataclass(frozen=True)
class TensorPiece:
    """The piece of a tensor that one file holds: the whole tensor, or a block if several ranks wrote it."""

    tensor: str
    dtype: str
    offset: tuple[int, ...]
    """Where the block begins in the whole tensor, by dimension."""
    shape: tuple[int, ...]
    begin: int
    """Where its bytes begin in the file."""
    end: int


@dataclass(frozen=True)
class _Located:
    """A piece and its file."""

    path: Path
    piece: TensorPiece


def tensor_entries(paths: Iterable[Path]) -> tuple[TensorEntry, ...]:
    """Return an entry for each whole tensor in the files, in name order.

    Raises:
        DataError: a file is not a safetensors file, or the pieces of a tensor do not form a whole one.
    """
    pieces: dict[str, list[_Located]] = {}
    for path in paths:
        with open(path, "rb") as file:
            for piece in read_header(file.read, path.name):
                pieces.setdefault(piece.tensor, []).append(_Located(path, piece))
    return tuple(_digest(name, pieces[name]) for name in sorted(pieces))


def read_header(read: Callable[[int], bytes], file_name: str) -> tuple[TensorPiece, ...]:
    """Return the pieces of tensors that a file holds, in byte order.

    Args:
        read: Reads the given number of bytes from the file, which is at its beginning.
        file_name: The file's name, for messages.

    Raises:
        DataError: the file is not a safetensors file.
    """
    prefix = read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _HEADER_LIMIT_BYTES + 1
    if length > _HEADER_LIMIT_BYTES:
        raise DataError(f"{file_name} is not a safetensors file: the length of its header is invalid")
    text = read(length)
    if len(text) < length:
        raise DataError(f"{file_name} is not a safetensors file: it ends within its header")
    try:
        header = _Header.model_validate_json(text)
    except ValidationError as error:
        raise DataError(f"{file_name} is not a safetensors file: its header is invalid") from error
    pieces = []
    for name, entry in header.entries.items():
        sharding = header.metadata.sharding.get(name)
        offset = sharding.saved_offsets if sharding is not None else (0,) * len(entry.shape)
        begin, end = (8 + length + position for position in entry.data_offsets)
        pieces.append(TensorPiece(name, entry.dtype, offset, entry.shape, begin, end))
    return tuple(sorted(pieces, key=lambda piece: (piece.begin, piece.end)))


def _digest(name: str, located: list[_Located]) -> TensorEntry:
    located.sort(
        key=lambda each: (each.piece.offset, each.piece.shape)
    )  # an empty piece comes before the other one at its offset
    first = located[0].piece
    if not first.shape and len(located) > 1:
        raise DataError(f"scalar {name} is in {len(located)} files", expected="one file")
    digest = hashlib.sha256()
    rows = 0
    for path, piece in ((each.path, each.piece) for each in located):
        expected_offset = (rows, *(0 for _ in piece.shape[1:])) if piece.shape else ()
        if piece.offset != expected_offset or piece.dtype != first.dtype or piece.shape[1:] != first.shape[1:]:
            raise DataError(f"the pieces of tensor {name} do not fit together: that in {path.name} begins at {piece.offset}")
        _update(digest, path, piece)
        rows += piece.shape[0] if piece.shape else 0
    shape = (rows, *first.shape[1:]) if first.shape else ()
    return TensorEntry(name=name, dtype=first.dtype, shape=shape, sha256=digest.hexdigest())


def _update(digest: hashlib._Hash, path: Path, piece: TensorPiece) -> None:
    left = piece.end - piece.begin
    with open(path, "rb", buffering=0) as file:
        file.seek(piece.begin)
        while left:
            chunk = file.read(min(_CHUNK_BYTES, left))
            if not chunk:
                raise DataError(f"{path.name} ends {left} bytes early ({prod(piece.shape)} elements expected)")
            digest.update(chunk)
            left -= len(chunk)

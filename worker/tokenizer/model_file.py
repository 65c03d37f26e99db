"""Reads a SentencePiece model file: its pieces, and how it changes text before it cuts it into pieces.

The file is a protocol buffer (`sentencepiece_model.proto` of google/sentencepiece). SentencePiece's own reader needs the
protobuf package. We need few of the fields, so the small reader below is enough.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

SPACE = "\u2581"
"""The character that SentencePiece writes for a space."""


class PieceKind(IntEnum):
    """The kind of a piece."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class ModelType(IntEnum):
    """The algorithm that cuts a text into pieces."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


@dataclass(frozen=True)
class Piece:
    """One piece of the vocabulary."""

    text: str
    score: float
    kind: PieceKind


@dataclass(frozen=True)
class SentencePieceModel:
    """The parts of a model file that define how it encodes a text."""

    pieces: tuple[Piece, ...]
    model_type: ModelType
    byte_fallback: bool
    whitespace_is_suffix: bool
    bos_id: int | None
    normalisation: str
    """Name of the normalisation rule; `user_defined` for the user's own table."""
    charsmap: bytes
    """The rule, compiled; empty: the text is not normalised."""
    adds_dummy_prefix: bool
    removes_extra_whitespace: bool
    escapes_whitespace: bool

    @property
    def has_user_defined_pieces(self) -> bool:
        """Whether the model has user-defined pieces, which are found in the text before all others."""
        return any(piece.kind is PieceKind.USER_DEFINED for piece in self.pieces)


def parse_model(data: bytes) -> SentencePieceModel:
    """Read the bytes of a model file.

    Raises:
        ValueError: the bytes are not a SentencePiece model.
    """
    try:
        parts = list(_fields(data))
        pieces = tuple(_piece(value) for number, value in parts if number == 1 and isinstance(value, bytes))
        trainer, normalizer = _message(parts, 2), _message(parts, 3)
        model_type = ModelType(_integer(trainer.get(3, ModelType.UNIGRAM)))
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    bos_id = _integer(trainer.get(41, 1))
    return SentencePieceModel(
        pieces=pieces,
        model_type=model_type,
        byte_fallback=bool(trainer.get(35, 0)),
        whitespace_is_suffix=bool(trainer.get(24, 0)),
        bos_id=bos_id if bos_id < len(pieces) else None,  # -1, for none, is written as 2**64 - 1
        normalisation=_bytes(normalizer.get(1, b"")).decode("utf-8", "replace"),
        charsmap=_bytes(normalizer.get(2, b"")),
        adds_dummy_prefix=bool(normalizer.get(3, 1)),
        removes_extra_whitespace=bool(normalizer.get(4, 1)),
        escapes_whitespace=bool(normalizer.get(5, 1)),
    )


def _piece(data: bytes) -> Piece:
    values = dict(_fields(data))
    score = struct.unpack("<f", _bytes(values.get(2, b"\0\0\0\0")))[0]
    return Piece(_bytes(values.get(1, b"")).decode(), score, PieceKind(_integer(values.get(3, PieceKind.NORMAL))))


def _message(parts: list[tuple[int, int | bytes]], number: int) -> dict[int, int | bytes]:
    return {
        key: inner
        for part_number, value in parts
        if part_number == number and isinstance(value, bytes)
        for key, inner in _fields(value)
    }


def _integer(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("a field holds bytes, expected a number")
    return value


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a field holds a number, expected bytes")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a protocol buffer message: integers, and bytes for all else.

    Raises:
        ValueError: the bytes are not a protocol buffer message.
        IndexError: the bytes end too early.
    """
    position = 0

    def read_varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while position < len(data):
        key = read_varint()
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            yield number, read_varint()
            continue
        if wire_type not in (1, 2, 5):
            raise ValueError(f"field {number} has the unknown wire type {wire_type}")
        size = read_varint() if wire_type == 2 else {1: 8, 5: 4}[wire_type]
        if position + size > len(data):
            raise IndexError(f"field {number} ends after the file")
        yield number, data[position : position + size]
        position += size

"""A SentencePiece model as the `tokenizer.json` that Hugging Face's libraries read, giving the same ids.

Everything is taken out of the model file itself, which is a protocol buffer (`sentencepiece_model.proto` of
google/sentencepiece); the `tokenizer.json` layout is that of huggingface/tokenizers.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from state.errors import UserError

_SPACE = "\u2581"
"""What SentencePiece writes for a space."""


class _Kind(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_UNIGRAM, _BPE = 1, 2


@dataclass(frozen=True)
class _Piece:
    text: str
    score: float
    kind: _Kind


@dataclass(frozen=True)
class _Model:
    pieces: tuple[_Piece, ...]
    model_type: int
    byte_fallback: bool
    charsmap: bytes
    adds_dummy_prefix: bool
    removes_extra_whitespace: bool
    bos_id: int | None


def tokenizer_json(model_path: Path) -> dict[str, Any]:
    """Return the content of a `tokenizer.json` for a SentencePiece model; encoding starts with `<bos>` where there is one.

    Two differences remain. The names of special pieces are recognised in text, as is usual with Hugging Face. A unigram
    model may cut another way where two ways are equally likely (measured: 8 of 3 632 documents; BPE: none).

    Raises:
        UserError: the file is no SentencePiece model, or of a type (word, char) that has no counterpart.
    """
    model = _read_model(model_path)
    if model.model_type == _BPE:
        core = _bpe(model)
    elif model.model_type == _UNIGRAM:
        core = _unigram(model)
    else:
        raise UserError(
            f"the tokenizer {model_path} is neither of type bpe nor of type unigram",
            expected="a SentencePiece model of one of these types",
            remedy="export with --format gemma-pytorch or safetensors, which take the model file as it is",
        )
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": piece.text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": piece.kind is not _Kind.USER_DEFINED,
            }
            for i, piece in enumerate(model.pieces)
            if piece.kind in (_Kind.UNKNOWN, _Kind.CONTROL, _Kind.USER_DEFINED)
        ],
        "normalizer": {"type": "Sequence", "normalizers": list(_normalizers(model))},
        "pre_tokenizer": _pre_tokenizer(model),
        "post_processor": _post_processor(model),
        "decoder": {"type": "Sequence", "decoders": list(_decoders(model))},
        "model": core,
    }


def _bpe(model: _Model) -> dict[str, Any]:
    normal = {piece.text: i for i, piece in enumerate(model.pieces) if piece.kind is _Kind.NORMAL}
    merges = []
    for text in normal:
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in normal and right in normal:
                # SentencePiece merges the best piece first and, of equal ones, the leftmost; in a run of one character
                # that leaves the longer part on the left.
                merges.append(((-model.pieces[normal[text]].score, normal[text], -cut), [left, right]))
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": next((piece.text for piece in model.pieces if piece.kind is _Kind.UNKNOWN), None),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": False,
        "vocab": {piece.text: i for i, piece in enumerate(model.pieces)},
        "merges": [pair for _, pair in sorted(merges)],
    }


def _unigram(model: _Model) -> dict[str, Any]:
    return {
        "type": "Unigram",
        "unk_id": next((i for i, piece in enumerate(model.pieces) if piece.kind is _Kind.UNKNOWN), None),
        "vocab": [[piece.text, piece.score] for piece in model.pieces],
        "byte_fallback": model.byte_fallback,
    }


def _normalizers(model: _Model) -> Iterator[dict[str, Any]]:
    if model.charsmap:
        yield {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.charsmap).decode()}
    if model.removes_extra_whitespace:
        yield {"type": "Strip", "strip_left": True, "strip_right": True}
        yield {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    if model.adds_dummy_prefix and not _has_user_defined_pieces(model):
        yield {"type": "Prepend", "prepend": _SPACE}
    yield {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}


def _pre_tokenizer(model: _Model) -> dict[str, Any] | None:
    if not (model.adds_dummy_prefix and _has_user_defined_pieces(model)):
        return None
    # These pieces cut a text before it is normalised, and only its very beginning has the prefix.
    return {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "first", "split": False}


def _has_user_defined_pieces(model: _Model) -> bool:
    return any(piece.kind is _Kind.USER_DEFINED for piece in model.pieces)


def _post_processor(model: _Model) -> dict[str, Any] | None:
    if model.bos_id is None:
        return None
    name = model.pieces[model.bos_id].text
    start = {"SpecialToken": {"id": name, "type_id": 0}}
    first, second = ({"Sequence": {"id": part, "type_id": type_id}} for part, type_id in (("A", 0), ("B", 1)))
    return {
        "type": "TemplateProcessing",
        "single": [start, first],
        "pair": [start, first, {"SpecialToken": {"id": name, "type_id": 1}}, second],
        "special_tokens": {name: {"id": name, "ids": [model.bos_id], "tokens": [name]}},
    }


def _decoders(model: _Model) -> Iterator[dict[str, Any]]:
    yield {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    yield {"type": "ByteFallback"}
    yield {"type": "Fuse"}
    if model.adds_dummy_prefix:
        yield {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def _read_model(path: Path) -> _Model:
    try:
        parts = list(_fields(path.read_bytes()))
        pieces = tuple(_read_piece(bytes(value)) for number, value in parts if number == 1 and isinstance(value, bytes))
        trainer = _message(parts, 2)
        normalizer = _message(parts, 3)
    except (IndexError, ValueError, struct.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a SentencePiece model: {error}", expected="a .model file") from error
    charsmap = normalizer.get(2, b"")
    bos_id = _integer(trainer.get(41, 1))
    return _Model(
        pieces=pieces,
        model_type=_integer(trainer.get(3, _UNIGRAM)),
        byte_fallback=bool(trainer.get(35, 0)),
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
        adds_dummy_prefix=bool(normalizer.get(3, 1)),
        removes_extra_whitespace=bool(normalizer.get(4, 1)),
        bos_id=bos_id if bos_id < len(pieces) else None,  # -1, for none, is written as 2**64 - 1
    )


def _read_piece(data: bytes) -> _Piece:
    values = dict(_fields(data))
    text, score = values.get(1, b""), values.get(2, b"\0\0\0\0")
    assert isinstance(text, bytes)
    assert isinstance(score, bytes)
    return _Piece(text.decode(), struct.unpack("<f", score)[0], _Kind(_integer(values.get(3, _Kind.NORMAL))))


def _message(parts: list[tuple[int, int | bytes]], number: int) -> dict[int, int | bytes]:
    return {
        key: inner
        for part_number, value in parts
        if part_number == number and isinstance(value, bytes)
        for key, inner in _fields(value)
    }


def _integer(value: int | bytes) -> int:
    assert isinstance(value, int)
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a protocol buffer message: integers, and bytes for all else.

    Raises:
        ValueError: the bytes are no such message.
        IndexError: they end too early.
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

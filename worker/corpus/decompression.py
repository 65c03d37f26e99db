"""Decompresses files as streams of small pieces, in bounded memory, and detects every kind of damage."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

from worker.corpus.extras import required

Read = Callable[[int], bytes]
"""Reads the given number of bytes of a file; fewer only at its end."""

PIECE_BYTES = 256 * 1024
_GZIP = 16 + zlib.MAX_WBITS
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_ENDS = "is cut off: the zstd stream does not end"


class DamagedError(Exception):
    """A compressed file is damaged, cut off or in another format. Its text continues a sentence: "FILE is cut off"."""


def gunzip(read: Read) -> Iterator[bytes]:
    """Decompress a gzip file of one or more members, in pieces of at most PIECE_BYTES.

    Raises:
        DamagedError: the file is not gzip, is cut off, or its bytes have changed.
    """
    member: Any = zlib.decompressobj(_GZIP)
    num_members = 0
    begun = False  # whether the member has had any byte
    while rest := read(PIECE_BYTES):
        while rest:
            if num_members and not begun:
                rest = rest.lstrip(b"\0")  # some tools pad with zeros after the last member
                if not rest:
                    break
            begun = True
            try:
                yield member.decompress(rest, PIECE_BYTES)
            except zlib.error as error:
                raise DamagedError(f"is no gzip, or a damaged one ({error})") from error
            rest = member.unconsumed_tail
            if member.eof:
                rest = member.unused_data
                member, num_members, begun = zlib.decompressobj(_GZIP), num_members + 1, False
    if begun or not num_members:
        raise DamagedError("is cut off: the gzip stream does not end")


def unzstd(read: Read, name: str) -> Iterator[bytes]:
    """Decompress a zstd file of one or more frames, in pieces of at most 128 KiB.

    The library decompresses all of its input at once and does not detect a frame that is cut off. So we give it one block
    at a time (zstd's format, RFC 8878 section 3.1.1.2).

    Args:
        read: Reads the file.
        name: The file's name, for messages.

    Raises:
        DamagedError: the file is not zstd, is cut off, or its bytes have changed.
    """
    zstandard = required("zstandard", name)
    num_frames = 0
    while magic := read(4):
        if len(magic) == 4 and magic[0] & 0xF0 == 0x50 and magic[1:] == b"\x2a\x4d\x18":
            _skip(read, int.from_bytes(_exactly(read, 4), "little"))
        elif magic == _ZSTD_MAGIC:
            frame = zstandard.ZstdDecompressor().decompressobj()
            for block in _zstd_blocks(read):
                try:
                    piece = frame.decompress(block)
                except zstandard.ZstdError as error:
                    raise DamagedError(f"is a damaged zstd ({error})") from error
                if piece:
                    yield piece
            if not frame.eof:
                raise DamagedError("is a damaged zstd")
        elif len(magic) < 4 and _ZSTD_MAGIC.startswith(magic):
            raise DamagedError(_ZSTD_ENDS)
        else:
            raise DamagedError("is no zstd" if not num_frames else "has something after its last zstd frame")
        num_frames += 1
    if not num_frames:
        raise DamagedError("is cut off: it is empty")


def _zstd_blocks(read: Read) -> Iterator[bytes]:
    """Yield the parts of a frame after its magic number has been read: header, blocks, checksum."""
    descriptor = _exactly(read, 1)
    flags = descriptor[0]
    single_segment, checksum = bool(flags & 0x20), bool(flags & 0x04)
    size_bytes = (int(single_segment), 2, 4, 8)[flags >> 6]
    header_bytes = (not single_segment) + (0, 1, 2, 4)[flags & 0x03] + size_bytes
    yield _ZSTD_MAGIC + descriptor + _exactly(read, header_bytes)
    last = False
    while not last:
        header = _exactly(read, 3)
        bits = int.from_bytes(header, "little")
        last, kind, size = bool(bits & 1), bits >> 1 & 3, bits >> 3
        if size > 128 * 1024:
            raise DamagedError("is a damaged zstd (a block is larger than it can be)")
        yield header + _exactly(read, 1 if kind == 1 else size)
    if checksum:
        yield _exactly(read, 4)


def _exactly(read: Read, num_bytes: int) -> bytes:
    data = read(num_bytes)
    if len(data) < num_bytes:
        raise DamagedError(_ZSTD_ENDS)
    return data


def _skip(read: Read, num_bytes: int) -> None:
    while num_bytes:
        num_bytes -= len(_exactly(read, min(num_bytes, PIECE_BYTES)))

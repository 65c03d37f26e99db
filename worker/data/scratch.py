"""Copies the blocks that the next samples need from a slow mount to local scratch, ahead of the trainer.

A thread copies blocks in the order of their first use: those of each language's current window, then those of its next
window. Each block is verified while it is copied. Blocks that do not fit, cannot be copied or are not copied yet are read
from the mount directly.

Scratch is one file without a name. So the operating system frees its room however the session ends, and sessions that
share a folder cannot collide. It has slots of one block each, as many as the budget holds, and is read through a mapping.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from state.data_manifest import BLOCK_TOKENS
from state.errors import DataError
from worker.data.blocks import Tokens, blocks_of
from worker.data.order import BatchOrder, Window

_SLOT_TOKENS = BLOCK_TOKENS + 1
_LONGEST_GOODBYE_S = 30.0  # a mount that hangs must not delay the session's end for longer

BlockId = tuple[str, int]
"""(language, number of the block in its stream)."""


@dataclass(frozen=True)
class Scratch:
    """Where copies of blocks may lie, and how many bytes they may take; None: as many as two windows a language need."""

    dir: Path
    budget_bytes: int | None = None

    def num_slots(self, order: BatchOrder, num_blocks: Mapping[str, int], slot_bytes: int) -> int:
        """Return how many blocks scratch should hold, given each language's number of blocks."""
        if self.budget_bytes is not None:
            return min(self.budget_bytes // slot_bytes, sum(num_blocks.values()))
        return sum(min(count, 2 * order.language_order(name).most_window_blocks) for name, count in num_blocks.items())


@dataclass(frozen=True)
class Wanted:
    """The blocks that should be in scratch, in the order in which to copy them: current windows, then next windows."""

    now: tuple[BlockId, ...]
    next: tuple[BlockId, ...]

    def first(self, num_blocks: int) -> tuple[BlockId, ...]:
        """Return the first `num_blocks` of them."""
        return (self.now + self.next)[:num_blocks]


def wanted_at(order: BatchOrder, drawn: Mapping[str, int]) -> Wanted:
    """Return which blocks should be in scratch after each language has drawn a number of samples.

    Args:
        order: The run's order.
        drawn: Samples drawn so far, for each language with a share above 0.
    """
    now: dict[BlockId, float] = {}
    following: dict[BlockId, float] = {}
    for name, count in drawn.items():
        one = order.language_order(name)
        for needs, when in ((now, count), (following, one.window(count).end)):
            needs.update({(name, block): (first - count) / order.shares[name] for block, first in one.needs(when).items()})
    return Wanted(
        now=tuple(sorted(now, key=lambda block: (now[block], block))),
        next=tuple(sorted(following.keys() - now.keys(), key=lambda block: (following[block], block))),
    )


def slot_bytes(dtype: np.dtype[np.unsignedinteger]) -> int:
    """Return how many bytes of scratch a block takes."""
    return _SLOT_TOKENS * dtype.itemsize


class BlockSource(Protocol):
    """The source from which the copier reads a language's blocks."""

    def block(self, number: int) -> bytes:
        """Return the bytes of a block and of the token after it, verified.

        Raises:
            DataError: the digest differs from the manifest.
            OSError: the block cannot be read.
        """
        ...


class Slots:
    """The scratch file: slots that hold one block each.

    Args:
        folder: The folder of the file; created if it is missing.
        num_slots: Number of slots, 1 or more.
        num_blocks: Number of blocks of each language's stream.
        dtype: Type of a stored token.

    Raises:
        OSError: the file cannot be created.
    """

    def __init__(self, folder: Path, num_slots: int, num_blocks: Mapping[str, int], dtype: np.dtype[np.unsignedinteger]) -> None:
        self.num_slots = num_slots
        self._slot_bytes = slot_bytes(dtype)
        self._slot_of = {name: [-1] * count for name, count in num_blocks.items()}
        self._held: dict[BlockId, int] = {}  # oldest first
        self._free = list(range(self.num_slots))[::-1]
        # Rows are copied out under the lock, so that no slot is reused for another block while it is being read.
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (stays open until close)
        self._file.truncate(num_slots * self._slot_bytes)
        self._tokens: Tokens = np.frombuffer(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ), dtype)

    def __contains__(self, block: object) -> bool:
        with self._lock:
            return block in self._held

    def __len__(self) -> int:
        return len(self._held)

    def put(self, block: BlockId, data: bytes, keep: AbstractSet[BlockId]) -> None:
        """Store a block; if no slot is free, evict the oldest block that is not in `keep`.

        Args:
            block: The block; it must not be in scratch yet.
            data: Its bytes.
            keep: Blocks that must not be evicted; at least one slot must hold another block or be free.

        Raises:
            OSError: the disk is full or fails.
        """
        with self._lock:
            is_new = bool(self._free)
            slot = self._free.pop() if is_new else self._evict(keep)
        try:
            self.write(slot, data)
        except OSError:
            if is_new:
                self._free.append(slot)
            raise
        with self._lock:
            self._held[block] = slot
            self._slot_of[block[0]][block[1]] = slot

    def write(self, slot: int, data: bytes) -> None:
        """Write a slot's bytes. Not through the mapping: there, a full disk would kill the process instead of raising.

        Raises:
            OSError: the disk is full or fails.
        """
        written = 0
        while written < len(data):
            written += os.pwrite(self._file.fileno(), data[written:], slot * self._slot_bytes + written)

    def fill(self, language: str, start: int, out: Tokens) -> bool:
        """Fill `out` with a language's tokens from `start` on, if all their blocks are in scratch; return whether they are."""
        blocks = blocks_of(start, len(out))
        with self._lock:
            slots = self._slot_of[language][blocks.start : blocks.stop]
            if min(slots) < 0:
                return False
            for block, slot in zip(blocks, slots, strict=True):
                begin, end = max(start, block * BLOCK_TOKENS), min(start + len(out), block * BLOCK_TOKENS + _SLOT_TOKENS)
                offset = slot * _SLOT_TOKENS - block * BLOCK_TOKENS
                out[begin - start : end - start] = self._tokens[offset + begin : offset + end]
        return True

    def shrink(self) -> bool:
        """Give up the free slots (the disk is full); return whether there were any."""
        with self._lock:
            shrinks = bool(self._free)
            self._free.clear()
            self.num_slots = len(self._held)
        return shrinks

    def close(self) -> None:
        """Free the room; scratch holds no block afterwards."""
        with self._lock:
            for language, block in self._held:
                self._slot_of[language][block] = -1
            self._held.clear()
            self._tokens = self._tokens[:0].copy()  # drops the mapping; the system deletes the file once nothing maps it
            self._file.close()

    def _evict(self, keep: AbstractSet[BlockId]) -> int:
        block = next(block for block in self._held if block not in keep)
        self._slot_of[block[0]][block[1]] = -1
        return self._held.pop(block)


class Copier:
    """Keeps scratch filled with the blocks that are read next, in its own thread.

    Args:
        slots: The scratch file.
        order: The run's order.
        sources: The source of each language's blocks.
        say: Called on the copier's thread with a line for the user: the first block that cannot be copied, or why copying
            ends early.
    """

    def __init__(self, slots: Slots, order: BatchOrder, sources: Mapping[str, BlockSource], say: Callable[[str], None]) -> None:
        self._slots = slots
        self._order = order
        self._sources = sources
        self._say = say
        self._languages = [(index, name) for index, name in enumerate(order.languages) if order.shares[name]]
        self._changed = threading.Condition()
        self._windows: tuple[Window, ...] = ()
        self._drawn: dict[str, int] = {}
        self._is_ready = False
        self._is_settled = False
        self._is_closed = False
        self._has_spoken = False
        self._thread = threading.Thread(target=self._work, name="scratch", daemon=True)

    def at(self, sample: int) -> None:
        """Note which sample of the run is read next; the first call waits until the current windows are copied."""
        counts = self._order.drawn(sample)
        drawn = {name: counts[index] for index, name in self._languages}
        windows = tuple(self._order.language_order(name).window(count) for name, count in drawn.items())
        if windows == self._windows:
            return
        with self._changed:
            self._windows, self._drawn, self._is_settled = windows, drawn, False
            self._changed.notify_all()
        if self._thread.ident is None:
            self._thread.start()
            with self._changed:
                self._changed.wait_for(lambda: self._is_ready)

    def fill(self, language: str, start: int, out: Tokens) -> bool:
        """Fill `out` with a language's tokens from `start` on, if they are in scratch; return whether they are."""
        return self._slots.fill(language, start, out)

    def settle(self) -> None:
        """Wait until every wanted block that can be copied has been copied."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_settled or self._is_closed)

    def close(self) -> None:
        """End the copying and free the room."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(_LONGEST_GOODBYE_S)
        if not self._thread.is_alive():
            self._slots.close()

    def _work(self) -> None:
        try:
            while (drawn := self._next_place()) is not None:
                self._bring_all(drawn)
        except OSError as error:
            self._say(f"scratch cannot be written ({error.strerror}); missing blocks are read from the data folder, slower")
        finally:
            with self._changed:
                self._is_closed = self._is_ready = True
                self._changed.notify_all()

    def _next_place(self) -> dict[str, int] | None:
        """Wait until the trainer enters another window; return the samples drawn by each language, or None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or not self._is_settled)
            return None if self._is_closed else self._drawn

    def _bring_all(self, drawn: dict[str, int]) -> None:
        wanted = wanted_at(self._order, drawn)
        blocks = wanted.first(self._slots.num_slots)
        keep = frozenset(blocks)
        for number, block in enumerate(blocks):
            if number == len(wanted.now):
                self._say_ready()
            if self._is_closed or self._drawn is not drawn:
                return
            if block not in self._slots and not self._bring(block, keep):
                return
        self._say_ready()
        with self._changed:
            self._is_settled = self._drawn is drawn
            self._changed.notify_all()

    def _bring(self, block: BlockId, keep: AbstractSet[BlockId]) -> bool:
        """Copy a block; return False if the disk has less room than planned."""
        language, number = block
        try:
            data = self._sources[language].block(number)
        except (OSError, DataError) as error:
            # The trainer reads the block directly when it needs it; if that fails too, the error is raised there.
            self._say_once(f"block {number} of {language!r} is not copied to scratch: {error}")
            return True
        try:
            self._slots.put(block, data, keep)
        except OSError as error:
            if not self._slots.shrink():
                raise
            self._say_once(f"scratch is limited to {self._slots.num_slots} blocks ({error.strerror}); reading is slower")
            return False
        return True

    def _say_ready(self) -> None:
        with self._changed:
            self._is_ready = True
            self._changed.notify_all()

    def _say_once(self, text: str) -> None:
        if not self._has_spoken:
            self._has_spoken = True
            self._say(text)

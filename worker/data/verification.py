"""Verifies blocks beside the training, so that a batch need not wait for the digests of what it touches first."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from state.errors import GemmaOrchError, TemporaryError

_LARGEST_BACKLOG = 64  # blocks; a batch goes no further ahead of what is verified
_LONGEST_GOODBYE_S = 30.0  # a mount that hangs must not hold the session's end


class Verification:
    """Blocks that have been read from and are still to be verified.

    A thread verifies them, one after another, and ends when none is left. What it finds is kept: once something has
    been found wrong, every later look says so.
    """

    def __init__(self) -> None:
        self._pending: deque[Callable[[], None]] = deque()  # the first one is being verified
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._failure: GemmaOrchError | None = None

    def add(self, verify: Callable[[], None]) -> None:
        """Have a block verified: the function raises when the block is not what was prepared, or cannot be read."""
        with self._changed:
            self._pending.append(verify)
            if len(self._pending) == 1:
                self._thread = threading.Thread(target=self._work, name="verification", daemon=True)
                self._thread.start()

    def check(self) -> None:
        """Look at what has been found so far; wait only where much is still to be verified.

        Raises:
            DataError: a block is not what was prepared.
            TemporaryError: a block cannot be read.
        """
        self._wait(at_most=_LARGEST_BACKLOG)

    def settle(self) -> None:
        """Wait until every block is verified; errors as `check`."""
        self._wait(at_most=0)

    def close(self) -> None:
        """Wait for the thread, which ends when it has verified what is left."""
        if self._thread is not None:
            self._thread.join(_LONGEST_GOODBYE_S)

    def _wait(self, *, at_most: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or len(self._pending) <= at_most)
            if self._failure is not None:
                raise self._failure

    def _work(self) -> None:
        # Said unless it ends otherwise: whoever waits must not wait for a thread that has died.
        failure: GemmaOrchError | None = TemporaryError("the thread that verifies blocks of tokens has died")
        try:
            while self._verify_first():
                pass
            failure = None
        except GemmaOrchError as error:
            failure = error
        finally:
            if failure is not None:
                with self._changed:
                    self._failure = failure
                    self._changed.notify_all()

    def _verify_first(self) -> bool:
        """Verify the first block; return whether there are more."""
        self._pending[0]()
        with self._changed:
            self._pending.popleft()
            self._changed.notify_all()
            return bool(self._pending)

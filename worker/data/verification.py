"""Verifies the digests of blocks in a thread beside the training, so that a batch does not wait for them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from state.errors import GemmaOrchError, TemporaryError

_LARGEST_BACKLOG = 64  # blocks; with more pending, the next batch waits
_LONGEST_GOODBYE_S = 30.0  # a mount that hangs must not delay the session's end for longer


class Verification:
    """The queue of blocks that have been read from and are not verified yet.

    A thread verifies them one after another and ends when the queue is empty. A failure is permanent: every later
    `check` or `settle` raises it.
    """

    def __init__(self) -> None:
        self._pending: deque[Callable[[], None]] = deque()  # the first one is being verified
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._failure: GemmaOrchError | None = None

    def add(self, verify: Callable[[], None]) -> None:
        """Queue a block; `verify` raises DataError if its digest is wrong, TemporaryError if it cannot be read."""
        with self._changed:
            self._pending.append(verify)
            if len(self._pending) == 1:
                self._thread = threading.Thread(target=self._work, name="verification", daemon=True)
                self._thread.start()

    def check(self) -> None:
        """Raise the failure found so far, if any; wait only if too many blocks are pending.

        Raises:
            DataError: a block's digest differs from the manifest.
            TemporaryError: a block cannot be read.
        """
        self._wait(at_most=_LARGEST_BACKLOG)

    def settle(self) -> None:
        """Wait until every block is verified. Raises the same errors as `check`."""
        self._wait(at_most=0)

    def close(self) -> None:
        """Wait for the thread, which ends after it has verified the remaining blocks."""
        if self._thread is not None:
            self._thread.join(_LONGEST_GOODBYE_S)

    def _wait(self, *, at_most: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or len(self._pending) <= at_most)
            if self._failure is not None:
                raise self._failure

    def _work(self) -> None:
        # The failure to report if the thread dies of an unexpected error: callers must not wait for a dead thread.
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

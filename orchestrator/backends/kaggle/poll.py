"""Polls the attempts of a run on Kaggle: one call per poll interval while nothing changes.

The results are stored in the run's folder, so that a new controller, or a command beside one, starts from them instead of
asking Kaggle again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from orchestrator.backends.kaggle.context import KaggleContext
from orchestrator.backends.kaggle.listing import listed_kernel
from orchestrator.backends.kaggle.sightings import Look, Seen, due_looks, with_dataset, with_list, with_refusal, with_status
from state import files
from state.errors import DataError, GemmaOrchError
from state.kaggle.names import PushedKernel, attempt_dataset_slug, pushed_kernels
from state.kaggle.records import DatasetInfo
from state.layout import attempt_name
from state.ledger import AttemptRecord


class Looks:
    """Polls the attempts of one run, and stores what the polls showed.

    Args:
        context: The run.
        known_attempts: Reads the run's attempts from the ledger.
    """

    def __init__(self, context: KaggleContext, known_attempts: Callable[[], Sequence[AttemptRecord]]) -> None:
        self._api = context.api
        self._run = context.run
        self._folder = context.folder
        self._clock = context.clock
        self._poll_every_s = context.settings.poll_every_s
        self._known_attempts = known_attempts

    def seen(self, session: int, attempt: int) -> Seen:
        """Return what earlier polls showed of an attempt; asks Kaggle nothing."""
        try:
            data = self._path(session, attempt).read_bytes()
        except FileNotFoundError:
            return Seen()
        try:
            return Seen.from_json(data, "what was seen of an attempt")
        except DataError:
            return Seen()  # another version wrote it: Kaggle is polled again

    def put(self, session: int, attempt: int, seen: Seen) -> Seen:
        """Store what polls showed of an attempt, and return it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        files.write_atomically(self._path(session, attempt), seen.to_json(), durable=False)
        return seen

    def change(self, session: int, attempt: int, **values: object) -> Seen:
        """Store other values of some fields of an attempt, and return the whole."""
        return self.put(session, attempt, self.seen(session, attempt).evolve(**values))

    def refresh(self, session: int, attempt: int, handle: str | None) -> Seen:
        """Make the polls that are due, and return what is known then; a failed poll keeps what was known.

        Args:
            session: Number of the session.
            attempt: Number of the attempt.
            handle: The handle that its push returned; None: the answer was lost.
        """
        seen = self.seen(session, attempt)
        due = due_looks(seen, self._clock.now(), self._poll_every_s, f"{self._run} {attempt_name(session, attempt)}")
        was_over = seen.ended is not None
        for look in due:
            seen = self._look(look, seen, session, attempt, handle)
        if seen.ended is not None and not was_over and due[-1:] != (Look.DATASET,):
            seen = self._look(Look.DATASET, seen, session, attempt, handle)  # its last upload comes just before its end
        return self.put(session, attempt, seen) if due else seen

    def look(self, look: Look, session: int, attempt: int, handle: str | None) -> Seen:
        """Make one poll now, due or not."""
        return self.put(session, attempt, self._look(look, self.seen(session, attempt), session, attempt, handle))

    def kernel(self, session: int, attempt: int, handle: str | None) -> PushedKernel:
        """Return the kernel of an attempt: from its handle, else as a poll has found it, else by its name."""
        return self._kernels(self.seen(session, attempt), session, attempt, handle)[0]

    def take_dataset(self, session: int, attempt: int, info: DatasetInfo | None) -> Seen:
        """Store a read of an attempt's dataset that a caller has made."""
        return self.put(session, attempt, with_dataset(self.seen(session, attempt), info, self._clock.now()))

    def _look(self, look: Look, seen: Seen, session: int, attempt: int, handle: str | None) -> Seen:
        now = self._clock.now()
        seen = seen.evolve(looks=seen.looks + 1, looked_at=now, last=look)
        kernels = self._kernels(seen, session, attempt, handle)
        try:
            match look:
                case Look.STATUS:
                    return self._status(seen, kernels, now)
                case Look.KERNELS:
                    slugs = [kernel.slug for kernel in kernels]
                    listed = listed_kernel(self._api(), slugs, self._known_attempts(), session, attempt)
                    return with_list(seen, now, kernel=listed)
                case Look.DATASET:
                    return with_dataset(seen, self._api().dataset(attempt_dataset_slug(self._run, session, attempt)), now)
                case Look.KERNEL:
                    kernel = self._api().kernel(kernels[0].slug)
                    return seen.evolve(shape_asked=True, shape=kernel.machine_shape if kernel else None)
        except GemmaOrchError as error:
            return seen.evolve(failure=error.what) if look is Look.STATUS else seen

    def _kernels(self, seen: Seen, session: int, attempt: int, handle: str | None) -> tuple[PushedKernel, ...]:
        if handle is None and seen.kernel is not None:
            return (PushedKernel(seen.kernel),)
        return pushed_kernels(self._run, session, attempt, handle)

    def _status(self, seen: Seen, kernels: Sequence[PushedKernel], now: datetime) -> Seen:
        for kernel in kernels:
            status = self._api().session_status(kernel.slug, kernel.version)
            if status is not None:
                return with_status(seen.evolve(kernel=kernel.slug), status, now)
        return with_refusal(seen, now)

    def _path(self, session: int, attempt: int) -> Path:
        return self._folder / f"{attempt_name(session, attempt)}.json"

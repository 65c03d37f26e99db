"""Hears the wish to stop: Kaggle has no way to end a session from outside, so the session looks for a flag now and then."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from state import files
from state.errors import GemmaOrchError
from state.kaggle.api import KaggleApi
from state.kaggle.job import KaggleJob, StopFlag
from state.kaggle.names import STOP_FLAG_NAME
from worker.process import lower_priority


class StopFlagWatch:
    """Looks at the run's control dataset, and touches the attempt's stop file when the flag names this attempt.

    Args:
        api: The account.
        job: Whose flag to look for, and how often.
        stop_file: What the session looks at between two steps.
        scratch: A folder for what is fetched.
        say: Takes a line for the log; called on the watching thread.
    """

    def __init__(self, api: KaggleApi, job: KaggleJob, stop_file: Path, scratch: Path, say: Callable[[str], None]) -> None:
        self._api = api
        self._job = job
        self._stop_file = stop_file
        self._fetched = scratch / STOP_FLAG_NAME
        self._say = say
        self._seen_version: int | None = None
        self._complained = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stop flag", daemon=True)

    def start(self) -> None:
        """Look every so often, on a thread of its own."""
        self._thread.start()

    def close(self, *, wait_s: float = 1.0) -> None:
        """Look no more; a look that hangs is not waited for longer than so."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(wait_s)

    def look(self) -> bool:
        """Look once; return whether this attempt is to stop. What cannot be read now is read at the next look."""
        try:
            asked = self._is_asked()
            if asked:
                self._stop_file.touch()
        except (GemmaOrchError, OSError) as error:
            if not self._complained:
                self._say(f"the stop flag cannot be read now: {error}")
            self._complained = True
            return False
        self._complained = False
        return asked

    def _is_asked(self) -> bool:
        info = self._api.dataset(self._job.control, owner=self._job.owner)
        if info is None or info.current_version is None or info.current_version == self._seen_version:
            return False
        files.remove_tree(self._fetched)
        self._api.download(self._job.control, info.current_version, STOP_FLAG_NAME, self._fetched, owner=self._job.owner)
        flag = StopFlag.from_json(self._fetched.read_bytes(), f"{STOP_FLAG_NAME} of {self._job.control}")
        self._seen_version = info.current_version
        asked = (flag.session, flag.attempt) == (self._job.spec.session, self._job.spec.attempt)
        if asked:
            self._say("the stop flag names this attempt: it saves and ends")
        return asked

    def _watch(self) -> None:
        lower_priority()
        while not self._over.wait(self._job.stop_poll_every_s):
            if self.look():
                return

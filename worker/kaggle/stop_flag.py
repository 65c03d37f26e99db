"""Polls the stop flag in the run's control dataset: Kaggle cannot end a session from outside, so the session must ask."""

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
    """Polls the run's control dataset; creates the attempt's stop file if the flag names this attempt.

    Args:
        api: The account.
        job: The job: its attempt, control dataset and poll interval.
        stop_file: The file that the session checks between two steps.
        scratch: A folder for the downloaded flag.
        say: Called with log lines, on the polling thread.
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
        """Start polling, on its own thread."""
        self._thread.start()

    def close(self, *, wait_s: float = 1.0) -> None:
        """Stop polling; wait at most `wait_s` for a poll in progress."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(wait_s)

    def look(self) -> bool:
        """Poll once; return whether this attempt must stop. After a failed read, the next poll tries again."""
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

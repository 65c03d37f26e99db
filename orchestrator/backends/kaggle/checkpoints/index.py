"""The index of a run's checkpoints on the account, a file in the run's folder, so that nothing is read twice.

It may be lost: it is rebuilt from the notes of the datasets' versions and from the manifests.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import Field

from orchestrator.backends.kaggle.checkpoints.known import Known
from state import files
from state.document import Document
from state.errors import DataError
from state.kaggle.job import CheckpointPlace
from state.kaggle.names import checkpoint_file_names
from state.layout import AttemptName, CheckpointId, attempt_of


class EntryState(StrEnum):
    """State of a checkpoint on the account."""

    SOUND = "sound"
    """All files are listed, and the manifest is the one that the version's note names."""
    CORRUPT = "corrupt"
    """Listed, but not as its manifest says; the controller quarantines it next."""
    QUARANTINED = "quarantined"
    """No longer counts as a checkpoint; nothing was deleted."""
    DELETED = "deleted"
    """No longer needed; its files are deleted together with its dataset."""


class Entry(Document):
    """One checkpoint on the account."""

    id: CheckpointId
    session: int
    attempt: int
    place: CheckpointPlace
    state: EntryState
    manifest_sha256: str
    total_bytes: int = 0
    why: str | None = Field(default=None, description="why it is corrupt or quarantined")
    checked_at: datetime
    wrong_since: datetime | None = Field(default=None, description="since when a recheck finds it incomplete")

    @property
    def where(self) -> str:
        """Its place, for messages."""
        place = self.place
        return f"version {place.version} of {place.slug}" if place.kind == "dataset" else f"the output of {place.slug}"

    def flat_name(self, name: str) -> str:
        """Return the name of one of its files on the account."""
        return checkpoint_file_names(self.id, (name,))[name]


class Index(Document):
    """Content of the index: a run's checkpoints, and what was read of its attempts' datasets."""

    schema_version: Literal[1] = 1
    checkpoints: dict[CheckpointId, Entry] = Field(default_factory=dict)
    attempts: dict[AttemptName, Known] = Field(default_factory=dict)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the checkpoints in the datasets; Kaggle itself reports only the size of the current version."""
        standing = [entry for entry in self.checkpoints.values() if not self._is_gone(entry) and entry.place.kind == "dataset"]
        return sum(entry.total_bytes for entry in standing)

    def _is_gone(self, entry: Entry) -> bool:
        attempt = self.attempts.get(attempt_of(entry.id) or "")
        return attempt is not None and attempt.is_gone


class IndexFile:
    """Reads and writes the index; it is cached while the file does not change."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._index: Index | None = None
        self._mtime_ns = 0

    def read(self) -> Index:
        """Return the index; an empty one if there is no file, or if another version wrote one that this version cannot read."""
        try:
            mtime_ns = self._path.stat().st_mtime_ns
            if self._index is None or mtime_ns != self._mtime_ns:
                self._index = Index.from_json(self._path.read_bytes(), "the index of checkpoints on Kaggle")
                self._mtime_ns = mtime_ns
        except (FileNotFoundError, DataError):
            self._index = Index()
        return self._index

    def write(self, index: Index) -> None:
        """Replace the index."""
        if index == self._index:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(self._path, index.to_json())
        self._index, self._mtime_ns = index, self._path.stat().st_mtime_ns

    def entry(self, checkpoint_id: str) -> Entry | None:
        """Return the entry of a checkpoint, or None."""
        return self.read().checkpoints.get(checkpoint_id)

    def put(self, entry: Entry) -> None:
        """Store the entry of a checkpoint."""
        index = self.read()
        self.write(index.evolve(checkpoints={**index.checkpoints, entry.id: entry}))

    def drop(self, *checkpoint_ids: str) -> None:
        """Remove the entries of checkpoints."""
        index = self.read()
        kept = {key: entry for key, entry in index.checkpoints.items() if key not in checkpoint_ids}
        self.write(index.evolve(checkpoints=kept))

    def attempt(self, name: str) -> Known:
        """Return what was read of an attempt's dataset."""
        return self.read().attempts.get(name, Known())

    def change_attempt(self, name: str, change: Callable[[Known], Known]) -> Known:
        """Apply a change to what was read of an attempt's dataset; store and return the result."""
        index, known = self.read(), change(self.attempt(name))
        self.write(index.evolve(attempts={**index.attempts, name: known}))
        return known

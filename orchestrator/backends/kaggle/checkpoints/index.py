"""What is known of the checkpoints on the account: an index in the run's folder, so that nothing is read twice.

It can be lost: the notes of the datasets' versions say what lies where, and the manifests are read again.
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
    """What is known of a checkpoint on the account."""

    SOUND = "sound"
    """Listed whole, with the manifest that its version's note names."""
    CORRUPT = "corrupt"
    """Listed, and not what its manifest says; the controller is to hear of it."""
    QUARANTINED = "quarantined"
    """Put aside."""
    DELETED = "deleted"
    """Nobody needs it; it goes with its dataset."""


class Entry(Document):
    """One checkpoint on the account."""

    id: CheckpointId
    session: int
    attempt: int
    place: CheckpointPlace
    state: EntryState
    manifest_sha256: str
    total_bytes: int = 0
    why: str | None = Field(default=None, description="what is wrong with it")
    checked_at: datetime
    wrong_since: datetime | None = Field(default=None, description="since when looking again finds something wrong")

    @property
    def where(self) -> str:
        """Where it lies, in words."""
        place = self.place
        return f"version {place.version} of {place.slug}" if place.kind == "dataset" else f"the output of {place.slug}"

    def flat_name(self, name: str) -> str:
        """Return the name that one of its files has on the account."""
        return checkpoint_file_names(self.id, (name,))[name]


class Index(Document):
    """All that is known of the checkpoints of a run on the account."""

    schema_version: Literal[1] = 1
    checkpoints: dict[CheckpointId, Entry] = Field(default_factory=dict)
    attempts: dict[AttemptName, Known] = Field(default_factory=dict)

    @property
    def stored_bytes(self) -> int:
        """What the datasets hold, as far as that is known: Kaggle tells of the current version only."""
        standing = [entry for entry in self.checkpoints.values() if not self._is_gone(entry) and entry.place.kind == "dataset"]
        return sum(entry.total_bytes for entry in standing)

    def _is_gone(self, entry: Entry) -> bool:
        attempt = self.attempts.get(attempt_of(entry.id) or "")
        return attempt is not None and attempt.is_gone


class IndexFile:
    """The index's file; it is read once, for one controller writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._index: Index | None = None
        self._mtime_ns = 0

    def read(self) -> Index:
        """Return the index; an empty one when there is none, or one that another gemma-orch wrote."""
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
        """Return what is known of a checkpoint on the account."""
        return self.read().checkpoints.get(checkpoint_id)

    def put(self, entry: Entry) -> None:
        """Remember what is known of a checkpoint."""
        index = self.read()
        self.write(index.evolve(checkpoints={**index.checkpoints, entry.id: entry}))

    def drop(self, *checkpoint_ids: str) -> None:
        """Forget checkpoints."""
        index = self.read()
        kept = {key: entry for key, entry in index.checkpoints.items() if key not in checkpoint_ids}
        self.write(index.evolve(checkpoints=kept))

    def attempt(self, name: str) -> Known:
        """Return what is known of the dataset of an attempt."""
        return self.read().attempts.get(name, Known())

    def change_attempt(self, name: str, change: Callable[[Known], Known]) -> Known:
        """Remember what a change makes of what is known of the dataset of an attempt, and return it."""
        index, known = self.read(), change(self.attempt(name))
        self.write(index.evolve(attempts={**index.attempts, name: known}))
        return known

"""Garbage-collects the datasets of ended attempts whose checkpoints are all pruned or quarantined."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from orchestrator.backends.kaggle.checkpoints.index import EntryState, IndexFile
from orchestrator.backends.kaggle.context import KaggleContext
from orchestrator.backends.kaggle.listing import dataset_is_listed
from state.errors import GemmaOrchError
from state.kaggle.names import VersionNote, attempt_dataset_slug
from state.kaggle.records import DatasetVersion
from state.layout import attempt_name, parse_attempt_name


class Disposal:
    """Deletes datasets of one run that hold no kept checkpoint.

    Args:
        context: The run.
        index: The index of the run's checkpoints.
    """

    def __init__(self, context: KaggleContext, index: IndexFile) -> None:
        self._context = context
        self._api = context.api
        self._index = index
        self._not_before: dict[str, datetime] = {}

    def sweep(self) -> None:
        """Delete the datasets without a kept checkpoint; one that cannot be deleted now is left to the next sweep."""
        for name in self._deletable():
            self._delete_dataset(name)

    def _deletable(self) -> tuple[str, ...]:
        """Return the ended attempts of whose checkpoints at least one was deleted, and none is kept."""
        index = self._index.read()
        states: dict[str, set[EntryState]] = {}
        for entry in index.checkpoints.values():
            # A kept one in a kernel's output counts too: it may be on its way into the dataset (`promote`).
            if entry.place.kind == "dataset" or entry.state is EntryState.SOUND:
                states.setdefault(attempt_name(entry.session, entry.attempt), set()).add(entry.state)
        unneeded = {EntryState.DELETED, EntryState.QUARANTINED}
        return tuple(
            name
            for name, found in sorted(states.items())
            if found <= unneeded
            and EntryState.DELETED in found
            and self._index.attempt(name).is_closed
            and not self._index.attempt(name).is_gone
        )

    def _delete_dataset(self, name: str) -> None:
        now = self._context.clock.now()
        numbers = parse_attempt_name(name)
        if numbers is None or now < self._not_before.get(name, now):
            return
        self._not_before[name] = now + timedelta(seconds=self._context.settings.poll_every_s)
        slug = attempt_dataset_slug(self._context.run, *numbers)
        try:
            info = self._api().dataset(slug)
            if info is None and dataset_is_listed(self._api(), slug):
                return  # reads of it are refused, so its content is unknown
            if info is not None and self._holds_something_else(info.versions):
                return
            self._api().delete_dataset(slug)
        except GemmaOrchError:
            return  # this costs only storage: the next sweep tries again
        self._index.change_attempt(name, lambda known: known.evolve(is_gone=True))

    def _holds_something_else(self, versions: Sequence[DatasetVersion]) -> bool:
        """Return whether a version holds a checkpoint that the index keeps, or does not know."""
        given_up = (EntryState.DELETED, EntryState.QUARANTINED)
        known = self._index.read().checkpoints
        notes = (note for version in versions if (note := VersionNote.parse(version.notes)) is not None)
        return any(note.checkpoint not in known or known[note.checkpoint].state not in given_up for note in notes)

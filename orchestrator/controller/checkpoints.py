"""Look at a run's checkpoints: read back and verify every new one before the record hears of it."""

from __future__ import annotations

from collections.abc import Callable, Collection

from orchestrator.controller.reconcile import Found
from state.errors import CorruptCheckpointError
from state.stores.checkpoint_store import CheckpointStore


def collect(
    store: CheckpointStore, known: Collection[str], before_each: Callable[[], None]
) -> tuple[tuple[Found, ...], tuple[CorruptCheckpointError, ...]]:
    """Return the checkpoints that are not known yet: those that verify, and what is wrong with the others.

    Args:
        store: Where they lie.
        known: The ids that need no look.
        before_each: Called before each one is read, which may take long.
    """
    found, corrupt = [], []
    for checkpoint_id in store.ids():
        if checkpoint_id in known:
            continue
        before_each()
        try:
            manifest = store.verify(checkpoint_id)
            found.append(Found(manifest, store.manifest(checkpoint_id)[1]))
        except CorruptCheckpointError as error:
            if checkpoint_id in store.ids():  # else its worker has pruned it while it was read
                corrupt.append(error)
    return tuple(found), tuple(corrupt)

"""Re-checks by lists of files, without a download, that a checkpoint on the account is still complete."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from orchestrator.backends.kaggle.checkpoints.index import Entry, IndexFile
from orchestrator.backends.kaggle.context import KaggleContext
from orchestrator.backends.kaggle.listing import dataset_is_listed, listed_kernel
from state.errors import CorruptCheckpointError, GemmaOrchError, TemporaryError
from state.ledger import AttemptRecord
from state.manifest import Manifest
from state.stores.checkpoint_store import DirectoryCheckpointStore


class Standing:
    """Re-checks checkpoints that were found complete before: their dataset or kernel may have been deleted since.

    Args:
        context: The run.
        index: The index of the run's checkpoints.
        local: The checkpoints on this machine.
        known_attempts: Reads the run's attempts from the ledger.
    """

    def __init__(
        self,
        context: KaggleContext,
        index: IndexFile,
        local: DirectoryCheckpointStore,
        known_attempts: Callable[[], Sequence[AttemptRecord]],
    ) -> None:
        self._api = context.api
        self._clock = context.clock
        self._settings = context.settings
        self._index = index
        self._local = local
        self._known_attempts = known_attempts
        self._last_check: dict[str, tuple[datetime, GemmaOrchError]] = {}

    def look_again(self, entry: Entry, manifest: Manifest) -> None:
        """Check that a checkpoint is still complete on the account; asks at most once a poll interval.

        Raises:
            CorruptCheckpointError: it is not, and there is no copy on this machine.
            TemporaryError: it is unknown whether it is, or a first read found it incomplete and a later one must confirm that.
        """
        now, pause = self._clock.now(), timedelta(seconds=self._settings.poll_every_s)
        if entry.wrong_since is None and now < entry.checked_at + pause:
            return
        last = self._last_check.get(entry.id)
        if last is not None and now < last[0] + pause:
            raise last[1]
        try:
            problem = self._problem(entry, manifest)
        except GemmaOrchError as error:
            unknown = TemporaryError(f"it is unknown whether {entry.where} still holds {entry.id}: {error.what}")
            self._last_check[entry.id] = (now, unknown)
            raise unknown from error
        self._last_check.pop(entry.id, None)
        if problem is None:
            self._index.put(entry.evolve(checked_at=now, wrong_since=None))
            return
        since = entry.wrong_since or now
        if now < since + timedelta(seconds=self._settings.settle_s):
            self._index.put(entry.evolve(wrong_since=since))
            doubt = TemporaryError(f"{problem}; a read after {self._settings.settle_s:.0f} s must confirm that")
            self._last_check[entry.id] = (now, doubt)
            raise doubt
        if entry.id in self._local.ids():
            self._local.verify(entry.id)
            self._index.drop(entry.id)  # from now on the copy on this machine is the checkpoint
            return
        raise CorruptCheckpointError(entry.id, problem)

    def _problem(self, entry: Entry, manifest: Manifest) -> str | None:
        """Return what is wrong with a checkpoint on the account now, or None.

        Raises:
            TemporaryError: the account lists the dataset or kernel, and refuses to show its files.
        """
        place, api = entry.place, self._api()
        if place.kind == "output":
            outputs = api.session_outputs(place.slug, place.version)
            if outputs is None:
                if listed_kernel(api, [place.slug], self._known_attempts(), entry.session, entry.attempt) is not None:
                    raise TemporaryError(f"Kaggle refuses to show the outputs of {place.slug} (403 or 404)")
                return f"the kernel {place.slug} with checkpoint {entry.id} in its output is gone"
            listed: Mapping[str, int | None] = {output.name.rpartition("/")[2]: None for output in outputs[0]}
        else:
            info = api.dataset(place.slug, owner=place.owner)
            if info is None:
                if dataset_is_listed(api, place.slug, owner=place.owner):
                    raise TemporaryError(f"Kaggle refuses to show the dataset {place.slug} (403 or 404)")
                return f"the dataset {place.slug} with checkpoint {entry.id} is gone"
            # The status of the dataset does not matter: it may be that of a newer version, which is in processing or has failed.
            found = api.dataset_files(place.slug, place.version, owner=place.owner)
            if found is None:
                if any(one.number == place.version and one.status.lower() in ("", "ready") for one in info.versions):
                    raise TemporaryError(f"Kaggle lists {entry.where} and refuses to show its files (403 or 404)")
                return f"{entry.where} with checkpoint {entry.id} cannot be read"
            listed = found
        try:
            check_list(entry, manifest, listed)
        except CorruptCheckpointError as error:
            return error.what
        return None


def check_list(entry: Entry, manifest: Manifest, listed: Mapping[str, int | None]) -> None:
    """Check that every file of a checkpoint is listed with its size; lists of a kernel's output have no sizes.

    Raises:
        CorruptCheckpointError: a file is missing or has another size.
    """
    for file in manifest.files:
        name = entry.flat_name(file.name)
        if name not in listed:
            raise CorruptCheckpointError(entry.id, f"{name} is missing in {entry.where}")
        size = listed[name]
        if size is not None and size != file.size_bytes:
            raise CorruptCheckpointError(
                entry.id, f"{name} in {entry.where} has {size} bytes", expected=f"{file.size_bytes} bytes"
            )

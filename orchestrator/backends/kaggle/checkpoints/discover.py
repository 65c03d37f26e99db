"""Discovers the checkpoints of a run on the account: in the versions of attempts' datasets, and in outputs of kernels.

Every read may be stale or refused, which decides three rules here:

- A version is examined once, when its files can be read: a version never changes.
- A version that looks corrupt is only doubted at first, and read again. It counts as corrupt when a read after the settle time
  shows the same.
- A dataset is given up (`is_closed`) only when a read after all lags found nothing more to come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from orchestrator.backends.kaggle.checkpoints.fetch import Fetching
from orchestrator.backends.kaggle.checkpoints.index import Entry, EntryState, IndexFile
from orchestrator.backends.kaggle.checkpoints.known import (
    Known,
    is_believed,
    made_anew,
    next_look,
    with_contents,
    with_doubt,
    with_examined,
    with_look,
    with_report,
)
from orchestrator.backends.kaggle.checkpoints.recheck import check_list
from orchestrator.backends.kaggle.context import KaggleContext
from orchestrator.backends.kaggle.listing import dataset_is_listed
from orchestrator.backends.kaggle.poll import Looks
from orchestrator.backends.kaggle.sightings import DatasetSeen, VersionSeen
from state.errors import CorruptCheckpointError, GemmaOrchError, shown
from state.kaggle.job import CheckpointPlace
from state.kaggle.names import PushedKernel, VersionNote, attempt_dataset_slug, misnamed
from state.kaggle.records import DatasetInfo, OutputFile
from state.layout import MANIFEST_NAME, REPORT_NAME, attempt_name, attempt_of
from state.ledger import AttemptRecord
from state.session import AttemptState

_BACKEND = "kaggle"
_LOOKS_A_CALL = 4  # most datasets that one tick reads, newest attempt first: after the index was lost, all are due at once


class Discovery:
    """Discovers the checkpoints of one run, and writes them into its index.

    Args:
        context: The run.
        index: The index of the run's checkpoints.
        fetching: Downloads their manifests.
        looks: Polls the run's attempts.
        known_attempts: Reads the run's attempts from the ledger.
    """

    def __init__(
        self,
        context: KaggleContext,
        index: IndexFile,
        fetching: Fetching,
        looks: Looks,
        known_attempts: Callable[[], Sequence[AttemptRecord]],
    ) -> None:
        self._context = context
        self._api = context.api
        self._clock = context.clock
        self._settings = context.settings
        self._index = index
        self._fetching = fetching
        self._looks = looks
        self._known_attempts = known_attempts
        self._next_look: dict[str, datetime] = {}
        self._next_examination: dict[str, datetime] = {}

    def discover(self) -> None:
        """Read the datasets of ended attempts that may still gain checkpoints; most ticks read none."""
        now, known = self._clock.now(), self._index.read().attempts
        candidates = [
            attempt
            for attempt in reversed(self._known_attempts())
            if attempt.backend == _BACKEND
            and attempt.state not in (AttemptState.PLANNED, AttemptState.DROPPED)
            and not attempt.is_live  # the backend polls that one
            and not known.get(_name(attempt), Known()).is_closed
        ]
        looks = 0
        for attempt in candidates:
            # Not due: a poll has read this dataset less than a poll interval ago, or its next read is scheduled for later.
            seen = self._looks.seen(attempt.session, attempt.attempt)
            if seen.dataset_at is not None and now < seen.dataset_at + timedelta(seconds=self._settings.poll_every_s):
                continue
            if now < self._next_look.get(_name(attempt), now):
                continue
            if looks == _LOOKS_A_CALL:
                return  # the next tick goes on: each read is a call, and the lease is renewed between ticks only
            looks += 1
            self._look_at_what_is_over(attempt, now)

    def is_ours(self, name: str) -> bool:
        """Return whether the ledger has an attempt of this name on Kaggle."""
        return any(_name(attempt) == name and attempt.backend == _BACKEND for attempt in self._known_attempts())

    def examine(self, session: int, attempt: int) -> None:
        """Examine the versions of an attempt's dataset that the last poll showed; asks Kaggle only about new ones.

        Raises:
            TemporaryError: Kaggle does not answer; the index keeps what it had.
        """
        dataset = self._looks.seen(session, attempt).dataset
        if dataset is None:
            return
        name = attempt_name(session, attempt)
        known = self._index.attempt(name)
        new = [version for version in dataset.readable if version.number not in known.examined]
        # No new version, the same current one, and no doubted one deleted: there is nothing to ask or to store.
        if not new and known.current == dataset.current and not any(map(dataset.has_lost, known.wrong)):
            return
        now = self._clock.now()
        if now < self._next_examination.get(name, now):
            return
        # Set before the calls: if one of them fails, the next tick must not repeat them at once.
        self._next_examination[name] = self._soon()
        for version in new:
            self._examine(session, attempt, version, is_current=version.number == dataset.current)
        self._forget_what_is_gone(session, attempt, dataset)
        # All examined: a new version need not wait for the pause above.
        if {version.number for version in dataset.readable} <= set(self._index.attempt(name).examined):
            self._next_examination.pop(name, None)

    def take_dataset(self, session: int, attempt: int, info: DatasetInfo | None) -> None:
        """Examine an attempt's dataset that a caller has read for another reason.

        Raises:
            TemporaryError: Kaggle does not answer; the index keeps what it had.
        """
        self._looks.take_dataset(session, attempt, info)
        self.examine(session, attempt)

    def forget_dataset(self, session: int, attempt: int) -> None:
        """Forget a dataset that was deleted: a new one of the same name counts its versions from 1 again."""
        self._looks.change(session, attempt, dataset=None, dataset_at=None)
        self._index.change_attempt(attempt_name(session, attempt), made_anew)

    def take_outputs(self, session: int, attempt: int, kernel: PushedKernel, outputs: Sequence[OutputFile]) -> None:
        """Index the checkpoint that a kernel left in its output because it could not upload it.

        Raises:
            TemporaryError: its manifest cannot be downloaded now.
        """
        named = {output.name.rpartition("/")[2]: output for output in outputs}
        for name, output in named.items():
            checkpoint_id = name.removesuffix(f".{MANIFEST_NAME}")
            known = self._index.entry(checkpoint_id)
            of_attempt = attempt_of(checkpoint_id) == attempt_name(session, attempt)  # a user's file may end like a manifest
            if checkpoint_id == name or known is not None or not of_attempt:
                continue
            place = CheckpointPlace(kind="output", owner=self._context.owner, slug=kernel.slug, version=kernel.version)
            sha256 = self._fetching.take_output_manifest(checkpoint_id, output)
            entry = self._new_entry(checkpoint_id, session, attempt, place, sha256)
            self._index.put(self._judged(entry, sha256, dict.fromkeys(named)))

    def has_examined(self, session: int, attempt: int) -> bool:
        """Return whether every readable version of an attempt's dataset, as of the last poll, was examined."""
        dataset = self._looks.seen(session, attempt).dataset
        shown = {version.number for version in dataset.readable} if dataset is not None else set()
        return shown <= set(self._index.attempt(attempt_name(session, attempt)).examined)

    def report_version(self, session: int, attempt: int) -> int | None:
        """Return the version of an attempt's dataset that holds its report, or None while none was found."""
        return self._index.attempt(attempt_name(session, attempt)).report_version

    def _look_at_what_is_over(self, attempt: AttemptRecord, now: datetime) -> None:
        name, slug = _name(attempt), attempt_dataset_slug(self._context.run, attempt.session, attempt.attempt)
        try:
            info = self._api().dataset(slug)
            self._next_examination.pop(name, None)  # this read is fresh, so examine it now
            self.take_dataset(attempt.session, attempt.attempt, info)
        except GemmaOrchError:
            return  # a later tick reads it again
        finally:
            self._next_look[name] = self._soon()
        known = self._index.change_attempt(name, lambda known: with_look(known, now, is_shown=info is not None))
        # An attempt without an end, such as one that was lost, counts from its launch.
        over_at = attempt.ended_at or attempt.launched_at or attempt.planned_at
        newest = max((version.number for version in info.versions), default=0) if info is not None else 0
        again_at = next_look(known, over_at, now, self._settings, newest=newest)
        if again_at is not None:  # something may still come: read again then, but no sooner than a poll interval from now
            self._next_look[name] = max(self._next_look[name], again_at)
        elif info is not None or self._is_gone(slug):  # a refused read alone never closes: the dataset may exist
            self._index.change_attempt(name, lambda known: known.evolve(is_closed=True))

    def _is_gone(self, slug: str) -> bool:
        """Return whether a refused dataset is certainly not on the account: the list of all does not show it either."""
        try:
            return not dataset_is_listed(self._api(), slug)
        except GemmaOrchError:
            return False  # unknown is not gone: a later tick reads it again

    def _examine(self, session: int, attempt: int, version: VersionSeen, *, is_current: bool) -> None:
        slug, name = attempt_dataset_slug(self._context.run, session, attempt), attempt_name(session, attempt)
        api, now = self._api(), self._clock.now()
        # The version's own status comes first: that of the dataset may belong to a newer version.
        is_said_to_be_ready = version.status.lower() == "ready"
        if is_current and not is_said_to_be_ready and not api.dataset_is_ready(slug):
            return
        listed = api.dataset_files(slug, version.number)
        if listed is None:
            return
        if REPORT_NAME in listed:
            self._index.change_attempt(name, lambda known: with_report(known, version.number))
        note = VersionNote.parse(version.notes)
        standing = self._index.entry(note.checkpoint) if note is not None else None
        # No checkpoint of this attempt, such as the first version, which holds only the spec.
        if note is None or (note.session, note.attempt) != (session, attempt):
            self._tell_of_a_false_note(session, attempt, version)
            self._mark_examined(name, version)
            return
        # A checkpoint that is known in an output, and is now in the dataset, was promoted. Otherwise the newest version counts.
        in_output = standing if standing is not None and standing.place.kind == "output" else None
        in_dataset = standing if in_output is None else None
        if in_dataset is not None and in_dataset.place.version >= version.number and in_dataset.state is not EntryState.CORRUPT:
            self._mark_examined(name, version)  # a later version holds the same checkpoint
            return
        place = CheckpointPlace(kind="dataset", owner=self._context.owner, slug=slug, version=version.number)
        entry = self._new_entry(note.checkpoint, session, attempt, place, note.manifest_sha256)
        judged = self._judged(entry, self._fetching.take_manifest(entry, listed), listed)
        is_sure = is_believed(self._index.attempt(name), version.number, now, self._settings.settle_s)
        if judged.state is EntryState.CORRUPT and not is_sure:  # the list of files may be stale: doubt, and read it again
            self._index.change_attempt(name, lambda known: with_doubt(known, version.number, now))
            return
        self._index.put(_promoted(in_output, judged) if in_output is not None else judged)
        self._mark_examined(name, version)

    def _mark_examined(self, name: str, version: VersionSeen) -> None:
        self._index.change_attempt(name, lambda known: with_examined(known, version.number))

    def _tell_of_a_false_note(self, session: int, attempt: int, version: VersionSeen) -> None:
        """Index a version as corrupt whose note names a file that its attempt cannot have saved; its files are never read."""
        note, named = misnamed(version.notes) or (None, "")
        if note is None or (note.session, note.attempt) != (session, attempt) or self._index.entry(note.checkpoint) is not None:
            return
        slug = attempt_dataset_slug(self._context.run, session, attempt)
        place = CheckpointPlace(kind="dataset", owner=self._context.owner, slug=slug, version=version.number)
        entry = self._new_entry(note.checkpoint, session, attempt, place, note.manifest_sha256)
        why = f"{entry.where} says that it holds {shown(named)}, which is not a checkpoint of this run"
        self._index.put(entry.evolve(state=EntryState.CORRUPT, why=why))

    def _judged(self, entry: Entry, manifest_sha256: str | None, listed: Mapping[str, int | None]) -> Entry:
        """Return the entry, checked against the list of files and the manifest: with its size, or as corrupt with the reason."""
        try:
            if manifest_sha256 is None:
                raise CorruptCheckpointError(entry.id, f"{entry.id} has no manifest in {entry.where}")
            if manifest_sha256 != entry.manifest_sha256:
                raise CorruptCheckpointError(
                    entry.id, f"the manifest of {entry.id} in {entry.where} has sha256 {manifest_sha256[:12]}"
                )
            manifest = self._fetching.read_manifest(entry.id)
            check_list(entry, manifest, listed)
        except CorruptCheckpointError as error:
            return entry.evolve(state=EntryState.CORRUPT, why=error.what)
        return entry.evolve(total_bytes=manifest.total_bytes)

    def _forget_what_is_gone(self, session: int, attempt: int, dataset: DatasetSeen) -> None:
        """Drop the checkpoints of versions that the worker has deleted; a version that is not processed yet is not deleted."""
        gone = {
            entry.id
            for entry in self._index.read().checkpoints.values()
            if (entry.session, entry.attempt) == (session, attempt)
            and entry.place.kind == "dataset"
            and dataset.has_lost(entry.place.version)
        }
        self._index.drop(*gone)
        self._index.change_attempt(attempt_name(session, attempt), lambda known: with_contents(known, dataset))

    def _new_entry(self, checkpoint_id: str, session: int, attempt: int, place: CheckpointPlace, sha256: str) -> Entry:
        return Entry(
            id=checkpoint_id,
            session=session,
            attempt=attempt,
            place=place,
            state=EntryState.SOUND,
            manifest_sha256=sha256,
            checked_at=self._clock.now(),
        )

    def _soon(self) -> datetime:
        """Return when the next call may be made, so that a failure or a pending version costs one call a poll interval."""
        return self._clock.now() + timedelta(seconds=self._settings.poll_every_s)


def _promoted(in_output: Entry, in_dataset: Entry) -> Entry:
    """Return the entry that counts for a checkpoint that is in an output and in the dataset: the dataset's, unless corrupt."""
    if in_output.state is EntryState.CORRUPT:
        return in_dataset
    if in_dataset.state is EntryState.CORRUPT:
        return in_output
    # It may have been deleted or quarantined during the promotion: then it stays so.
    return in_dataset.evolve(state=in_output.state, why=in_output.why)


def _name(attempt: AttemptRecord) -> str:
    return attempt_name(attempt.session, attempt.attempt)

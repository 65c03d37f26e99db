"""Finds what attempts have left on the account: checkpoints in versions of their datasets and in outputs of their kernels."""

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
_LOOKS_A_CALL = 4  # attempts of which nothing is known that are looked at in one go, newest first: after the index was lost


class Discovery:
    """Takes in what the attempts of one run show, and keeps the index of it.

    Args:
        context: The run.
        index: What is known of the checkpoints.
        fetching: Brings their manifests here.
        looks: What was seen of the attempts' datasets.
        known_attempts: The attempts that the ledger knows.
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
        """Look at the datasets of attempts that nobody watches and from which something may come: most often at none."""
        now, known = self._clock.now(), self._index.read().attempts
        candidates = [
            attempt
            for attempt in reversed(self._known_attempts())
            if attempt.backend == _BACKEND
            and attempt.state not in (AttemptState.PLANNED, AttemptState.DROPPED)
            and not attempt.is_live  # the backend looks at that one
            and not known.get(_name(attempt), Known()).is_closed
        ]
        looks = 0
        for attempt in candidates:
            seen = self._looks.seen(attempt.session, attempt.attempt)
            if seen.dataset_at is not None and now < seen.dataset_at + timedelta(seconds=self._settings.poll_every_s):
                continue
            if now < self._next_look.get(_name(attempt), now):
                continue
            if looks == _LOOKS_A_CALL:
                return
            looks += 1
            self._look_at_what_is_over(attempt, now)

    def is_ours(self, name: str) -> bool:
        """Return whether the attempt of a name is one that ran on Kaggle."""
        return any(_name(attempt) == name and attempt.backend == _BACKEND for attempt in self._known_attempts())

    def examine(self, session: int, attempt: int) -> None:
        """Take in what the last look at an attempt's dataset has shown; asks only about versions that are new.

        Raises:
            TemporaryError: that cannot be told now; what was known stays.
        """
        dataset = self._looks.seen(session, attempt).dataset
        if dataset is None:
            return
        name = attempt_name(session, attempt)
        known = self._index.attempt(name)
        new = [version for version in dataset.readable if version.number not in known.examined]
        if not new and known.current == dataset.current and not any(map(dataset.has_lost, known.wrong)):
            return
        now = self._clock.now()
        if now < self._next_examination.get(name, now):
            return
        self._next_examination[name] = self._soon()
        for version in new:
            self._examine(session, attempt, version, is_current=version.number == dataset.current)
        self._forget_what_is_gone(session, attempt, dataset)
        if {version.number for version in dataset.readable} <= set(self._index.attempt(name).examined):
            self._next_examination.pop(name, None)

    def take_dataset(self, session: int, attempt: int, info: DatasetInfo | None) -> None:
        """Take in a look at an attempt's dataset that was made for another reason.

        Raises:
            TemporaryError: what is new in it cannot be told now.
        """
        self._looks.take_dataset(session, attempt, info)
        self.examine(session, attempt)

    def forget_dataset(self, session: int, attempt: int) -> None:
        """Forget what was seen of a dataset that is gone: one of its name, made anew, counts its versions from 1."""
        self._looks.change(session, attempt, dataset=None, dataset_at=None)
        self._index.change_attempt(attempt_name(session, attempt), made_anew)

    def take_outputs(self, session: int, attempt: int, kernel: PushedKernel, outputs: Sequence[OutputFile]) -> None:
        """Take in the checkpoint that a kernel left in its output because it could not upload it.

        Raises:
            TemporaryError: its manifest cannot be fetched now.
        """
        named = {output.name.rpartition("/")[2]: output for output in outputs}
        for name, output in named.items():
            checkpoint_id = name.removesuffix(f".{MANIFEST_NAME}")
            known = self._index.entry(checkpoint_id)
            of_attempt = attempt_of(checkpoint_id) == attempt_name(session, attempt)  # else it is some other file
            if checkpoint_id == name or known is not None or not of_attempt:
                continue
            place = CheckpointPlace(kind="output", owner=self._context.owner, slug=kernel.slug, version=kernel.version)
            sha256 = self._fetching.take_output_manifest(checkpoint_id, output)
            entry = self._new_entry(checkpoint_id, session, attempt, place, sha256)
            self._index.put(self._judged(entry, sha256, dict.fromkeys(named)))

    def has_examined(self, session: int, attempt: int) -> bool:
        """Return whether every version of an attempt's dataset that the last look showed to be readable was looked into."""
        dataset = self._looks.seen(session, attempt).dataset
        shown = {version.number for version in dataset.readable} if dataset is not None else set()
        return shown <= set(self._index.attempt(attempt_name(session, attempt)).examined)

    def report_version(self, session: int, attempt: int) -> int | None:
        """Return the version of an attempt's dataset that holds its report, once there is one."""
        return self._index.attempt(attempt_name(session, attempt)).report_version

    def _look_at_what_is_over(self, attempt: AttemptRecord, now: datetime) -> None:
        name, slug = _name(attempt), attempt_dataset_slug(self._context.run, attempt.session, attempt.attempt)
        try:
            info = self._api().dataset(slug)
            self._next_examination.pop(name, None)
            self.take_dataset(attempt.session, attempt.attempt, info)
        except GemmaOrchError:
            return  # it is looked at again
        finally:
            self._next_look[name] = self._soon()
        known = self._index.change_attempt(name, lambda known: with_look(known, now, is_shown=info is not None))
        over_at = attempt.ended_at or attempt.launched_at or attempt.planned_at
        newest = max((version.number for version in info.versions), default=0) if info is not None else 0
        again_at = next_look(known, over_at, now, self._settings, newest=newest)
        if again_at is not None:
            self._next_look[name] = max(self._next_look[name], again_at)
        elif info is not None or self._is_gone(slug):
            self._index.change_attempt(name, lambda known: known.evolve(is_closed=True))

    def _is_gone(self, slug: str) -> bool:
        """Return whether a dataset that is not shown is certainly not on the account."""
        try:
            return not dataset_is_listed(self._api(), slug)
        except GemmaOrchError:
            return False  # it is looked at again

    def _examine(self, session: int, attempt: int, version: VersionSeen, *, is_current: bool) -> None:
        slug, name = attempt_dataset_slug(self._context.run, session, attempt), attempt_name(session, attempt)
        api, now = self._api(), self._clock.now()
        is_said_to_be_ready = version.status.lower() == "ready"  # the dataset's own word may be about a newer version
        if is_current and not is_said_to_be_ready and not api.dataset_is_ready(slug):
            return
        listed = api.dataset_files(slug, version.number)
        if listed is None:
            return
        if REPORT_NAME in listed:
            self._index.change_attempt(name, lambda known: with_report(known, version.number))
        note = VersionNote.parse(version.notes)
        standing = self._index.entry(note.checkpoint) if note is not None else None
        if note is None or (note.session, note.attempt) != (session, attempt):
            self._tell_of_a_false_note(session, attempt, version)
            self._mark_examined(name, version)
            return
        in_output = standing if standing is not None and standing.place.kind == "output" else None
        in_dataset = standing if in_output is None else None
        if in_dataset is not None and in_dataset.place.version >= version.number and in_dataset.state is not EntryState.CORRUPT:
            self._mark_examined(name, version)  # a later version holds the same one
            return
        place = CheckpointPlace(kind="dataset", owner=self._context.owner, slug=slug, version=version.number)
        entry = self._new_entry(note.checkpoint, session, attempt, place, note.manifest_sha256)
        judged = self._judged(entry, self._fetching.take_manifest(entry, listed), listed)
        is_sure = is_believed(self._index.attempt(name), version.number, now, self._settings.settle_s)
        if judged.state is EntryState.CORRUPT and not is_sure:  # it may only be shown too early
            self._index.change_attempt(name, lambda known: with_doubt(known, version.number, now))
            return
        self._index.put(_promoted(in_output, judged) if in_output is not None else judged)
        self._mark_examined(name, version)

    def _mark_examined(self, name: str, version: VersionSeen) -> None:
        self._index.change_attempt(name, lambda known: with_examined(known, version.number))

    def _tell_of_a_false_note(self, session: int, attempt: int, version: VersionSeen) -> None:
        """Let the controller hear of a version that names what its attempt cannot save; what it holds is never read."""
        note, named = misnamed(version.notes) or (None, "")
        if note is None or (note.session, note.attempt) != (session, attempt) or self._index.entry(note.checkpoint) is not None:
            return
        slug = attempt_dataset_slug(self._context.run, session, attempt)
        place = CheckpointPlace(kind="dataset", owner=self._context.owner, slug=slug, version=version.number)
        entry = self._new_entry(note.checkpoint, session, attempt, place, note.manifest_sha256)
        why = f"{entry.where} says that it holds {shown(named)}, which is no checkpoint of this run"
        self._index.put(entry.evolve(state=EntryState.CORRUPT, why=why))

    def _judged(self, entry: Entry, manifest_sha256: str | None, listed: Mapping[str, int | None]) -> Entry:
        """Return the entry with what the list and the manifest say of it."""
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
        """Drop the checkpoints of versions that the worker has had deleted; what is not processed yet is not gone."""
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
        """Return when one may ask again, so that what fails or is not shown yet costs a call a poll interval."""
        return self._clock.now() + timedelta(seconds=self._settings.poll_every_s)


def _promoted(in_output: Entry, in_dataset: Entry) -> Entry:
    """Return what counts of a checkpoint in an output that a version of the dataset holds as well: the dataset, if whole there.

    One that was given up while it was on its way stays given up.
    """
    if in_output.state is EntryState.CORRUPT:
        return in_dataset
    if in_dataset.state is EntryState.CORRUPT:
        return in_output
    return in_dataset.evolve(state=in_output.state, why=in_output.why)


def _name(attempt: AttemptRecord) -> str:
    return attempt_name(attempt.session, attempt.attempt)

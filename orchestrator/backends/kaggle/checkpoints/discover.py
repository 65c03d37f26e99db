"""Finds what attempts have left on the account: checkpoints in versions of their datasets and in outputs of their kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from orchestrator.backends.kaggle.checkpoints.fetch import Fetching
from orchestrator.backends.kaggle.checkpoints.index import AttemptIndex, Entry, EntryState, IndexFile
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
_WHOLE_DATASET = 0  # in place of a version's number
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
        self._not_before: dict[str, datetime] = {}

    def discover(self) -> None:
        """Look at the datasets of attempts that nobody watches and from which something may come: most often at none."""
        now = self._clock.now()
        index = self._index.read()
        candidates = [
            attempt
            for attempt in reversed(self._known_attempts())
            if attempt.backend == _BACKEND
            and attempt.state not in (AttemptState.PLANNED, AttemptState.DROPPED)
            and not attempt.is_live  # the backend looks at that one
            and not index.attempts.get(_name(attempt), AttemptIndex()).is_closed
        ]
        looks = 0
        for attempt in candidates:
            seen = self._looks.seen(attempt.session, attempt.attempt)
            if seen.dataset_at is not None and now < seen.dataset_at + timedelta(seconds=self._settings.poll_every_s):
                continue
            if now < self._not_before.get(_name(attempt), now):
                continue
            if looks == _LOOKS_A_CALL:
                return
            looks += 1
            self._pause(_name(attempt))
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
        if not new and known.current == dataset.current:
            return
        now, examining = self._clock.now(), f"examine {name}"
        if now < self._not_before.get(examining, now):
            return
        self._pause(examining)
        for version in new:
            self._examine(session, attempt, version, is_current=version.number == dataset.current)
        self._forget_what_is_gone(session, attempt, dataset)
        if {version.number for version in dataset.readable} <= set(self._index.attempt(name).examined):
            self._not_before.pop(examining, None)

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
        self._index.change_attempt(attempt_name(session, attempt), current=0, examined=(), wrong={}, is_gone=False)

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
        slug = attempt_dataset_slug(self._context.run, attempt.session, attempt.attempt)
        try:
            info = self._api().dataset(slug)
            self._not_before.pop(f"examine {_name(attempt)}", None)
            self.take_dataset(attempt.session, attempt.attempt, info)
        except GemmaOrchError:
            return  # it is looked at again
        finally:
            self._pause(_name(attempt))
        over_at = attempt.ended_at or attempt.launched_at or attempt.planned_at
        known = self._index.attempt(_name(attempt))
        if known.looked_since is None:  # one look may lag, however long the attempt is over
            self._index.change_attempt(_name(attempt), looked_since=now)
        if info is None and self._may_still_come(_name(attempt), _WHOLE_DATASET):
            return
        over_at = max(over_at, known.looked_since or now)
        pending = info is not None and info.versions and max(version.number for version in info.versions) > known.current
        settled = now >= over_at + timedelta(seconds=self._settings.settle_s)
        late = now >= over_at + timedelta(seconds=self._settings.settle_s + self._settings.processing_limit_s)
        wrong = known.wrong.keys() - {str(_WHOLE_DATASET)}
        is_last_seen = known.report_version is not None and not pending  # after its report a session uploads nothing
        if settled and (is_last_seen or late) and not wrong:
            if info is not None or self._is_gone(slug):
                self._index.change_attempt(_name(attempt), is_closed=True)
        elif settled and not pending and not wrong:  # Kaggle may show a version only once it is processed
            self._not_before[_name(attempt)] = over_at + timedelta(
                seconds=self._settings.settle_s + self._settings.processing_limit_s
            )

    def _is_gone(self, slug: str) -> bool:
        """Return whether a dataset that is not shown is certainly not on the account."""
        try:
            return not dataset_is_listed(self._api(), slug)
        except GemmaOrchError:
            return False  # it is looked at again

    def _examine(self, session: int, attempt: int, version: VersionSeen, *, is_current: bool) -> None:
        slug, name = attempt_dataset_slug(self._context.run, session, attempt), attempt_name(session, attempt)
        api = self._api()
        is_said_to_be_ready = version.status.lower() == "ready"  # the dataset's own word may be about a newer version
        if is_current and not is_said_to_be_ready and not api.dataset_is_ready(slug):
            return
        listed = api.dataset_files(slug, version.number)
        if listed is None:
            return
        known = self._index.attempt(name)
        if REPORT_NAME in listed and version.number > (known.report_version or 0):
            self._index.change_attempt(name, report_version=version.number)
        note = VersionNote.parse(version.notes)
        standing = self._index.entry(note.checkpoint) if note is not None else None
        if note is None or (note.session, note.attempt) != (session, attempt):
            self._tell_of_a_false_note(session, attempt, version)
            self._index.change_attempt(name, examined=(*known.examined, version.number))
            return
        in_output = standing if standing is not None and standing.place.kind == "output" else None
        in_dataset = standing if in_output is None else None
        if in_dataset is not None and in_dataset.place.version >= version.number and in_dataset.state is not EntryState.CORRUPT:
            self._index.change_attempt(name, examined=(*known.examined, version.number))  # a later version holds the same one
            return
        place = CheckpointPlace(kind="dataset", owner=self._context.owner, slug=slug, version=version.number)
        entry = self._new_entry(note.checkpoint, session, attempt, place, note.manifest_sha256)
        judged = self._judged(entry, self._fetching.take_manifest(entry, listed), listed)
        if judged.state is EntryState.CORRUPT and self._may_still_come(name, version.number):
            return
        self._index.put(_promoted(in_output, judged) if in_output is not None else judged)
        wrong = {number: since for number, since in known.wrong.items() if number != str(version.number)}
        self._index.change_attempt(name, examined=(*known.examined, version.number), wrong=wrong)

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

    def _may_still_come(self, name: str, version: int) -> bool:
        """Return whether a version that is not what its note says may only be shown too early: lists lag, too."""
        known, now = self._index.attempt(name), self._clock.now()
        since = known.wrong.get(str(version))
        if since is None:
            self._index.change_attempt(name, wrong={**known.wrong, str(version): now})
            return True
        return now < since + timedelta(seconds=self._settings.settle_s)

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
        name = attempt_name(session, attempt)
        standing = {version.number for version in dataset.versions if version.status.lower() != "deleted"}
        index = self._index.read()
        gone = {
            entry.id
            for entry in index.checkpoints.values()
            if (entry.session, entry.attempt) == (session, attempt)
            and entry.place.kind == "dataset"
            and entry.place.version not in standing
            and entry.place.version < dataset.current
        }
        self._index.drop(*gone)
        examined = self._index.attempt(name).examined
        current = dataset.current if dataset.current in examined else self._index.attempt(name).current
        self._index.change_attempt(name, current=current, total_bytes=dataset.total_bytes)

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

    def _pause(self, name: str) -> None:
        self._not_before[name] = self._clock.now() + timedelta(seconds=self._settings.poll_every_s)


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

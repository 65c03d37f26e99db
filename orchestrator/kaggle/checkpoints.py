"""The checkpoints of a run that trains on Kaggle: in the datasets of its attempts, in outputs of kernels, and in a folder here.

A checkpoint counts when its version is listed, processed and current or older, every file is listed with the manifest's
size, and the manifest is the one that the version's note names. Its bytes are not brought here for that: the session that
starts from them reads and verifies every one before it trains, and `folder` does for whoever wants them here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.kaggle.index import AttemptIndex, Entry, EntryState, IndexFile
from orchestrator.kaggle.looks import Looks
from orchestrator.kaggle.seen import DatasetSeen, VersionSeen
from state import files
from state.checkpoint_store import DirectoryCheckpointStore
from state.clock import Clock
from state.errors import CorruptCheckpointError, DataError, GemmaOrchError, TemporaryError
from state.kaggle.job import CheckpointPlace
from state.kaggle.names import VersionNote, attempt_slug, checkpoint_file_names
from state.kaggle.records import DatasetInfo, DatasetVersion, OutputFile
from state.kaggle.settings import KaggleSettings
from state.layout import MANIFEST_NAME, REPORT_NAME, RunLayout, attempt_name, parse_attempt_name
from state.ledger import AttemptRecord
from state.manifest import Manifest, state_sha256
from state.session import AttemptState
from state.spec import ExpectedCheckpoint

if TYPE_CHECKING:
    from state.kaggle.api import KaggleApi

BACKEND = "kaggle"
_WHOLE_DATASET = 0  # in place of a version's number
_LOOKS_A_CALL = 4  # attempts of which nothing is known that are looked at in one go, newest first: after the index was lost


class KaggleCheckpoints:
    """The checkpoint store of a run's controller.

    What is staged and committed here, and what was fetched, lies in the folder `local`; the rest is on the account.

    Args:
        api: The account; asked for when the first call is due.
        run: The run's name.
        layout: The run's folder.
        clock: The time.
        settings: How long reads may lag, and how often to ask.
        local: The checkpoints that are here.
        looks: What was seen of the attempts' datasets.
        known_attempts: The attempts that the ledger knows.
    """

    def __init__(
        self,
        api: Callable[[], KaggleApi],
        run: str,
        layout: RunLayout,
        clock: Clock,
        settings: KaggleSettings,
        local: DirectoryCheckpointStore,
        looks: Looks,
        known_attempts: Callable[[], Sequence[AttemptRecord]],
    ) -> None:
        self._api = api
        self._run = run
        self._clock = clock
        self._settings = settings
        self._local = local
        self._looks = looks
        self._known_attempts = known_attempts
        self._folder = kaggle_folder(layout)
        self._index = IndexFile(self._folder / "checkpoints.json")
        self._not_before: dict[str, datetime] = {}
        self._last_check: dict[str, tuple[datetime, GemmaOrchError]] = {}

    # What is there.

    def ids(self) -> tuple[str, ...]:
        """Return the ids of all checkpoints that are known here or on the account, sorted; asks for what is due."""
        self._discover()
        index = self._index.read()
        shown = {known.id for known in index.checkpoints.values() if known.state in (EntryState.SOUND, EntryState.CORRUPT)}
        hidden = index.checkpoints.keys() - shown
        return tuple(sorted(shown | (set(self._local.ids()) - hidden)))

    def manifest(self, checkpoint_id: str) -> tuple[Manifest, str]:
        """Return a checkpoint's manifest and the manifest's own sha256.

        Raises:
            CorruptCheckpointError: there is none, or it makes no sense.
            TemporaryError: it cannot be fetched now.
        """
        entry = self._entry(checkpoint_id)
        if entry is None:
            return self._local.manifest(checkpoint_id)
        return self._manifest_of(entry)

    def verify(self, checkpoint_id: str, expected: ExpectedCheckpoint | None = None) -> Manifest:
        """Return the manifest of a checkpoint that stands whole, as far as lists can tell.

        Every byte's digest is verified by the session that starts from it. With an expectation the account is asked again,
        at most once a poll interval: what stood an hour ago may be gone.

        Raises:
            CorruptCheckpointError: the list of its files is not the manifest's, or the manifest is not the expected one.
            TemporaryError: that cannot be told now.
        """
        entry = self._entry(checkpoint_id)
        if entry is None:
            return self._local.verify(checkpoint_id, expected)
        if entry.state is not EntryState.SOUND:
            raise CorruptCheckpointError(checkpoint_id, entry.why or f"checkpoint {checkpoint_id} was put aside")
        manifest, manifest_sha256 = self._manifest_of(entry)
        if expected is not None and manifest_sha256 != expected.manifest_sha256:
            raise CorruptCheckpointError(
                checkpoint_id,
                f"the manifest of {checkpoint_id} has sha256 {manifest_sha256[:12]}",
                expected=f"{expected.manifest_sha256[:12]}, which is what was verified before",
            )
        if expected is not None:
            self._look_again(entry, manifest)
        return manifest

    def verify_tensors(self, checkpoint_id: str) -> Manifest:
        """Bring a checkpoint here and verify every tensor in it.

        Raises:
            CorruptCheckpointError: a file or tensor is not the manifest's.
            TemporaryError: it cannot be fetched now.
        """
        self.folder(checkpoint_id)
        return self._local.verify_tensors(checkpoint_id)

    def folder(self, checkpoint_id: str) -> Path:
        """Return the folder that holds a checkpoint's files, fetched and verified now when they are not here.

        Raises:
            CorruptCheckpointError: what was fetched is not what the manifest says.
            TemporaryError: it cannot be fetched now.
        """
        entry = self._index.read().checkpoints.get(checkpoint_id)
        if checkpoint_id not in self._local.ids() and entry is not None and entry.state is EntryState.SOUND:
            self._fetch(entry, self._local)
        return self._local.folder(checkpoint_id)

    def copy_into(self, checkpoint_id: str, store: DirectoryCheckpointStore) -> None:
        """Bring a checkpoint into another folder, from here when it is here, else from the account; every byte is verified.

        Raises:
            CorruptCheckpointError: what was found is not what the manifest says.
            TemporaryError: it cannot be fetched now.
        """
        entry = self._index.read().checkpoints.get(checkpoint_id)
        if checkpoint_id not in self._local.ids() and entry is not None and entry.state is EntryState.SOUND:
            self._fetch(entry, store)
            return
        manifest, folder = self._local.verify(checkpoint_id), self._local.folder(checkpoint_id)
        staged = store.stage(checkpoint_id)
        for file in manifest.files:
            files.link_or_copy(folder / file.name, staged / file.name)
        _commit(store, staged, manifest, (folder / MANIFEST_NAME).read_bytes())

    def place(self, checkpoint_id: str) -> CheckpointPlace | None:
        """Return where on the account a checkpoint lies, or None when it is only here."""
        entry = self._index.read().checkpoints.get(checkpoint_id)
        return entry.place if entry is not None and entry.state is EntryState.SOUND else None

    def has_examined(self, session: int, attempt: int) -> bool:
        """Return whether every version of an attempt's dataset that the last look showed to be readable was looked into."""
        dataset = self._looks.seen(session, attempt).dataset
        shown = {version.number for version in dataset.readable} if dataset is not None else set()
        return shown <= set(self._attempt(attempt_name(session, attempt)).examined)

    def is_known(self, checkpoint_id: str) -> bool:
        """Return whether a checkpoint was found on the account, whole or not: then none of its name is waited for."""
        return checkpoint_id in self._index.read().checkpoints

    @property
    def num_sound(self) -> int:
        """How many checkpoints stand whole in datasets."""
        known = self._index.read().checkpoints.values()
        return sum(entry.state is EntryState.SOUND and entry.place.kind == "dataset" for entry in known)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the run's checkpoints on the account, as far as they are known."""
        return self._index.read().stored_bytes

    @property
    def is_over_budget(self) -> bool:
        """Whether they take more than the run's share of the account's storage."""
        return self.stored_bytes > self._settings.storage_quota_bytes * self._settings.storage_share

    # What changes something.

    def stage(self, checkpoint_id: str) -> Path:
        """Return an empty folder here to write a checkpoint's files into."""
        return self._local.stage(checkpoint_id)

    def commit(self, staged: Path, manifest: Manifest) -> Manifest:
        """Make a staged checkpoint durable and visible here; return the manifest that stands."""
        return self._local.commit(staged, manifest)

    def quarantine(self, checkpoint_id: str, reason: str) -> None:
        """Put a checkpoint aside, with the reason, so that nobody takes it for one; nothing is deleted."""
        self._set_state(checkpoint_id, EntryState.QUARANTINED, reason)
        self._local.quarantine(checkpoint_id, reason)

    def delete(self, checkpoint_id: str) -> None:
        """Delete a checkpoint: it stops existing now; on the account its files go with the last one of its attempt."""
        self._set_state(checkpoint_id, EntryState.DELETED, None)
        self._local.delete(checkpoint_id)

    def sweep(self, is_over: Callable[[str], bool]) -> None:
        """Remove what attempts that are over left half written here, and the datasets that hold nothing that is needed."""
        self._local.sweep(is_over)
        for name in self._deletable():
            self._delete_dataset(name)

    def examine(self, session: int, attempt: int) -> None:
        """Take in what the last look at an attempt's dataset has shown; asks only about versions that are new.

        Raises:
            TemporaryError: that cannot be told now; what was known stays.
        """
        dataset = self._looks.seen(session, attempt).dataset
        if dataset is None:
            return
        name = attempt_name(session, attempt)
        known = self._attempt(name)
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
        if {version.number for version in dataset.readable} <= set(self._attempt(name).examined):
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
        self._put_attempt(attempt_name(session, attempt), current=0, examined=(), wrong={}, is_gone=False)

    def take_outputs(self, session: int, attempt: int, version: int, outputs: Sequence[OutputFile]) -> None:
        """Take in the checkpoint that a kernel left in its output because it could not upload it.

        Raises:
            TemporaryError: its manifest cannot be fetched now.
        """
        slug = attempt_slug(self._run, session, attempt)
        named = {output.name.rpartition("/")[2]: output for output in outputs}
        for name, output in named.items():
            checkpoint_id = name.removesuffix(f".{MANIFEST_NAME}")
            known = self._index.read().checkpoints.get(checkpoint_id)
            of_attempt = checkpoint_id.rpartition("-")[2] == attempt_name(session, attempt)
            if checkpoint_id == name or known is not None or not of_attempt:
                continue
            place = CheckpointPlace(kind="output", owner=self._owner(), slug=slug, version=version)
            target = self._manifest_path(checkpoint_id)
            target.parent.mkdir(parents=True, exist_ok=True)
            sha256 = self._api().download_output(output, target)
            entry = self._new_entry(checkpoint_id, session, attempt, place, sha256)
            self._put(self._judged(entry, sha256, dict.fromkeys(named)))

    def bring_home(self, session: int, attempt: int) -> None:
        """Fetch what an attempt left in its kernel's output, because that is about to be deleted.

        Raises:
            TemporaryError: it cannot be fetched now.
        """
        index = self._index.read()
        for entry in index.checkpoints.values():
            mine = (entry.session, entry.attempt) == (session, attempt)
            if mine and entry.place.kind == "output" and entry.state is EntryState.SOUND:
                self.folder(entry.id)
                self._drop(entry.id)

    def report_version(self, session: int, attempt: int) -> int | None:
        """Return the version of an attempt's dataset that holds its report, once there is one."""
        return self._attempt(attempt_name(session, attempt)).report_version

    # Looking.

    def _discover(self) -> None:
        """Look at the datasets of attempts that nobody watches and from which something may come: most often at none."""
        now = self._clock.now()
        index = self._index.read()
        candidates = [
            attempt
            for attempt in reversed(self._known_attempts())
            if attempt.backend == BACKEND
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

    def _look_at_what_is_over(self, attempt: AttemptRecord, now: datetime) -> None:
        try:
            info = self._api().dataset(attempt_slug(self._run, attempt.session, attempt.attempt))
            self._not_before.pop(f"examine {_name(attempt)}", None)
            self.take_dataset(attempt.session, attempt.attempt, info)
        except GemmaOrchError:
            return  # it is looked at again
        finally:
            self._pause(_name(attempt))
        over_at = attempt.ended_at or attempt.launched_at or attempt.planned_at
        known = self._attempt(_name(attempt))
        if known.looked_since is None:  # one look may lag, however long the attempt is over
            self._put_attempt(_name(attempt), looked_since=now)
        if info is None and self._may_still_come(_name(attempt), _WHOLE_DATASET):
            return
        over_at = max(over_at, known.looked_since or now)
        pending = info is not None and info.versions and max(version.number for version in info.versions) > known.current
        settled = now >= over_at + timedelta(seconds=self._settings.settle_s)
        late = now >= over_at + timedelta(seconds=self._settings.settle_s + self._settings.processing_limit_s)
        wrong = known.wrong.keys() - {str(_WHOLE_DATASET)}
        is_last_seen = known.report_version is not None and not pending  # after its report a session uploads nothing
        if settled and (is_last_seen or late) and not wrong:
            self._put_attempt(_name(attempt), is_closed=True)
        elif settled and not pending and not wrong:  # Kaggle may show a version only once it is processed
            self._not_before[_name(attempt)] = over_at + timedelta(
                seconds=self._settings.settle_s + self._settings.processing_limit_s
            )

    def _examine(self, session: int, attempt: int, version: VersionSeen, *, is_current: bool) -> None:
        slug, name = attempt_slug(self._run, session, attempt), attempt_name(session, attempt)
        api = self._api()
        is_said_to_be_ready = version.status.lower() == "ready"  # the dataset's own word may be about a newer version
        if is_current and not is_said_to_be_ready and not api.dataset_is_ready(slug):
            return
        listed = api.dataset_files(slug, version.number)
        if listed is None:
            return
        known = self._attempt(name)
        if REPORT_NAME in listed and version.number > (known.report_version or 0):
            self._put_attempt(name, report_version=version.number)
        note = VersionNote.parse(version.notes)
        standing = self._index.read().checkpoints.get(note.checkpoint) if note is not None else None
        if note is None or (note.session, note.attempt) != (session, attempt):
            self._put_attempt(name, examined=(*known.examined, version.number))
            return
        in_output = standing if standing is not None and standing.place.kind == "output" else None
        in_dataset = standing if in_output is None else None
        if in_dataset is not None and in_dataset.place.version >= version.number and in_dataset.state is not EntryState.CORRUPT:
            self._put_attempt(name, examined=(*known.examined, version.number))  # a later version holds the same one
            return
        place = CheckpointPlace(kind="dataset", owner=self._owner(), slug=slug, version=version.number)
        entry = self._new_entry(note.checkpoint, session, attempt, place, note.manifest_sha256)
        judged = self._judged(entry, self._fetched_sha256(entry, listed), listed)
        if judged.state is EntryState.CORRUPT and self._may_still_come(name, version.number):
            return
        self._put(_promoted(in_output, judged) if in_output is not None else judged)
        wrong = {number: since for number, since in known.wrong.items() if number != str(version.number)}
        self._put_attempt(name, examined=(*known.examined, version.number), wrong=wrong)

    def _may_still_come(self, name: str, version: int) -> bool:
        """Return whether a version that is not what its note says may only be shown too early: lists lag, too."""
        known, now = self._attempt(name), self._clock.now()
        since = known.wrong.get(str(version))
        if since is None:
            self._put_attempt(name, wrong={**known.wrong, str(version): now})
            return True
        return now < since + timedelta(seconds=self._settings.settle_s)

    def _fetched_sha256(self, entry: Entry, listed: Mapping[str, int]) -> str | None:
        """Fetch a checkpoint's manifest, unless it is here; return its digest, or None when it is not in the list."""
        name = _flat(entry.id, MANIFEST_NAME)
        if name not in listed:
            return None
        path = self._manifest_path(entry.id)
        if path.exists() and files.sha256_of_file(path) == entry.manifest_sha256:
            return entry.manifest_sha256
        path.parent.mkdir(parents=True, exist_ok=True)
        files.remove_tree(path)
        return self._api().download(entry.place.slug, entry.place.version, name, path)

    def _judged(self, entry: Entry, manifest_sha256: str | None, listed: Mapping[str, int | None]) -> Entry:
        """Return the entry with what the list and the manifest say of it."""
        try:
            if manifest_sha256 is None:
                raise CorruptCheckpointError(entry.id, f"{entry.id} has no manifest in {_where(entry.place)}")
            if manifest_sha256 != entry.manifest_sha256:
                raise CorruptCheckpointError(
                    entry.id, f"the manifest of {entry.id} in {_where(entry.place)} has sha256 {manifest_sha256[:12]}"
                )
            manifest = self._read_manifest(entry.id)
            _check_list(entry, manifest, listed)
        except CorruptCheckpointError as error:
            return entry.model_copy(update={"state": EntryState.CORRUPT, "why": error.what})
        return entry.model_copy(update={"total_bytes": manifest.total_bytes})

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
        kept = {key: entry for key, entry in index.checkpoints.items() if key not in gone}
        self._index.write(index.model_copy(update={"checkpoints": kept}))
        examined = self._attempt(name).examined
        current = dataset.current if dataset.current in examined else self._attempt(name).current
        self._put_attempt(name, current=current, total_bytes=dataset.total_bytes)

    def _look_again(self, entry: Entry, manifest: Manifest) -> None:
        """Ask the account whether a checkpoint still stands whole, unless that was asked just now."""
        now, pause = self._clock.now(), timedelta(seconds=self._settings.poll_every_s)
        if entry.wrong_since is None and now < entry.checked_at + pause:
            return
        last = self._last_check.get(entry.id)
        if last is not None and now < last[0] + pause:
            raise last[1]
        try:
            problem = self._problem(entry, manifest)
        except GemmaOrchError as error:
            unknown = TemporaryError(f"whether {entry.id} still stands in {_where(entry.place)} cannot be told: {error.what}")
            self._last_check[entry.id] = (now, unknown)
            raise unknown from error
        self._last_check.pop(entry.id, None)
        if problem is None:
            self._put(entry.model_copy(update={"checked_at": now, "wrong_since": None}))
            return
        since = entry.wrong_since or now
        if now < since + timedelta(seconds=self._settings.settle_s):
            self._put(entry.model_copy(update={"wrong_since": since}))
            doubt = TemporaryError(f"{problem}; that is believed when it is still so after {self._settings.settle_s:.0f} s")
            self._last_check[entry.id] = (now, doubt)
            raise doubt
        if entry.id in self._local.ids():
            self._local.verify(entry.id)
            self._drop(entry.id)  # from now on it is one that is only here
            return
        raise CorruptCheckpointError(entry.id, problem)

    def _problem(self, entry: Entry, manifest: Manifest) -> str | None:
        """Return what is wrong with a checkpoint on the account now, or None."""
        place, api = entry.place, self._api()
        if place.kind == "output":
            outputs = api.session_outputs(place.slug, place.version)
            if outputs is None:
                return f"the kernel {place.slug} with checkpoint {entry.id} in its output is gone"
            listed: Mapping[str, int | None] = {output.name.rpartition("/")[2]: None for output in outputs[0]}
        else:
            info = api.dataset(place.slug, owner=place.owner)
            if info is None:
                return f"the dataset {place.slug} with checkpoint {entry.id} is gone"
            # Whether the dataset is READY is no matter: that may be about a newer version that is processed, or has failed.
            found = api.dataset_files(place.slug, place.version, owner=place.owner)
            if found is None:
                return f"{_where(place)} with checkpoint {entry.id} is not readable"
            listed = found
        try:
            _check_list(entry, manifest, listed)
        except CorruptCheckpointError as error:
            return error.what
        return None

    # Fetching.

    def _fetch(self, entry: Entry, store: DirectoryCheckpointStore) -> None:
        manifest, _ = self._manifest_of(entry)
        staged = store.stage(entry.id)
        whole = False
        try:
            for file in manifest.files:
                self._fetch_file(entry, file.name, file.sha256, staged / file.name)
            _commit(store, staged, manifest, self._manifest_path(entry.id).read_bytes())
            whole = True
        finally:
            if not whole:
                files.remove_tree(staged)

    def _fetch_file(self, entry: Entry, name: str, sha256: str, target: Path) -> None:
        place, flat = entry.place, _flat(entry.id, name)
        if place.kind == "dataset":
            fetched = self._api().download(place.slug, place.version, flat, target, owner=place.owner)
        else:
            fetched = self._api().download_output(self._output(entry, flat), target)
        if fetched != sha256:
            raise CorruptCheckpointError(
                entry.id, f"{name} of checkpoint {entry.id} in {_where(place)} has another sha256 than the manifest says"
            )

    def _output(self, entry: Entry, flat: str) -> OutputFile:
        outputs = self._api().session_outputs(entry.place.slug, entry.place.version)
        if outputs is None:
            raise TemporaryError(
                f"the kernel {entry.place.slug}, in whose output {entry.id} lies, is not shown",
                remedy="look for it on kaggle.com: when it was deleted, that checkpoint is gone with it",
            )
        for output in outputs[0]:
            if output.name.rpartition("/")[2] == flat:
                return output
        raise TemporaryError(f"{_where(entry.place)} does not show {flat}")

    # Records.

    def _entry(self, checkpoint_id: str) -> Entry | None:
        """Return what is known of a checkpoint on the account, or None when it is one that is, or would be, here.

        Raises:
            CorruptCheckpointError: it was on the account, and is not any more.
            TemporaryError: it may be on the account, and that was not looked at yet.
        """
        entry = self._index.read().checkpoints.get(checkpoint_id)
        if entry is not None or checkpoint_id in self._local.ids():
            return entry
        name = checkpoint_id.rpartition("-")[2]
        on_kaggle = any(_name(attempt) == name and attempt.backend == BACKEND for attempt in self._known_attempts())
        known = self._attempt(name)
        if parse_attempt_name(name) is None or not on_kaggle:
            return None
        if not known.is_closed:
            raise TemporaryError(f"the dataset of {name}, where {checkpoint_id} may lie, was not looked at for long enough yet")
        raise CorruptCheckpointError(checkpoint_id, f"{checkpoint_id} is in no version of the dataset of {name}, nor is it here")

    def _manifest_of(self, entry: Entry) -> tuple[Manifest, str]:
        path = self._manifest_path(entry.id)
        if not path.exists() and entry.place.kind == "dataset":
            path.parent.mkdir(parents=True, exist_ok=True)
            self._api().download(entry.place.slug, entry.place.version, _flat(entry.id, MANIFEST_NAME), path)
        return self._read_manifest(entry.id), files.sha256_of_file(path)

    def _read_manifest(self, checkpoint_id: str) -> Manifest:
        try:
            data = self._manifest_path(checkpoint_id).read_bytes()
            manifest = Manifest.from_json(data, f"the manifest of {checkpoint_id}")
        except FileNotFoundError as error:
            raise TemporaryError(f"the manifest of {checkpoint_id} is not here and is nowhere shown") from error
        except DataError as error:
            raise CorruptCheckpointError(checkpoint_id, error.what) from error
        if manifest.id != checkpoint_id:
            raise CorruptCheckpointError(checkpoint_id, f"the manifest of {checkpoint_id} is that of {manifest.id}")
        if state_sha256(manifest.tensors, manifest.step, manifest.data_position) != manifest.state_sha256:
            raise CorruptCheckpointError(
                checkpoint_id,
                f"the manifest of {checkpoint_id} contradicts itself: its state digest is not that of its tensors",
            )
        return manifest

    def _manifest_path(self, checkpoint_id: str) -> Path:
        return self._folder / "manifests" / _flat(checkpoint_id, MANIFEST_NAME)

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

    def _put(self, entry: Entry) -> None:
        index = self._index.read()
        self._index.write(index.model_copy(update={"checkpoints": {**index.checkpoints, entry.id: entry}}))

    def _drop(self, checkpoint_id: str) -> None:
        index = self._index.read()
        kept = {key: entry for key, entry in index.checkpoints.items() if key != checkpoint_id}
        self._index.write(index.model_copy(update={"checkpoints": kept}))

    def _attempt(self, name: str) -> AttemptIndex:
        return self._index.read().attempts.get(name, AttemptIndex())

    def _put_attempt(self, name: str, **values: object) -> None:
        index = self._index.read()
        known = self._attempt(name).model_copy(update=values)
        self._index.write(index.model_copy(update={"attempts": {**index.attempts, name: known}}))

    def _set_state(self, checkpoint_id: str, state: EntryState, why: str | None) -> None:
        entry = self._index.read().checkpoints.get(checkpoint_id)
        if entry is not None:
            self._put(entry.model_copy(update={"state": state, "why": why or entry.why}))

    # Datasets that nobody needs any more.

    def _deletable(self) -> tuple[str, ...]:
        """Return the attempts that are over and of whose checkpoints some were deleted and none is needed."""
        index = self._index.read()
        states: dict[str, set[EntryState]] = {}
        for entry in index.checkpoints.values():
            # One that is needed and lies in the output may be on its way into the dataset.
            if entry.place.kind == "dataset" or entry.state is EntryState.SOUND:
                states.setdefault(attempt_name(entry.session, entry.attempt), set()).add(entry.state)
        unneeded = {EntryState.DELETED, EntryState.QUARANTINED}
        return tuple(
            name
            for name, found in sorted(states.items())
            if found <= unneeded
            and EntryState.DELETED in found
            and self._attempt(name).is_closed
            and not self._attempt(name).is_gone
        )

    def _delete_dataset(self, name: str) -> None:
        now = self._clock.now()
        numbers = parse_attempt_name(name)
        if numbers is None or now < self._not_before.get(f"delete {name}", now):
            return
        self._pause(f"delete {name}")
        slug = attempt_slug(self._run, *numbers)
        try:
            info = self._api().dataset(slug)
            if info is not None and self._holds_something_else(info.versions):
                return
            self._api().delete_dataset(slug)
        except GemmaOrchError:
            return  # it costs storage, no more: the next sweep tries again
        self._put_attempt(name, is_gone=True)

    def _holds_something_else(self, versions: Sequence[DatasetVersion]) -> bool:
        """Return whether a version holds a checkpoint that was not given up."""
        given_up = (EntryState.DELETED, EntryState.QUARANTINED)
        known = self._index.read().checkpoints
        notes = (note for version in versions if (note := VersionNote.parse(version.notes)) is not None)
        return any(note.checkpoint not in known or known[note.checkpoint].state not in given_up for note in notes)

    def _pause(self, name: str) -> None:
        self._not_before[name] = self._clock.now() + timedelta(seconds=self._settings.poll_every_s)

    def _owner(self) -> str:
        return self._settings.owner or self._api().user


def kaggle_folder(layout: RunLayout) -> Path:
    """Return the folder of what the controller knows of Kaggle about a run."""
    return layout.root / "kaggle"


def _check_list(entry: Entry, manifest: Manifest, listed: Mapping[str, int | None]) -> None:
    """Check that every file of a checkpoint is listed with its size; a list of a kernel's output has no sizes.

    Raises:
        CorruptCheckpointError: one is not.
    """
    for file in manifest.files:
        name = _flat(entry.id, file.name)
        if name not in listed:
            raise CorruptCheckpointError(entry.id, f"{name} is missing in {_where(entry.place)}")
        size = listed[name]
        if size is not None and size != file.size_bytes:
            raise CorruptCheckpointError(
                entry.id, f"{name} in {_where(entry.place)} has {size} bytes", expected=f"{file.size_bytes} bytes"
            )


def _commit(store: DirectoryCheckpointStore, staged: Path, manifest: Manifest, original: bytes) -> None:
    """Commit a checkpoint whose manifest stays byte for byte what it was: that of another gemma-orch may say less."""
    store.commit(staged, manifest)
    placed = store.folder(manifest.id) / MANIFEST_NAME
    if placed.read_bytes() != original:
        files.write_atomically(placed, original)


def _promoted(in_output: Entry, in_dataset: Entry) -> Entry:
    """Return what counts of a checkpoint in an output that a version of the dataset holds as well: the dataset, if whole there.

    One that was given up while it was on its way stays given up.
    """
    if in_output.state is EntryState.CORRUPT:
        return in_dataset
    if in_dataset.state is EntryState.CORRUPT:
        return in_output
    return in_dataset.model_copy(update={"state": in_output.state, "why": in_output.why})


def _flat(checkpoint_id: str, name: str) -> str:
    return checkpoint_file_names(checkpoint_id, (name,))[name]


def _where(place: CheckpointPlace) -> str:
    return f"version {place.version} of {place.slug}" if place.kind == "dataset" else f"the output of {place.slug}"


def _name(attempt: AttemptRecord) -> str:
    return attempt_name(attempt.session, attempt.attempt)

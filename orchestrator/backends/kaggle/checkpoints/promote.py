"""Promotes checkpoints: copies them into datasets from this machine, or from a kernel's output.

A controller promotes the checkpoint that its next session starts from, a bit with each tick, because a kernel cannot read this
machine. A kernel can read another kernel's output, so a checkpoint there is promoted only when the user asks for it
(`gemma-orch promote`): its bytes pass through this machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.backends.kaggle.checkpoints.store import KaggleCheckpoints
from orchestrator.backends.kaggle.transfer import sending
from state import files
from state.errors import CorruptCheckpointError, DataError, GemmaOrchError, TemporaryError, UserError
from state.kaggle.job import CheckpointPlace
from state.kaggle.names import VersionNote, attempt_dataset_slug, checkpoint_file_names
from state.layout import MANIFEST_NAME, attempt_name
from state.ledger import CheckpointRecord, CheckpointState, RunRecord
from state.manifest import Manifest
from state.quantities import format_duration, format_size
from state.stores.checkpoint_store import DirectoryCheckpointStore

if TYPE_CHECKING:
    from orchestrator.backends.kaggle.data.upload import ProgressReporter
    from orchestrator.ports import Ports
    from state.kaggle.datasets import LocalFile

_ORIGIN_NAME = "origin.txt"
_SHORTEST_UPLOAD_S = 3600.0
_SLOWEST_BYTES_PER_S = 100e3


class Promotion:
    """Promotes checkpoints into the datasets of the attempts that saved them.

    Args:
        checkpoints: The run's checkpoint store.
    """

    def __init__(self, checkpoints: KaggleCheckpoints) -> None:
        self._context = checkpoints.context
        self._api = self._context.api
        self._clock = self._context.clock
        self._settings = self._context.settings
        self._folder = self._context.folder / "promotion"
        self._checkpoints = checkpoints
        self._sent: dict[str, datetime] = {}
        # Not the run's folder of checkpoints, which a controller sweeps and prunes.
        self._fetched = DirectoryCheckpointStore(self._folder / "checkpoints")

    def unready(self, checkpoint_id: str) -> str | None:
        """Advance the promotion of a checkpoint; return the reason to wait, or None when the account has it.

        Raises:
            CorruptCheckpointError: a file does not match the manifest.
            TemporaryError: Kaggle does not answer, or refuses the upload now.
        """
        from state.kaggle.datasets import begin_version

        if self._checkpoints.place(checkpoint_id) is not None:
            return None
        manifest = self._checkpoints.verify(checkpoint_id)
        slug = attempt_dataset_slug(self._context.run, manifest.session, manifest.attempt)
        waiting = f"checkpoint {checkpoint_id} to be uploaded from this machine and processed by Kaggle in the dataset {slug}"
        note = _note(manifest, self._checkpoints.manifest(checkpoint_id)[1])
        info = self._api().dataset(slug)
        if info is None:
            self._make_dataset(manifest.session, manifest.attempt)
            return waiting
        if info.current_version is None or not self._api().dataset_is_ready(slug):
            return waiting
        if any(version.notes == str(note) for version in info.versions):
            self._checkpoints.discovery.take_dataset(manifest.session, manifest.attempt, info)
            return waiting if self._checkpoints.place(checkpoint_id) is None else None
        now = self._clock.now()
        sent_at = self._sent.get(checkpoint_id)
        if sent_at is None or now >= sent_at + timedelta(seconds=self._settings.processing_limit_s):
            self._folder.mkdir(parents=True, exist_ok=True)
            begin_version(
                self._api(),
                slug,
                _files(self._checkpoints.folder(checkpoint_id), manifest),
                str(note),
                delete_old=False,
                **sending(self._context, self._folder),
            )
            self._sent[checkpoint_id] = now
        return waiting

    def bring(self, checkpoint: CheckpointRecord, talk: ProgressReporter) -> CheckpointPlace:
        """Promote a checkpoint from a kernel's output or from this machine, and wait until its dataset shows it.

        A call that was interrupted is resumed by the next; nothing is sent twice. Needs disk space for one copy meanwhile.

        Args:
            checkpoint: The checkpoint's record in the ledger.
            talk: Shows the progress.

        Raises:
            CorruptCheckpointError: the checkpoint does not match its record.
            CorruptUploadError: the dataset does not hold what was sent.
            TemporaryError: Kaggle does not answer or does not process it now, or the kernel with the output is gone.
            UserError: Kaggle refuses the upload.
        """
        from state.kaggle.datasets import wait_until_ready
        from state.kaggle.sending import wait_for

        place = self._in_dataset(checkpoint.id) or self._seen_in_dataset(checkpoint)
        if place is not None:
            return self._done(checkpoint, place)
        manifest = self._fetch(checkpoint, talk)
        slug = attempt_dataset_slug(self._context.run, checkpoint.session, checkpoint.attempt)
        if self._api().dataset(slug) is None:
            self._make_dataset(checkpoint.session, checkpoint.attempt)
        wait_until_ready(self._api(), slug, clock=self._clock, processing_limit_s=self._settings.processing_limit_s)
        local = _files(self._fetched.folder(checkpoint.id), manifest)
        self._publish(slug, local, str(_note(manifest, checkpoint.manifest_sha256)), talk)
        patience_s = self._settings.settle_s + 2 * self._settings.poll_every_s
        what = f"{checkpoint.id} was sent to the dataset {slug}, which does not show it"
        return self._done(checkpoint, wait_for(lambda: self._seen_in_dataset(checkpoint), what, self._clock, patience_s))

    def _publish(self, slug: str, local: Sequence[LocalFile], notes: str, talk: ProgressReporter) -> None:
        from state.kaggle.datasets import begin_version, publish_version

        api, limit_s, num_bytes = self._api(), self._settings.processing_limit_s, sum(file.size_bytes for file in local)
        upload_s = _SHORTEST_UPLOAD_S + num_bytes / _SLOWEST_BYTES_PER_S
        how = sending(self._context, self._folder, limit_s=upload_s)
        info = api.dataset(slug)
        if info is None or all(version.notes != notes for version in info.versions):
            talk.begin(f"{len(local)} files, {format_size(num_bytes)}, to the dataset {slug}", num_bytes)
            try:
                begin_version(api, slug, local, notes, delete_old=False, processing_limit_s=limit_s, on_bytes=talk.sent, **how)
            finally:
                talk.end()
        talk.say(f"waiting for Kaggle to process {slug}, up to {format_duration(limit_s)}")
        publish_version(api, slug, local, notes, delete_old=False, processing_limit_s=limit_s, **how)

    def _in_dataset(self, checkpoint_id: str) -> CheckpointPlace | None:
        place = self._checkpoints.place(checkpoint_id)
        return place if place is not None and place.kind == "dataset" else None

    def _seen_in_dataset(self, checkpoint: CheckpointRecord) -> CheckpointPlace | None:
        """Read the attempt's dataset; return the checkpoint's place in it, or None."""
        info = self._api().dataset(attempt_dataset_slug(self._context.run, checkpoint.session, checkpoint.attempt))
        self._checkpoints.discovery.take_dataset(checkpoint.session, checkpoint.attempt, info)
        return self._in_dataset(checkpoint.id)

    def _fetch(self, checkpoint: CheckpointRecord, talk: ProgressReporter) -> Manifest:
        """Copy a checkpoint into the promotion folder, with every byte verified, unless an earlier call has."""
        expected = checkpoint.expected()
        if checkpoint.id in self._fetched.ids():
            try:
                return self._fetched.verify(checkpoint.id, expected)
            except CorruptCheckpointError:
                self._fetched.delete(checkpoint.id)
        self._checkpoints.verify(checkpoint.id, expected)
        place = self._checkpoints.place(checkpoint.id)
        where = f"the output of the kernel {place.slug}" if place is not None else "the run's folder"
        talk.say(f"copying checkpoint {checkpoint.id}, {format_size(checkpoint.total_bytes)}, from {where}")
        self._checkpoints.copy_into(checkpoint.id, self._fetched)
        return self._fetched.manifest(checkpoint.id)[0]

    def _done(self, checkpoint: CheckpointRecord, place: CheckpointPlace) -> CheckpointPlace:
        self._fetched.delete(checkpoint.id)
        return place

    def _make_dataset(self, session: int, attempt: int) -> None:
        """Create an attempt's dataset, unless it exists; forget what polls showed of an earlier one that was deleted."""
        from state.kaggle.datasets import LocalFile, ensure_dataset

        slug = attempt_dataset_slug(self._context.run, session, attempt)
        self._folder.mkdir(parents=True, exist_ok=True)
        origin = self._folder / _ORIGIN_NAME
        files.write_atomically(origin, f"checkpoints of {slug}, trained elsewhere\n".encode())
        local = (LocalFile(path=origin, name=_ORIGIN_NAME, size_bytes=origin.stat().st_size),)
        ensure_dataset(self._api(), slug, local, **sending(self._context, self._folder))
        self._checkpoints.discovery.forget_dataset(session, attempt)


def _note(manifest: Manifest, manifest_sha256: str) -> VersionNote:
    return VersionNote(
        session=manifest.session,
        attempt=manifest.attempt,
        fence=manifest.fence,
        step=manifest.step,
        checkpoint=manifest.id,
        manifest_sha256=manifest_sha256,
    )


def _files(folder: Path, manifest: Manifest) -> tuple[LocalFile, ...]:
    from state.kaggle.datasets import LocalFile

    names = checkpoint_file_names(manifest.id, (*(entry.name for entry in manifest.files), MANIFEST_NAME))
    return tuple(
        LocalFile(path=folder / name, name=flat, size_bytes=(folder / name).stat().st_size) for name, flat in names.items()
    )


@dataclass(frozen=True)
class Promoted:
    """A promoted checkpoint."""

    id: str
    place: CheckpointPlace
    stood_already: bool


def checkpoints_of(ports: Ports, record: RunRecord) -> KaggleCheckpoints:
    """Return the checkpoint store of a run that trains or has trained on Kaggle.

    Raises:
        UserError: the run has never trained on Kaggle.
    """
    store = ports.checkpoints(record.name)
    if not isinstance(store, KaggleCheckpoints):
        raise UserError(
            f"run {record.name} has never trained on Kaggle: its checkpoints are all in this home",
            remedy=f"gemma-orch start --name {record.name} --backend kaggle uploads the checkpoint that its sessions need",
        )
    return store


def to_promote(record: RunRecord, store: KaggleCheckpoints, checkpoint_id: str | None = None) -> tuple[CheckpointRecord, ...]:
    """Return the named checkpoint, or all verified ones that only an output holds: the head first, then the newest.

    Raises:
        TemporaryError: the attempt of the named one is running, and may write into its dataset itself.
    """
    live = record.live_attempt
    at_work = (live.session, live.attempt) if live is not None else None
    if checkpoint_id is not None:
        named = record.checkpoints[checkpoint_id]
        if at_work == (named.session, named.attempt):
            raise TemporaryError(
                f"checkpoint {named.id} cannot be promoted now: its attempt {attempt_name(*at_work)} is running",
                remedy=f"try again when the attempt has ended; gemma-orch stop {record.name} ends it",
            )
        return (named,)
    in_outputs = (
        each
        for each in record.checkpoints.values()
        if each.state is CheckpointState.VERIFIED and (each.session, each.attempt) != at_work and _is_in_output(store, each.id)
    )
    return tuple(sorted(in_outputs, key=lambda each: (each.id == record.header.head, each.step, each.fence), reverse=True))


def promote_all(store: KaggleCheckpoints, wanted: Sequence[CheckpointRecord], talk: ProgressReporter) -> Iterator[Promoted]:
    """Promote checkpoints one after the other; after a temporary failure or a corrupt one, the others are still tried.

    Raises:
        UserError: Kaggle refuses a checkpoint; the next ones are not tried.
        TemporaryError, DataError: the first failure, after all others were tried.
    """
    promotion = Promotion(store)
    failures: list[GemmaOrchError] = []
    for checkpoint in wanted:
        before = store.place(checkpoint.id)
        try:
            place = promotion.bring(checkpoint, talk)
        except (TemporaryError, DataError) as error:
            if failures or len(wanted) > 1:
                talk.say(f"checkpoint {checkpoint.id} is not promoted: {error.what}")
            failures.append(error)
            continue
        yield Promoted(checkpoint.id, place, stood_already=before == place)
    if failures:
        raise failures[0]


def advice(ports: Ports, record: RunRecord) -> str:
    """Return advice to promote the head when only a kernel's output holds it, else an empty text; asks Kaggle nothing."""
    head, store = record.header.head, ports.checkpoints(record.name)
    if head is None or not isinstance(store, KaggleCheckpoints) or not _is_in_output(store, head):
        return ""
    return (
        f"the head {head} is only in its kernel's output, and is lost if that kernel is deleted: "
        f"gemma-orch promote --run {record.name} copies it into a dataset"
    )


def _is_in_output(store: KaggleCheckpoints, checkpoint_id: str) -> bool:
    place = store.place(checkpoint_id)
    return place is not None and place.kind == "output"

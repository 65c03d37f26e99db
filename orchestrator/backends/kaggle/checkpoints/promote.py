"""Brings a checkpoint that is not in a dataset into one: of a run that trained here before, or one left in a kernel's output.

A controller does the first by itself, a bit with each tick, because a kernel can start from nothing that is only here. The
second is for the user to ask for: a kernel's output can be another's input, and its bytes would pass through this machine.
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
    from orchestrator.backends.kaggle.data.upload import Talk
    from orchestrator.ports import Ports
    from state.kaggle.datasets import LocalFile

_ORIGIN_NAME = "origin.txt"
_SHORTEST_UPLOAD_S = 3600.0
_SLOWEST_BYTES_PER_S = 100e3


class Promotion:
    """Uploads checkpoints into the datasets of the attempts that saved them.

    Args:
        checkpoints: Those of the run.
    """

    def __init__(self, checkpoints: KaggleCheckpoints) -> None:
        self._context = checkpoints.context
        self._api = self._context.api
        self._clock = self._context.clock
        self._settings = self._context.settings
        self._folder = self._context.folder / "promotion"
        self._checkpoints = checkpoints
        self._sent: dict[str, datetime] = {}
        self._fetched = DirectoryCheckpointStore(self._folder / "checkpoints")  # where no controller sweeps or prunes

    def unready(self, checkpoint_id: str) -> str | None:
        """Bring a checkpoint nearer to the account; return what that waits for, or None when it lies there.

        Raises:
            CorruptCheckpointError: it is not what its manifest says.
            TemporaryError: Kaggle cannot be asked, or did not take it.
        """
        from state.kaggle.datasets import begin_version

        if self._checkpoints.place(checkpoint_id) is not None:
            return None
        manifest = self._checkpoints.verify(checkpoint_id)
        slug = attempt_dataset_slug(self._context.run, manifest.session, manifest.attempt)
        waiting = f"{checkpoint_id}, which was only here, to be processed by Kaggle in {slug}"
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

    def bring(self, checkpoint: CheckpointRecord, talk: Talk) -> CheckpointPlace:
        """Bring a checkpoint into its attempt's dataset, from a kernel's output or from here, and wait until it stands there.

        Ended at any moment and called again, it goes on; nothing is sent twice. Meanwhile the checkpoint lies here as well.

        Args:
            checkpoint: The checkpoint, as the ledger knows it.
            talk: Told how far it is.

        Raises:
            CorruptCheckpointError: it is not what the ledger says.
            CorruptUploadError: what stands there is not what was sent.
            TemporaryError: Kaggle does not do its part now, or the kernel with the output is gone.
            UserError: Kaggle refuses it.
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
        what = f"{checkpoint.id} was sent to {slug}, and is not shown there"
        return self._done(checkpoint, wait_for(lambda: self._seen_in_dataset(checkpoint), what, self._clock, patience_s))

    def _publish(self, slug: str, local: Sequence[LocalFile], notes: str, talk: Talk) -> None:
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
        talk.say(f"Kaggle processes {slug}; that is waited for, up to {format_duration(limit_s)}")
        publish_version(api, slug, local, notes, delete_old=False, processing_limit_s=limit_s, **how)

    def _in_dataset(self, checkpoint_id: str) -> CheckpointPlace | None:
        place = self._checkpoints.place(checkpoint_id)
        return place if place is not None and place.kind == "dataset" else None

    def _seen_in_dataset(self, checkpoint: CheckpointRecord) -> CheckpointPlace | None:
        """Look at the attempt's dataset; return where the checkpoint lies in it, if it does."""
        info = self._api().dataset(attempt_dataset_slug(self._context.run, checkpoint.session, checkpoint.attempt))
        self._checkpoints.discovery.take_dataset(checkpoint.session, checkpoint.attempt, info)
        return self._in_dataset(checkpoint.id)

    def _fetch(self, checkpoint: CheckpointRecord, talk: Talk) -> Manifest:
        """Bring a checkpoint's files into a folder of their own, every byte verified, unless an earlier call has."""
        expected = checkpoint.expected()
        if checkpoint.id in self._fetched.ids():
            try:
                return self._fetched.verify(checkpoint.id, expected)
            except CorruptCheckpointError:
                self._fetched.delete(checkpoint.id)
        self._checkpoints.verify(checkpoint.id, expected)
        place = self._checkpoints.place(checkpoint.id)
        where = f"the output of the kernel {place.slug}" if place is not None else "the run's folder here"
        talk.say(f"takes checkpoint {checkpoint.id}, {format_size(checkpoint.total_bytes)}, from {where}")
        self._checkpoints.copy_into(checkpoint.id, self._fetched)
        return self._fetched.manifest(checkpoint.id)[0]

    def _done(self, checkpoint: CheckpointRecord, place: CheckpointPlace) -> CheckpointPlace:
        self._fetched.delete(checkpoint.id)
        return place

    def _make_dataset(self, session: int, attempt: int) -> None:
        """Make an attempt's dataset, unless it is there; what was seen of one that is gone is forgotten."""
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
    """A checkpoint that stands in a dataset."""

    id: str
    place: CheckpointPlace
    stood_already: bool


def checkpoints_of(ports: Ports, record: RunRecord) -> KaggleCheckpoints:
    """Return the checkpoint store of a run that trains on Kaggle, or has.

    Raises:
        UserError: it never has.
    """
    store = ports.checkpoints(record.name)
    if not isinstance(store, KaggleCheckpoints):
        raise UserError(
            f"run {record.name} has never trained on Kaggle: its checkpoints are all in this home",
            remedy=f"gemma-orch start --name {record.name} --backend kaggle brings there what its sessions need",
        )
    return store


def to_promote(record: RunRecord, store: KaggleCheckpoints, checkpoint_id: str | None = None) -> tuple[CheckpointRecord, ...]:
    """Return the one that is named, else all kept ones that lie in an output only: the head first, then the newest.

    Raises:
        TemporaryError: the named one is of an attempt that runs, and itself writes into its dataset.
    """
    live = record.live_attempt
    at_work = (live.session, live.attempt) if live is not None else None
    if checkpoint_id is not None:
        named = record.checkpoints[checkpoint_id]
        if at_work == (named.session, named.attempt):
            raise TemporaryError(
                f"{named.id} is of {attempt_name(*at_work)}, which is at work and writes into its dataset itself",
                remedy=f"the same command when it has ended; gemma-orch stop {record.name} ends it",
            )
        return (named,)
    in_outputs = (
        each
        for each in record.checkpoints.values()
        if each.state is CheckpointState.VERIFIED and (each.session, each.attempt) != at_work and _is_in_output(store, each.id)
    )
    return tuple(sorted(in_outputs, key=lambda each: (each.id == record.header.head, each.step, each.fence), reverse=True))


def promote_all(store: KaggleCheckpoints, wanted: Sequence[CheckpointRecord], talk: Talk) -> Iterator[Promoted]:
    """Bring checkpoints into their datasets, one after the other; one that cannot be brought does not keep the next ones.

    Raises:
        UserError: Kaggle refuses one; the next ones are not tried.
        TemporaryError, DataError: of the first one that could not be brought, after the others were.
    """
    promotion = Promotion(store)
    failures: list[GemmaOrchError] = []
    for checkpoint in wanted:
        before = store.place(checkpoint.id)
        try:
            place = promotion.bring(checkpoint, talk)
        except (TemporaryError, DataError) as error:
            if failures or len(wanted) > 1:
                talk.say(f"{checkpoint.id} is not brought: {error.what}")
            failures.append(error)
            continue
        yield Promoted(checkpoint.id, place, stood_already=before == place)
    if failures:
        raise failures[0]


def advice(ports: Ports, record: RunRecord) -> str:
    """Return how to make a head safe that lies in the output of a kernel only; empty when it does not. Asks Kaggle nothing."""
    head, store = record.header.head, ports.checkpoints(record.name)
    if head is None or not isinstance(store, KaggleCheckpoints) or not _is_in_output(store, head):
        return ""
    return (
        f"{head} lies in the output of its kernel only, and would be gone with it: "
        f"gemma-orch promote --run {record.name} brings it into a dataset"
    )


def _is_in_output(store: KaggleCheckpoints, checkpoint_id: str) -> bool:
    place = store.place(checkpoint_id)
    return place is not None and place.kind == "output"

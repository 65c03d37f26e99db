"""Upload prepared data to the account: poll the datasets, plan, upload what is missing, and repeat until all is there.

Killed at any moment, the same command resumes: complete parts are skipped, and a partly uploaded file continues.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol

from orchestrator.backends.kaggle.data.parts import (
    PART_NAME,
    Await,
    DataFile,
    DataPart,
    Keep,
    Move,
    Replace,
    Standing,
    bytes_to_send,
    data_parts,
    part_files,
    plan_upload,
    published_digests,
)
from orchestrator.worker_process.prepare import made_already
from state.backend_settings import KaggleSettings
from state.clock import Clock
from state.data_manifest import DataManifest
from state.document import Document
from state.errors import DataError, TemporaryError, UserError
from state.files import sha256_of_file
from state.kaggle.errors import ProcessingFailedError
from state.kaggle.names import PREFIX
from state.layout import DATA_MANIFEST_NAME
from state.quantities import format_duration, format_size

if TYPE_CHECKING:
    from state.kaggle.api import KaggleApi
    from state.kaggle.datasets import LocalFile

_MOST_ROUNDS = 3  # Kaggle may silently lose a file of a version; upload it again, but not forever
_SLOWEST_BYTES_PER_S = 50_000  # at a slower rate a useful amount of data would take months
_SHORTEST_UPLOAD_S = 600.0
_FIRST_POLL_S, _LONGEST_POLL_S = 1.0, 15.0


class ProgressReporter(Protocol):
    """Receives the progress of an upload."""

    def say(self, text: str) -> None:
        """Show a message."""
        ...

    def begin(self, title: str, num_bytes: int) -> None:
        """Start to show the upload of so many bytes."""
        ...

    def sent(self, num_bytes: int) -> None:
        """Add uploaded bytes."""
        ...

    def end(self) -> None:
        """Stop showing the upload, finished or failed."""
        ...


class UploadedPart(Document):
    """One dataset after an upload."""

    slug: str
    version: int
    files: int
    bytes: int
    sent: bool
    """Whether this command uploaded it; false if it was already there."""


@dataclass(frozen=True)
class Place:
    """The services and settings of an upload."""

    api: KaggleApi
    clock: Clock
    resume_dir: Path
    """Folder for the state of resumable uploads."""
    settings: KaggleSettings


def upload_data(place: Place, folder: Path, talk: ProgressReporter) -> tuple[UploadedPart, ...]:
    """Upload a data folder, and return its datasets, the manifest's first; that one is uploaded last.

    Raises:
        UserError: the folder is not a data folder, the storage quota is too small, or the account may not upload.
        DataError: a file differs from the manifest, or Kaggle keeps losing a file.
        TemporaryError: Kaggle is unreachable or slow; the same command resumes.
    """
    manifest = made_already(folder)
    parts = data_parts(manifest, read_beside(folder, manifest))
    return _Upload(place, folder, parts, talk).run()


def read_beside(folder: Path, manifest: DataManifest) -> dict[str, DataFile]:
    """Return the files of a data folder that no stream lists, by path.

    Raises:
        DataError: a file is missing, or the tokenizer is not the data's.
    """
    lists = {f"{name.partition('/')[0]}/{PART_NAME}" for names in part_files(manifest).values() for name in names if "/" in name}
    found = {}
    for path in (DATA_MANIFEST_NAME, manifest.tokenizer_file, *sorted(lists)):
        try:
            found[path] = DataFile(path, (folder / path).stat().st_size, sha256_of_file(folder / path))
        except OSError as error:
            raise DataError(
                f"{folder / path} cannot be read ({error.strerror})",
                expected="the complete folder that gemma-orch prepare has made",
                remedy="copy the data folder again, or prepare it again",
            ) from error
    if (found_sha256 := found[manifest.tokenizer_file].sha256) != manifest.tokenizer_sha256:
        raise DataError(
            f"tokenizer is invalid: {folder / manifest.tokenizer_file} has sha256 {found_sha256[:12]}",
            expected=f"{manifest.tokenizer_sha256[:12]}, the tokenizer that encoded the data",
            remedy="copy the data folder again, or prepare it again",
        )
    return found


class _Upload:
    def __init__(self, place: Place, folder: Path, parts: Sequence[DataPart], talk: ProgressReporter) -> None:
        self._api = place.api
        self._clock = place.clock
        self._place = place
        self._folder = folder
        self._parts = parts
        self._talk = talk
        self._sent: set[str] = set()

    def run(self) -> tuple[UploadedPart, ...]:
        # The manifest goes last, so that its presence means that all files that it lists are there.
        further = self._bring(self._parts[1:], self._published())
        first = self._bring(self._parts[:1], self._published())
        return tuple(
            UploadedPart(
                slug=keep.part.slug,
                version=keep.version,
                files=len(keep.part.files),
                bytes=keep.part.num_bytes,
                sent=keep.part.slug in self._sent,
            )
            for keep in (*first, *further)
        )

    def _bring(self, parts: Sequence[DataPart], published: Mapping[str, str]) -> tuple[Keep, ...]:
        for number in range(_MOST_ROUNDS + 1):
            moves = plan_upload(parts, {part.slug: self._look(part.slug) for part in parts}, published)
            kept = tuple(move for move in moves if isinstance(move, Keep))
            for keep in kept if number == 0 else ():
                self._talk.say(f"{keep.part.slug} is already there as version {keep.version}, {_contents(keep.part)}")
            if len(kept) == len(moves):
                return kept
            if number == _MOST_ROUNDS:
                break
            self._check_room(moves)
            for move in moves:
                self._carry_out(move)
            self._wait_for(moves)
        wrong = next(move for move in moves if not isinstance(move, Keep))
        reason = wrong.reason if isinstance(wrong, Replace) else "Kaggle does not create it"
        raise DataError(
            f"dataset {wrong.part.slug} is still wrong after {_MOST_ROUNDS} uploads: {reason}",
            remedy=f"delete it at {_page(self._api, wrong.part.slug)}, then the same command again",
        )

    def _look(self, slug: str) -> Standing | None:
        info = self._api.dataset(slug)
        if info is None:
            return None
        if info.current_version is None:
            return Standing(None, False, {}, "")
        notes = next((version.notes for version in info.versions if version.number == info.current_version), "")
        sizes = self._api.dataset_files(slug, info.current_version)
        return Standing(info.current_version, sizes is not None and self._api.dataset_is_ready(slug), sizes or {}, notes)

    def _published(self) -> dict[str, str]:
        """Return the digests in this data's manifest on the account; empty if it has none."""
        slug = self._parts[0].slug
        info = self._api.dataset(slug)
        listed = self._api.dataset_files(slug, info.current_version) if info and info.current_version else None
        if info is None or info.current_version is None or not listed or DATA_MANIFEST_NAME not in listed:
            return {}
        with TemporaryDirectory(prefix="gemma-orch-") as folder:
            path = Path(folder, DATA_MANIFEST_NAME)
            sha256 = self._api.download(slug, info.current_version, DATA_MANIFEST_NAME, path)
            try:
                return published_digests(DataManifest.from_json(path.read_bytes(), f"{DATA_MANIFEST_NAME} of {slug}"), sha256)
            except DataError:
                return {DATA_MANIFEST_NAME: sha256}

    def _check_room(self, moves: Sequence[Move]) -> None:
        """Check that the upload and gemma-orch's other datasets fit the storage quota; Kaggle checks the user's other datasets.

        Raises:
            UserError: they do not fit.
        """
        wanted = bytes_to_send(moves)
        if not wanted:
            return
        replaced = {move.part.slug for move in moves if isinstance(move, Replace)}
        infos = [self._api.dataset(slug) for slug in self._api.datasets(PREFIX) if slug not in replaced]
        used = sum(info.total_bytes for info in infos if info is not None and info.is_private)
        quota = self._place.settings.storage_quota_bytes
        if used + wanted > quota:
            raise UserError(
                f"storage quota is too small: the upload has {format_size(wanted)}, and gemma-orch's private datasets already "
                f"take {format_size(used)}",
                expected=f"at most {format_size(quota)} in all",
                remedy="delete datasets of finished runs on kaggle.com, or raise storage_quota under [kaggle]",
            )

    def _carry_out(self, move: Move) -> None:
        from state.kaggle.datasets import begin_version, ensure_dataset

        part, settings = move.part, self._place.settings
        where = f"part {part.number} of {len(self._parts) - 1}" if part.number else "the manifest and the tokenizer"
        deadline_s = self._clock.monotonic() + _SHORTEST_UPLOAD_S + part.num_bytes / _SLOWEST_BYTES_PER_S
        notes: str | None = None
        match move:
            case Keep() | Await():
                return
            case Replace(version=version, reason=reason):
                notes = part.notes_after(version)
                self._talk.say(f"uploading {part.slug} again: {reason}")
        self._talk.begin(f"{part.slug} ({where}), {_contents(part)}", part.num_bytes)
        try:
            if notes is None:
                ensure_dataset(
                    self._api,
                    part.slug,
                    self._local(part),
                    resume_dir=self._place.resume_dir,
                    deadline_s=deadline_s,
                    clock=self._clock,
                    settle_s=settings.settle_s,
                    on_bytes=self._talk.sent,
                )
            else:
                begin_version(
                    self._api,
                    part.slug,
                    self._local(part),
                    notes,
                    delete_old=True,  # sessions read only the current version, and the files are still on this machine
                    resume_dir=self._place.resume_dir,
                    deadline_s=deadline_s,
                    clock=self._clock,
                    settle_s=settings.settle_s,
                    processing_limit_s=settings.processing_limit_s,
                    on_bytes=self._talk.sent,
                )
        finally:
            self._talk.end()
        self._sent.add(part.slug)

    def _local(self, part: DataPart) -> tuple[LocalFile, ...]:
        from state.kaggle.datasets import LocalFile

        return tuple(LocalFile(self._folder / file.path, file.name, file.size_bytes) for file in part.files)

    def _wait_for(self, moves: Sequence[Move]) -> None:
        """Wait until Kaggle has processed every uploaded dataset.

        Raises:
            TemporaryError: a dataset is not processed in time.
        """
        for move in moves:
            if isinstance(move, Keep):
                continue
            before = move.version if isinstance(move, Replace) else 0
            self._talk.say(f"waiting for Kaggle to process {move.part.slug}")
            wait_until_ready(
                self._api, move.part.slug, before, clock=self._clock, limit_s=self._place.settings.processing_limit_s
            )


def wait_until_ready(api: KaggleApi, slug: str, before: int, *, clock: Clock, limit_s: float) -> int:
    """Wait until a dataset has a version newer than `before` and is READY; return the version's number.

    A failed poll is retried.

    Raises:
        ProcessingFailedError: Kaggle failed to process the dataset's first version.
        TemporaryError: Kaggle does not finish within the limit.
    """
    began_s, pause_s, trouble = clock.monotonic(), _FIRST_POLL_S, ""
    while True:
        try:
            info = api.dataset(slug)
            current = (info.current_version if info is not None else None) or 0
            status = api.dataset_status(slug)
            if current > before and status == "READY":
                return current
            if current == 0 and status == "FAILED":
                remedy = f"delete it at {_page(api, slug)}, then the same command again"
                raise ProcessingFailedError(slug, None, remedy=remedy)
            trouble = ""
        except ProcessingFailedError:
            raise
        except TemporaryError as error:
            trouble = f"; the last poll failed: {error.what}"
        waited_s = clock.monotonic() - began_s
        if waited_s > limit_s:
            raise TemporaryError(
                f"Kaggle has not processed {slug} within {format_duration(waited_s)}{trouble}",
                remedy=f"see {_page(api, slug)}: if processing failed, delete the dataset there; then the same command again",
            )
        clock.sleep(pause_s)
        pause_s = min(pause_s * 1.5, _LONGEST_POLL_S)


def _contents(part: DataPart) -> str:
    return f"{len(part.files)} files, {format_size(part.num_bytes)}"


def _page(api: KaggleApi, slug: str) -> str:
    return f"https://www.kaggle.com/datasets/{api.user}/{slug}"

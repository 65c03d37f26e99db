"""Brings prepared data to the account: look what is there, plan, send what is missing, and look again until nothing is.

It can be killed at any moment: the same command goes on. A part that stands is not sent again, and of a file that was being
sent only the rest.
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

_MOST_ROUNDS = 3  # a version that silently lost a file is sent again, but not for ever
_SLOWEST_BYTES_PER_S = 50_000  # a slower line would need months for what is worth training on
_SHORTEST_UPLOAD_S = 600.0
_FIRST_POLL_S, _LONGEST_POLL_S = 1.0, 15.0


class Talk(Protocol):
    """Who is told how far an upload is."""

    def say(self, text: str) -> None:
        """Hear of something that happened."""
        ...

    def begin(self, title: str, num_bytes: int) -> None:
        """Hear that these bytes are going to be sent."""
        ...

    def sent(self, num_bytes: int) -> None:
        """Hear that so many more of them are there."""
        ...

    def end(self) -> None:
        """Hear that they all are, or that something went wrong."""
        ...


class UploadedPart(Document):
    """One dataset, as it stands when an upload has ended."""

    slug: str
    version: int
    files: int
    bytes: int
    sent: bool
    """Whether this upload sent it; else it stood already."""


@dataclass(frozen=True)
class Place:
    """What an upload works with."""

    api: KaggleApi
    clock: Clock
    resume_dir: Path
    """Where it is noted how far each file is."""
    settings: KaggleSettings


def upload_data(place: Place, folder: Path, talk: Talk) -> tuple[UploadedPart, ...]:
    """Bring a data folder to the account, and return its datasets; the one with the manifest is made last, and named first.

    Raises:
        UserError: the folder holds no data, there is no room for it, or the account may not do this.
        DataError: a file of the folder is not what the manifest says, or Kaggle keeps losing one.
        TemporaryError: Kaggle cannot be reached, or does not get done; the same command goes on.
    """
    manifest = made_already(folder)
    parts = data_parts(manifest, read_beside(folder, manifest))
    return _Upload(place, folder, parts, talk).run()


def read_beside(folder: Path, manifest: DataManifest) -> dict[str, DataFile]:
    """Return, by path, the files of a data folder that are in no stream.

    Raises:
        DataError: one of them is missing.
    """
    lists = {f"{name.partition('/')[0]}/{PART_NAME}" for names in part_files(manifest).values() for name in names if "/" in name}
    found = {}
    for path in (DATA_MANIFEST_NAME, manifest.tokenizer_file, *sorted(lists)):
        try:
            found[path] = DataFile(path, (folder / path).stat().st_size, sha256_of_file(folder / path))
        except OSError as error:
            raise DataError(
                f"{folder / path} cannot be read ({error.strerror})",
                expected="a folder as gemma-orch prepare has left it",
                remedy="copy the data folder again, or prepare it again",
            ) from error
    if (found_sha256 := found[manifest.tokenizer_file].sha256) != manifest.tokenizer_sha256:
        raise DataError(
            f"{folder / manifest.tokenizer_file} is not the tokenizer that the data was made with: sha256 {found_sha256[:12]}",
            expected=manifest.tokenizer_sha256[:12],
            remedy="copy the data folder again, or prepare it again",
        )
    return found


class _Upload:
    def __init__(self, place: Place, folder: Path, parts: Sequence[DataPart], talk: Talk) -> None:
        self._api = place.api
        self._clock = place.clock
        self._place = place
        self._folder = folder
        self._parts = parts
        self._talk = talk
        self._sent: set[str] = set()

    def run(self) -> tuple[UploadedPart, ...]:
        # The manifest goes last: where it stands, everything that it lists does.
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
                self._talk.say(f"{keep.part.slug} stands as version {keep.version}, {_contents(keep.part)}")
            if len(kept) == len(moves):
                return kept
            if number == _MOST_ROUNDS:
                break
            self._check_room(moves)
            for move in moves:
                self._carry_out(move)
            self._wait_for(moves)
        wrong = next(move for move in moves if not isinstance(move, Keep))
        reason = wrong.reason if isinstance(wrong, Replace) else "it does not come into being"
        raise DataError(
            f"{wrong.part.slug} was sent {_MOST_ROUNDS} times, and is not what was sent: {reason}",
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
        """Return what the manifest that stands on the account says about this data's files; nothing when there is none."""
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
        """Check that what is to be sent fits beside the datasets of gemma-orch that are there; Kaggle itself knows the others.

        Raises:
            UserError: it does not.
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
                f"{format_size(wanted)} are to be sent, and {format_size(used)} of the account's private storage are taken "
                "by gemma-orch's own datasets",
                expected=f"at most {format_size(quota)} in all",
                remedy="delete datasets of runs that are over on kaggle.com, or raise storage_quota under [kaggle]",
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
                self._talk.say(f"{part.slug} is sent again: {reason}")
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
                    delete_old=True,  # they are of no use: a session takes the current one, and the files are here
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
        """Wait until every dataset that was sent is processed.

        Raises:
            TemporaryError: one does not get done.
        """
        for move in moves:
            if isinstance(move, Keep):
                continue
            before = move.version if isinstance(move, Replace) else 0
            self._talk.say(f"Kaggle processes {move.part.slug}")
            wait_until_ready(
                self._api, move.part.slug, before, clock=self._clock, limit_s=self._place.settings.processing_limit_s
            )


def wait_until_ready(api: KaggleApi, slug: str, before: int, *, clock: Clock, limit_s: float) -> int:
    """Wait until a dataset has a newer version than the one before, and is READY; return its number.

    Calls that fail meanwhile are only missed looks.

    Raises:
        ProcessingFailedError: Kaggle failed to process its first version.
        TemporaryError: it does not get done within the limit.
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
            trouble = f"; the last look failed: {error.what}"
        waited_s = clock.monotonic() - began_s
        if waited_s > limit_s:
            raise TemporaryError(
                f"Kaggle has not processed {slug} within {format_duration(waited_s)}{trouble}",
                remedy=f"look at {_page(api, slug)}: if it has failed, delete it there; then the same command again",
            )
        clock.sleep(pause_s)
        pause_s = min(pause_s * 1.5, _LONGEST_POLL_S)


def _contents(part: DataPart) -> str:
    return f"{len(part.files)} files, {format_size(part.num_bytes)}"


def _page(api: KaggleApi, slug: str) -> str:
    return f"https://www.kaggle.com/datasets/{api.user}/{slug}"

"""Brings a checkpoint that is not in a dataset into one: of a run that trained here before, or one left in a kernel's output."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from orchestrator.kaggle.checkpoints import KaggleCheckpoints, kaggle_folder
from orchestrator.kaggle.control import sending
from state import files
from state.clock import Clock
from state.kaggle.names import VersionNote, attempt_slug, checkpoint_file_names
from state.kaggle.settings import KaggleSettings
from state.layout import MANIFEST_NAME, RunLayout

if TYPE_CHECKING:
    from state.kaggle.api import KaggleApi
    from state.kaggle.datasets import LocalFile

_ORIGIN_NAME = "origin.txt"


class Promotion:
    """Uploads checkpoints that are only here, so that a kernel can start from them.

    Args:
        api: The account; asked for when the first call is due.
        run: The run's name.
        layout: The run's folder.
        clock: The time.
        settings: How long processing may take.
        checkpoints: The run's checkpoints.
    """

    def __init__(
        self,
        api: Callable[[], KaggleApi],
        run: str,
        layout: RunLayout,
        clock: Clock,
        settings: KaggleSettings,
        checkpoints: KaggleCheckpoints,
    ) -> None:
        self._api = api
        self._run = run
        self._folder = kaggle_folder(layout) / "promotion"
        self._clock = clock
        self._settings = settings
        self._checkpoints = checkpoints
        self._sent: dict[str, datetime] = {}

    def unready(self, checkpoint_id: str) -> str | None:
        """Bring a checkpoint nearer to the account; return what that waits for, or None when it lies there.

        Raises:
            CorruptCheckpointError: it is not what its manifest says.
            TemporaryError: Kaggle cannot be asked, or did not take it.
        """
        from state.kaggle.datasets import LocalFile, begin_version, ensure_dataset

        if self._checkpoints.place(checkpoint_id) is not None:
            return None
        manifest = self._checkpoints.verify(checkpoint_id)
        slug = attempt_slug(self._run, manifest.session, manifest.attempt)
        waiting = f"{checkpoint_id}, which was only here, to be processed by Kaggle in {slug}"
        note = VersionNote(
            session=manifest.session,
            attempt=manifest.attempt,
            fence=manifest.fence,
            step=manifest.step,
            checkpoint=checkpoint_id,
            manifest_sha256=self._checkpoints.manifest(checkpoint_id)[1],
        )
        info = self._api().dataset(slug)
        if info is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            origin = self._folder / _ORIGIN_NAME
            files.write_atomically(origin, f"checkpoints of {slug}, trained elsewhere\n".encode())
            local = (LocalFile(path=origin, name=_ORIGIN_NAME, size_bytes=origin.stat().st_size),)
            ensure_dataset(self._api(), slug, local, **sending(self._folder, self._clock, self._settings))
            return waiting
        if info.current_version is None or not self._api().dataset_is_ready(slug):
            return waiting
        if any(version.notes == str(note) for version in info.versions):
            self._checkpoints.take_dataset(manifest.session, manifest.attempt, info)
            return waiting if self._checkpoints.place(checkpoint_id) is None else None
        now = self._clock.now()
        sent_at = self._sent.get(checkpoint_id)
        if sent_at is None or now >= sent_at + timedelta(seconds=self._settings.processing_limit_s):
            self._folder.mkdir(parents=True, exist_ok=True)
            begin_version(
                self._api(),
                slug,
                self._files(checkpoint_id),
                str(note),
                delete_old=False,
                **sending(self._folder, self._clock, self._settings),
            )
            self._sent[checkpoint_id] = now
        return waiting

    def _files(self, checkpoint_id: str) -> tuple[LocalFile, ...]:
        from state.kaggle.datasets import LocalFile

        folder = self._checkpoints.folder(checkpoint_id)
        manifest, _ = self._checkpoints.manifest(checkpoint_id)
        names = checkpoint_file_names(checkpoint_id, (*(entry.name for entry in manifest.files), MANIFEST_NAME))
        return tuple(
            LocalFile(path=folder / name, name=flat, size_bytes=(folder / name).stat().st_size) for name, flat in names.items()
        )

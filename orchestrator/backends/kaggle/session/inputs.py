"""Finds the inputs of a run's kernels: the datasets that hold its data, and whether they can be read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.backends.kaggle.context import KaggleContext
from orchestrator.backends.kaggle.data.parts import data_slugs
from state import files
from state.data_manifest import DataManifest
from state.errors import DataError, TemporaryError, UserError
from state.kaggle.names import data_slug
from state.layout import DATA_MANIFEST_NAME
from state.spec import SessionData


@dataclass(frozen=True)
class KernelInputs:
    """The inputs of every kernel of a run."""

    code: Path
    """The folder with the packages `state` and `worker`."""
    data: DataSources
    """The datasets of the run's data."""


class DataSources:
    """Finds the datasets of data versions, each once: data never changes.

    Args:
        context: The run; a manifest that is not on this machine is downloaded into its folder.
    """

    def __init__(self, context: KaggleContext) -> None:
        self._api = context.api
        self._run = context.run
        self._folder = context.folder
        self._found: dict[str, tuple[str, ...]] = {}

    def of(self, data: SessionData) -> tuple[str, ...]:
        """Return the slugs of the datasets of a data version.

        Raises:
            UserError: the data is not on the account, is incomplete, or is other data.
            TemporaryError: a dataset is not ready, or cannot be read now.
        """
        if data.data_sha256 not in self._found and (reason := self.unready(data)) is not None:
            raise TemporaryError(f"the data of run {self._run} waits for {reason}")
        return self._found[data.data_sha256]

    def unready(self, data: SessionData) -> str | None:
        """Return the reason why a data version cannot be used yet, or None when all its datasets are ready.

        Raises:
            UserError: the data is not on the account, is incomplete, or is other data.
            TemporaryError: Kaggle does not answer, or refuses a read.
        """
        if data.data_sha256 in self._found:
            return None
        first = data_slug(data.data_sha256, 0)
        version = self._current(first)
        if version is None:
            return f"the dataset {first} to be processed by Kaggle"
        listed = self._api().dataset_files(first, version)
        if listed is None:
            raise TemporaryError(f"Kaggle does not list the files of the dataset {first} now")
        manifest = self._manifest(data, first, version, listed)
        if listed.get(DATA_MANIFEST_NAME) is None or manifest.tokenizer_file not in listed:
            raise self._missing(data, f"the dataset {first} lacks {DATA_MANIFEST_NAME} or {manifest.tokenizer_file}")
        slugs = data_slugs(manifest)
        for slug in slugs[1:]:
            if self._current(slug) is None:
                return f"the dataset {slug} to be processed by Kaggle"
        self._found[data.data_sha256] = slugs
        return None

    def _current(self, slug: str) -> int | None:
        """Return the newest version of a dataset that can be read; None: Kaggle is processing it.

        Raises:
            UserError: the account does not have it.
            TemporaryError: the list of the account's datasets shows it, but reads of it are refused: one of the two is stale.
        """
        info = self._api().dataset(slug)
        if info is None:
            if slug in self._api().datasets(slug):
                raise TemporaryError(f"Kaggle lists the dataset {slug} and refuses to show it (403 or 404)")
            raise UserError(
                f"the data of run {self._run} is not on Kaggle: the account has no dataset {slug}",
                remedy=f"gemma-orch upload --run {self._run} uploads it",
            )
        ready = info.current_version is not None and self._api().dataset_is_ready(slug)
        return info.current_version if ready else None

    def _manifest(self, data: SessionData, slug: str, version: int, listed: dict[str, int]) -> DataManifest:
        """Return the manifest of a data version: from the data folder, or from the account if that is on another machine."""
        here = Path(data.data_dir) / DATA_MANIFEST_NAME
        if here.is_file():
            manifest = DataManifest.from_json(here.read_bytes(), str(here))
            same = manifest.data_sha256 == data.data_sha256
            if same and listed.get(DATA_MANIFEST_NAME) in (None, here.stat().st_size):
                return manifest
        if DATA_MANIFEST_NAME not in listed:
            raise self._missing(data, f"the dataset {slug} has no {DATA_MANIFEST_NAME}")
        self._folder.mkdir(parents=True, exist_ok=True)
        with files.temporary_file(self._folder / DATA_MANIFEST_NAME) as fetched:
            self._api().download(slug, version, DATA_MANIFEST_NAME, fetched)
            text = fetched.read_bytes()
        try:
            manifest = DataManifest.from_json(text, f"{DATA_MANIFEST_NAME} of {slug}")
        except DataError as error:
            raise self._missing(data, error.what) from error
        if manifest.data_sha256 != data.data_sha256:
            raise self._missing(data, f"the dataset {slug} holds other data, {manifest.data_sha256[:12]}")
        return manifest

    def _missing(self, data: SessionData, what: str) -> UserError:
        return UserError(
            f"the data of run {self._run} ({data.data_sha256[:12]}) is not on Kaggle: {what}",
            remedy=f"gemma-orch upload --run {self._run} uploads it",
        )

"""Downloads checkpoints from the account: a manifest when it is discovered, the other files on demand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orchestrator.backends.kaggle.checkpoints.index import Entry
from orchestrator.backends.kaggle.context import KaggleContext
from state import files
from state.errors import CorruptCheckpointError, DataError, TemporaryError
from state.kaggle.names import checkpoint_file_names
from state.kaggle.records import OutputFile
from state.layout import MANIFEST_NAME
from state.manifest import Manifest, state_sha256
from state.stores.checkpoint_store import DirectoryCheckpointStore


class Fetching:
    """Downloads the files of one run's checkpoints from the datasets and outputs of its attempts.

    Args:
        context: The run; its folder keeps the manifests.
    """

    def __init__(self, context: KaggleContext) -> None:
        self._api = context.api
        self._folder = context.folder / "manifests"

    def manifest(self, entry: Entry) -> tuple[Manifest, str]:
        """Return a checkpoint's manifest and its sha256; downloads the manifest if it is not on this machine.

        Raises:
            CorruptCheckpointError: the manifest is invalid.
            TemporaryError: it cannot be downloaded now.
        """
        path = self._manifest_path(entry.id)
        if not path.exists() and entry.place.kind == "dataset":
            path.parent.mkdir(parents=True, exist_ok=True)
            self._api().download(entry.place.slug, entry.place.version, entry.flat_name(MANIFEST_NAME), path)
        return self.read_manifest(entry.id), files.sha256_of_file(path)

    def read_manifest(self, checkpoint_id: str) -> Manifest:
        """Return a manifest that was downloaded before.

        Raises:
            CorruptCheckpointError: the manifest is invalid.
            TemporaryError: it is not on this machine.
        """
        try:
            data = self._manifest_path(checkpoint_id).read_bytes()
            manifest = Manifest.from_json(data, f"the manifest of {checkpoint_id}")
        except FileNotFoundError as error:
            raise TemporaryError(f"the manifest of {checkpoint_id} is neither on this machine nor in a dataset") from error
        except DataError as error:
            raise CorruptCheckpointError(checkpoint_id, error.what) from error
        if manifest.id != checkpoint_id:
            raise CorruptCheckpointError(checkpoint_id, f"the manifest of {checkpoint_id} is that of {manifest.id}")
        if state_sha256(manifest.tensors, manifest.step, manifest.data_position) != manifest.state_sha256:
            raise CorruptCheckpointError(
                checkpoint_id,
                f"the manifest of {checkpoint_id} contradicts itself: its state digest does not match its tensors",
            )
        return manifest

    def take_manifest(self, entry: Entry, listed: Mapping[str, int]) -> str | None:
        """Download a checkpoint's manifest, unless it is here; return its sha256, or None when the list does not show it."""
        name = entry.flat_name(MANIFEST_NAME)
        if name not in listed:
            return None
        path = self._manifest_path(entry.id)
        if path.exists() and files.sha256_of_file(path) == entry.manifest_sha256:
            return entry.manifest_sha256
        path.parent.mkdir(parents=True, exist_ok=True)
        files.remove_tree(path)
        return self._api().download(entry.place.slug, entry.place.version, name, path)

    def take_output_manifest(self, checkpoint_id: str, output: OutputFile) -> str:
        """Download a checkpoint's manifest from a kernel's output; return its sha256."""
        target = self._manifest_path(checkpoint_id)
        target.parent.mkdir(parents=True, exist_ok=True)
        return self._api().download_output(output, target)

    def fetch(self, entry: Entry, store: DirectoryCheckpointStore) -> None:
        """Download a checkpoint into a store and verify every byte; an incomplete download leaves nothing.

        Raises:
            CorruptCheckpointError: a file does not match the manifest.
            TemporaryError: a file cannot be downloaded now.
        """
        manifest, _ = self.manifest(entry)
        with store.staged_copy(entry.id) as staged:
            for file in manifest.files:
                self._fetch_file(entry, file.name, file.sha256, staged / file.name)
            # The original bytes: to serialise the manifest again could drop fields that another version wrote.
            store.commit_copy(staged, manifest, self._manifest_path(entry.id).read_bytes())

    def _fetch_file(self, entry: Entry, name: str, sha256: str, target: Path) -> None:
        place, flat = entry.place, entry.flat_name(name)
        if place.kind == "dataset":
            fetched = self._api().download(place.slug, place.version, flat, target, owner=place.owner)
        else:
            fetched = self._api().download_output(self._output(entry, flat), target)
        if fetched != sha256:
            raise CorruptCheckpointError(
                entry.id, f"{name} of checkpoint {entry.id} in {entry.where} does not have the manifest's sha256"
            )

    def _output(self, entry: Entry, flat: str) -> OutputFile:
        outputs = self._api().session_outputs(entry.place.slug, entry.place.version)
        if outputs is None:
            raise TemporaryError(
                f"Kaggle does not show the kernel {entry.place.slug}, whose output holds {entry.id}",
                remedy="look for the kernel on kaggle.com: if it was deleted, that checkpoint is lost",
            )
        for output in outputs[0]:
            if output.name.rpartition("/")[2] == flat:
                return output
        raise TemporaryError(f"{entry.where} does not show {flat}")

    def _manifest_path(self, checkpoint_id: str) -> Path:
        return self._folder / checkpoint_file_names(checkpoint_id, (MANIFEST_NAME,))[MANIFEST_NAME]

"""Finds a session's inputs in the mounts: prepared data by its digest, the start checkpoint by its manifest's sha256.

Inputs are searched anywhere below one folder, because Kaggle has changed the paths of its mounts before and may do so again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from state import files
from state.data_manifest import DataManifest
from state.errors import DataError, TemporaryError
from state.kaggle.api import KaggleApi
from state.kaggle.job import CheckpointPlace
from state.kaggle.names import checkpoint_file_names, data_slug
from state.layout import DATA_MANIFEST_NAME, MANIFEST_NAME
from state.manifest import Manifest
from state.spec import ExpectedCheckpoint
from worker.corpus.parts import PART_NAME, Part

_MOST_NAMED = 3


class Mounts:
    """The files below the folder of mounts. Listed once, because mounts do not change while a session runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._by_name: dict[str, list[Path]] = {}
        for folder, folders, names in os.walk(root, followlinks=True):
            folders.sort()
            for name in sorted(names):
                self._by_name.setdefault(name, []).append(Path(folder, name))

    def named(self, name: str) -> tuple[Path, ...]:
        """Return all files with this name, in any folder."""
        return tuple(self._by_name.get(name, ()))


def build_data_folder(mounts: Mounts, data_sha256: str, target: Path) -> None:
    """Make a data folder of symbolic links to the mounted files of a data version.

    Raises:
        DataError: a file is not mounted; the message names the missing ones.
    """
    problem = f"none of the {len(mounts.named(DATA_MANIFEST_NAME))} files {DATA_MANIFEST_NAME} below {mounts.root} has its digest"
    for path in mounts.named(DATA_MANIFEST_NAME):
        manifest = _data_manifest(path)
        if manifest is None or manifest.data_sha256 != data_sha256:
            continue
        found = {name: _shard(mounts, path.parent, data_sha256, name, size) for name, size in manifest.files.items()}
        missing = [name for name, place in found.items() if place is None]
        if not missing:
            places = {name: place for name, place in found.items() if place is not None}
            _link_data(target, path, places, path.parent / manifest.tokenizer_file)
            return
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        problem = f"{', '.join(missing[:_MOST_NAMED])}{more} of it cannot be found below {mounts.root}"
    raise DataError(
        f"the data {data_sha256[:12]} is not mounted: {problem}",
        expected=f"the datasets {data_slug(data_sha256, 0)} and its further parts, with all their files",
        remedy="gemma-orch upload uploads the missing files",
    )


def find_checkpoint(mounts: Mounts, expected: ExpectedCheckpoint, folder: Path) -> bool:
    """Make a checkpoint folder of symbolic links to the mounted files of the expected checkpoint; return whether it is mounted.

    Compares only the files' sizes here; the session verifies every byte when it restores.
    """
    for path in mounts.named(_flat(expected.id, MANIFEST_NAME)):
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != expected.manifest_sha256:
            continue
        manifest = Manifest.from_json(data, str(path))
        places = {entry.name: path.parent / _flat(expected.id, entry.name) for entry in manifest.files}
        if all(_size(places[entry.name]) == entry.size_bytes for entry in manifest.files):
            _remake(folder)
            for name, place in places.items():
                (folder / name).symlink_to(place)
            files.write_atomically(folder / MANIFEST_NAME, data)
            return True
    return False


def download_checkpoint(
    api: KaggleApi, place: CheckpointPlace, expected: ExpectedCheckpoint, folder: Path, say: Callable[[str], None]
) -> None:
    """Download the expected checkpoint from the version that the job names.

    Raises:
        TemporaryError: the version lacks it, holds another manifest of it, or cannot be read now.
    """
    fetch = _from_dataset(api, place) if place.kind == "dataset" else _from_output(api, place)
    _remake(folder)
    staged = files.temporary_beside(folder / MANIFEST_NAME)  # the checkpoint exists when its manifest does
    sha256 = fetch(_flat(expected.id, MANIFEST_NAME), staged)
    if sha256 != expected.manifest_sha256:
        raise TemporaryError(
            f"{place.owner}/{place.slug} version {place.version} has another manifest of {expected.id}: sha256 {sha256[:12]}",
            expected=f"{expected.manifest_sha256[:12]}, as verified before",
        )
    manifest = Manifest.from_json(staged.read_bytes(), f"the manifest of {expected.id}")
    for entry in manifest.files:
        say(f"fetching {entry.name} of {expected.id}, {entry.size_bytes} bytes")
        sha256 = fetch(_flat(expected.id, entry.name), folder / entry.name)
        if sha256 != entry.sha256:  # a bad download is no bad checkpoint: the original must not be quarantined for it
            raise TemporaryError(
                f"the download of {entry.name} of {expected.id} is damaged: sha256 {sha256[:12]}", expected=entry.sha256[:12]
            )
    files.rename(staged, folder / MANIFEST_NAME)


def _from_dataset(api: KaggleApi, place: CheckpointPlace) -> Callable[[str, Path], str]:
    return lambda name, target: api.download(place.slug, place.version, name, target, owner=place.owner)


def _from_output(api: KaggleApi, place: CheckpointPlace) -> Callable[[str, Path], str]:
    listed = api.session_outputs(place.slug, place.version)
    outputs = {output.name.rpartition("/")[2]: output for output in listed[0]} if listed else {}

    def fetch(name: str, target: Path) -> str:
        if name not in outputs:
            raise TemporaryError(f"the output of {place.owner}/{place.slug} version {place.version} has no {name}")
        return api.download_output(outputs[name], target)

    return fetch


def _data_manifest(path: Path) -> DataManifest | None:
    try:
        return DataManifest.from_json(path.read_bytes(), str(path))
    except DataError:
        return None  # a data.json of another program


def _shard(mounts: Mounts, home: Path, data_sha256: str, name: str, size_bytes: int) -> Path | None:
    """Return the mounted file of a shard.

    A full shard of another data version has the same name and size. If there are several, take the one whose folder
    belongs to this data most clearly.
    """
    fitting = [path for path in mounts.named(name.rpartition("/")[2]) if _size(path) == size_bytes]
    return min(fitting, key=lambda path: _strangeness(path, home, data_sha256), default=None)


def _strangeness(path: Path, home: Path, data_sha256: str) -> int:
    """Return 0 if a file's folder belongs to the data by its place or name, 1 by its `part.json`, 2 if nothing shows it."""
    mine = data_slug(data_sha256, 0).rpartition("-")[0]
    if path.parent == home or any(part.startswith(f"{mine}-p") for part in path.parts):
        return 0
    return 1 if _is_part(path.parent, data_sha256) else 2


def _is_part(folder: Path, data_sha256: str) -> bool:
    try:
        return Part.from_json((folder / PART_NAME).read_bytes(), PART_NAME).data_sha256 == data_sha256
    except (OSError, DataError):
        return False


def _link_data(target: Path, manifest: Path, places: dict[str, Path], tokenizer: Path) -> None:
    _remake(target)
    for name, place in places.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).symlink_to(place)
    if tokenizer.exists():  # training does not read it; commands that show a session's texts do
        (target / tokenizer.name).symlink_to(tokenizer)
    (target / DATA_MANIFEST_NAME).symlink_to(manifest)


def _remake(folder: Path) -> None:
    files.remove_tree(folder)
    folder.mkdir(parents=True)


def _flat(checkpoint_id: str, name: str) -> str:
    return checkpoint_file_names(checkpoint_id, (name,))[name]


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None

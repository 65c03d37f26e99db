"""What a dataset is: versions, each a full snapshot of files, each ready some time after it was made."""

from __future__ import annotations

import os
import shutil
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOREVER = float("inf")
_TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class StoredFile:
    """One file of a version."""

    name: str
    """Relative to the dataset, with `/`."""
    path: Path
    size: int


@dataclass
class Version:
    """One full snapshot."""

    number: int
    notes: str
    created_at: float
    ready_at: float
    folder: Path
    failed: bool = False
    deleted_at: float = FOREVER

    def is_current_candidate(self, now: float) -> bool:
        return self.ready_at <= now < self.deleted_at and not self.failed

    def status(self, now: float) -> str:
        if now >= self.deleted_at:
            return "DELETED"
        if now >= self.ready_at:
            return "FAILED" if self.failed else "READY"
        halfway = (self.created_at + self.ready_at) / 2
        return "BLOBS_RECEIVED" if now < halfway else "BLOBS_COPIED_TO_SDS"

    def files(self) -> list[StoredFile]:
        """List the files, by name."""
        found = []
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = Path(folder, name)
                found.append(StoredFile(path.relative_to(self.folder).as_posix(), path, path.stat().st_size))
        return sorted(found, key=lambda file: file.name)

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files())


@dataclass
class Dataset:
    """A named series of versions. Everything is asked as of a moment, so that a stale read is the same question asked earlier."""

    id: int
    owner: str
    slug: str
    title: str
    private: bool
    created_at: float
    folder: Path
    metadata: dict[str, Any] = field(default_factory=dict)
    versions: list[Version] = field(default_factory=list)
    deleted_at: float = FOREVER

    @property
    def ref(self) -> str:
        return f"{self.owner}/{self.slug}"

    def exists(self, now: float) -> bool:
        return self.created_at <= now < self.deleted_at

    def current(self, now: float) -> Version | None:
        """Give the newest version that is ready."""
        return next((version for version in reversed(self.versions) if version.is_current_candidate(now)), None)

    def version(self, number: int | None, now: float) -> Version | None:
        """Give that version if it is ready, or the current one."""
        if number is None:
            return self.current(now)
        return next((v for v in self.versions if v.number == number and v.is_current_candidate(now)), None)

    def is_processing(self, now: float) -> bool:
        return any(version.created_at <= now < version.ready_at for version in self.versions)

    def status(self, now: float) -> str:
        """READY as soon as one version is, whatever happens to newer ones."""
        shown = self.current(now) or self.versions[0]
        return shown.status(now)

    def drop_deleted(self, now: float) -> None:
        """Free the disk of versions that are gone."""
        for version in self.versions:
            if now >= min(version.deleted_at, self.deleted_at):
                shutil.rmtree(version.folder, ignore_errors=True)


def link(source: Path, target: Path) -> None:
    """Make the file appear at a second place without copying it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, target)


def unpack_archives(folder: Path) -> None:
    """Replace each archive by a folder of its stem that holds its contents, as Kaggle does on arrival."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        ending = next((end for end in (".zip", *_TAR_ENDINGS) if path.name.lower().endswith(end)), None)
        if ending is None or not _is_archive(path, ending):
            continue
        inside = path.with_name(path.name[: -len(ending)])
        packed = path.rename(path.with_name(path.name + ".packed"))
        inside.mkdir(exist_ok=True)
        if ending == ".zip":
            with zipfile.ZipFile(packed) as archive:
                archive.extractall(inside)
        else:
            with tarfile.open(packed) as archive:
                archive.extractall(inside, filter="data")
        packed.unlink()


def _is_archive(path: Path, ending: str) -> bool:
    return zipfile.is_zipfile(path) if ending == ".zip" else tarfile.is_tarfile(path)

"""The calls about datasets."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from tests.kaggle_emulator.blobs import Blob, Blobs
from tests.kaggle_emulator.calls import ANYONE, Actor, Answer, Call, Handler, Redirect, page
from tests.kaggle_emulator.clock import iso
from tests.kaggle_emulator.dataset_model import FOREVER, Dataset, StoredFile, Version, link, unpack_archives
from tests.kaggle_emulator.errors import denied
from tests.kaggle_emulator.namespace import Namespace
from tests.kaggle_emulator.settings import Settings
from tests.kaggle_emulator.storage import Storage

_METADATA_FIELDS = ("subtitle", "description", "categoryIds", "licenseName")


class Datasets:
    """All datasets of all users."""

    def __init__(self, folder: Path, settings: Settings, blobs: Blobs, storage: Storage, namespace: Namespace) -> None:
        self._folder = folder
        self._settings = settings
        self._blobs = blobs
        self._storage = storage
        self._all: list[Dataset] = []
        self._namespace = namespace
        namespace.add("dataset", lambda ref, now: self.find(ref, now) is not None)

    def routes(self) -> dict[str, Handler]:
        return {
            "CreateDataset": self.create,
            "CreateDatasetVersion": self.create_version,
            "CreateDatasetVersionById": self.create_version_by_id,
            "DeleteDataset": self.delete,
            "DownloadDataset": self.download,
            "DownloadDatasetRaw": self.download,
            "GetDataset": self.get,
            "GetDatasetFilesSummary": self.files_summary,
            "GetDatasetMetadata": self.metadata,
            "GetDatasetStatus": self.status,
            "ListDatasetFiles": self.list_files,
            "ListDatasets": self.list_datasets,
            "ListTreeDatasetFiles": self.list_tree,
            "UpdateDatasetMetadata": self.update_metadata,
        }

    def all(self) -> list[Dataset]:
        return list(self._all)

    def find(self, ref: str, now: float, actor: Actor | None = None) -> Dataset | None:
        """Give the dataset `owner/slug` if it exists at that moment, and the actor (anyone when None) may see it."""
        found = next((dataset for dataset in reversed(self._all) if dataset.ref == ref and dataset.exists(now)), None)
        if found is None or (actor is not None and found.private and found.owner != actor.user):
            return None
        return found

    def used_bytes(self, user: str, now: float) -> int:
        """Give the private storage that the user has used up."""
        mine = [dataset for dataset in self._all if dataset.owner == user and dataset.private and dataset.exists(now)]
        return sum(
            version.total_bytes
            for dataset in mine
            for version in dataset.versions
            if now < version.deleted_at and (self._settings.old_versions_count or version is dataset.versions[-1])
        )

    # What changes something.

    def create(self, call: Call) -> Answer:
        owner, slug = call.text("ownerSlug") or call.actor.user, call.text("slug")
        if owner != call.actor.user or not self._may_write(call.actor):
            raise denied("datasets.create")
        if self.find(f"{owner}/{slug}", call.now) is not None:
            title = call.text("title")
            return _refusal(f'The requested title "{title}" is already in use by a dataset. Please choose another title.')
        self._namespace.check_free("dataset", f"{owner}/{slug}", call.text("title"), call.now)
        title, number = call.text("title") or slug, len(self._all) + 1
        folder = self._folder / str(number)
        dataset = Dataset(number, owner, slug, title, bool(call.body.get("isPrivate")), call.now, folder)
        dataset.metadata = {name: call.body[name] for name in _METADATA_FIELDS if call.body.get(name)}
        refused = self._add_version(dataset, call.body, "Initial release", call)
        if refused is not None:
            return refused
        self._all.append(dataset)
        return _accepted(dataset)

    def create_version(self, call: Call) -> Answer:
        ref = f"{call.text('ownerSlug')}/{call.text('datasetSlug')}"
        return self._create_version(self.find(ref, call.now), call)

    def create_version_by_id(self, call: Call) -> Answer:
        wanted = call.number("id")
        return self._create_version(next((d for d in self._all if d.id == wanted and d.exists(call.now)), None), call)

    def _create_version(self, dataset: Dataset | None, call: Call) -> Answer:
        if dataset is None or dataset.owner != call.actor.user or not self._may_write(call.actor):
            raise denied("datasets.update")
        first_is_processed = dataset.current(call.now) is None
        if first_is_processed or (self._settings.refuse_parallel_versions and dataset.is_processing(call.now)):
            raise denied("datasets.update")
        body = call.body.get("body") or {}
        refused = self._add_version(dataset, body, str(body.get("versionNotes") or ""), call)
        if refused is not None:
            return refused
        if body.get("deleteOldVersions"):
            *old, new = dataset.versions
            for version in old:
                version.deleted_at = min(version.deleted_at, FOREVER if new.failed else new.ready_at)
        dataset.drop_deleted(call.now)
        return _accepted(dataset)

    def _add_version(self, dataset: Dataset, body: dict[str, Any], notes: str, call: Call) -> Answer | None:
        """Make the next version of the blobs that the body names, or refuse in words."""
        placed = list(self._placed(body, PurePosixPath()))
        if not placed or any(blob is None or not blob.complete or blob.user != dataset.owner for _, blob in placed):
            return _refusal("One or more of the files could not be found. Please upload them again.")
        limit = self._settings.max_top_level_files
        if len({PurePosixPath(name).parts[0] for name, _ in placed}) > limit:
            return _refusal(f"The file count exceeds the maximum of {limit}")
        size = sum(blob.received_bytes for _, blob in placed if blob is not None)
        left = self._settings.private_quota_bytes - self.used_bytes(dataset.owner, call.now)
        if dataset.private and size > left:
            return _refusal(f"The size of your files is {size} bytes, it exceeds the maximum of {max(left, 0)}")
        number = len(dataset.versions) + 1
        slow = call.twist("slow_processing")
        ready_at = call.now + (slow.seconds if slow is not None else self._settings.processing_s)
        version = Version(number, notes, call.now, ready_at, dataset.folder / str(number))
        version.failed = call.twist("fail_processing") is not None
        version.folder.mkdir(parents=True)
        for name, blob in placed:
            assert blob is not None
            _take_in(blob, version.folder / name)
        unpack_archives(version.folder)
        _spoil(version, call)
        dataset.versions.append(version)
        call.effect = f"made version {number} of {dataset.ref}: {', '.join(file.name for file in version.files())}"
        return None

    def _placed(self, node: dict[str, Any], at: PurePosixPath) -> Iterator[tuple[str, Blob | None]]:
        for file in node.get("files") or []:
            blob = self._blobs.find(str(file.get("token")))
            yield str(at / (blob.name if blob is not None else "missing")), blob
        for folder in node.get("directories") or []:
            yield from self._placed(folder, at / Path(str(folder.get("name"))).name)

    def delete(self, call: Call) -> Answer:
        dataset = self._find(call, "datasets.delete")
        if dataset.owner != call.actor.user or not self._may_write(call.actor):
            raise denied("datasets.delete")
        dataset.deleted_at = call.now
        dataset.drop_deleted(call.now)
        call.effect = f"deleted {dataset.ref}"
        return {"error": ""}

    def update_metadata(self, call: Call) -> Answer:
        dataset = self._find(call, "datasets.update")
        if dataset.owner != call.actor.user or not self._may_write(call.actor):
            raise denied("datasets.update")
        settings = call.body.get("settings") or {}
        dataset.title = str(settings.get("title") or dataset.title)
        dataset.private = bool(settings.get("isPrivate", dataset.private))
        dataset.metadata.update({name: value for name, value in settings.items() if name not in {"title", "isPrivate"}})
        call.effect = f"changed the metadata of {dataset.ref}"
        return {"errors": []}

    # What only looks.

    def get(self, call: Call) -> Answer:
        dataset = self._find(call, "datasets.get")
        return self._describe(dataset, call.now)

    def status(self, call: Call) -> Answer:
        return {"status": self._find(call, "datasets.get").status(call.now)}

    def list_datasets(self, call: Call) -> Answer:
        user, search = call.text("user"), call.text("search").lower()
        mine_only = call.text("group").startswith("DATASET_SELECTION_GROUP_MY")
        shown = [
            dataset
            for dataset in self._all
            if self.find(dataset.ref, call.now, call.actor) is dataset
            and (not mine_only or dataset.owner == call.actor.user)
            and (not user or dataset.owner == user)
            and search in f"{dataset.slug} {dataset.title}".lower()
        ]
        part, token = page(shown, call)
        return {"datasets": [self._describe(dataset, call.now) for dataset in part], "nextPageToken": token}

    def list_files(self, call: Call) -> Answer:
        dataset, version = self._find_version(call)
        part, token = page(version.files(), call)
        return {"datasetFiles": [_file(dataset, version, file) for file in part], "errorMessage": "", "nextPageToken": token}

    def list_tree(self, call: Call) -> Answer:
        _, version = self._find_version(call)
        at = PurePosixPath(call.text("path").strip("/"))
        inside = [file for file in version.files() if PurePosixPath(file.name).is_relative_to(at)]
        relative = {PurePosixPath(file.name).relative_to(at): file for file in inside}
        folders = sorted({name.parts[0] for name in relative if len(name.parts) > 1})
        files = [(name.name, file) for name, file in relative.items() if len(name.parts) == 1]
        children = [*({"folder": name} for name in folders), *({"name": name, "file": file} for name, file in files)]
        part, token = page(children, call)
        return {
            "directories": [
                {
                    "name": child["folder"],
                    "relativeUrl": str(at / child["folder"]),
                    "totalFiles": sum(name.parts[0] == child["folder"] and len(name.parts) > 1 for name in relative),
                }
                for child in part
                if "folder" in child
            ],
            "files": [
                {
                    "name": child["name"],
                    "relativeUrl": child["file"].name,
                    "totalBytes": child["file"].size,
                    "creationDate": iso(version.created_at),
                }
                for child in part
                if "file" in child
            ],
            "totalChildren": len(children),
            "nextPageToken": token,
        }

    def files_summary(self, call: Call) -> Answer:
        _, version = self._find_version(call)
        kinds: dict[str, list[int]] = {}
        for file in version.files():
            kinds.setdefault(PurePosixPath(file.name).suffix, []).append(file.size)
        types = [{"extension": kind, "fileCount": len(sizes), "totalSize": sum(sizes)} for kind, sizes in sorted(kinds.items())]
        return {"fileSummaryInfo": {"totalFileCount": sum(map(len, kinds.values())), "fileTypes": types}}

    def metadata(self, call: Call) -> Answer:
        dataset = self._find(call, "datasets.get")
        version = dataset.current(call.now)
        files = version.files() if version is not None else []
        info = {
            "datasetId": dataset.id,
            "datasetSlug": dataset.slug,
            "ownerUser": dataset.owner,
            "title": dataset.title,
            "isPrivate": dataset.private,
            "licenses": [{"name": dataset.metadata.get("licenseName", "unknown")}],
            "data": [{"name": file.name, "totalBytes": file.size} for file in files],
            **{name: value for name, value in dataset.metadata.items() if name not in {"licenseName", "data", "categoryIds"}},
        }
        return {"info": info, "errorMessage": ""}

    def download(self, call: Call) -> Answer:
        dataset, version = self._find_version(call)
        wanted = call.text("fileName")
        if not wanted:
            files = {file.name: file.path for file in version.files()}
            packed = self._storage.zipped(f"{dataset.id}/{version.number}.zip", files)
            return Redirect(packed, "archive.zip", version.created_at)
        file = next((file for file in version.files() if file.name == wanted), None)
        if file is None:
            raise denied("datasets.get")
        name = PurePosixPath(wanted).name
        limit = self._settings.zip_downloads_over_bytes
        if limit is not None and file.size > limit:
            packed = self._storage.zipped(f"{dataset.id}/{version.number}-{name}.zip", {name: file.path})
            return Redirect(packed, f"{name}.zip", version.created_at)
        return Redirect(file.path, name, version.created_at)

    def _describe(self, dataset: Dataset, now: float) -> dict[str, Any]:
        current = dataset.current(now)
        shown = [
            version
            for version in dataset.versions
            if version.created_at <= now
            and (version.is_current_candidate(now) or (self._settings.list_pending_versions and now < version.ready_at))
        ]
        return {
            "id": dataset.id,
            "ref": dataset.ref,
            "url": f"https://www.kaggle.com/datasets/{dataset.ref}",
            "title": dataset.title,
            "titleNullable": dataset.title,
            "hasTitle": True,
            "ownerName": dataset.owner,
            "ownerRef": dataset.owner,
            "creatorName": dataset.owner,
            "isPrivate": dataset.private,
            "licenseName": dataset.metadata.get("licenseName", "unknown"),
            "lastUpdated": iso(current.created_at if current is not None else dataset.created_at),
            **({"currentVersionNumber": current.number, "totalBytes": current.total_bytes} if current is not None else {}),
            "versions": [
                {
                    "versionNumber": version.number,
                    "creationDate": iso(version.created_at),
                    "creatorName": dataset.owner,
                    "creatorRef": dataset.owner,
                    "versionNotes": version.notes,
                    "status": version.status(now).title(),
                }
                for version in reversed(shown)
            ],
        }

    def _find(self, call: Call, permission: str) -> Dataset:
        dataset = self.find(f"{call.text('ownerSlug')}/{call.text('datasetSlug')}", call.now, call.actor or ANYONE)
        if dataset is None:
            raise denied(permission)
        return dataset

    def _find_version(self, call: Call) -> tuple[Dataset, Version]:
        dataset = self._find(call, "datasets.get")
        version = dataset.version(call.number("datasetVersionNumber"), call.now)
        if version is None:
            raise denied("datasets.get")
        return dataset, version

    def _may_write(self, actor: Actor) -> bool:
        return actor.session is None or self._settings.session_token_can_write


def _take_in(blob: Blob, target: Path) -> None:
    """Move the upload's bytes into the version; its token goes on to mean them there, for a version that is sent twice."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if blob.in_version:
        link(blob.path, target)
    else:
        blob.path.chmod(0o444)  # a version never changes, and sessions have it as the same file
        blob.path.rename(target)
        blob.path, blob.in_version = target, True


def _spoil(version: Version, call: Call) -> None:
    """Do to the new version what the fault plan wants."""
    lose, corrupt = call.twist("lose_file"), call.twist("corrupt_file")
    for file in version.files():
        if lose is not None and fnmatchcase(file.name, lose.files):
            file.path.unlink()
        elif corrupt is not None and fnmatchcase(file.name, corrupt.files) and file.size:
            copy = file.path.with_name(file.path.name + ".spoiled")
            shutil.copyfile(file.path, copy)
            with copy.open("r+b") as data:
                middle = file.size // 2
                data.seek(middle)
                byte = data.read(1)
                data.seek(middle)
                data.write(bytes([byte[0] ^ 0xFF]))
            copy.replace(file.path)


def _file(dataset: Dataset, version: Version, file: StoredFile) -> dict[str, Any]:
    return {
        "ref": f"{dataset.ref}/{file.name}",
        "datasetRef": dataset.ref,
        "ownerRef": dataset.owner,
        "name": file.name,
        "creationDate": iso(version.created_at),
        "fileType": PurePosixPath(file.name).suffix,
        "url": f"https://www.kaggle.com/datasets/{dataset.ref}?select={file.name}",
        "totalBytes": file.size,
        "columns": [],
    }


def _accepted(dataset: Dataset) -> Answer:
    url = f"https://www.kaggle.com/datasets/{dataset.ref}"
    return {"ref": dataset.ref, "url": url, "status": "ok", "error": "", "hasError": False, "invalidTags": []}


def _refusal(error: str) -> Answer:
    return {"ref": "", "url": "", "status": "error", "error": error, "hasError": True, "invalidTags": []}

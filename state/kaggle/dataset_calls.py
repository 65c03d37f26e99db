"""The calls about datasets, and the transfer of their files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from state.errors import AmbiguousError, TemporaryError
from state.kaggle import answers, downloads
from state.kaggle.answers import refusal
from state.kaggle.calls import Calls, slug_of
from state.kaggle.records import BlobType, DatasetInfo, DatasetVersion, OutputFile
from state.kaggle.sdk_requests import Enumerated, Nested

_FILES_A_PAGE = 200  # the server's own limits
_DATASETS_A_PAGE = 100
_LICENSE = "other"  # Kaggle requires a licence, also for private data


class DatasetCalls(Calls):
    """See `KaggleApi`."""

    def dataset(self, slug: str, *, owner: str | None = None) -> DatasetInfo | None:
        """Return a dataset with its listed versions, or None if it is missing."""
        what = f"looking at dataset {slug}"
        fields = {"owner_slug": owner or self.user, "dataset_slug": slug}
        answer = self._transport.read(what, answers.DatasetAnswer, "datasets", "get_dataset", **fields)
        if answer is None:
            return None
        if slug_of(answer.ref) != slug:
            raise TemporaryError(f"{what} failed: the answer is about {answer.ref!r}")
        versions = tuple(
            DatasetVersion(version.version_number, version.version_notes or "", version.status or "", version.creation_date)
            for version in answer.versions or ()
        )
        current = answer.current_version_number or None
        return DatasetInfo(slug, current, answer.total_bytes or 0, bool(answer.is_private), versions)

    def dataset_status(self, slug: str, *, owner: str | None = None) -> str | None:
        """Return the processing status, such as `READY` or `FAILED`; READY may refer to an older version."""
        what = f"asking for the status of dataset {slug}"
        fields = {"owner_slug": owner or self.user, "dataset_slug": slug}
        answer = self._transport.read(what, answers.StatusAnswer, "datasets", "get_dataset_status", **fields)
        if answer is None:
            return None
        if not isinstance(answer.status, str):
            raise TemporaryError(f"{what} failed: the answer names no status")
        return answer.status.upper()

    def dataset_is_ready(self, slug: str, *, owner: str | None = None) -> bool:
        """Return whether a version of the dataset is ready; False if the dataset is missing."""
        return self.dataset_status(slug, owner=owner) == "READY"

    def dataset_files(self, slug: str, version: int, *, owner: str | None = None) -> dict[str, int] | None:
        """Return the size in bytes of each file of a version, by name, or None if the version is missing."""
        what = f"listing the files of dataset {slug} version {version}"
        fields = {
            "owner_slug": owner or self.user,
            "dataset_slug": slug,
            "dataset_version_number": version,
            "page_size": _FILES_A_PAGE,
        }
        pages = self._pages(what, answers.FilesPage, "datasets", "list_dataset_files", fields)
        if pages is None:
            return None
        said = next((page.error_message for page in pages if page.error_message), None)
        if said is not None:
            raise TemporaryError(f"{what} failed: {answers.shorten(said)}")
        return {file.name: file.total_bytes for page in pages for file in page.dataset_files}

    def create_dataset(self, slug: str, tokens: Sequence[str]) -> None:
        """Create a private dataset of uploaded files; its title is its slug.

        Raises:
            AmbiguousError: it is unknown whether the dataset was created.
            SlugTakenError: the name is taken.
            UserError: Kaggle refuses the request.
        """
        what = f"making dataset {slug}"
        answer = self._transport.write(
            what,
            answers.CreateDatasetAnswer,
            "datasets",
            "create_dataset",
            owner_slug=self.user,
            slug=slug,
            title=slug,
            is_private=True,
            license_name=_LICENSE,
            files=_new_files(tokens),
        )
        _check_created(what, answer)

    def create_version(self, slug: str, tokens: Sequence[str], notes: str, *, delete_old: bool) -> None:
        """Create the next version of a dataset; it holds these uploaded files only.

        Args:
            slug: The dataset's slug.
            tokens: The tokens of the uploads.
            notes: The version's notes; they are unique, so that a later look can find the version.
            delete_old: Whether Kaggle deletes older versions when this one is ready.

        Raises:
            AmbiguousError: it is unknown whether the version was created.
            DeniedError: not allowed, or not yet because the first version is still processed.
            UserError: Kaggle refuses the request.
        """
        what = f"making a version of dataset {slug}"
        body = {"version_notes": notes, "delete_old_versions": delete_old, "files": _new_files(tokens)}
        answer = self._transport.write(
            what,
            answers.CreateDatasetAnswer,
            "datasets",
            "create_dataset_version",
            owner_slug=self.user,
            dataset_slug=slug,
            body=Nested("ApiCreateDatasetVersionRequestBody", body),
        )
        _check_created(what, answer)

    def delete_dataset(self, slug: str) -> None:
        """Delete a dataset with all its versions, and poll until it is gone; a missing dataset is no error.

        Raises:
            TemporaryError: it still exists, or whether it exists is unknown.
            DeniedError: these credentials may not delete it.
        """
        fields = {"owner_slug": self.user, "dataset_slug": slug}
        self._delete(
            f"deleting dataset {slug}",
            "datasets",
            "delete_dataset",
            fields,
            is_shown=lambda: self.dataset(slug) is not None,
            is_listed=lambda: slug in self.datasets(slug),
        )

    def datasets(self, prefix: str) -> tuple[str, ...]:
        """Return the slugs of the account's datasets that start with the prefix."""
        fields = {"group": Enumerated("DatasetSelectionGroup", "DATASET_SELECTION_GROUP_MY"), "page_size": _DATASETS_A_PAGE}
        pages = self._pages("listing the datasets", answers.DatasetsPage, "datasets", "list_datasets", fields)
        if pages is None:
            raise TemporaryError("listing the datasets failed: Kaggle says that the list is missing")
        refs = [dataset.ref.rpartition("/") for page in pages for dataset in page.datasets]
        return tuple(slug for owner, _, slug in refs if slug.startswith(prefix) and owner == self.user)

    def start_upload(self, name: str, size_bytes: int, modified_s: int, *, blob_type: BlobType = "DATASET") -> tuple[str, str]:
        """Open an upload for a dataset or a model; return its token and the address for the bytes, which is a secret.

        Raises:
            TemporaryError: the upload could not be opened.
            DeniedError: these credentials may not upload.
        """
        what = f"opening an upload of {name}"
        try:
            answer = self._transport.write(
                what,
                answers.UploadAnswer,
                "blobs",
                "start_blob_upload",
                type=Enumerated("ApiBlobType", blob_type),
                name=name,
                content_length=size_bytes,
                last_modified_epoch_seconds=modified_s,
            )
        except AmbiguousError as error:  # an unused upload has no effect, so trying again is safe
            raise TemporaryError(error.what) from error
        return answer.token, answer.create_url

    def download(
        self,
        slug: str,
        version: int,
        name: str,
        target: Path,
        *,
        owner: str | None = None,
        size_bytes: int | None = None,
        on_bytes: Callable[[int], None] = lambda _: None,
    ) -> str:
        """Download a file of a dataset's version; return its sha256.

        A broken connection is resumed, until several tries in a row bring no byte. If Kaggle serves `NAME.zip` instead, it is
        unpacked.

        Args:
            slug: The dataset's slug.
            version: The dataset's version.
            name: The file's name.
            target: The path to write; the whole file appears there, or nothing.
            owner: The dataset's owner; None: this account.
            size_bytes: The size that the file must have, if known.
            on_bytes: Called with the number of bytes received since the last call; negative if they must be sent again.

        Raises:
            TemporaryError: the download failed, or the file has another size.
        """
        return downloads.fetch_dataset_file(
            self._transport, owner or self.user, slug, version, name, target, size_bytes=size_bytes, on_bytes=on_bytes
        )

    def download_output(self, file: OutputFile, target: Path) -> str:
        """Download a file of a session's output; return its sha256.

        Raises:
            TemporaryError: the download failed.
        """
        return downloads.fetch_address(self._transport, file.name, file.url, target)


def _new_files(tokens: Sequence[str]) -> list[Nested]:
    return [Nested("ApiDatasetNewFile", {"token": token}) for token in tokens]


def _check_created(what: str, answer: answers.CreateDatasetAnswer) -> None:
    if answer.error:
        raise refusal(what, answer.error)
    if (answer.status or "").lower() != "ok":
        raise AmbiguousError(
            f"whether {what} happened is unknown: no error, and status {answer.status!r}", remedy="look before trying again"
        )

"""The calls about datasets, and the bytes of their files."""

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
_LICENSE = "other"  # private data; Kaggle wants one to be named


class DatasetCalls(Calls):
    """See `KaggleApi`."""

    def dataset(self, slug: str, *, owner: str | None = None) -> DatasetInfo | None:
        """Return a dataset with the versions that Kaggle lists; None when it is not there."""
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
        """Return the processing status, such as `READY` or `FAILED`; READY may be about an older version."""
        what = f"asking for the status of dataset {slug}"
        fields = {"owner_slug": owner or self.user, "dataset_slug": slug}
        answer = self._transport.read(what, answers.StatusAnswer, "datasets", "get_dataset_status", **fields)
        if answer is None:
            return None
        if not isinstance(answer.status, str):
            raise TemporaryError(f"{what} failed: the answer names no status")
        return answer.status.upper()

    def dataset_is_ready(self, slug: str, *, owner: str | None = None) -> bool:
        """Return whether a version of the dataset is ready; False also when it is not there."""
        return self.dataset_status(slug, owner=owner) == "READY"

    def dataset_files(self, slug: str, version: int, *, owner: str | None = None) -> dict[str, int] | None:
        """Return the bytes of each file of a version, by name; None when the version is not there."""
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
        """Make a private dataset of uploaded files; its title is its slug.

        Raises:
            AmbiguousError: whether it was made is unknown.
            SlugTakenError: there is one already.
            UserError: Kaggle refuses it.
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
        """Make the next version of a dataset of uploaded files; files that are not named are not in it.

        Args:
            slug: Of the dataset.
            tokens: Of the uploads.
            notes: What says what the version is; unique, so that it can be looked for.
            delete_old: Whether older versions are deleted when this one is ready.

        Raises:
            AmbiguousError: whether it was made is unknown.
            DeniedError: not now, while the first version is processed, or not at all.
            UserError: Kaggle refuses it.
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
        """Delete a dataset with all its versions, and look until it is gone; one that is not there is gone.

        Raises:
            TemporaryError: it still is there, or whether it is there is unknown.
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
        """Return the slugs of the account's datasets that start so."""
        fields = {"group": Enumerated("DatasetSelectionGroup", "DATASET_SELECTION_GROUP_MY"), "page_size": _DATASETS_A_PAGE}
        pages = self._pages("listing the datasets", answers.DatasetsPage, "datasets", "list_datasets", fields)
        if pages is None:
            raise TemporaryError("listing the datasets failed: Kaggle says that there is no list")
        refs = [dataset.ref.rpartition("/") for page in pages for dataset in page.datasets]
        return tuple(slug for owner, _, slug in refs if slug.startswith(prefix) and owner == self.user)

    def start_upload(self, name: str, size_bytes: int, modified_s: int, *, blob_type: BlobType = "DATASET") -> tuple[str, str]:
        """Open an upload for a dataset or a model; return its token, and the address that takes the bytes, which is a secret.

        Raises:
            TemporaryError: it could not be opened.
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
        except AmbiguousError as error:  # an upload that nobody uses is nothing
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
        """Stream a file of a dataset's version into a file; return its sha256.

        A connection that breaks is resumed, a few times in a row without a byte at most; `NAME.zip` in its place is unpacked.

        Args:
            slug: Of the dataset.
            version: Of the dataset.
            name: Of the file.
            target: Where it goes; there whole, or not at all.
            owner: Of the dataset; None: this account.
            size_bytes: What its size must be, when that is known.
            on_bytes: Told how many more bytes have come; less than 0 when they must come again.

        Raises:
            TemporaryError: it could not be had, or has another size.
        """
        return downloads.fetch_dataset_file(
            self._transport, owner or self.user, slug, version, name, target, size_bytes=size_bytes, on_bytes=on_bytes
        )

    def download_output(self, file: OutputFile, target: Path) -> str:
        """Stream a file that a session left into a file; return its sha256.

        Raises:
            TemporaryError: it could not be had.
        """
        return downloads.fetch_address(self._transport, file.name, file.url, target)


def _new_files(tokens: Sequence[str]) -> list[Nested]:
    return [Nested("ApiDatasetNewFile", {"token": token}) for token in tokens]


def _check_created(what: str, answer: answers.CreateDatasetAnswer) -> None:
    if answer.error:
        raise refusal(what, answer.error)
    if (answer.status or "").lower() != "ok":
        raise AmbiguousError(
            f"whether {what} happened is unknown: no error, and status {answer.status!r}", remedy="look before doing it again"
        )

"""Models of Kaggle's answers, and the errors that its refusals translate to."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict
from pydantic.alias_generators import to_camel

from state.errors import GemmaOrchError, UserError
from state.kaggle.errors import BusyError, KaggleQuotaError, SlugTakenError, UploadsGoneError
from state.kaggle.records import SessionStatus

_BUSY = re.compile(r"session count of \d+", re.IGNORECASE)
_QUOTA = re.compile(r"weekly .*quota", re.IGNORECASE)
_TAKEN = re.compile(r"already in use(?: by an? (?P<by>\w+))?|already exists", re.IGNORECASE)
_GONE = re.compile(r"files could not be found|upload them again", re.IGNORECASE)
_LONGEST_REASON = 300

_STATUSES = {
    "QUEUED": SessionStatus.QUEUED,
    "NEW_SCRIPT": SessionStatus.QUEUED,
    "RUNNING": SessionStatus.RUNNING,
    "CANCEL_REQUESTED": SessionStatus.RUNNING,
    "COMPLETE": SessionStatus.COMPLETE,
    "ERROR": SessionStatus.ERROR,
    "CANCEL_ACKNOWLEDGED": SessionStatus.CANCELLED,
}


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _seconds(value: Any) -> Any:
    """Parse a protobuf duration, such as `6809.769267400s`."""
    return value.removesuffix("s") if isinstance(value, str) else value


Moment = Annotated[datetime, AfterValidator(_utc)]
Seconds = Annotated[float, BeforeValidator(_seconds)]


class _Answer(BaseModel):
    """A part of a body; without its required fields, the body is not the answer to the request."""

    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", defer_build=True)


class SaveKernelAnswer(_Answer):
    """Answer to SaveKernel; a refusal has an error and no version."""

    version_number: int | None = None
    error: str | None = None
    invalid_dataset_sources: tuple[str, ...] | None = None
    invalid_kernel_sources: tuple[str, ...] | None = None
    invalid_competition_sources: tuple[str, ...] | None = None
    invalid_model_sources: tuple[str, ...] | None = None

    @property
    def invalid_sources(self) -> tuple[str, ...]:
        """Invalid sources of all kinds."""
        return (
            *(self.invalid_dataset_sources or ()),
            *(self.invalid_kernel_sources or ()),
            *(self.invalid_competition_sources or ()),
            *(self.invalid_model_sources or ()),
        )


class KernelMetadata(_Answer):
    """Part of the answers to GetKernel and ListKernels."""

    ref: str
    current_version_number: int | None = None
    machine_shape: str | None = None
    last_run_time: Moment | None = None


class KernelBlob(_Answer):
    """Part of the answer to GetKernel."""

    source: str | None = None


class KernelAnswer(_Answer):
    """Answer to GetKernel."""

    metadata: KernelMetadata
    blob: KernelBlob | None = None


class Page(_Answer):
    """A page of a listing; Kaggle may leave out an empty list, but not all fields."""

    next_page_token: str | None = None


class KernelsPage(Page):
    """Answer to ListKernels."""

    kernels: tuple[KernelMetadata, ...] = ()


class StatusAnswer(_Answer):
    """Answer to GetKernelSessionStatus and GetDatasetStatus."""

    status: Any


class Output(_Answer):
    """Part of the answer to ListKernelSessionOutput."""

    file_name: str
    url: str


class OutputPage(Page):
    """Answer to ListKernelSessionOutput."""

    files: tuple[Output, ...] = ()
    log: str | None = None


class DeleteAnswer(_Answer):
    """Answer to DeleteKernel and DeleteDataset, which put a refusal into the body."""

    error: str | None = None
    error_message: str | None = None


class GpuQuota(_Answer):
    """Part of the answer to GetAcceleratorQuotaStatistics."""

    time_used: Seconds | None = None
    time_reserved: Seconds | None = None
    total_time_allowed: Seconds | None = None


class QuotaAnswer(_Answer):
    """Answer to GetAcceleratorQuotaStatistics."""

    quota_refresh_time: Moment | None = None
    gpu_quota: GpuQuota | None = None


class VersionAnswer(_Answer):
    """Part of the answer to GetDataset."""

    version_number: int
    version_notes: str | None = None
    status: str | None = None
    creation_date: Moment | None = None


class DatasetAnswer(_Answer):
    """Answer to GetDataset, and part of the answer to ListDatasets."""

    ref: str
    current_version_number: int | None = None
    total_bytes: int | None = None
    is_private: bool | None = None
    versions: tuple[VersionAnswer, ...] | None = None


class DatasetsPage(Page):
    """Answer to ListDatasets."""

    datasets: tuple[DatasetAnswer, ...] = ()


class DatasetFile(_Answer):
    """Part of the answer to ListDatasetFiles."""

    name: str
    total_bytes: int = 0


class FilesPage(Page):
    """Answer to ListDatasetFiles."""

    dataset_files: tuple[DatasetFile, ...] = ()
    error_message: str | None = None


class CreateDatasetAnswer(_Answer):
    """Answer to CreateDataset and CreateDatasetVersion."""

    status: str | None = None
    error: str | None = None


class ModelAnswer(_Answer):
    """Answer to GetModel."""

    slug: str


class ModelInstanceAnswer(_Answer):
    """Answer to GetModelInstance; without a number, no version is ready."""

    slug: str
    version_number: int | None = None


class ModelFile(_Answer):
    """Part of the answer to ListModelInstanceVersionFiles."""

    name: str
    size: int = 0


class ModelFilesPage(Page):
    """Answer to ListModelInstanceVersionFiles."""

    files: tuple[ModelFile, ...] = ()


class CreateModelAnswer(_Answer):
    """Answer to CreateModel, CreateModelInstance and CreateModelInstanceVersion; a refusal has an error."""

    ref: str | None = None
    error: str | None = None


class UploadAnswer(_Answer):
    """Answer to StartBlobUpload."""

    token: str
    create_url: str


class IntrospectAnswer(_Answer):
    """Answer to IntrospectToken."""

    active: bool
    username: str | None = None


def session_status(word: object) -> SessionStatus:
    """Return the status for Kaggle's word, which may be in upper snake or in camel case."""
    if not isinstance(word, str):
        return SessionStatus.UNKNOWN
    upper = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", word).upper().removeprefix("KERNEL_WORKER_STATUS_")
    return _STATUSES.get(upper, SessionStatus.UNKNOWN)


def refusal(what: str, reason: str) -> GemmaOrchError:
    """Return the error for a refusal in words.

    Args:
        what: The refused act, such as `starting kernel a-b`.
        reason: Kaggle's own words.
    """
    said = f"{what} was refused: {shorten(reason)}"
    if _BUSY.search(reason):
        return BusyError(said, remedy="wait until a session of the account has ended")
    if _QUOTA.search(reason):
        return KaggleQuotaError(said, remedy="wait for the weekly refresh")
    if (taken := _TAKEN.search(reason)) is not None:
        by = taken["by"].lower() if taken["by"] is not None else None
        return SlugTakenError(
            said,
            by=by,
            expected="a name that no kernel, dataset or model of the account has",
            remedy=f"delete that {by or 'one'} on kaggle.com (another title does not free the name), then try again",
        )
    if _GONE.search(reason):
        return UploadsGoneError(said, remedy="upload the files again")
    return UserError(said, remedy=_remedy(reason))


def _remedy(reason: str) -> str:
    if "enableInternet" in reason:
        return "verify your phone number at https://www.kaggle.com/settings, or run with the internet switched off"
    if "kernel source must be less" in reason:
        return "make the pushed source smaller"
    return ""


def reason_in(text: str) -> tuple[int | None, str]:
    """Return code and message of an error body, in either of the two formats of Kaggle's servers."""
    try:
        body = json.loads(text)
    except ValueError:
        return None, ""
    if not isinstance(body, dict):
        return None, ""
    inner = body["error"] if isinstance(body.get("error"), dict) else body
    code, message = inner.get("code"), inner.get("message")
    return code if isinstance(code, int) else None, message if isinstance(message, str) else ""


def log_text(log: str) -> str:
    """Return the text of a session's log, which Kaggle keeps as a JSON list of pieces; return other text unchanged."""
    try:
        pieces = json.loads(log)
    except ValueError:
        return log
    if not isinstance(pieces, list):
        return log
    return "".join(str(piece.get("data", "")) for piece in pieces if isinstance(piece, dict))


def shorten(text: str) -> str:
    """Return the text on one line, cut at 300 characters."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_REASON else line[:_LONGEST_REASON] + " ..."

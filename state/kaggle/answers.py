"""Reading Kaggle's answers: what a body must hold to be believed, and what a refusal means."""

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
    """Read protobuf's durations, such as `6809.769267400s`."""
    return value.removesuffix("s") if isinstance(value, str) else value


Moment = Annotated[datetime, AfterValidator(_utc)]
Seconds = Annotated[float, BeforeValidator(_seconds)]


class _Answer(BaseModel):
    """A part of a body. Fields without a default must be there: else the body is not what was asked for."""

    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", defer_build=True)


class SaveKernelAnswer(_Answer):
    """Of SaveKernel; a refusal has an error and no version."""

    version_number: int | None = None
    error: str | None = None
    invalid_dataset_sources: tuple[str, ...] | None = None
    invalid_kernel_sources: tuple[str, ...] | None = None
    invalid_competition_sources: tuple[str, ...] | None = None
    invalid_model_sources: tuple[str, ...] | None = None

    @property
    def invalid_sources(self) -> tuple[str, ...]:
        """All of them."""
        return (
            *(self.invalid_dataset_sources or ()),
            *(self.invalid_kernel_sources or ()),
            *(self.invalid_competition_sources or ()),
            *(self.invalid_model_sources or ()),
        )


class KernelMetadata(_Answer):
    """Of GetKernel and ListKernels."""

    ref: str
    current_version_number: int | None = None
    machine_shape: str | None = None
    last_run_time: Moment | None = None


class KernelBlob(_Answer):
    """Of GetKernel."""

    source: str | None = None


class KernelAnswer(_Answer):
    """Of GetKernel."""

    metadata: KernelMetadata
    blob: KernelBlob | None = None


class Page(_Answer):
    """A listing; Kaggle may leave out a list that is empty, but not everything."""

    next_page_token: str | None = None


class KernelsPage(Page):
    """Of ListKernels."""

    kernels: tuple[KernelMetadata, ...] = ()


class StatusAnswer(_Answer):
    """Of GetKernelSessionStatus and GetDatasetStatus."""

    status: Any


class Output(_Answer):
    """Of ListKernelSessionOutput."""

    file_name: str
    url: str


class OutputPage(Page):
    """Of ListKernelSessionOutput."""

    files: tuple[Output, ...] = ()
    log: str | None = None


class DeleteAnswer(_Answer):
    """Of DeleteKernel and DeleteDataset, which say no in their bodies."""

    error: str | None = None
    error_message: str | None = None


class GpuQuota(_Answer):
    """Of GetAcceleratorQuotaStatistics."""

    time_used: Seconds | None = None
    time_reserved: Seconds | None = None
    total_time_allowed: Seconds | None = None


class QuotaAnswer(_Answer):
    """Of GetAcceleratorQuotaStatistics."""

    quota_refresh_time: Moment | None = None
    gpu_quota: GpuQuota | None = None


class VersionAnswer(_Answer):
    """Of GetDataset."""

    version_number: int
    version_notes: str | None = None
    status: str | None = None
    creation_date: Moment | None = None


class DatasetAnswer(_Answer):
    """Of GetDataset and ListDatasets."""

    ref: str
    current_version_number: int | None = None
    total_bytes: int | None = None
    is_private: bool | None = None
    versions: tuple[VersionAnswer, ...] | None = None


class DatasetsPage(Page):
    """Of ListDatasets."""

    datasets: tuple[DatasetAnswer, ...] = ()


class DatasetFile(_Answer):
    """Of ListDatasetFiles."""

    name: str
    total_bytes: int = 0


class FilesPage(Page):
    """Of ListDatasetFiles."""

    dataset_files: tuple[DatasetFile, ...] = ()
    error_message: str | None = None


class CreateDatasetAnswer(_Answer):
    """Of CreateDataset and CreateDatasetVersion."""

    status: str | None = None
    error: str | None = None


class ModelAnswer(_Answer):
    """Of GetModel."""

    slug: str


class ModelInstanceAnswer(_Answer):
    """Of GetModelInstance; no number: no version is ready."""

    slug: str
    version_number: int | None = None


class ModelFile(_Answer):
    """Of ListModelInstanceVersionFiles."""

    name: str
    size: int = 0


class ModelFilesPage(Page):
    """Of ListModelInstanceVersionFiles."""

    files: tuple[ModelFile, ...] = ()


class CreateModelAnswer(_Answer):
    """Of CreateModel, CreateModelInstance and CreateModelInstanceVersion; a refusal has an error."""

    ref: str | None = None
    error: str | None = None


class UploadAnswer(_Answer):
    """Of StartBlobUpload."""

    token: str
    create_url: str


class IntrospectAnswer(_Answer):
    """Of IntrospectToken."""

    active: bool
    username: str | None = None


def session_status(word: object) -> SessionStatus:
    """Return what a status word means; Kaggle writes them in upper snake and in camel case."""
    if not isinstance(word, str):
        return SessionStatus.UNKNOWN
    upper = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", word).upper().removeprefix("KERNEL_WORKER_STATUS_")
    return _STATUSES.get(upper, SessionStatus.UNKNOWN)


def refusal(what: str, reason: str) -> GemmaOrchError:
    """Return the error that a refusal in words means.

    Args:
        what: What was refused, such as `starting kernel a-b`.
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
            expected="a name that no kernel, no dataset and no model of the account has",
            remedy=f"delete that {by or 'one'} on kaggle.com, where another title does not free the name; then the same again",
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
    """Return the code and the words of an error body, in either of the two formats that Kaggle's servers use."""
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
    """Return the lines of a session's log, which Kaggle keeps as a JSON list of pieces; another text is returned as it is."""
    try:
        pieces = json.loads(log)
    except ValueError:
        return log
    if not isinstance(pieces, list):
        return log
    return "".join(str(piece.get("data", "")) for piece in pieces if isinstance(piece, dict))


def shorten(text: str) -> str:
    """Return the text, or its beginning, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_REASON else line[:_LONGEST_REASON] + " ..."

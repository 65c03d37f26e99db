"""The unmodified clients of Kaggle, pointed at an emulator: the SDK here, the client and its command in child processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import requests
from kagglesdk.blobs.types.blob_api_service import ApiBlobType, ApiStartBlobUploadRequest
from kagglesdk.datasets.types.dataset_api_service import (
    ApiCreateDatasetRequest,
    ApiCreateDatasetResponse,
    ApiCreateDatasetVersionRequest,
    ApiCreateDatasetVersionRequestBody,
    ApiDataset,
    ApiDatasetNewFile,
    ApiDownloadDatasetRequest,
    ApiGetDatasetRequest,
    ApiGetDatasetStatusRequest,
    ApiListDatasetFilesRequest,
)
from kagglesdk.kaggle_client import KaggleClient
from kagglesdk.kaggle_env import KaggleEnv
from kagglesdk.kernels.types.kernels_api_service import (
    ApiGetKernelRequest,
    ApiGetKernelResponse,
    ApiGetKernelSessionStatusRequest,
    ApiSaveKernelRequest,
    ApiSaveKernelResponse,
)

from tests.kaggle_emulator import KaggleEmulator, Settings
from tests.patience import PATIENCE_S

USER = "tester"


class Sdk:
    """Short names for the calls of kagglesdk; nothing in between."""

    def __init__(self, emulator: KaggleEmulator, client: KaggleClient) -> None:
        self.emulator = emulator
        self.client = client
        self.datasets = client.datasets.dataset_api_client
        self.kernels = client.kernels.kernels_api_client
        self.blobs = client.blobs.blob_api_client

    def start_upload(self, name: str, size: int) -> tuple[str, str]:
        """Open an upload; give its token and its address."""
        request = ApiStartBlobUploadRequest()
        request.type, request.name, request.content_length = ApiBlobType.DATASET, name, size
        request.last_modified_epoch_seconds = 1_700_000_000
        response = self.blobs.start_blob_upload(request)
        return response.token, response.create_url

    def upload(self, name: str, data: bytes) -> str:
        token, url = self.start_upload(name, len(data))
        requests.put(url, data=data, timeout=PATIENCE_S).raise_for_status()
        return token

    def create_dataset(self, slug: str, files: Mapping[str, bytes], *, ready: bool = True) -> ApiCreateDatasetResponse:
        """Make a private dataset of these files, and by default let its processing time pass."""
        request = ApiCreateDatasetRequest()
        request.owner_slug, request.slug, request.title, request.is_private = USER, slug, slug, True
        request.license_name = "CC0-1.0"
        request.files = [self._new_file(name, data) for name, data in files.items()]
        response = self.datasets.create_dataset(request)
        if ready:
            self.emulator.clock.advance(self.emulator.settings.processing_s)
        return response

    def new_version(
        self, slug: str, files: Mapping[str, bytes], notes: str = "", *, delete_old: bool = False, ready: bool = True
    ) -> ApiCreateDatasetResponse:
        request = ApiCreateDatasetVersionRequest()
        request.owner_slug, request.dataset_slug = USER, slug
        request.body = ApiCreateDatasetVersionRequestBody()
        request.body.version_notes, request.body.delete_old_versions = notes, delete_old
        request.body.files = [self._new_file(name, data) for name, data in files.items()]
        response = self.datasets.create_dataset_version(request)
        if ready:
            self.emulator.clock.advance(self.emulator.settings.processing_s)
        return response

    def _new_file(self, name: str, data: bytes) -> ApiDatasetNewFile:
        file = ApiDatasetNewFile()
        file.token = self.upload(name, data)
        return file

    def dataset(self, slug: str) -> ApiDataset:
        request = ApiGetDatasetRequest()
        request.owner_slug, request.dataset_slug = USER, slug
        return self.datasets.get_dataset(request)

    def dataset_status(self, slug: str) -> str:
        request = ApiGetDatasetStatusRequest()
        request.owner_slug, request.dataset_slug = USER, slug
        return str(self.datasets.get_dataset_status(request).status.name)

    def files(self, slug: str, version: int | None = None) -> dict[str, int]:
        """Give names and sizes."""
        request = ApiListDatasetFilesRequest()
        request.owner_slug, request.dataset_slug, request.dataset_version_number = USER, slug, version
        return {file.name: file.total_bytes for file in self.datasets.list_dataset_files(request).dataset_files}

    def download(self, slug: str, name: str | None = None, version: int | None = None) -> requests.Response:
        request = ApiDownloadDatasetRequest()
        request.owner_slug, request.dataset_slug = USER, slug
        request.file_name, request.dataset_version_number = name, version
        response: requests.Response = self.datasets.download_dataset(request)
        return response

    def push(self, slug: str, source: str = "", /, **fields: Any) -> ApiSaveKernelResponse:
        """Save and run a script kernel whose title is its slug; `fields` are attributes of the request."""
        request = ApiSaveKernelRequest()
        request.slug, request.new_title, request.text = f"{USER}/{slug}", slug, textwrap.dedent(source)
        request.language, request.kernel_type, request.is_private, request.enable_internet = "python", "script", True, True
        for name, value in fields.items():
            setattr(request, name, value)
        return self.kernels.save_kernel(request)

    def status(self, slug: str, label: str | None = None) -> str:
        request = ApiGetKernelSessionStatusRequest()
        request.user_name, request.kernel_slug, request.version_label = USER, slug, label
        return str(self.kernels.get_kernel_session_status(request).status.name)

    def kernel(self, slug: str) -> ApiGetKernelResponse:
        request = ApiGetKernelRequest()
        request.user_name, request.kernel_slug = USER, slug
        return self.kernels.get_kernel(request)


@contextmanager
def pointed_at(emulator: KaggleEmulator, home: Path) -> Iterator[None]:
    """Give this process the variables of a client, for as long as it lasts."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(("KAGGLE", "HTTP", "NO_PROXY"))}
    with patch.dict(os.environ, {**kept, **emulator.client_environment(home, credentials="none")}, clear=True):
        yield


@contextmanager
def sdk(emulator: KaggleEmulator, home: Path, **credentials: str) -> Iterator[Sdk]:
    """Connect with a user's key, or with `username`/`password` or `api_token`."""
    chosen = credentials or {"username": emulator.settings.user, "password": emulator.settings.key}
    with pointed_at(emulator, home), KaggleClient(env=KaggleEnv.LOCAL, **chosen) as client:
        yield Sdk(emulator, client)


def run_client(
    emulator: KaggleEmulator, home: Path, code: str, *, credentials: str = "key", timeout_s: float = PATIENCE_S
) -> subprocess.CompletedProcess[str]:
    """Run code in a child process that has the official client as `api`, authenticated."""
    prologue = "from kaggle.api.kaggle_api_extended import KaggleApi\napi = KaggleApi()\napi.authenticate()\n"
    return _run(emulator, home, ["-c", prologue + textwrap.dedent(code)], credentials, timeout_s)


def run_command(
    emulator: KaggleEmulator, home: Path, *arguments: str, credentials: str = "key", timeout_s: float = PATIENCE_S
) -> subprocess.CompletedProcess[str]:
    """Run the `kaggle` command."""
    return _run(emulator, home, ["-m", "kaggle", *arguments], credentials, timeout_s)


def run_python(emulator: KaggleEmulator, home: Path, code: str, *, credentials: str = "key") -> subprocess.CompletedProcess[str]:
    """Run code that may use kagglehub or requests."""
    return _run(emulator, home, ["-c", textwrap.dedent(code)], credentials, PATIENCE_S)


def _run(
    emulator: KaggleEmulator, home: Path, arguments: list[str], credentials: str, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "TMPDIR": str(home),
        **emulator.client_environment(home, credentials=credentials),
    }
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=home
    )


@contextmanager
def connected(folder: Path, **settings: Any) -> Iterator[Sdk]:
    """Start an emulator in the folder and connect to it; at the end nothing may have gone wrong inside it or got out of it."""
    home = folder / "home"
    home.mkdir()
    with KaggleEmulator(folder, Settings(**settings)) as emulator, sdk(emulator, home) as connection:
        yield connection
        assert emulator.errors == []
        assert [escape.target for escape in emulator.journal.escapes] == []

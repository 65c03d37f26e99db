"""A Kaggle account in memory: what `KaggleApi` promises, at once and without lag, and every lag and failure on demand."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from state.clock import ManualClock
from state.errors import AmbiguousError, TemporaryError
from state.kaggle.errors import SlugTakenError
from state.kaggle.records import (
    AcceleratorQuota,
    DatasetInfo,
    DatasetVersion,
    KernelInfo,
    KernelPush,
    OutputFile,
    SessionStatus,
)

OWNER = "ann"


@dataclass
class FakeKernel:
    push: KernelPush
    status: SessionStatus = SessionStatus.QUEUED
    shape: str | None = None
    outputs: dict[str, bytes] = field(default_factory=dict)
    log: str = ""
    on_look: Callable[[], None] = lambda: None
    """Called before its status is told."""


@dataclass
class FakeVersion:
    notes: str
    files: dict[str, bytes]
    status: str = "Ready"


class FakeKaggle:
    """One account; `failures` are raised by the calls of a name, once each, before or instead of their effect."""

    def __init__(self, clock: ManualClock | None = None) -> None:
        self.clock = clock or ManualClock()
        self.user = OWNER
        self.kernel_table: dict[str, FakeKernel] = {}
        self.dataset_table: dict[str, list[FakeVersion]] = {}
        self.calls: list[tuple[float, str, str]] = []
        self.failures: dict[str, list[Exception]] = {}
        self.failures_after: dict[str, list[Exception]] = {}
        self.hidden: set[str] = set()
        """Slugs that reads refuse to show, as what is not there; lists show them."""
        self.refused: set[str] = set()
        """Reads that answer 403 or 404, as of what is not there, for as long as they are in here."""
        self.refusals: dict[str, list[bool]] = {}
        """Whether the next reads of a name answer so, in order."""
        self.broken: set[str] = set()
        """Calls that fail for as long as they are in here."""
        self.dataset_statuses: dict[str, str] = {}
        """What is said of datasets, instead of READY when a version is."""
        self.gpu = AcceleratorQuota(None, 0.0, 0.0, 108_000.0)
        self.on_push: Callable[[FakeKernel], None] = lambda _kernel: None
        self.processing = False
        """Whether new versions stay unprocessed."""
        self._blobs: dict[str, tuple[str, bytes]] = {}

    def __call__(self) -> FakeKaggle:
        return self

    def names(self) -> list[str]:
        """The calls so far."""
        return [name for _, name, _ in self.calls]

    def count(self, *names: str) -> int:
        return sum(name in names for name in self.names()) if names else len(self.calls)

    def _called(self, name: str, slug: str = "") -> None:
        self.calls.append((self.clock.monotonic(), name, slug))
        if name in self.broken:
            raise TemporaryError(f"{name} does not answer")
        if self.failures.get(name):
            raise self.failures[name].pop(0)

    def _is_refused(self, name: str, slug: str) -> bool:
        """Whether a read answers as of what is not there."""
        next_one = self.refusals[name].pop(0) if self.refusals.get(name) else False
        return next_one or name in self.refused or slug in self.hidden

    def _done(self, name: str) -> None:
        if self.failures_after.get(name):
            raise self.failures_after[name].pop(0)

    # Kernels.

    def push_kernel(self, push: KernelPush) -> int:
        self._called("push_kernel", push.slug)
        assert push.slug not in self.kernel_table, "a second session of an attempt would start"
        if push.slug in self.dataset_table:
            raise SlugTakenError(f"{push.slug} is already in use by a dataset", by="dataset")
        kernel = self.kernel_table[push.slug] = FakeKernel(push, shape=push.machine_shape)
        self.on_push(kernel)
        self._done("push_kernel")
        return 1

    def kernel(self, slug: str, *, owner: str | None = None) -> KernelInfo | None:
        self._called("kernel", slug)
        known = self.kernel_table.get(slug)
        if self._is_refused("kernel", slug) or known is None:
            return None
        return KernelInfo(slug, 1, known.shape, known.push.source, self.clock.now())

    def session_status(self, slug: str, version: int) -> SessionStatus | None:
        self._called("session_status", slug)
        known = self.kernel_table.get(slug)
        if self._is_refused("session_status", slug) or known is None or version != 1:
            return None
        known.on_look()
        return known.status

    def session_outputs(self, slug: str, version: int) -> tuple[tuple[OutputFile, ...], str] | None:
        self._called("session_outputs", slug)
        known = self.kernel_table.get(slug)
        if self._is_refused("session_outputs", slug) or known is None:
            return None
        return tuple(OutputFile(name, f"{slug}/{name}") for name in known.outputs), known.log

    def follow_log(self, slug: str, version: int, *, for_s: float) -> str:
        self._called("follow_log", slug)
        return self.kernel_table[slug].log

    def delete_kernel(self, slug: str) -> None:
        self._called("delete_kernel", slug)
        self.kernel_table.pop(slug, None)

    def kernels(self, prefix: str) -> tuple[KernelInfo, ...]:
        self._called("kernels", prefix)
        return tuple(KernelInfo(slug, 1, None, None, None) for slug in self.kernel_table if slug.startswith(prefix))

    def quota(self) -> AcceleratorQuota:
        self._called("quota")
        return self.gpu

    # Datasets.

    def add_version(self, slug: str, notes: str, files: dict[str, bytes], status: str = "Ready") -> None:
        """Make a version, as somebody else does."""
        self.dataset_table.setdefault(slug, []).append(FakeVersion(notes, files, status))

    def process(self) -> None:
        """Let everything be processed."""
        for versions in self.dataset_table.values():
            for version in versions:
                if version.status == "Blobs_Received":
                    version.status = "Ready"

    def dataset(self, slug: str, *, owner: str | None = None) -> DatasetInfo | None:
        self._called("dataset", slug)
        versions = self.dataset_table.get(slug)
        if self._is_refused("dataset", slug) or versions is None:
            return None
        ready = [number for number, version in enumerate(versions, start=1) if version.status == "Ready"]
        shown = tuple(
            DatasetVersion(number, version.notes, version.status, None)
            for number, version in enumerate(versions, start=1)
            if version.status != "Deleted"
        )
        current = ready[-1] if ready else None
        total = sum(map(len, versions[current - 1].files.values())) if current else 0
        return DatasetInfo(slug, current, total, True, shown)

    def dataset_is_ready(self, slug: str, *, owner: str | None = None) -> bool:
        self._called("dataset_is_ready", slug)
        if slug in self.dataset_statuses:
            return self.dataset_statuses[slug] == "READY"
        return any(version.status == "Ready" for version in self.dataset_table.get(slug, ()))

    def dataset_status(self, slug: str, *, owner: str | None = None) -> str | None:
        self._called("dataset_status", slug)
        versions = self.dataset_table.get(slug)
        if self._is_refused("dataset_status", slug) or versions is None:
            return None
        return "READY" if any(version.status == "Ready" for version in versions) else "PENDING"

    def dataset_files(self, slug: str, version: int, *, owner: str | None = None) -> dict[str, int] | None:
        self._called("dataset_files", slug)
        versions = self.dataset_table.get(slug, [])
        refused = self._is_refused("dataset_files", slug)
        if refused or not 1 <= version <= len(versions) or versions[version - 1].status != "Ready":
            return None
        return {name: len(content) for name, content in versions[version - 1].files.items()}

    def _files_of(self, tokens: Sequence[str]) -> dict[str, bytes]:
        return dict(self._blobs[token] for token in tokens)

    def create_dataset(self, slug: str, tokens: Sequence[str]) -> None:
        self._called("create_dataset", slug)
        if slug in self.kernel_table:
            raise SlugTakenError(f"{slug} is already in use by a notebook", by="notebook")
        if slug in self.dataset_table:
            raise SlugTakenError(f"{slug} is already in use by a dataset", by="dataset")
        self.add_version(slug, "Initial release", self._files_of(tokens), self._new_status())
        self._done("create_dataset")

    def create_version(self, slug: str, tokens: Sequence[str], notes: str, *, delete_old: bool) -> None:
        self._called("create_version", slug)
        if delete_old:
            for version in self.dataset_table[slug]:
                version.status = "Deleted"
        self.add_version(slug, notes, self._files_of(tokens), self._new_status())
        self._done("create_version")

    def _new_status(self) -> str:
        return "Blobs_Received" if self.processing else "Ready"

    def delete_dataset(self, slug: str) -> None:
        self._called("delete_dataset", slug)
        self.dataset_table.pop(slug, None)

    def datasets(self, prefix: str) -> tuple[str, ...]:
        self._called("datasets", prefix)
        return tuple(slug for slug in self.dataset_table if slug.startswith(prefix))

    # Bytes.

    def start_upload(self, name: str, size_bytes: int, modified_s: int, *, blob_type: str = "DATASET") -> tuple[str, str]:
        self._called("start_upload", name)
        token = f"token-{len(self._blobs)}"
        self._blobs[token] = (name, b"")
        return token, token

    @property
    def transport(self) -> FakeKaggle:
        """Uploads go over it."""
        return self

    @contextlib.contextmanager
    def plain_session(self) -> Iterator[None]:
        yield None

    def put(self, _session: None, url: str, body: Iterable[bytes], headers: dict[str, str]) -> tuple[int, dict[str, str]]:
        name, _ = self._blobs[url]
        if headers.get("Content-Range", "").startswith("bytes */"):  # how much has arrived? all of it
            return 200, {}
        self._blobs[url] = (name, body if isinstance(body, bytes) else b"".join(body))
        return 200, {}

    def download(self, slug: str, version: int, name: str, target: Path, **_: Any) -> str:
        self._called("download", f"{slug}/{name}")
        try:
            content = self.dataset_table[slug][version - 1].files[name]
        except (KeyError, IndexError) as error:
            raise TemporaryError(f"{name} of {slug} cannot be had") from error
        return _written(target, content)

    def download_output(self, file: OutputFile, target: Path) -> str:
        self._called("download_output", file.name)
        slug, _, name = file.url.partition("/")
        return _written(target, self.kernel_table[slug].outputs[name])


def _written(target: Path, content: bytes) -> str:
    target.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def job_in(source: str) -> str:
    """The job in a pushed script, as JSON."""
    found = re.search(r"^JOB = (.*)$", source, re.MULTILINE)
    assert found is not None
    return str(eval(found[1]))


def source_root(folder: Path) -> Path:
    """A folder with as little code as a bundle needs: packing the real one takes a while."""
    root = Path(__file__).parents[1]
    bootstrap = folder / "worker" / "kaggle" / "bootstrap.py"
    bootstrap.parent.mkdir(parents=True)
    shutil.copyfile(root / "worker" / "kaggle" / "bootstrap.py", bootstrap)
    (folder / "state").mkdir()
    return folder


__all__ = ["OWNER", "AmbiguousError", "FakeKaggle", "FakeKernel", "FakeVersion", "job_in", "source_root"]

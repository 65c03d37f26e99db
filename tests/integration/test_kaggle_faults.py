"""Every call to Kaggle under every fault: what it answers, and that recovering leaves exactly one effect.

The cases come from two tables: the calls, and the faults. What a call is to do under a fault follows from its kind.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from state.errors import AmbiguousError, TemporaryError
from state.files import sha256_of_file
from state.kaggle.api import KaggleApi, KernelPush, OutputFile, SessionStatus
from state.kaggle.credentials import Credentials
from state.kaggle.datasets import LocalFile, ensure_dataset, publish_version
from state.kaggle.errors import RateLimitedError
from tests.kaggle_accounts import EmulatorTime
from tests.kaggle_clients import USER, Sdk, connected
from tests.kaggle_emulator import Fault
from tests.patience import PATIENCE_S, wait_until

_SLUGS = (f"gemma-orch-faults-{number:04d}" for number in itertools.count())
_IMPATIENCE_S = 0.15
"""How long a call waits that is to hang. All other calls wait long enough for a busy machine."""


class World:
    """An account with a dataset of two versions, a kernel that is complete, and room for more."""

    def __init__(self, folder: Path, sdk: Sdk) -> None:
        self.folder = folder
        self.sdk = sdk
        self.emulator = sdk.emulator
        self.clock = EmulatorTime(sdk.emulator)
        self.credentials = Credentials("a test", user=USER, key=self.emulator.settings.key)
        self.api = KaggleApi(self.credentials, read_timeout_s=10.0, clock=self.clock)
        self.impatient = KaggleApi(self.credentials, read_timeout_s=_IMPATIENCE_S, clock=self.clock)
        self.moments = {"before": self.clock.monotonic() - 1.0}
        sdk.create_dataset("read-data", {"a.bin": b"first"})
        self._pass_time("first version")
        sdk.new_version("read-data", {"a.bin": b"second", "b.bin": bytes(100_000)}, "the second")
        self._pass_time("second version")
        sdk.push("read-kernel", "print('hello')\nopen('out.bin', 'wb').write(b'o' * 50_000)")
        self.emulator.clock.advance(100.0)
        self.moments["queued"] = self.clock.monotonic()
        self.emulator.clock.advance(1000.0)
        self.emulator.wait_for_session("read-kernel")
        self._pass_time("complete")
        outputs = self.api.session_outputs("read-kernel", 1)
        assert outputs is not None
        self.output: OutputFile = outputs[0][0]

    def _pass_time(self, name: str) -> None:
        self.emulator.clock.advance(100.0)
        self.moments[name] = self.clock.monotonic()
        self.emulator.clock.advance(1000.0)

    def token(self) -> str:
        return self.sdk.upload("one.bin", b"some bytes")

    def file(self, slug: str) -> LocalFile:
        path = self.folder / slug / "state.bin"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"0123456789" * 1000)
        return LocalFile(path, "state.bin", path.stat().st_size)

    def whole(self, slug: str) -> dict[str, Any]:
        deadline_s = self.clock.monotonic() + 3600.0
        return {"resume_dir": self.folder / slug, "deadline_s": deadline_s, "clock": self.clock, "settle_s": 600.0}

    def versions(self, slug: str, notes: str) -> int:
        return sum(
            version.notes == notes
            for dataset in self.emulator.datasets.all()
            if dataset.slug == slug and dataset.exists(self.emulator.clock.now())
            for version in dataset.versions
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("kaggle")
    with connected(folder, processing_s=60.0, queue_s=300.0, max_cpu_sessions=1000) as sdk:
        yield World(folder, sdk)


# The table of faults.


@dataclass(frozen=True)
class Trouble:
    """A fault, and whether the call took effect in spite of it."""

    name: str
    kind: str
    took_effect: bool = False
    options: dict[str, Any] = field(default_factory=dict)


TROUBLES = [
    Trouble("timeout before the effect", "hang_before", options={"seconds": PATIENCE_S}),
    Trouble("timeout after the effect", "hang_after", took_effect=True, options={"seconds": PATIENCE_S}),
    Trouble("connection broken before the effect", "drop_before"),
    Trouble("connection broken after the effect", "drop_after", took_effect=True),
    Trouble("429 as HTML", "status", options={"status": 429, "html": True, "message": "Too Many Requests"}),
    Trouble("503", "status", options={"status": 503}),
    Trouble("500 after the effect", "status_after", took_effect=True, options={"status": 500}),
    Trouble("403 as HTML", "status", options={"status": 403, "html": True, "message": "Blocked"}),
    Trouble("404 lag", "lag", took_effect=True),
    Trouble("stale read", "lag", took_effect=True),
    Trouble("truncated body", "truncate", took_effect=True),
    Trouble("body cut without a trace", "short_body", took_effect=True),
    Trouble("lying success", "lie"),
]
_LOST = {"hang_before", "hang_after", "drop_before", "drop_after", "truncate", "short_body", "status_after"}


# The table of reads.


@dataclass(frozen=True)
class Read:
    """A call that changes nothing, what it answers, and what it answers when it is stale or the thing is not there yet."""

    name: str
    route: str
    call: Callable[[KaggleApi, World], Any]
    fresh: Any
    stale_as_of: str
    stale: Any
    missing: Any = None
    lied: Any = TemporaryError
    """A made-up success has no data in it, mostly."""


READS = [
    Read("kernel", "GetKernel", lambda api, w: (k := api.kernel("read-kernel")) and k.version, 1, "queued", 1),
    Read(
        "session_status",
        "GetKernelSessionStatus",
        lambda api, w: api.session_status("read-kernel", 1),
        SessionStatus.COMPLETE,
        "queued",
        SessionStatus.QUEUED,
        lied=SessionStatus.COMPLETE,
    ),
    Read(
        "session_outputs",
        "ListKernelSessionOutput",
        lambda api, w: (found := api.session_outputs("read-kernel", 1)) and (tuple(f.name for f in found[0]), found[1]),
        (("out.bin",), "hello\n"),
        "queued",
        ((), ""),
    ),
    Read(
        "kernels",
        "ListKernels",
        lambda api, w: tuple(kernel.slug for kernel in api.kernels("read-")),
        ("read-kernel",),
        "queued",
        ("read-kernel",),
        missing=(),
    ),
    Read(
        "quota",
        "GetAcceleratorQuotaStatistics",
        lambda api, w: api.quota().gpu_allowed_s,
        108_000.0,
        "queued",
        108_000.0,
        108_000.0,
    ),
    Read(
        "dataset",
        "GetDataset",
        lambda api, w: (found := api.dataset("read-data")) and (found.current_version, len(found.versions)),
        (2, 2),
        "first version",
        (1, 1),
    ),
    Read(
        "dataset_status",
        "GetDatasetStatus",
        lambda api, w: api.dataset_status("read-data"),
        "READY",
        "first version",
        "READY",
        lied="READY",
    ),
    Read(
        "dataset_files",
        "ListDatasetFiles",
        lambda api, w: api.dataset_files("read-data", 2),
        {"a.bin": 6, "b.bin": 100_000},
        "first version",
        None,
    ),
    Read(
        "datasets",
        "ListDatasets",
        lambda api, w: api.datasets("read-"),
        ("read-data",),
        "first version",
        ("read-data",),
        missing=(),
    ),
    Read(
        "user",
        "IntrospectToken",
        lambda api, w: (
            KaggleApi(
                Credentials("a test", token=w.emulator.settings.access_token),
                read_timeout_s=api.transport.timeouts.read_s,
                clock=w.clock,
            ).user
        ),
        USER,
        "queued",
        USER,
        USER,
    ),
]


def expected_of_read(read: Read, trouble: Trouble) -> Any:
    match trouble.name:
        case "404 lag":
            return read.missing
        case "stale read":
            return read.stale
        case "lying success":
            return read.lied
        case "429 as HTML":
            return RateLimitedError
    return TemporaryError


def struck(world: World, route: str, trouble: Trouble, *, as_of: str = "before", calls: tuple[int, ...] | None = None) -> Fault:
    """Let the fault meet the route's calls."""
    options = dict(trouble.options)
    if trouble.kind == "lag":
        options["seconds"] = world.clock.monotonic() - world.moments[as_of]
    fault = Fault(route, trouble.kind, calls, **options)
    world.emulator.faults.add(fault)
    return fault


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the class of what it raises."""
    try:
        return call()
    except TemporaryError as error:
        return type(error)


def for_hangs(world: World, trouble: Trouble) -> KaggleApi:
    return world.impatient if trouble.kind.startswith("hang") else world.api


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)
@pytest.mark.parametrize("read", READS, ids=lambda read: read.name)
def test_a_read_never_takes_a_failure_for_missing(world: World, read: Read, trouble: Trouble) -> None:
    stale = trouble.name == "stale read"
    struck(world, read.route, trouble, as_of=read.stale_as_of if stale else "before")
    try:
        assert outcome(lambda: read.call(for_hangs(world, trouble), world)) == expected_of_read(read, trouble)
    finally:
        world.emulator.faults.remove()
    assert read.call(world.api, world) == read.fresh


# The table of writes.


@dataclass(frozen=True)
class Write:
    """A call that changes something, how its effects are counted, and how one recovers from not knowing."""

    name: str
    route: str
    call: Callable[[KaggleApi, World, str], Any]
    value: Any
    effects: Callable[[World, str], int]
    recover: Callable[[World, str], Any]
    prepare: Callable[[World, str], Any] = lambda world, slug: None
    is_delete: bool = False
    """A delete looks for itself whether the thing is gone."""


def _push(slug: str) -> KernelPush:
    return KernelPush(slug, "print('hello')", "None", internet=False, timeout_s=3600, dataset_sources=(f"{USER}/read-data",))


def _push_again(world: World, slug: str) -> None:
    if world.api.kernel(slug) is None:
        world.api.push_kernel(_push(slug))


def _kernel_versions(world: World, slug: str) -> int:
    found = [kernel for kernel in world.emulator.kernels.all() if kernel.slug == slug]
    return sum(len(kernel.versions) for kernel in found)


def _datasets(world: World, slug: str) -> int:
    return sum(dataset.slug == slug for dataset in world.emulator.datasets.all())


def _is_gone(world: World, slug: str) -> int:
    return int(world.api.kernel(slug) is None and world.api.dataset(slug) is None)


def _publish_after_settling(world: World, slug: str) -> None:
    """Publish, as somebody who does not know that the version was sent does only when reads cannot lag any more."""
    world.clock.sleep(600.0)
    _publish(world, slug)


def _publish(world: World, slug: str) -> int:
    files = [world.file(slug)]
    return publish_version(world.api, slug, files, "the note", delete_old=False, processing_limit_s=1000.0, **world.whole(slug))


def _make(world: World, slug: str) -> None:
    world.sdk.create_dataset(slug, {"first.bin": b"first"})


WRITES = [
    Write("push_kernel", "SaveKernel", lambda api, w, slug: api.push_kernel(_push(slug)), 1, _kernel_versions, _push_again),
    Write(
        "create_dataset",
        "CreateDataset",
        lambda api, w, slug: api.create_dataset(slug, [w.token()]),
        None,
        _datasets,
        lambda w, slug: ensure_dataset(w.api, slug, [w.file(slug)], **w.whole(slug)),
    ),
    Write(
        "create_version",
        "CreateDatasetVersion",
        lambda api, w, slug: api.create_version(
            slug, [w.sdk.upload("state.bin", b"0123456789" * 1000)], "the note", delete_old=False
        ),
        None,
        lambda w, slug: w.versions(slug, "the note"),
        _publish_after_settling,
        prepare=_make,
    ),
    Write(
        "delete_kernel",
        "DeleteKernel",
        lambda api, w, slug: api.delete_kernel(slug),
        None,
        _is_gone,
        lambda w, slug: w.api.delete_kernel(slug),
        prepare=lambda w, slug: w.api.push_kernel(_push(slug)),
        is_delete=True,
    ),
    Write(
        "delete_dataset",
        "DeleteDataset",
        lambda api, w, slug: api.delete_dataset(slug),
        None,
        _is_gone,
        lambda w, slug: w.api.delete_dataset(slug),
        prepare=_make,
        is_delete=True,
    ),
]


def expected_of_write(write: Write, trouble: Trouble) -> Any:
    if trouble.name == "429 as HTML":
        return RateLimitedError
    if trouble.kind == "lag":
        return write.value
    if write.is_delete:
        return write.value if trouble.took_effect else TemporaryError
    return write.value if trouble.kind == "lie" else AmbiguousError


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.name)
def test_a_write_is_sent_once_and_recovering_leaves_one_effect(world: World, write: Write, trouble: Trouble) -> None:
    slug = next(_SLUGS)
    write.prepare(world, slug)
    api = world.api
    if trouble.kind.startswith("hang"):  # the looks after a delete must not be impatient
        api = KaggleApi(world.credentials, read_timeout_s=2.0 if write.is_delete else _IMPATIENCE_S, clock=world.clock)
    fault = struck(world, write.route, trouble)
    try:
        assert outcome(lambda: write.call(api, world, slug)) == expected_of_write(write, trouble)
        wait_until(lambda: write.effects(world, slug) == int(trouble.took_effect), "an abandoned call to be served")
        assert world.emulator.faults.hits(fault) == 1
    finally:
        world.emulator.faults.remove()
    assert write.effects(world, slug) == int(trouble.took_effect)
    write.recover(world, slug)
    assert write.effects(world, slug) == 1
    world.api.delete_kernel(slug)


# The wholes that recover by themselves.

_PUBLISHING = ["StartBlobUpload", "BlobPut", "CreateDatasetVersion", "GetDataset", "GetDatasetStatus", "ListDatasetFiles"]
_MAKING = ["StartBlobUpload", "BlobPut", "CreateDataset", "GetDataset"]
_CHEAP = [trouble for trouble in TROUBLES if not trouble.kind.startswith("hang")]


@pytest.mark.parametrize("trouble", _CHEAP, ids=lambda trouble: trouble.name)
@pytest.mark.parametrize("route", _PUBLISHING)
def test_publishing_survives_every_fault_of_its_calls(world: World, route: str, trouble: Trouble) -> None:
    slug = next(_SLUGS)
    _make(world, slug)
    fault = struck(world, route, trouble, calls=(1,))
    try:
        found = outcome(lambda: _publish(world, slug))
        assert world.emulator.faults.hits(fault) == 1
        if found is TemporaryError:  # nobody can tell a lie from a version that is processed for very long
            assert (route, trouble.kind) == ("CreateDatasetVersion", "lie")
            found = _publish(world, slug)
    finally:
        world.emulator.faults.remove()
    assert found == 2
    assert world.versions(slug, "the note") == 1


@pytest.mark.parametrize("trouble", _CHEAP, ids=lambda trouble: trouble.name)
@pytest.mark.parametrize("route", _MAKING)
def test_making_a_dataset_survives_every_fault_of_its_calls(world: World, route: str, trouble: Trouble) -> None:
    slug = next(_SLUGS)
    fault = struck(world, route, trouble, calls=(1,))
    try:
        for _ in range(2):  # the second call finds it, or makes it after a lie
            ensure_dataset(world.api, slug, [world.file(slug)], **world.whole(slug))
        assert world.emulator.faults.hits(fault) == 1
    finally:
        world.emulator.faults.remove()
    assert _datasets(world, slug) == 1


@dataclass(frozen=True)
class Fetch:
    """A download, over each of the calls that it consists of."""

    name: str
    route: str
    call: Callable[[KaggleApi, Path], str]


def _download(api: KaggleApi, target: Path) -> str:
    return api.download("read-data", 2, "b.bin", target, size_bytes=100_000)


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)
@pytest.mark.parametrize("route", ["DownloadDataset", "Download"])
def test_a_download_is_whole_whatever_breaks(world: World, tmp_path: Path, route: str, trouble: Trouble) -> None:
    target = tmp_path / "b.bin"
    fault = struck(world, route, trouble, calls=(1,))
    try:
        digest = _download(for_hangs(world, trouble), target)
        assert world.emulator.faults.hits(fault) == 1
    finally:
        world.emulator.faults.remove()
    assert digest == sha256_of_file(target)
    assert target.read_bytes() == bytes(100_000)
    assert [path.name for path in tmp_path.iterdir()] == ["b.bin"]


@pytest.mark.parametrize("trouble", [t for t in TROUBLES if t.kind in ("drop_after", "status", "truncate")], ids=lambda t: t.name)
def test_an_output_is_whole_whatever_breaks(world: World, tmp_path: Path, trouble: Trouble) -> None:
    fault = struck(world, "Download", trouble, calls=(1,))
    try:
        world.api.download_output(world.output, tmp_path / "out.bin")
        assert world.emulator.faults.hits(fault) == 1
    finally:
        world.emulator.faults.remove()
    assert (tmp_path / "out.bin").read_bytes() == b"o" * 50_000


@pytest.mark.parametrize("trouble", [t for t in TROUBLES if t.kind != "short_body"], ids=lambda trouble: trouble.name)
def test_a_log_that_cannot_be_followed_is_not_an_empty_one(world: World, trouble: Trouble) -> None:
    struck(world, "LogStream", trouble)
    quiet = {"hang_before": "", "hang_after": "", "lag": "hello\n", "lie": "{}"}
    expected = RateLimitedError if trouble.options.get("status") == 429 else TemporaryError
    try:
        found = outcome(lambda: for_hangs(world, trouble).follow_log("read-kernel", 1, for_s=0.3))
    finally:
        world.emulator.faults.remove()
    assert found == quiet.get(trouble.kind, expected)


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)
def test_an_upload_that_could_not_be_opened_is_simply_tried_again(world: World, trouble: Trouble) -> None:
    struck(world, "StartBlobUpload", trouble)
    try:
        found = outcome(lambda: for_hangs(world, trouble).start_upload("a.bin", 3, 1_700_000_000))
    finally:
        world.emulator.faults.remove()
    if trouble.kind == "lag":
        assert isinstance(found, tuple)
    else:
        assert found == (RateLimitedError if trouble.options.get("status") == 429 else TemporaryError)

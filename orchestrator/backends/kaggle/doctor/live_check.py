"""Measure eleven facts about Kaggle that gemma-orch assumes and that only the real platform can confirm.

The check pushes two short CPU kernels, which cost no quota: one reports its environment and uploads with the session's own token,
the other one waits until its time limit ends it. They run in parallel, and stay on the account for inspection.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from orchestrator.backends.kaggle.data.upload import wait_until_ready
from orchestrator.backends.kaggle.doctor import probe_kernel as canary_kernel
from orchestrator.backends.kaggle.doctor.probe_dataset import CANARY_NAME, WrittenCanary
from orchestrator.backends.kaggle.doctor.probe_kernel import LINE
from orchestrator.ports import Finding
from state.backend_settings import MACHINE_SHAPES
from state.clock import Clock
from state.errors import GemmaOrchError, TemporaryError
from state.kaggle.errors import InvalidSourcesError, SlugTakenError
from state.kaggle.names import CANARY_SLUG, FACTS_KERNEL, LIMIT_KERNEL
from state.quantities import format_duration, format_size

if TYPE_CHECKING:
    from state.kaggle.api import KaggleApi
    from state.kaggle.records import DatasetInfo, KernelInfo

_FACTS_TIMEOUT_S = 900
_LIMIT_TIMEOUT_S = 120
_KEPT_NAME = "kept.txt"
_SESSIONS_LIMIT_S = 2400.0  # minutes in the queue, then at most the kernel's time limit
_UPLOADED_LIMIT_S = 900.0
_FIRST_POLL_S, _LONGEST_POLL_S = 1.0, 20.0
_RATE_CALLS = 20
_MOST_PROCESSING_S = 3600.0  # KaggleSettings.processing_limit_s
_NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class EndedSession:
    """An ended session, as the account shows it."""

    status: str
    log: str
    outputs: tuple[str, ...]


@dataclass
class Evidence:
    """All measurements; a value of None was not measured, and `trouble` says why."""

    canaries: tuple[WrittenCanary, ...] = ()
    """Written versions of the canary, oldest first: the last is current, the one before it is the pinned source."""
    pinned: int | None = None
    """The version that the kernel names as its source."""
    pin_refused: str = ""
    session: Mapping[str, Any] | None = None
    """The session's report of its environment."""
    limit: EndedSession | None = None
    uploaded: WrittenCanary | None = None
    """The version that the session uploaded, as the account shows it."""
    kernel: KernelInfo | None = None
    pushed_version: int = 0
    dataset: DatasetInfo | None = None
    current_bytes: int = 0
    num_calls: int = 0
    calls_s: float = 0.0
    refused: str = ""
    collision: str | None = None
    """Kaggle's error for a kernel with the name of the canary's dataset; empty if Kaggle accepted the kernel."""
    trouble: dict[str, str] = field(default_factory=dict)
    """The error of each measurement that failed, by its name."""


@dataclass(frozen=True)
class Result:
    """The measured result of one fact."""

    found: str
    holds: bool | None = True
    """Whether the assumption holds; None if it was not measured, or if both answers are fine."""


@dataclass(frozen=True)
class Fact:
    """An assumption about Kaggle, and how to measure it."""

    subject: str
    assumed: str
    measured: str
    """How it is measured."""
    otherwise: str
    """The consequence if the assumption does not hold."""
    judge: Callable[[Evidence], Result]


def _token(evidence: Evidence) -> Result:
    session = evidence.session
    if session is None:
        return _missing(evidence, "session")
    error = str(session["upload"]["error"])
    if error:
        return Result(f"refused: {error}", False)
    if evidence.uploaded is None:
        return Result(f"accepted, but no version appeared: {evidence.trouble.get('uploaded', 'nothing found')}", False)
    return Result(f"the session made version {evidence.uploaded.version} of {CANARY_SLUG}, and it was read back")


def _sigterm(evidence: Evidence) -> Result:
    if evidence.limit is None:
        return _missing(evidence, "limit")
    said = [line.removeprefix(LINE) for line in evidence.limit.log.splitlines() if line.startswith(f"{LINE}signal")]
    return Result(f"a signal came: {said[0]} s" if said else "no signal came", None)


def _cancelled(evidence: Evidence) -> Result:
    if evidence.limit is None:
        return _missing(evidence, "limit")
    kept = _KEPT_NAME in evidence.limit.outputs
    return Result(f"the session ended as {evidence.limit.status}; its files are {'kept' if kept else 'lost'}", None)


def _processing(evidence: Evidence) -> Result:
    times = [canary.ready_after_s for canary in evidence.canaries]
    if not times:
        return _missing(evidence, "canary")
    return Result(f"{', '.join(format_duration(seconds) for seconds in times)} for a few bytes", max(times) < _MOST_PROCESSING_S)


def _pinning(evidence: Evidence) -> Result:
    if evidence.pin_refused:
        return Result(f"a source with a version is refused: {evidence.pin_refused}", None)
    if evidence.session is None:
        return _missing(evidence, "session")
    if evidence.pinned is None:
        return Result(f"{_NOT_MEASURED}: the dataset has only one version", None)
    versions = {canary.nonce: canary.version for canary in evidence.canaries}
    seen = [versions.get(str(mount["nonce"])) for mount in evidence.session["mounted"]]
    if not seen:
        return Result(f"version {evidence.pinned} was named, but nothing was mounted", False)
    does = "pins" if seen[0] == evidence.pinned else "does not pin"
    mounted = f"version {seen[0]}" if seen[0] else "an earlier version"
    return Result(f"version {evidence.pinned} was named, {mounted} was mounted: it {does}", None)


def _layout(evidence: Evidence) -> Result:
    if evidence.session is None:
        return _missing(evidence, "session")
    paths = [str(mount["path"]) for mount in evidence.session["mounted"]]
    return Result(", ".join(paths), None) if paths else Result("the dataset was not mounted", False)


def _machine(evidence: Evidence) -> Result:
    session = evidence.session
    if session is None:
        return _missing(evidence, "session")
    shape = evidence.kernel.machine_shape if evidence.kernel is not None else None
    told = "no accelerator" if shape in (None, "", "None") else shape
    packages = ", ".join(f"{name} {version}" for name, version in session["packages"].items())
    found = (
        f"CPU requested; Kaggle reports {told}, the session has {session['cores']} cores, "
        f"{format_size(int(session['memory_bytes']))}, {len(session['devices'])} GPUs, Python {session['python']}, {packages}; "
        "t4x2 would cost quota, so it is not tried: each session checks its own machine"
    )
    return Result(found, not session["devices"])


def _slug(evidence: Evidence) -> Result:
    if evidence.pushed_version == 0:
        return _missing(evidence, "session")
    if evidence.kernel is None:
        return Result(f"{FACTS_KERNEL} was pushed, but is not found under its title", False)
    return Result(f"{FACTS_KERNEL} is found under its title, as version {evidence.kernel.version}")


def _old_versions(evidence: Evidence) -> Result:
    info = evidence.dataset
    if info is None:
        return _missing(evidence, "canary")
    return Result(
        f"unknown: a short check cannot tell; Kaggle reports {info.total_bytes} bytes for {len(info.versions)} versions, "
        f"of which the current one has {evidence.current_bytes}",
        None,
    )


def _rate(evidence: Evidence) -> Result:
    if not evidence.num_calls:
        return _missing(evidence, "rate")
    each_ms = 1000 * evidence.calls_s / evidence.num_calls
    spoken = f"{evidence.num_calls} calls in a row, {each_ms:.0f} ms each"
    return Result(f"{spoken}; then {evidence.refused}", False) if evidence.refused else Result(f"{spoken}, none refused")


def _namespace(evidence: Evidence) -> Result:
    if evidence.collision is None:
        return _missing(evidence, "collision")
    if not evidence.collision:
        return Result(f"Kaggle accepted a kernel with the dataset's name, {CANARY_SLUG}; it was deleted again", None)
    return Result(f"Kaggle refused a kernel with the dataset's name, {CANARY_SLUG}: {evidence.collision}")


FACTS = (
    Fact(
        "session token",
        "a session's own token may create dataset versions",
        "a session creates one",
        "sessions switch to kernel-output mode: their checkpoint is taken from the kernel's output",
        _token,
    ),
    Fact(
        "SIGTERM",
        "no signal precedes the kill at the limit: a session ends by its own clock",
        "a session waits for its limit, and prints each signal",
        "nothing: a session also handles the signal",
        _sigterm,
    ),
    Fact(
        "outputs after the limit",
        "lost: a session must end before the limit",
        "the same session writes a file",
        "nothing: the salvage also finds kept outputs",
        _cancelled,
    ),
    Fact(
        "processing time",
        "a new dataset version is READY within processing_limit, an hour",
        "versions of the canary dataset are timed",
        "raise processing_limit under [kaggle]",
        _processing,
    ),
    Fact(
        "owner/slug/N as a source",
        "it may not pin the version: a session checks what is mounted",
        "a kernel names an older version as its source, and reports which one is mounted",
        "check that the dataset is READY, then retry",
        _pinning,
    ),
    Fact(
        "mount layout",
        "somewhere below /kaggle/input: found by content",
        "a session searches for its source",
        "check that the dataset is READY, then retry",
        _layout,
    ),
    Fact(
        "machine given",
        "the requested one",
        "a session reports its machine; no GPU is requested",
        "sessions check their machine, and end at once if it is the wrong one",
        _machine,
    ),
    Fact(
        "slug",
        "a kernel whose title is its slug is found under it",
        "the pushed kernel is looked up",
        "do not start a run: kernels that cannot be found cannot be watched",
        _slug,
    ),
    Fact(
        "old versions and the quota",
        "they count, so old versions are deleted to stay within storage_share",
        "shows what GetDataset reports for a dataset with several versions; that does not tell whether they count",
        "nothing",
        _old_versions,
    ),
    Fact(
        "API rate",
        f"{_RATE_CALLS} reads in a row are not refused; gemma-orch makes one a minute",
        "reads a status so many times in a row, and times it",
        "raise poll_every under [kaggle]",
        _rate,
    ),
    Fact(
        "one namespace",
        "a kernel cannot have the name of a dataset, so gemma-orch gives each of them its own name",
        "pushes a kernel with the name of the canary's dataset, and deletes it if Kaggle accepts it",
        "nothing: gemma-orch's names differ anyway",
        _namespace,
    ),
)
"""The eleven facts, measured as far as two short CPU sessions can."""


def judge(evidence: Evidence) -> tuple[Finding, ...]:
    """Compare the evidence with each fact's assumption."""
    findings = []
    for number, fact in enumerate(FACTS, 1):
        result = fact.judge(evidence)
        findings.append(
            Finding(
                subject=f"fact {number}: {fact.subject}",
                found=f"{result.found}. Assumed: {fact.assumed}",
                ok=result.holds is not False,
                remedy=fact.otherwise if result.holds is False else None,
            )
        )
    return tuple(findings)


def _missing(evidence: Evidence, tried: str) -> Result:
    return Result(f"{_NOT_MEASURED}: {evidence.trouble.get(tried, 'an earlier step failed')}", None)


def measure(
    api: KaggleApi,
    clock: Clock,
    say: Callable[[str], None],
    canaries: tuple[WrittenCanary, ...],
    input_folder: str = "/kaggle/input",
) -> Evidence:
    """Push the two kernels, wait for them, and return the measurements; a failed measurement is recorded with its error.

    Args:
        api: The account.
        clock: Clock for waiting.
        say: Receives a message before each wait.
        canaries: The versions of the canary just written, the current one last.
        input_folder: Folder in which sessions find their sources.
    """
    evidence = Evidence(canaries=canaries)
    check = _LiveCheck(api, clock, say, evidence, input_folder)
    check.push()
    with _noting(evidence, "collision"):
        check.push_beside_dataset()
    with _noting(evidence, "rate"):
        check.time_calls()
    with _noting(evidence, "session"):
        check.read_facts()
    with _noting(evidence, "limit"):
        check.read_limit()
    with _noting(evidence, "uploaded"):
        check.read_back()
    with _noting(evidence, "canary"):
        check.look_at_dataset()
    return evidence


@contextlib.contextmanager
def _noting(evidence: Evidence, tried: str) -> Iterator[None]:
    try:
        yield
    except GemmaOrchError as error:
        evidence.trouble.setdefault(tried, error.what)


class _LiveCheck:
    def __init__(self, api: KaggleApi, clock: Clock, say: Callable[[str], None], evidence: Evidence, input_folder: str) -> None:
        self._api = api
        self._clock = clock
        self._say = say
        self._evidence = evidence
        self._input = input_folder
        self._nonce = uuid4().hex
        self._limit_version: int | None = None

    def push(self) -> None:
        self._say(f"pushing {FACTS_KERNEL} and {LIMIT_KERNEL}: two CPU kernels, which take some minutes and cost no quota")
        with _noting(self._evidence, "session"):
            self._evidence.pushed_version = self._push_facts()
        with _noting(self._evidence, "limit"):
            source = kernel_source({"mode": "limit", "kept": _KEPT_NAME})
            self._limit_version = self._push(LIMIT_KERNEL, source, (), _LIMIT_TIMEOUT_S)

    def _push_facts(self) -> int:
        check = {
            "mode": "facts",
            "input": self._input,
            "name": CANARY_NAME,
            "slug": CANARY_SLUG,
            "owner": self._api.user,
            "nonce": self._nonce,
            "written_at": self._clock.now().isoformat(),
            "notes": f"gemma-orch canary {self._nonce}",
        }
        source, current = kernel_source(check), f"{self._api.user}/{CANARY_SLUG}"
        if len(self._evidence.canaries) < 2:
            return self._push(FACTS_KERNEL, source, (current,), _FACTS_TIMEOUT_S)
        older = self._evidence.canaries[-2].version
        try:
            version = self._push(FACTS_KERNEL, source, (f"{current}/{older}",), _FACTS_TIMEOUT_S)
        except InvalidSourcesError as error:
            self._evidence.pin_refused = error.what
            self._api.delete_kernel(FACTS_KERNEL)  # Kaggle started it without the refused source
            return self._push(FACTS_KERNEL, source, (current,), _FACTS_TIMEOUT_S)
        self._evidence.pinned = older
        return version

    def push_beside_dataset(self) -> None:
        if not self._evidence.canaries:
            return
        try:
            self._push(CANARY_SLUG, "print('beside a dataset of the same name')\n", (), _FACTS_TIMEOUT_S)
        except SlugTakenError as error:
            self._evidence.collision = error.what
            return
        self._evidence.collision = ""
        self._api.delete_kernel(CANARY_SLUG)

    def _push(self, slug: str, source: str, sources: tuple[str, ...], timeout_s: int) -> int:
        from state.kaggle.api import KernelPush

        return self._api.push_kernel(
            KernelPush(
                slug=slug,
                source=source,
                machine_shape=MACHINE_SHAPES["cpu"],
                internet=True,
                timeout_s=timeout_s,
                dataset_sources=sources,
            )
        )

    def time_calls(self) -> None:
        began_s = self._clock.monotonic()
        for _ in range(_RATE_CALLS):
            try:
                self._api.dataset_is_ready(CANARY_SLUG)
            except TemporaryError as error:
                self._evidence.refused = error.what
                break
            self._evidence.num_calls += 1
        self._evidence.calls_s = self._clock.monotonic() - began_s

    def read_facts(self) -> None:
        if not self._evidence.pushed_version:
            return
        ended = self._wait_for(FACTS_KERNEL, self._evidence.pushed_version)
        self._evidence.kernel = self._api.kernel(FACTS_KERNEL)
        line = next((line for line in ended.log.splitlines() if line.startswith(f"{LINE}{{")), None)
        if line is None:
            raise TemporaryError(f"{FACTS_KERNEL} ended as {ended.status} without a report: {ended.log[-300:]!r}")
        self._evidence.session = json.loads(line.removeprefix(LINE))

    def read_limit(self) -> None:
        if self._limit_version is not None:
            self._evidence.limit = self._wait_for(LIMIT_KERNEL, self._limit_version)

    def read_back(self) -> None:
        session, began_s = self._evidence.session, self._clock.monotonic()
        if session is None or session["upload"]["error"]:
            return
        notes, before = f"gemma-orch canary {self._nonce}", self._evidence.canaries[-1].version
        version = wait_until_ready(self._api, CANARY_SLUG, before, clock=self._clock, limit_s=_UPLOADED_LIMIT_S)
        info = self._api.dataset(CANARY_SLUG)
        listed = [each.number for each in info.versions if each.notes == notes] if info is not None else []
        if version not in listed:
            raise TemporaryError(f"version {version} of {CANARY_SLUG} is not the session's")
        self._evidence.uploaded = WrittenCanary(self._nonce, version, self._clock.monotonic() - began_s)

    def look_at_dataset(self) -> None:
        info = self._api.dataset(CANARY_SLUG)
        if info is not None and info.current_version is not None:
            self._evidence.dataset = info
            self._evidence.current_bytes = sum((self._api.dataset_files(CANARY_SLUG, info.current_version) or {}).values())

    def _wait_for(self, slug: str, version: int) -> EndedSession:
        self._say(f"waiting for {slug} to end")
        began_s, pause_s, status = self._clock.monotonic(), _FIRST_POLL_S, "missing"
        while self._clock.monotonic() - began_s < _SESSIONS_LIMIT_S:
            with contextlib.suppress(TemporaryError):  # a failed poll is retried
                seen = self._api.session_status(slug, version)
                if seen is not None and seen.is_terminal:
                    files, log = self._api.session_outputs(slug, version) or ((), "")
                    return EndedSession(str(seen), log, tuple(file.name for file in files))
                status = str(seen or status)
            self._clock.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LONGEST_POLL_S)
        raise TemporaryError(f"{slug} version {version} is still {status} after {format_duration(_SESSIONS_LIMIT_S)}")


def kernel_source(check: Mapping[str, str]) -> str:
    """Return the probe kernel's script with a call that runs this check."""
    text = Path(canary_kernel.__file__).read_text(encoding="utf-8")
    return f"{text}\n\nmain({dict(check)!r}, os.environ)\n"

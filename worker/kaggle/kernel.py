"""Runs a session in a Kaggle kernel: check the machine, find the inputs, train, and deliver the last checkpoint."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

from state import files
from state.clock import Clock, SystemClock
from state.errors import DataError, ExitCode, GemmaOrchError, TemporaryError, UserError
from state.kaggle.api import KaggleApi
from state.kaggle.credentials import Credentials, session_credentials, token_credentials
from state.kaggle.job import KaggleJob
from state.layout import AttemptLayout, attempt_name
from state.quantities import format_duration
from state.report import Outcome, SessionReport
from state.spec import Reading, Retention, SessionSpec
from state.stores.checkpoint_store import DirectoryCheckpointStore
from worker.failure import understand
from worker.kaggle.delivery import Delivery, DeliveryPaths
from worker.kaggle.inputs import Mounts, build_data_folder, download_checkpoint, find_checkpoint
from worker.kaggle.machine import check_machine
from worker.kaggle.stop_flag import StopFlagWatch
from worker.process import StopRequest, process_started_s, settle_threads
from worker.session.progress import Progress
from worker.session.runner import Host, run_session

_TOKEN_FILE = "token"  # noqa: S105 - the name of a file
_KEPT_HERE = Retention(keep_last=2, keep_every=0, keep_session_starts=0)
"""Few checkpoints are kept here: a kernel's disk is small, and only uploaded checkpoints outlive it."""


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


@dataclass(frozen=True)
class KernelPaths:
    """The folders of a kernel."""

    input: Path
    """The mounted inputs."""
    working: Path
    """Kept as the kernel's output."""
    scratch: Path
    """Deleted at the end: links to the inputs, checkpoints, files that wait for upload."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> KernelPaths:
        """Return the folders of the kernel that runs this process."""
        working = Path("/kaggle/working")
        temporary = environment.get("TMPDIR") or ("/kaggle/temp" if working.is_dir() else tempfile.gettempdir())
        return cls(
            input=Path(environment.get("KAGGLE_CACHE_MOUNT_FOLDER") or "/kaggle/input"),
            working=working if working.is_dir() else Path.cwd(),
            scratch=Path(temporary, "gemma-orch"),
        )


@dataclass(frozen=True)
class KernelEnvironment:
    """What the process gives a kernel's session: folders, clock, credentials, callbacks."""

    places: KernelPaths
    clock: Clock
    started_s: float
    """When the process started, on the clock's monotonic axis."""
    connect: Callable[[Credentials], KaggleApi]
    credentials: Callable[[], Credentials]
    """Returns the credentials that Kaggle gives to the session."""
    asked_to_stop: Callable[[], str | None] = lambda: None
    check_machine: Callable[[KaggleJob], str] = lambda job: check_machine(job.accelerator)
    run_session: Callable[[Path, Host], int] = run_session
    exit_at_once: Callable[[int], None] = os._exit
    say: Callable[[str], None] = field(default=_say)


def main(job_json: str, environment: MutableMapping[str, str], places: KernelPaths | None = None) -> int:
    """Run the session of a job in this process; return the exit code.

    Args:
        job_json: A KaggleJob.
        environment: The process's environment variables.
        places: The folders; None: the folders of a kernel.
    """
    stop = StopRequest()
    stop.install()
    try:
        if overridden := settle_threads(environment, sys.modules):
            _say(overridden)
        job = KaggleJob.from_json(job_json, "the kernel's job")
    except GemmaOrchError as error:
        _say(str(error))
        return error.exit_code
    around = KernelEnvironment(
        places=places or KernelPaths.of(environment),
        clock=SystemClock(),
        started_s=process_started_s(),
        connect=_connect,
        credentials=lambda: session_credentials(environment, job.owner),
        asked_to_stop=stop,
    )
    return Kernel(job, around).run()


def _connect(credentials: Credentials) -> KaggleApi:
    if importlib.util.find_spec("kagglesdk") is None:
        raise UserError("kagglesdk is missing in this image; the account cannot be reached without it")
    return KaggleApi(credentials)


class Kernel:
    """One session in this process."""

    def __init__(self, job: KaggleJob, around: KernelEnvironment) -> None:
        self._job = job
        self._around = around
        self._clock = around.clock
        self._places = around.places
        self._layout = AttemptLayout(around.places.working)
        self._started_at = around.clock.now()
        self._api: KaggleApi | None = None

    def run(self) -> int:
        """Run the session and deliver its last checkpoint; return the exit code.

        The exit code is 0 whenever there is a report: Kaggle discards the output files of a kernel that ends with an error.
        """
        job, say = self._job, self._around.say
        say(f"{attempt_name(job.spec.session, job.spec.attempt)} of {job.spec.run}, Python {platform.python_version()}")
        try:
            spec = self._prepare()
        except (GemmaOrchError, OSError, ModuleNotFoundError) as error:
            return self._fail(error)
        delivery = self._delivery(spec)
        delivery.start()
        watch = self._watch_for_stop()
        host = Host(
            clock=self._clock,
            started_s=self._around.started_s,
            asked_to_stop=self._around.asked_to_stop,
            committed=delivery.committed,
            delivery_reserve_s=delivery.reserve_s,
            start_may_be_links=True,
            say=say,
            # If the session hangs, the watchdog's thread calls this: it delivers the last checkpoint before the exit.
            exit_at_once=lambda code: self._around.exit_at_once(self._deliver(delivery, code)),
        )
        code = self._around.run_session(self._layout.spec, host)
        if watch is not None:
            watch.close()
        return self._deliver(delivery, code)

    def _prepare(self) -> SessionSpec:
        """Check the machine and find the inputs; return the spec with this machine's folders, and write it to the output."""
        self._around.say(f"computes on {self._around.check_machine(self._job)}")
        self._api = self._connected()
        spec, scratch = self._job.spec, self._places.scratch
        mounts = Mounts(self._places.input)
        versions = []
        for number, version in enumerate(spec.data, start=1):
            folder = scratch / f"data-{number}"
            build_data_folder(mounts, version.data_sha256, folder)
            versions.append(version.evolve(data_dir=str(folder)))
        checkpoints = scratch / "checkpoints"
        self._bring_start(mounts, checkpoints)
        reading = spec.reading
        if reading.scratch_dir is not None:
            reading = Reading(scratch_dir=str(scratch / "blocks"), scratch_bytes=reading.scratch_bytes)
            (scratch / "blocks").mkdir(exist_ok=True)
        local = spec.evolve(
            data=tuple(versions),
            reading=reading,
            checkpoints_dir=str(checkpoints),
            cache_dir=None if spec.cache_dir is None else str(scratch / "cache"),
            retention=_KEPT_HERE,
        )
        files.write_atomically(self._layout.spec, local.to_json())
        return local

    def _connected(self) -> KaggleApi | None:
        """Return the account; log the reason and return None if it cannot be reached."""
        try:
            return self._around.connect(self._credentials())
        except GemmaOrchError as error:
            self._around.say(f"the account is out of reach: {error}\nthe last checkpoint is left in this kernel's output")
            return None

    def _credentials(self) -> Credentials:
        """Return the session's credentials or, if the user has set `token_dataset`, those in that private dataset.

        Raises:
            UserError: there are no credentials.
        """
        ref = self._job.token_dataset
        if ref is None:
            return self._around.credentials()
        owner, _, slug = ref.partition("/")
        for path in (self._places.input / "datasets" / owner / slug / _TOKEN_FILE, self._places.input / slug / _TOKEN_FILE):
            if path.is_file():
                return token_credentials(path.read_text(encoding="utf-8").strip(), f"the file {_TOKEN_FILE} of {ref}", owner)
        raise UserError(
            f"the dataset {ref} is not mounted, or holds no file named {_TOKEN_FILE}",
            remedy=f"put a scoped API token into a file {_TOKEN_FILE} of that dataset, or leave out token_dataset",
        )

    def _bring_start(self, mounts: Mounts, checkpoints: Path) -> None:
        """Put the start checkpoint into the store, from the mounts or else by download. The session verifies its bytes."""
        expected, place = self._job.spec.start, self._job.start
        if expected is None:
            return
        if find_checkpoint(mounts, expected, checkpoints / expected.id):
            return
        if place is None or self._api is None:
            raise TemporaryError(
                f"stale mount: {expected.id} is missing below {mounts.root}, and cannot be fetched either",
                expected=f"its manifest with sha256 {expected.manifest_sha256[:12]}",
            )
        begun_s = self._clock.monotonic()
        self._around.say(f"stale mount: {expected.id} is fetched from {place.owner}/{place.slug} version {place.version} instead")
        download_checkpoint(self._api, place, expected, checkpoints / expected.id, self._around.say)
        self._around.say(f"{expected.id} is here after {format_duration(self._clock.monotonic() - begun_s)}")

    def _delivery(self, spec: SessionSpec) -> Delivery:
        scratch = self._places.scratch
        return Delivery(
            self._job,
            self._api,
            DirectoryCheckpointStore(Path(spec.checkpoints_dir)),
            DeliveryPaths(outbox=scratch / "outbox", scratch=scratch / "uploads", working=self._places.working),
            clock=self._clock,
            ends_s=self._around.started_s + spec.limit_s,
            say=self._around.say,
        )

    def _watch_for_stop(self) -> StopFlagWatch | None:
        if self._api is None:
            return None
        watch = StopFlagWatch(self._api, self._job, self._layout.stop, self._places.scratch, self._around.say)
        watch.start()
        return watch

    def _deliver(self, delivery: Delivery, code: int) -> int:
        """Deliver the last checkpoint, which the report names; return the kernel's exit code."""
        try:
            report = SessionReport.from_json(self._layout.report.read_bytes(), str(self._layout.report))
        except (OSError, DataError) as error:
            self._around.say(f"the session has left no report: {error}")
            return code or ExitCode.TEMPORARY
        delivery.finish(report.head)
        return ExitCode.DONE

    def _fail(self, error: Exception) -> int:
        """Report the error that prevents the session from beginning; return the exit code."""
        failure = understand(error)
        self._around.say(failure.reason if failure.expected else "".join(traceback.format_exception(error)))
        spec = self._job.spec
        step = spec.start.step if spec.start else 0
        progress = Progress(start_step=step, step=step, head=None, started_at=self._started_at)
        report = progress.report(
            spec,
            Outcome.FAILED,
            failure.reason,
            ended_at=self._clock.now(),
            whole_s=self._clock.monotonic() - self._around.started_s,
            failure=failure,
        )
        try:
            files.write_atomically(self._layout.report, report.to_json())
        except OSError as another:
            self._around.say(f"the report cannot be written: {another}")
            return failure.exit_code
        return ExitCode.DONE

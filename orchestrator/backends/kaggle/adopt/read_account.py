"""Imports a run from a Kaggle account into this home's ledger: reads the account, and writes what is new.

Little is read, even of a long run. Attempts without a dataset give only their names; the others give the session's spec, the
report and the manifests. Checkpoints are never downloaded: a session verifies every byte of the one that it starts from.
"""

from __future__ import annotations

import ast
import hashlib
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.backends.kaggle.adopt.replay import BACKEND, RunOnAccount, SeenAttempt, first_record, what_is_new
from orchestrator.backends.kaggle.checkpoints.store import KaggleCheckpoints
from orchestrator.backends.kaggle.context import kaggle_folder
from orchestrator.backends.kaggle.session.control_dataset import DATA_NAME, RUN_NAME, ControlState, DataRecords
from orchestrator.controller.lease import LEASE_S
from orchestrator.controller.reconcile import Found
from orchestrator.ports import AttemptStatus, Ports
from state import files
from state.document import digest_of
from state.errors import CorruptCheckpointError, DataError, TemporaryError, UserError, did_you_mean, shown
from state.kaggle.job import KaggleJob, StopFlag
from state.kaggle.names import (
    PREFIX,
    STOP_FLAG_NAME,
    PushedKernel,
    VersionNote,
    attempt_dataset_slug,
    check_run_fits,
    checkpoint_file_names,
    control_slug,
    misnamed,
    parse_attempt_dataset_slug,
    parse_attempt_kernel_slug,
    pushed_kernels,
)
from state.layout import MANIFEST_NAME, REPORT_NAME, SPEC_NAME, attempt_name, attempt_of
from state.ledger import PutAttempt, RunRecord
from state.manifest import Manifest, state_sha256
from state.report import Outcome, SessionReport
from state.session import AttemptState
from state.spec import RunSpec, SessionSpec

if TYPE_CHECKING:
    from state.kaggle.api import DatasetInfo, DatasetVersion, KaggleApi, KernelInfo, OutputFile

_JOB_LINE = "JOB = "  # as `orchestrator.backends.kaggle.session.bundle` writes it
_SURELY_OVER = timedelta(hours=24)  # a session lasts 12 hours at most, and may have been queued before


@dataclass(frozen=True)
class Adopted:
    """Result of adopting a run."""

    run: str
    num_attempts: int
    """Attempts that this home did not know."""
    is_new: bool
    record: RunRecord


def adopt(
    api: KaggleApi, ports: Ports, wanted: str, *, say: Callable[[str], None] = lambda _text: None, scratch: Path | None = None
) -> Adopted:
    """Import a run from the account into this home's ledger; attempts that the ledger knows stay as they are.

    Args:
        api: The account.
        ports: The ports of this home.
        wanted: The run, as OWNER/RUN or RUN.
        say: Receives a line for each attempt that is read.
        scratch: A folder for downloads; None: a temporary one.

    Raises:
        UserError: the run belongs to another account, or the account has no such run.
        DataError: the account contradicts the ledger, or does not hold enough to restore the run.
        LeaseHeldError: a controller on this machine holds the run's lease.
        TemporaryError: Kaggle does not answer or refuses a read, or the run was changed meanwhile.
    """
    run = _run_of(api, wanted)
    known = ports.runs.load(run) if run in ports.runs.names() else None
    if known is not None:
        ports.runs.acquire(run, ports.owner, ports.clock.now(), LEASE_S)
    try:
        with tempfile.TemporaryDirectory(prefix="gemma-orch-adopt-", dir=scratch) as folder:
            reader = _Reader(api, run, Path(folder), say)
            account = reader.read(known)
        adopted = _write(ports, run, known, account)
        _remember(ports, adopted, reader)
        return adopted
    finally:
        if known is not None:
            ports.runs.release(run, ports.owner)


def _run_of(api: KaggleApi, wanted: str) -> str:
    owner, _, run = wanted.rpartition("/")
    check_run_fits(run)
    if owner and owner != api.user:
        raise UserError(
            f"run {wanted} belongs to the account {owner!r}; the credentials here are those of {api.user!r}",
            remedy=f"use the credentials of {owner}, or gemma-orch adopt {api.user}/{run}",
        )
    return run


def _write(ports: Ports, run: str, known: RunRecord | None, account: RunOnAccount) -> Adopted:
    now = ports.clock.now()
    record = known or first_record(account, now)
    changes = what_is_new(record, account, now)
    if known is None:
        if not ports.runs.create(record.header, record.wishes, changes):
            raise TemporaryError(f"run {run} was created in this home while it was adopted", remedy="adopt it again")
    elif changes:
        ports.runs.acquire(run, ports.owner, now, LEASE_S)  # the lease may have expired during the reads
        if ports.runs.load(run) != known:
            raise TemporaryError(f"run {run} was changed in this home while it was adopted", remedy="adopt it again")
        ports.runs.apply(run, ports.owner, changes)
    num_new = sum(isinstance(change, PutAttempt) and change.session_spec is not None for change in changes)
    return Adopted(run, num_new, known is None, ports.runs.load(run))


def _remember(ports: Ports, adopted: Adopted, reader: _Reader) -> None:
    """Store the state of the control dataset, and index the checkpoints in outputs: a controller would not find those itself."""
    state = kaggle_folder(ports.home.run(adopted.run)) / "control.json"
    if adopted.is_new and not state.exists():
        state.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(state, reader.control.to_json())
    store = ports.checkpoints(adopted.run)
    if isinstance(store, KaggleCheckpoints):
        for (session, attempt), (kernel, outputs) in reader.outputs.items():
            store.discovery.take_outputs(session, attempt, kernel, outputs)


class _Reader:
    """Reads one run from an account."""

    def __init__(self, api: KaggleApi, run: str, scratch: Path, say: Callable[[str], None]) -> None:
        self._api = api
        self._run = run
        self._scratch = scratch
        self._say = say
        self._num_files = 0
        self.control = ControlState()
        """State of the control dataset, once it is read."""
        self.outputs: dict[tuple[int, int], tuple[PushedKernel, tuple[OutputFile, ...]]] = {}
        """By session and attempt: the kernel and its output files, where a checkpoint is among them."""

    def read(self, known: RunRecord | None) -> RunOnAccount:
        """Return the run as the account shows it, without the attempts that have ended according to the ledger.

        Raises:
            UserError: the account has no such run.
            DataError: an attempt that could not be launched here was launched by another controller.
            TemporaryError: Kaggle refuses a read, or another controller is about to launch an attempt.
        """
        control = self._api.dataset(control_slug(self._run))
        if control is None and control_slug(self._run) in self._api.datasets(control_slug(self._run)):
            raise _refused(control_slug(self._run))
        if control is None or control.current_version is None:
            raise self._not_there()
        version = control.current_version
        texts = {name: self._file(control.slug, version, name) for name in (RUN_NAME, DATA_NAME, STOP_FLAG_NAME)}
        spec = RunSpec.from_json(texts[RUN_NAME], f"{RUN_NAME} on the account")
        data = DataRecords.from_json(texts[DATA_NAME], f"{DATA_NAME} on the account")
        stop = StopFlag.from_json(texts[STOP_FLAG_NAME], f"{STOP_FLAG_NAME} on the account")
        stands = digest_of({name: text.decode() for name, text in texts.items()})
        self.control = ControlState(stop=stop, stands=stands)
        return RunOnAccount(
            spec=spec,
            data=data.records,
            attempts=self._attempts(known),
            stop=stop,
            stop_at=_aware(_version(control, version).created_at) if stop.session is not None else None,
        )

    def _not_there(self) -> UserError:
        ending = control_slug("")[len(PREFIX) :].lstrip("-")
        slugs = [slug for slug in self._api.datasets(f"{PREFIX}-") if slug.endswith(f"-{ending}")]
        runs = [slug.removeprefix(f"{PREFIX}-").removesuffix(f"-{ending}") for slug in slugs]
        return UserError(
            f"there is no run {self._run!r} on the account {self._api.user}",
            expected=f"one of {', '.join(runs)}" if runs else "a run started with --backend kaggle; the account has none",
            remedy=did_you_mean(self._run, runs) or "use the credentials of the account on which it was begun",
        )

    def _attempts(self, known: RunRecord | None) -> tuple[SeenAttempt, ...]:
        prefix = f"{PREFIX}-{self._run}-"
        slugs, listed = self._api.datasets(prefix), self._api.kernels(prefix)
        datasets = {key for slug in slugs if (key := parse_attempt_dataset_slug(self._run, slug)) is not None}
        kernels = {key: kernel for kernel in listed if (key := parse_attempt_kernel_slug(self._run, kernel.slug)) is not None}
        datasets |= self._not_listed_yet(datasets | kernels.keys())
        keys = sorted(datasets | kernels.keys())
        over = {(one.session, one.attempt) for one in known.attempts if not one.is_live} if known is not None else set()
        here = {(one.session, one.attempt) for one in known.attempts} if known is not None else set()
        if known is not None:
            self._check_what_was_never_launched(known, kernels)
        if here.issuperset(keys):
            return tuple(SeenAttempt(*key, sighting=AttemptStatus.UNKNOWN) for key in keys)  # nothing is new, so nothing is read
        newest_push = max((at for kernel in kernels.values() if (at := _aware(kernel.last_run_at)) is not None), default=None)
        seen = []
        for number, key in enumerate(keys, start=1):
            if key in over:
                continue
            self._say(f"{number} of {len(keys)}: {attempt_dataset_slug(self._run, *key)}")
            one = self._attempt(key, kernels.get(key), newest_push, has_dataset=key in datasets)
            if key == keys[-1] and key not in here and one.is_being_made:
                slug = attempt_dataset_slug(self._run, *key)
                raise TemporaryError(
                    f"another controller is about to launch session {key[0]} attempt {key[1]}: "
                    f"its dataset {slug} exists, but cannot be read yet, and it has no kernel",
                    remedy="adopt again in some minutes; if that does not help, delete that dataset on kaggle.com",
                )
            seen.append(one)
        return tuple(seen)

    def _check_what_was_never_launched(self, known: RunRecord, kernels: Mapping[tuple[int, int], KernelInfo]) -> None:
        """Check that no other controller launched an attempt that could not be launched from this home.

        Raises:
            DataError: one did; to continue from this ledger could start a session beside it.
        """
        for one in known.attempts:
            refused = one.state is AttemptState.LOST and one.outcome is Outcome.FAILED
            elsewhere = one.backend != BACKEND or one.state is AttemptState.DROPPED
            if (refused or elsewhere) and (one.session, one.attempt) in kernels:
                slug = kernels[one.session, one.attempt].slug
                raise DataError(
                    f"another controller has continued run {self._run}: according to this home, session {one.session} attempt "
                    f"{one.attempt} was never launched on Kaggle, but the account has its kernel {slug}",
                    expected="one controller at a time",
                    remedy="adopt the run into a new home: GEMMA_ORCH_HOME=NEW_FOLDER gemma-orch adopt ...",
                )

    def _not_listed_yet(self, keys: Collection[tuple[int, int]]) -> set[tuple[int, int]]:
        """Return further attempts that exist by name but are not in the list, which may be stale."""
        found: set[tuple[int, int]] = set()
        while True:
            session = max((session for session, _ in {*keys, *found}), default=0)
            attempt = max((attempt for each, attempt in {*keys, *found} if each == session), default=0)
            following = ((session, attempt + 1), (session + 1, 1)) if session else ((1, 1),)
            new = {key for key in following if self._api.dataset(attempt_dataset_slug(self._run, *key)) is not None}
            if not new:
                return found
            found |= new

    def _attempt(
        self, key: tuple[int, int], kernel: KernelInfo | None, newest_push: datetime | None, *, has_dataset: bool
    ) -> SeenAttempt:
        if kernel is None:  # the list may be stale
            looked = (self._api.kernel(named.slug) for named in pushed_kernels(self._run, *key, handle=None))
            kernel = next((found for found in looked if found is not None), None)
        slug = attempt_dataset_slug(self._run, *key)
        dataset = self._api.dataset(slug) if has_dataset else None
        if has_dataset and dataset is None:  # if it counted as pruned, its checkpoints would be deleted
            raise _refused(slug)
        pushed_at = _aware(kernel.last_run_at) if kernel is not None else None
        contents = _Contents()
        if dataset is not None:
            self._read_dataset(dataset, contents)
        if dataset is None and pushed_at is not None and newest_push is not None and pushed_at < newest_push - _SURELY_OVER:
            sighting, detail = AttemptStatus.ENDED, "it ended long ago"
        else:
            sighting, detail = self._sighting(kernel)
            self._read_kernel(key, kernel, sighting, contents)
        versions = dataset.versions if dataset is not None else ()
        moments = sorted(at for version in versions if (at := _aware(version.created_at)) is not None)
        return SeenAttempt(
            *key,
            sighting=sighting,
            detail=detail,
            handle=str(PushedKernel(kernel.slug, kernel.version)) if kernel is not None else None,
            spec=contents.spec,
            report=contents.report,
            found=tuple(contents.found.values()),
            corrupt=tuple(error for error in contents.corrupt if error.checkpoint_id not in contents.found),
            made_at=moments[0] if moments else None,
            has_dataset=dataset is not None,
            pushed_at=pushed_at,
            changed_at=moments[-1] if moments else None,
        )

    def _sighting(self, kernel: KernelInfo | None) -> tuple[AttemptStatus, str]:
        from state.kaggle.api import SessionStatus

        if kernel is None:
            return AttemptStatus.MISSING, "Kaggle has no kernel of this attempt"
        status = self._api.session_status(kernel.slug, kernel.version)
        match status:
            case SessionStatus.QUEUED:
                return AttemptStatus.QUEUED, ""
            case SessionStatus.RUNNING:
                return AttemptStatus.RUNNING, ""
            case SessionStatus.COMPLETE | SessionStatus.ERROR | SessionStatus.CANCELLED:
                return AttemptStatus.ENDED, f"its kernel is {status.lower()}, without a report"
            case _:
                return AttemptStatus.UNKNOWN, ""

    def _read_dataset(self, dataset: DatasetInfo, contents: _Contents) -> None:
        for version in sorted(dataset.versions, key=lambda version: version.number, reverse=True):
            names = self._api.dataset_files(dataset.slug, version.number)
            if names is None:
                continue  # deleted meanwhile, or not processed yet: then a later tick discovers it
            if contents.spec is None and SPEC_NAME in names:
                text = self._file(dataset.slug, version.number, SPEC_NAME)
                contents.spec = SessionSpec.from_json(text, f"{SPEC_NAME} of {dataset.slug}")
            if contents.report is None and REPORT_NAME in names:
                text = self._file(dataset.slug, version.number, REPORT_NAME)
                contents.report = SessionReport.from_json(text, f"{REPORT_NAME} of {dataset.slug}")
            note = VersionNote.parse(version.notes)
            if (false := misnamed(version.notes)) is not None:
                what = f"{shown(false[1])} in version {version.number} of {dataset.slug} is not a checkpoint of this run"
                contents.corrupt.append(CorruptCheckpointError(false[0].checkpoint, what))
            if note is not None and note.checkpoint not in contents.found:
                try:
                    contents.found[note.checkpoint] = self._found(dataset.slug, version.number, names, note)
                except CorruptCheckpointError as error:
                    contents.corrupt.append(error)

    def _found(self, slug: str, version: int, names: Mapping[str, int], note: VersionNote) -> Found:
        manifest_name = checkpoint_file_names(note.checkpoint, (MANIFEST_NAME,))[MANIFEST_NAME]
        where = f"{note.checkpoint} in version {version} of {slug}"
        if manifest_name not in names:
            raise CorruptCheckpointError(note.checkpoint, f"{where} has no manifest")
        found = _checked(self._file(slug, version, manifest_name), note.checkpoint, where, note.manifest_sha256)
        of_dataset = checkpoint_file_names(note.checkpoint, tuple(file.name for file in found.manifest.files))
        for file in found.manifest.files:
            if (size := names.get(of_dataset[file.name])) != file.size_bytes:
                raise CorruptCheckpointError(
                    note.checkpoint,
                    f"{of_dataset[file.name]} of {where} " + ("is missing" if size is None else f"has {size} bytes"),
                    expected=f"{file.size_bytes} bytes",
                )
        return found

    def _read_kernel(self, key: tuple[int, int], kernel: KernelInfo | None, sighting: AttemptStatus, contents: _Contents) -> None:
        """Read what an attempt's dataset lacks from its kernel: from the output if it has ended, then from its script."""
        if kernel is None:
            return
        if sighting is AttemptStatus.ENDED and (contents.spec is None or contents.report is None):
            self._read_outputs(key, kernel, contents)
        if contents.spec is None:
            whole = kernel if kernel.source is not None else self._api.kernel(kernel.slug)
            contents.spec = spec_in_script(whole.source if whole is not None else None)

    def _read_outputs(self, key: tuple[int, int], kernel: KernelInfo, contents: _Contents) -> None:
        """Read a kernel's output: the only place for a session that could not write to its dataset."""
        slug = kernel.slug
        outputs = self._api.session_outputs(slug, kernel.version)
        left = {file.name.rpartition("/")[2]: file for file in outputs[0]} if outputs is not None else {}
        if contents.spec is None and SPEC_NAME in left:
            contents.spec = SessionSpec.from_json(self._output(left[SPEC_NAME]), f"{SPEC_NAME}, output of {slug}")
        if contents.report is None and REPORT_NAME in left:
            contents.report = SessionReport.from_json(self._output(left[REPORT_NAME]), f"{REPORT_NAME}, output of {slug}")
        for name, file in left.items():
            checkpoint, dot, rest = name.partition(".")
            if not dot or rest != MANIFEST_NAME or checkpoint in contents.found:
                continue
            if attempt_of(checkpoint) != attempt_name(*key):
                self._say(f"{shown(name)}, output of {slug}, is skipped: it is not a checkpoint of that attempt")
                continue
            self.outputs[key] = (PushedKernel(slug, kernel.version), tuple(left.values()))
            try:
                found = _checked(self._output(file), checkpoint, f"{checkpoint}, output of {slug},", None)
                contents.found[checkpoint] = _complete(found, left, slug)
            except CorruptCheckpointError as error:
                contents.corrupt.append(error)

    def _file(self, slug: str, version: int, name: str) -> bytes:
        target = self._target()
        self._api.download(slug, version, name, target)
        return target.read_bytes()

    def _output(self, file: OutputFile) -> bytes:
        target = self._target()
        self._api.download_output(file, target)
        return target.read_bytes()

    def _target(self) -> Path:
        self._num_files += 1
        return self._scratch / f"{self._num_files}"


class _Contents:
    """The files that were read of one attempt."""

    def __init__(self) -> None:
        self.spec: SessionSpec | None = None
        self.report: SessionReport | None = None
        self.found: dict[str, Found] = {}
        self.corrupt: list[CorruptCheckpointError] = []


def spec_in_script(script: str | None) -> SessionSpec | None:
    """Return the session's spec from a pushed script, or None when it is not a script of gemma-orch."""
    line = next((line for line in (script or "").splitlines() if line.startswith(_JOB_LINE)), None)
    if line is None:
        return None
    try:
        return KaggleJob.from_json(ast.literal_eval(line.removeprefix(_JOB_LINE)), "the job in the script").spec
    except (ValueError, SyntaxError, DataError):
        return None


def _checked(text: bytes, checkpoint: str, where: str, expected_sha256: str | None) -> Found:
    sha256 = hashlib.sha256(text).hexdigest()
    if expected_sha256 is not None and sha256 != expected_sha256:
        raise CorruptCheckpointError(
            checkpoint, f"the manifest of {where} has sha256 {sha256[:12]}", expected=expected_sha256[:12]
        )
    try:
        manifest = Manifest.from_json(text, f"the manifest of {where}")
    except DataError as error:
        raise CorruptCheckpointError(checkpoint, error.what) from error
    if manifest.id != checkpoint:
        raise CorruptCheckpointError(checkpoint, f"the manifest of {where} is that of {manifest.id}")
    if state_sha256(manifest.tensors, manifest.step, manifest.data_position) != manifest.state_sha256:
        what = f"the manifest of {where} contradicts itself: its state digest does not match its tensors"
        raise CorruptCheckpointError(checkpoint, what)
    return Found(manifest, sha256)


def _complete(found: Found, names: Iterable[str], slug: str) -> Found:
    checkpoint = found.manifest.id
    wanted = checkpoint_file_names(checkpoint, tuple(file.name for file in found.manifest.files))
    for name in sorted(set(wanted.values()) - set(names)):
        raise CorruptCheckpointError(checkpoint, f"{name} is missing among the outputs of {slug}")
    return found


def _refused(slug: str) -> TemporaryError:
    return TemporaryError(
        f"Kaggle lists the dataset {slug} and refuses to show it (403 or 404)",
        remedy="adopt again in some minutes; if the dataset was deleted, the list will no longer show it then",
    )


def _version(dataset: DatasetInfo, number: int) -> DatasetVersion:
    return next(version for version in dataset.versions if version.number == number)


def _aware(moment: datetime | None) -> datetime | None:
    """Return a moment as UTC: the client library returns moments without a zone."""
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment

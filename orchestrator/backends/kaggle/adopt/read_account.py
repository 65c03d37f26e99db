"""Bring a run from a Kaggle account into the ledger of this home: read what the account shows, and write what is new.

What is read is little, however long the run: of attempts whose datasets are gone, their names; of the others the session's
spec, the report, and the manifests, never a checkpoint's bytes. A session verifies those when it starts from them.
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
from orchestrator.ports import Ports, Sighting
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
_SURELY_OVER = timedelta(hours=24)  # no session may be longer than 12 hours, and it may have been queued for some


@dataclass(frozen=True)
class Adopted:
    """What an adoption brought."""

    run: str
    num_attempts: int
    """New here."""
    is_new: bool
    record: RunRecord


def adopt(
    api: KaggleApi, ports: Ports, wanted: str, *, say: Callable[[str], None] = lambda _text: None, scratch: Path | None = None
) -> Adopted:
    """Know a run as the account shows it; what is known here already is left as it is.

    Args:
        api: The account.
        ports: This home's.
        wanted: The run, as OWNER/RUN or RUN.
        say: Told what is being read.
        scratch: A folder for what is downloaded; None: one that is removed at the end.

    Raises:
        UserError: it is another account's, or there is no such run on it.
        DataError: the account contradicts what is known here, or tells too little.
        LeaseHeldError: a controller on this machine is at work on it.
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
            f"run {wanted} is of the account {owner!r}, and the credentials that were found are those of {api.user!r}",
            remedy=f"use the credentials of {owner}, or gemma-orch adopt {api.user}/{run}",
        )
    return run


def _write(ports: Ports, run: str, known: RunRecord | None, account: RunOnAccount) -> Adopted:
    now = ports.clock.now()
    record = known or first_record(account, now)
    changes = what_is_new(record, account, now)
    if known is None:
        if not ports.runs.create(record.header, record.wishes, changes):
            raise TemporaryError(f"run {run} was made in this home while it was adopted", remedy="adopt it again")
    elif changes:
        ports.runs.acquire(run, ports.owner, now, LEASE_S)  # reading may have taken longer than the lease
        if ports.runs.load(run) != known:
            raise TemporaryError(f"run {run} was changed in this home while it was adopted", remedy="adopt it again")
        ports.runs.apply(run, ports.owner, changes)
    num_new = sum(isinstance(change, PutAttempt) and change.session_spec is not None for change in changes)
    return Adopted(run, num_new, known is None, ports.runs.load(run))


def _remember(ports: Ports, adopted: Adopted, reader: _Reader) -> None:
    """Leave in the run's folder what would else be asked for again, or not be found."""
    state = kaggle_folder(ports.home.run(adopted.run)) / "control.json"
    if adopted.is_new and not state.exists():
        state.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(state, reader.control.to_json())
    store = ports.checkpoints(adopted.run)
    if isinstance(store, KaggleCheckpoints):
        for (session, attempt), (kernel, outputs) in reader.outputs.items():
            store.discovery.take_outputs(session, attempt, kernel, outputs)


class _Reader:
    """Reads a run from an account."""

    def __init__(self, api: KaggleApi, run: str, scratch: Path, say: Callable[[str], None]) -> None:
        self._api = api
        self._run = run
        self._scratch = scratch
        self._say = say
        self._num_files = 0
        self.control = ControlState()
        """What is known of the control dataset, once it is read."""
        self.outputs: dict[tuple[int, int], tuple[PushedKernel, tuple[OutputFile, ...]]] = {}
        """By attempt, its kernel and the files that this has left, where a checkpoint lies among them."""

    def read(self, known: RunRecord | None) -> RunOnAccount:
        """Return what the account shows, in full of those attempts that the record does not have over.

        Raises:
            UserError: there is no such run.
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
            expected=f"one of {', '.join(runs)}" if runs else "a run that was started with --backend kaggle; there is none",
            remedy=did_you_mean(self._run, runs) or "adopt it with the credentials of the account that it was begun on",
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
            return tuple(SeenAttempt(*key, sighting=Sighting.UNKNOWN) for key in keys)  # nothing is new: nothing is read
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
                    f"Kaggle does not show yet what its dataset {slug} holds",
                    remedy="adopt again in some minutes; if it stays so, delete that dataset on kaggle.com: it has no kernel",
                )
            seen.append(one)
        return tuple(seen)

    def _check_what_was_never_launched(self, known: RunRecord, kernels: Mapping[tuple[int, int], KernelInfo]) -> None:
        """Check that no attempt that is over here, because it could not be launched, was launched by somebody else.

        Raises:
            DataError: one was: to go on from here might start a session beside it.
        """
        for one in known.attempts:
            refused = one.state is AttemptState.LOST and one.outcome is Outcome.FAILED
            elsewhere = one.backend != BACKEND or one.state is AttemptState.DROPPED
            if (refused or elsewhere) and (one.session, one.attempt) in kernels:
                slug = kernels[one.session, one.attempt].slug
                raise DataError(
                    f"run {self._run} went on without this home: here, session {one.session} attempt {one.attempt} was never "
                    f"launched on Kaggle, and the account has its kernel {slug}",
                    expected="one controller at a time",
                    remedy="adopt the run into a new home: GEMMA_ORCH_HOME=NEW_FOLDER gemma-orch adopt ...",
                )

    def _not_listed_yet(self, keys: Collection[tuple[int, int]]) -> set[tuple[int, int]]:
        """Return the attempts that a list, which may lag behind, does not show yet: asked for by name."""
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
        if kernel is None:  # the list may lag behind
            looked = (self._api.kernel(named.slug) for named in pushed_kernels(self._run, *key, handle=None))
            kernel = next((found for found in looked if found is not None), None)
        slug = attempt_dataset_slug(self._run, *key)
        dataset = self._api.dataset(slug) if has_dataset else None
        if has_dataset and dataset is None:  # to take it for pruned would have its checkpoints deleted
            raise _refused(slug)
        pushed_at = _aware(kernel.last_run_at) if kernel is not None else None
        contents = _Contents()
        if dataset is not None:
            self._read_dataset(dataset, contents)
        if dataset is None and pushed_at is not None and newest_push is not None and pushed_at < newest_push - _SURELY_OVER:
            sighting, detail = Sighting.ENDED, "it is long over"
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

    def _sighting(self, kernel: KernelInfo | None) -> tuple[Sighting, str]:
        from state.kaggle.api import SessionStatus

        if kernel is None:
            return Sighting.MISSING, "there is no kernel of it"
        status = self._api.session_status(kernel.slug, kernel.version)
        match status:
            case SessionStatus.QUEUED:
                return Sighting.QUEUED, ""
            case SessionStatus.RUNNING:
                return Sighting.RUNNING, ""
            case SessionStatus.COMPLETE | SessionStatus.ERROR | SessionStatus.CANCELLED:
                return Sighting.ENDED, f"its kernel is {status.lower()}, and it left no report"
            case _:
                return Sighting.UNKNOWN, ""

    def _read_dataset(self, dataset: DatasetInfo, contents: _Contents) -> None:
        for version in sorted(dataset.versions, key=lambda version: version.number, reverse=True):
            names = self._api.dataset_files(dataset.slug, version.number)
            if names is None:
                continue  # deleted since, or not processed yet: then the next tick takes it in
            if contents.spec is None and SPEC_NAME in names:
                text = self._file(dataset.slug, version.number, SPEC_NAME)
                contents.spec = SessionSpec.from_json(text, f"{SPEC_NAME} of {dataset.slug}")
            if contents.report is None and REPORT_NAME in names:
                text = self._file(dataset.slug, version.number, REPORT_NAME)
                contents.report = SessionReport.from_json(text, f"{REPORT_NAME} of {dataset.slug}")
            note = VersionNote.parse(version.notes)
            if (false := misnamed(version.notes)) is not None:
                what = f"{shown(false[1])} in version {version.number} of {dataset.slug} is no checkpoint of this run"
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

    def _read_kernel(self, key: tuple[int, int], kernel: KernelInfo | None, sighting: Sighting, contents: _Contents) -> None:
        """Read of an attempt's kernel what its dataset does not have: the outputs of one that is over, then its source."""
        if kernel is None:
            return
        if sighting is Sighting.ENDED and (contents.spec is None or contents.report is None):
            self._read_outputs(key, kernel, contents)
        if contents.spec is None:
            whole = kernel if kernel.source is not None else self._api.kernel(kernel.slug)
            contents.spec = spec_in_script(whole.source if whole is not None else None)

    def _read_outputs(self, key: tuple[int, int], kernel: KernelInfo, contents: _Contents) -> None:
        """Read what a kernel left in its working folder: all there is of a session that could not write to its dataset."""
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
                self._say(f"{shown(name)}, output of {slug}, is left out: it is no checkpoint of that attempt")
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
    """What has been read of an attempt."""

    def __init__(self) -> None:
        self.spec: SessionSpec | None = None
        self.report: SessionReport | None = None
        self.found: dict[str, Found] = {}
        self.corrupt: list[CorruptCheckpointError] = []


def spec_in_script(script: str | None) -> SessionSpec | None:
    """Return what the session of a pushed script was told, or None when the script does not say it as ours do."""
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
        raise CorruptCheckpointError(checkpoint, f"the manifest of {where} contradicts itself")
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
        remedy="adopt again in some minutes; when it was deleted, the list will say so then",
    )


def _version(dataset: DatasetInfo, number: int) -> DatasetVersion:
    return next(version for version in dataset.versions if version.number == number)


def _aware(moment: datetime | None) -> datetime | None:
    """Return a moment as UTC: the client library tells moments without a zone."""
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment

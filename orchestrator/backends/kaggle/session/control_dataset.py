"""Keeps the control dataset of a run up to date: the run's description for `adopt`, and the stop flag for its workers.

Kaggle cannot send a message to a running session, so the worker polls this dataset. Each version is a full snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from orchestrator.backends.kaggle.context import KaggleContext
from orchestrator.backends.kaggle.transfer import sending
from state import files
from state.document import Document, digest_of
from state.errors import AmbiguousError, DataError, GemmaOrchError, TemporaryError, UserError
from state.kaggle.errors import DeniedError
from state.kaggle.job import StopFlag
from state.kaggle.names import STOP_FLAG_NAME, control_slug
from state.ledger import DataRecord, RunRecord
from state.spec import RunSpec, compare_specs

if TYPE_CHECKING:
    from state.kaggle.datasets import LocalFile
    from state.kaggle.records import DatasetInfo

RUN_NAME = "run.json"
DATA_NAME = "data.json"
LOOKS_A_POLL = 6.0  # reads of a dataset in processing, within a poll interval: more often, because a push waits for it


class DataRecords(Document):
    """`data.json` of the control dataset: the data versions of a run."""

    records: tuple[DataRecord, ...] = Field(default=())


class Snapshot(Document):
    """A version of the control dataset that was sent, or is about to be."""

    content_sha256: str
    notes: str
    sent_at: datetime
    is_first: bool = Field(description="it is the version that created the dataset: Kaggle replaces the notes of that one")


class ControlState(Document):
    """State of the control dataset as this controller knows it; written before anything is sent."""

    schema_version: Literal[1] = 1
    stop: StopFlag = StopFlag()
    stands: str | None = Field(default=None, description="digest of the content of the current version")
    sent: Snapshot | None = None
    next_look_at: datetime | None = None


class Control:
    """Keeps the control dataset of one run in step with its record.

    Args:
        context: The run.
        record: Reads the run's record from the ledger.
    """

    def __init__(self, context: KaggleContext, record: Callable[[], RunRecord]) -> None:
        self._context = context
        self._api = context.api
        self._slug = control_slug(context.run)
        self._folder = context.folder
        self._clock = context.clock
        self._settings = context.settings
        self._record = record
        self._state_path = context.folder / "control.json"

    def make_ready(self) -> str | None:
        """Advance the dataset towards the record; return the reason to wait, or None when it is up to date.

        Raises:
            TemporaryError: Kaggle does not answer, or refuses the upload now.
            UserError: the account has another run of this name.
        """
        state = self._state()
        wanted = self._wanted(state.stop)
        digest = digest_of({name: content.decode() for name, content in wanted.items()})
        if state.stands == digest:
            return None
        waiting = f"the dataset {self._slug} to be processed by Kaggle"
        now = self._clock.now()
        if state.next_look_at is not None and now < state.next_look_at:
            return waiting
        pause = timedelta(seconds=self._settings.poll_every_s / LOOKS_A_POLL)
        state = self._put(state.evolve(next_look_at=now + pause))
        info = self._api().dataset(self._slug)
        sent = state.sent if state.sent is not None and state.sent.content_sha256 == digest else None
        if info is None and sent is not None and now < sent.sent_at + timedelta(seconds=self._settings.settle_s):
            return waiting
        if info is None or info.current_version is None or not self._api().dataset_is_ready(self._slug):
            if info is None:
                if self._slug in self._api().datasets(self._slug):
                    raise TemporaryError(f"Kaggle lists the dataset {self._slug} and refuses to show it (403 or 404)")
                self._create(state, wanted, digest)
            return waiting
        if state.stands is None and state.sent is None:
            self._check_it_is_this_run(info.current_version)
        if sent is None or now >= sent.sent_at + timedelta(seconds=self._settings.processing_limit_s):
            self._send(state, wanted, digest)
            return waiting
        if not self._is_published(info, sent, wanted):
            return waiting
        self._put(self._state().evolve(stands=digest, sent=None))
        return None

    def ask_to_stop(self, session: int, attempt: int) -> None:
        """Set the stop flag for an attempt; may be called again until it has ended, and sends the flag once.

        Raises:
            TemporaryError: Kaggle does not answer, or refuses the upload now.
        """
        state, flag = self._state(), StopFlag(session=session, attempt=attempt)
        if state.stop != flag:
            self._put(state.evolve(stop=flag, next_look_at=None))
        self.make_ready()

    def _wanted(self, stop: StopFlag) -> dict[str, bytes]:
        record = self._record()
        data = DataRecords(records=record.header.data)
        return {RUN_NAME: record.spec.to_json(), DATA_NAME: data.to_json(), STOP_FLAG_NAME: stop.to_json()}

    def _create(self, state: ControlState, wanted: Mapping[str, bytes], digest: str) -> None:
        from state.kaggle.datasets import ensure_dataset

        local = self._written(wanted, digest)
        with self._remembered(state, self._snapshot(digest, is_first=True)):
            ensure_dataset(self._api(), self._slug, local, **sending(self._context, self._folder))

    def _send(self, state: ControlState, wanted: Mapping[str, bytes], digest: str) -> None:
        from state.kaggle.datasets import begin_version

        local, snapshot = self._written(wanted, digest), self._snapshot(digest, is_first=False)
        with self._remembered(state, snapshot):
            begin_version(
                self._api(),
                self._slug,
                local,
                snapshot.notes,
                delete_old=False,
                **sending(self._context, self._folder),
            )

    @contextmanager
    def _remembered(self, state: ControlState, snapshot: Snapshot) -> Iterator[None]:
        """Record a snapshot before it is sent; undo that when it certainly was not sent."""
        self._put(state.evolve(sent=snapshot))
        try:
            yield
        except AmbiguousError:
            raise
        except DeniedError as error:  # an earlier version is still being processed
            self._put(state)
            raise TemporaryError(f"Kaggle does not accept a version of the dataset {self._slug} now: {error.what}") from error
        except GemmaOrchError:
            self._put(state)
            raise

    def _is_published(self, info: DatasetInfo, sent: Snapshot, wanted: Mapping[str, bytes]) -> bool:
        from state.kaggle.datasets import published_version

        if not sent.is_first:
            return published_version(self._api(), self._slug, self._written(wanted, sent.content_sha256), sent.notes) is not None
        listed = self._api().dataset_files(self._slug, info.current_version or 1) or {}
        return all(listed.get(name) == len(content) for name, content in wanted.items())

    def _check_it_is_this_run(self, version: int) -> None:
        """Check that a dataset that this home did not make belongs to this run: two homes may have runs of one name.

        Raises:
            UserError: it belongs to another run, or was not made by gemma-orch.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with files.temporary_file(self._folder / RUN_NAME) as path:
            self._api().download(self._slug, version, RUN_NAME, path)
            text = path.read_bytes()
        try:
            there = RunSpec.from_json(text, f"{RUN_NAME} of {self._slug}")
        except DataError as error:
            raise UserError(
                f"the dataset {self._slug} was not made by gemma-orch: {error.what}",
                remedy="rename that dataset on kaggle.com, or begin this run with another --name",
            ) from error
        mine = self._record().spec
        refused = [str(change) for change in compare_specs(there, mine) if change.refusal is not None]
        if refused:
            raise UserError(
                f"the account already has another run {self._context.run!r}, with different settings: {'; '.join(refused[:3])}",
                remedy=f"gemma-orch adopt {self._context.run} continues that one; or begin this one with another --name",
            )

    def _written(self, wanted: Mapping[str, bytes], digest: str) -> tuple[LocalFile, ...]:
        """Write the files of a snapshot into a folder of its own: a resumed upload trusts a path's size and time."""
        from state.kaggle.datasets import LocalFile

        folder = self._folder / f"control-{digest[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in wanted.items():
            if not (folder / name).exists():
                files.write_atomically(folder / name, content)
        return tuple(LocalFile(path=folder / name, name=name, size_bytes=len(content)) for name, content in wanted.items())

    def _snapshot(self, digest: str, *, is_first: bool) -> Snapshot:
        now = self._clock.now()
        notes = f"gemma-orch control {now:%Y%m%dT%H%M%S.%f} {digest[:16]}"  # unique, because the same content may be sent twice
        return Snapshot(content_sha256=digest, notes=notes, sent_at=now, is_first=is_first)

    def _state(self) -> ControlState:
        try:
            return ControlState.from_json(self._state_path.read_bytes(), "what is known of the control dataset")
        except (FileNotFoundError, DataError):
            return ControlState()

    def _put(self, state: ControlState) -> ControlState:
        self._folder.mkdir(parents=True, exist_ok=True)
        files.write_atomically(self._state_path, state.to_json())
        return state

"""A kernel without Kaggle: its folders, its data mounted, and a stand-in for the training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from state.clock import ManualClock
from state.errors import TemporaryError
from state.kaggle.api import KaggleApi
from state.kaggle.credentials import Credentials
from state.kaggle.job import CheckpointPlace, KaggleJob
from state.layout import AttemptLayout
from state.report import SessionReport
from state.spec import SessionSpec
from state.stores.checkpoint_store import DirectoryCheckpointStore
from tests.factories import commit_checkpoint, report, session_spec
from tests.kaggle_clients import USER
from tests.kaggle_jobs import job_of, mount_data
from tests.sessions import make_data
from worker.kaggle.kernel import Kernel, KernelEnvironment, KernelPaths
from worker.session.runner import Host


class Session:
    """Stands in for the training: writes the report of a session, and remembers what it was told."""

    def __init__(self) -> None:
        self.spec: SessionSpec | None = None
        self.host: Host | None = None
        self.reports: SessionReport | None = report(1, head=None)
        self.before: Callable[[SessionSpec, Host], None] = lambda spec, host: None
        self.code = 0

    def __call__(self, spec_file: Path, host: Host) -> int:
        self.spec, self.host = SessionSpec.from_json(spec_file.read_bytes(), "the spec"), host
        self.before(self.spec, host)
        if self.reports is not None:
            (spec_file.parent / "report.json").write_bytes(self.reports.to_json())
        return self.code


class Bench:
    """A kernel's folders, with its data mounted."""

    def __init__(self, root: Path) -> None:
        self.places = KernelPaths(root / "input", root / "working", root / "scratch")
        self.places.working.mkdir(parents=True)
        self.data = make_data(root / "data")
        mount_data(root / "data", self.places.input, self.data)
        self.store = DirectoryCheckpointStore(root / "elsewhere")
        self.said: list[str] = []
        self.exits: list[int] = []
        self.session = Session()
        self.around = KernelEnvironment(
            places=self.places,
            clock=ManualClock(),
            started_s=0.0,
            connect=self._connect,
            credentials=lambda: Credentials("the session's token", user=USER, token="t"),
            check_machine=lambda job: f"a {job.accelerator}",
            run_session=self.session,
            exit_at_once=self.exits.append,
            say=self.said.append,
        )
        self.connected: list[Credentials] = []

    def _connect(self, credentials: Credentials) -> KaggleApi:
        self.connected.append(credentials)
        raise TemporaryError("there is no network")

    def spec(self, **values: Any) -> SessionSpec:
        spec = session_spec(**values)
        version = spec.data[0].evolve(data_sha256=self.data.data_sha256)
        return spec.evolve(data=(version,))

    def run(self, job: KaggleJob, **around: Any) -> int:
        return Kernel(job, replace(self.around, **around)).run()

    def report(self) -> SessionReport:
        path = AttemptLayout(self.places.working).report
        return SessionReport.from_json(path.read_bytes(), str(path))

    def start(self) -> tuple[SessionSpec, KaggleJob]:
        """A job that starts from a checkpoint."""
        made = commit_checkpoint(self.store, 20)
        spec = self.spec(session=2, start=made.expected(self.store.manifest(made.id)[1]))
        return spec, job_of(spec, start=CheckpointPlace(kind="dataset", owner=USER, slug="gemma-orch-tamil-s001a1", version=1))

    @property
    def checkpoints(self) -> DirectoryCheckpointStore:
        return DirectoryCheckpointStore(self.places.scratch / "checkpoints", may_link=True)

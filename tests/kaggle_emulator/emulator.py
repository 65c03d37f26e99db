"""The emulator as one thing: start it, point clients at it, spoil its calls, ask what happened."""

from __future__ import annotations

import base64
import shutil
import subprocess
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.kaggle_emulator.accounts import Accounts
from tests.kaggle_emulator.admin import Admin
from tests.kaggle_emulator.blobs import Blobs
from tests.kaggle_emulator.calls import Answer, Call, Handler
from tests.kaggle_emulator.clock import EmulatorClock
from tests.kaggle_emulator.datasets import Datasets
from tests.kaggle_emulator.errors import ApiError, denied
from tests.kaggle_emulator.faults import FaultPlan
from tests.kaggle_emulator.journal import Journal
from tests.kaggle_emulator.kernels import Kernels
from tests.kaggle_emulator.leaks import Leak, find_leaks
from tests.kaggle_emulator.models import Models
from tests.kaggle_emulator.namespace import Namespace
from tests.kaggle_emulator.quota import Quota
from tests.kaggle_emulator.server import Server
from tests.kaggle_emulator.session_model import Session
from tests.kaggle_emulator.sessions import Sessions
from tests.kaggle_emulator.settings import Settings
from tests.kaggle_emulator.storage import Storage
from tests.patience import wait_until


class KaggleEmulator:
    """A Kaggle of one's own on loopback; a context manager.

    Everything that it keeps is in `folder` and in memory: a new emulator begins empty.
    """

    def __init__(self, folder: Path, settings: Settings | None = None, *, port: int = 0, keep: bool = False) -> None:
        self._keep = keep
        self.settings = settings or Settings()
        self.folder = Path(tempfile.mkdtemp(prefix="kaggle-", dir=folder))
        self.clock = EmulatorClock(self.settings.start_at, self.settings.timescale)
        self.lock = threading.RLock()
        self.errors: list[str] = []
        """Tracebacks of bugs of the emulator itself; tests should find none."""
        self.clients: list[subprocess.Popen[bytes]] = []
        """Processes that end with it, when they have not before."""
        self.faults = FaultPlan(self.clock.now)
        self.journal = Journal(self.folder / "requests.jsonl")
        self.accounts = Accounts(self.settings, self.clock.now)
        self.storage = Storage(self.folder / "packed", self.settings, lambda: self.url)
        self.blobs = Blobs(self.folder / "blobs", self.settings, self.clock.now, lambda: self.url)
        namespace = Namespace(self.settings)
        self.datasets = Datasets(self.folder / "datasets", self.settings, self.blobs, self.storage, namespace)
        self.models = Models(self.folder / "models", self.settings, self.blobs, namespace)
        self.sessions = Sessions(
            self.folder / "sessions", self.settings, self.clock, self.accounts, self.faults, lambda: self.url
        )
        self.quota = Quota(self.settings, self.sessions.all)
        self.kernels = Kernels(self.settings, self.sessions, self.quota, self.datasets, self.accounts, self.storage, namespace)
        self.routes: dict[str, Handler] = {
            **self.accounts.routes(),
            **self.blobs.routes(),
            **self.datasets.routes(),
            **self.kernels.routes(),
            **self.models.routes(),
            **self.quota.routes(),
            "AttachDatasourceUsingJwtRequest": self._attach,
            "GetUserSecretByLabelRequest": self._user_secret,
        }
        self.admin = Admin(self)
        self._server = Server(port, self)
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve, name="kaggle-emulator", daemon=True)

    @property
    def url(self) -> str:
        """The address of the API as a proxy, and of the storage."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Kill clients and sessions, let go of every call that hangs, and remove the folder unless it is to be kept."""
        for client in self.clients:
            client.kill()
            client.wait()
        self.faults.remove()
        self.sessions.close()
        self._server.stop()
        if not self._keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> KaggleEmulator:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def client_environment(self, home: Path, *, credentials: str = "key") -> dict[str, str]:
        """Give the variables with which a client on the user's machine reaches the emulator and nothing else.

        Args:
            home: A folder of the client's own, so that no real credentials are found.
            credentials: `key` (user and key), `token` (access token) or `none`.
        """
        known = {
            "key": {"KAGGLE_USERNAME": self.settings.user, "KAGGLE_KEY": self.settings.key},
            "token": {"KAGGLE_API_TOKEN": self.settings.access_token},
            "none": {},
        }[credentials]
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), self.url)
        return {
            "HOME": str(home),
            "KAGGLE_CONFIG_DIR": str(home / ".kaggle"),
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "no_proxy": "",
            "NO_PROXY": "",
            **proxies,
            **known,
        }

    def wait(self, condition: Callable[[], Any]) -> None:
        """Wait until the condition holds; meanwhile each queued session gets its turn, and all that run the time they need."""

        def look() -> Any:
            self.clock.skip_to_next()
            return condition()

        wait_until(look)

    def wait_for_session(self, slug: str, version: int | None = None) -> Session:
        """Wait until a session of the kernel has ended, the newest if no version is named, and give it."""
        session = next(s for s in reversed(self.sessions.all()) if s.slug == slug and version in (None, s.version))
        self.wait(session.done.is_set)
        return session

    def let_sessions_act(self, *, endless: str = "") -> None:
        """Wait until each session whose turn has come has ended.

        Args:
            endless: The slug of a kernel that only its limit ends. It is waited for until it has said something, and something
                more after each signal.
        """
        now = self.clock.now()

        def has_acted(session: Session) -> bool:
            is_waiting = session.slug == endless and session.looked_at >= now and len(session.log) > session.num_signals
            return session.turn_at > now or is_waiting or session.done.is_set()

        wait_until(lambda: all(has_acted(session) for session in self.sessions.all()), "the sessions to act")

    def leaks(self) -> list[Leak]:
        """Give every place in sources, logs, outputs, datasets and requests where a credential can be read."""
        return list(find_leaks(self.accounts.secrets(), self._texts(), self._files()))

    def note_error(self) -> None:
        self.errors.append(traceback.format_exc())

    def _texts(self) -> Iterator[tuple[str, str]]:
        for kernel in self.kernels.all():
            for version in kernel.versions:
                yield f"source and metadata of {kernel.ref} v{version.number}", str(version.request)
        for session in self.sessions.all():
            yield f"log of {session.ref} v{session.version}", "".join(str(line["data"]) for line in list(session.log))
            yield f"failure message of {session.ref} v{session.version}", session.failure_message
        for dataset in self.datasets.all():
            yield f"metadata of {dataset.ref}", f"{dataset.title} {dataset.metadata} {[v.notes for v in dataset.versions]}"
        for number, entry in enumerate(self.journal.of(), 1):
            if entry.route not in {"IntrospectToken", "GenerateAccessToken"}:
                yield f"request {number}, {entry.route}", f"{entry.target} {entry.headers} {entry.body}"

    def _files(self) -> Iterator[tuple[str, Path]]:
        for session in self.sessions.all():
            for path in sorted(session.working.rglob("*")):
                yield f"output of {session.ref} v{session.version}: {path.name}", path
        for dataset in self.datasets.all():
            for version in dataset.versions:
                for file in version.files():
                    yield f"{dataset.ref} version {version.number}: {file.name}", file.path
        for model in self.models.all():
            for instance in model.instances:
                for version in instance.versions:
                    for file in version.files():
                        yield f"{model.ref}/{instance.slug} version {version.number}: {file.name}", file.path

    def _attach(self, call: Call) -> Answer:
        """Answer kagglehub inside a session, which asks for a dataset to be mounted rather than downloads it."""
        session = next((session for session in self.sessions.live() if session.id == call.actor.session), None)
        ref = call.body.get("datasetRef") or {}
        if session is None or not ref:
            raise denied("kernelSessions.attach")
        version = int(ref["VersionNumber"]) if ref.get("VersionNumber") else None
        place, number = self.kernels.attach(session, ref["OwnerSlug"], ref["DatasetSlug"], version, call.now)
        call.effect = f"attached {ref['OwnerSlug']}/{ref['DatasetSlug']} version {number} to session {session.id}"
        return {"wasSuccessful": True, "result": {"mountSlug": place, "versionNumber": number}}

    def _user_secret(self, call: Call) -> Answer:
        label = call.text("Label")
        raise ApiError(404, f"No user secrets exist for kernel id {call.actor.session} and label {label}.")


def basic_authorization(user: str, key: str) -> str:
    """Write the header value of a user and key."""
    return "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode()

"""The calls about kernels and their sessions."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tests.kaggle_emulator.accounts import Accounts
from tests.kaggle_emulator.calls import Actor, Answer, Attachment, Call, Handler, Redirect, page
from tests.kaggle_emulator.clock import iso
from tests.kaggle_emulator.dataset_model import link
from tests.kaggle_emulator.datasets import Datasets
from tests.kaggle_emulator.errors import ApiError, denied
from tests.kaggle_emulator.faults import Fault
from tests.kaggle_emulator.kernel_model import Kernel, KernelVersion, slugify
from tests.kaggle_emulator.machines import Pool, given_shape, pool
from tests.kaggle_emulator.namespace import Namespace
from tests.kaggle_emulator.quota import Quota
from tests.kaggle_emulator.session_model import Session
from tests.kaggle_emulator.sessions import Sessions, session_actor
from tests.kaggle_emulator.settings import Settings
from tests.kaggle_emulator.storage import Storage

MOST_LISTED_FILES = 500

_LABEL = re.compile(r"v(\d+)")
_SHORTEST_NAME = 5


class Kernels:
    """All kernels of all users."""

    def __init__(
        self,
        settings: Settings,
        sessions: Sessions,
        quota: Quota,
        datasets: Datasets,
        accounts: Accounts,
        storage: Storage,
        namespace: Namespace,
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._quota = quota
        self._datasets = datasets
        self._accounts = accounts
        self._storage = storage
        self._all: list[Kernel] = []
        self._namespace = namespace
        namespace.add("notebook", lambda ref, now: self._find(ref, now) is not None)
        sessions.mount = self.mount

    def routes(self) -> dict[str, Handler]:
        return {
            "CancelKernelSession": self.cancel,
            "DeleteKernel": self.delete,
            "DownloadKernelOutput": self.download_output,
            "DownloadKernelOutputZip": self.download_output_zip,
            "GetKernel": self.get,
            "GetKernelSessionStatus": self.status,
            "ListKernelFiles": self.list_files,
            "ListKernelSessionOutput": self.list_output,
            "ListKernels": self.list_kernels,
            "SaveKernel": self.save,
        }

    def all(self) -> list[Kernel]:
        return list(self._all)

    # What changes something.

    def save(self, call: Call) -> Answer:
        body = call.body
        if len(call.text("text").encode()) > self._settings.source_limit_bytes:
            raise ApiError(400, "The kernel source must be less than 1 megabytes in size.")
        kernel, refused = self._kernel_to_save(call)
        if refused:
            return _refusal(refused)
        if kernel is None:
            owner, _, slug = call.text("slug").partition("/")
            for wanted in (slug, slugify(call.text("newTitle"))):
                self._namespace.check_free("notebook", f"{owner}/{wanted}", call.text("newTitle"), call.now)
        if body.get("enableInternet") and not self._settings.phone_verified:
            raise denied("kernelSessions.enableInternet")
        runs = call.text("kernelExecutionType") != "QUICK_SAVE"
        shape = given_shape(call.text("machineShape"), gpu=bool(body.get("enableGpu")), tpu=bool(body.get("enableTpu")))
        planted = call.twist("refuse")
        refused = planted.value if planted is not None else self._refusal_to_run(call, shape) if runs else ""
        if refused:
            return _refusal(refused)
        kernel = kernel or self._new_kernel(call)
        number = len(kernel.versions) + 1
        invalid, sources = self._sources(call)
        session = self._new_session(kernel, number, shape, sources, call) if runs else None
        kernel.versions.append(KernelVersion(number, dict(body), call.now, session))
        call.effect = f"made version {number} of kernel {kernel.ref}" + (f", session {session.id}" if session else "")
        if session is not None:
            self._sessions.start(session, _script(call.text("text"), call.text("kernelType")))
        return {
            "ref": f"/code/{kernel.ref} v{number}",
            "url": f"https://www.kaggle.com/code/{kernel.ref}",
            "versionNumber": number,
            "error": "",
            "hasError": False,
            "kernelId": kernel.id,
            "invalidTags": [],
            **invalid,
        }

    def _kernel_to_save(self, call: Call) -> tuple[Kernel | None, str]:
        """Give the kernel that exists already, or why this push cannot be; neither for a new kernel."""
        wanted_id = call.number("id")
        if wanted_id is not None:
            kernel = next((kernel for kernel in self._all if kernel.id == wanted_id and kernel.exists(call.now)), None)
            if kernel is None or kernel.owner != call.actor.user:
                return None, "Kernel not found"
        else:
            owner, _, slug = call.text("slug").partition("/")
            if owner != call.actor.user:
                return None, "Notebook not found"
            title_slug = slugify(call.text("newTitle"))
            kernel = self._find(f"{owner}/{slug}", call.now) or self._find(f"{owner}/{title_slug}", call.now)
        if kernel is None:
            title = call.text("newTitle")
            return None, "" if len(title) >= _SHORTEST_NAME else "The title must be at least five characters"
        latest = kernel.latest(call.now)
        if latest is not None and latest.request.get("kernelType") != call.body.get("kernelType"):
            return None, "You cannot change the editor type"
        if call.text("newTitle"):
            kernel.title = call.text("newTitle")
            kernel.wedged = slugify(kernel.title) != kernel.slug or (wanted_id is None and call.text("slug") != kernel.ref)
        return kernel, ""

    def _new_kernel(self, call: Call) -> Kernel:
        owner, _, asked = call.text("slug").partition("/")
        title = call.text("newTitle")
        slug = slugify(title)
        kernel = Kernel(len(self._all) + 1, owner, slug, title, call.now, wedged=slug != asked)
        self._all.append(kernel)
        return kernel

    def _refusal_to_run(self, call: Call, shape: str) -> str:
        """Say why no session can start; nothing when one can."""
        wanted_s = call.number("sessionTimeoutSeconds")
        if wanted_s is not None and wanted_s > self._limit_s(shape):
            return f"The session timeout must be lower than the global maximum of {self._limit_s(shape):.0f} seconds."
        kind = pool(shape)
        most = self._slots(kind)
        held = [
            s for s in self._sessions.all() if s.owner == call.actor.user and s.pool == kind and self._holds_slot(s, call.now)
        ]
        if len(held) >= most:
            return f"Maximum batch {kind} session count of {most} reached."
        return self._quota.refusal(call.actor.user, kind, call.now)

    def _holds_slot(self, session: Session, now: float) -> bool:
        return session.is_live(now) or now < session.ended_at + self._settings.slot_release_s

    def _slots(self, kind: Pool) -> int:
        s = self._settings
        return {"CPU": s.max_cpu_sessions, "GPU": s.max_gpu_sessions, "TPU": s.max_tpu_sessions}[kind]

    def _limit_s(self, shape: str) -> float:
        return self._settings.tpu_session_limit_s if pool(shape) == "TPU" else self._settings.session_limit_s

    def _new_session(self, kernel: Kernel, number: int, shape: str, sources: dict[str, list[str]], call: Call) -> Session:
        limit_s = float(call.number("sessionTimeoutSeconds") or self._limit_s(shape))
        session_id = self._sessions.next_id()
        session = Session(
            session_id,
            kernel.owner,
            kernel.slug,
            number,
            shape,
            limit_s,
            bool(call.body.get("enableInternet")),
            sources,
            self._sessions.folder_of(session_id),
            call.now,
            zombie_until=call.now + self._settings.queue_s + limit_s if kernel.wedged else 0.0,
        )
        session.token = self._accounts.issue(session_actor(session), prefix="KGSS_")
        session.secrets_token = self._accounts.issue(session_actor(session), prefix="KGUS_")
        return session

    def _sources(self, call: Call) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Part the sources into invalid ones, which are only reported, and those that will be mounted."""
        datasets = {ref: self._dataset_visible(ref, call) for ref in map(str, call.body.get("datasetDataSources") or [])}
        kernels = {ref: self._kernel_visible(ref, call) for ref in map(str, call.body.get("kernelDataSources") or [])}
        invalid = {
            "invalidDatasetSources": [ref for ref, found in datasets.items() if not found],
            "invalidKernelSources": [ref for ref, found in kernels.items() if not found],
            "invalidCompetitionSources": list(call.body.get("competitionDataSources") or []),
            "invalidModelSources": list(call.body.get("modelDataSources") or []),
        }
        valid = {
            "datasets": [ref for ref, found in datasets.items() if found],
            "kernels": [ref for ref, found in kernels.items() if found],
        }
        return invalid, valid

    def _dataset_visible(self, ref: str, call: Call) -> bool:
        found = self._datasets.find("/".join(ref.split("/")[:2]), call.now, call.actor)
        return found is not None and found.current(call.now) is not None

    def _kernel_visible(self, ref: str, call: Call) -> bool:
        found = self._find(ref, call.now)
        return found is not None and self._may_see(found, call.actor)

    def delete(self, call: Call) -> Answer:
        kernel = self._named(call, "kernels.delete")
        if kernel.owner != call.actor.user:
            raise denied("kernels.delete")
        kernel.deleted_at = call.now
        call.effect = f"deleted kernel {kernel.ref}"
        if self._settings.delete_stops_session:
            for version in kernel.versions:
                if version.session is not None:
                    version.session.stop.set()
        return {"errorMessage": ""}

    def cancel(self, call: Call) -> Answer:
        raise denied("kernelSessions.cancel")

    # What only looks.

    def get(self, call: Call) -> Answer:
        kernel, version = self._named_version(call)
        blob = {
            "source": version.source,
            "language": version.request.get("language"),
            "kernelType": version.request.get("kernelType"),
            "slug": kernel.slug,
        }
        return {"metadata": self._describe(kernel, version, call.now), "blob": blob}

    def list_kernels(self, call: Call) -> Answer:
        user, search, mine_only = call.text("user"), call.text("search").lower(), call.text("group") == "PROFILE"
        shown = [
            (kernel, latest)
            for kernel in self._all
            if kernel.exists(call.now)
            and self._may_see(kernel, call.actor)
            and (not mine_only or kernel.owner == call.actor.user)
            and (not user or kernel.owner == user)
            and search in f"{kernel.slug} {kernel.title}".lower()
            and (latest := kernel.latest(call.now)) is not None
        ]
        shown.sort(key=lambda pair: pair[1].created_at, reverse=True)
        part, token = page(shown, call, largest=100)
        return {"kernels": [self._describe(kernel, latest, call.now) for kernel, latest in part], "nextPageToken": token}

    def status(self, call: Call) -> Answer:
        _, version = self._named_version(call)
        if version.session is None:
            return {"status": "NEW_SCRIPT", "failureMessage": ""}
        ended = version.session.has_ended(call.now)
        return {
            "status": version.session.status(call.now),
            "failureMessage": version.session.failure_message if ended else "",
            "failureMessageNullable": version.session.failure_message if ended else None,
        }

    def list_output(self, call: Call) -> Answer:
        session = self._session(call)
        part, token = page(session.output_files(call.now)[:MOST_LISTED_FILES], call)
        signed = [self._storage.sign(Redirect(file.path, Path(file.name).name, session.ended_at)) for file in part]
        log = session.log_json(call.now)
        return {
            "files": [{"url": url, "fileName": file.name} for url, file in zip(signed, part, strict=True)],
            "log": json.dumps(log) if log else "",
            "nextPageToken": token,
        }

    def list_files(self, call: Call) -> Answer:
        session = self._session(call)
        part, token = page(session.output_files(call.now)[:MOST_LISTED_FILES], call)
        created = iso(session.ended_at) if session.has_ended(call.now) else ""
        return {
            "files": [{"name": file.name, "size": file.size, "creationDate": created} for file in part],
            "nextPageToken": token,
        }

    def download_output(self, call: Call) -> Answer:
        number = call.number("versionNumber")
        label = f"v{number}" if number is not None else ""
        names = {"userName": call.text("ownerSlug"), "kernelSlug": call.text("kernelSlug"), "versionLabel": label}
        session = self._session(Call(call.route, call.actor, names, call.now))
        wanted = call.text("filePath")
        if not wanted:
            return Redirect(self._zip(session, call.now), "output.zip", session.ended_at)
        file = next((file for file in session.output_files(call.now) if file.name == wanted), None)
        if file is None:
            raise ApiError(404, f"Output file {wanted} not found")
        return Redirect(file.path, Path(file.name).name, session.ended_at)

    def download_output_zip(self, call: Call) -> Answer:
        wanted = call.number("kernelSessionId")
        session = next((session for session in self._sessions.all() if session.id == wanted), None)
        if session is None or session.owner != call.actor.user:
            raise denied("kernelSessions.get")
        return Attachment(self._zip(session, call.now), session.ended_at)

    def session_for_log(self, owner: str, slug: str, label: str, actor: Actor, now: float) -> Session:
        """Give the session whose log is to be streamed."""
        return self._session(Call("LogStream", actor, {"userName": owner, "kernelSlug": slug, "versionLabel": label}, now))

    # What a session finds in its input folder.

    def mount(self, session: Session, faults: Sequence[Fault], now: float) -> None:
        """Put the sources' files, as they are current at this moment, into the session's input folder."""
        for ref in session.sources.get("datasets", []):
            if _meant(faults, "missing_mount", ref) is None:
                self._mount_dataset(session, ref, now, stale=_meant(faults, "stale_mount", ref) is not None)
        for ref in session.sources.get("kernels", []):
            if _meant(faults, "missing_mount", ref) is None:
                self._mount_kernel(session, ref, now)

    def attach(self, session: Session, owner: str, slug: str, version: int | None, now: float) -> tuple[str, int]:
        """Mount one more dataset in a session that runs already, and say where and which version."""
        ref = f"{owner}/{slug}" if version is None else f"{owner}/{slug}/{version}"
        if self._datasets.find(f"{owner}/{slug}", now, session_actor(session)) is None:
            raise denied("datasets.get")
        if f"{owner}/{slug}" not in session.mounted:
            self._mount_dataset(session, ref, now, stale=False)
        return self._dataset_place(owner, slug), session.mounted[f"{owner}/{slug}"]

    def _mount_dataset(self, session: Session, ref: str, now: float, *, stale: bool) -> None:
        owner, slug, *pinned = ref.split("/")
        dataset = self._datasets.find(f"{owner}/{slug}", now)
        wanted = int(pinned[0]) if pinned and self._settings.pin_dataset_versions else None
        version = dataset.version(wanted, now) if dataset is not None else None
        if dataset is not None and version is not None and stale:
            version = next(
                (older for older in reversed(dataset.versions) if older.number < version.number and not older.failed), version
            )
        if dataset is None or version is None:
            return
        session.mounted[dataset.ref] = version.number
        place = session.folder / "input" / self._dataset_place(owner, slug)
        place.mkdir(parents=True, exist_ok=True)
        for file in version.files():
            link(file.path, place / file.name)

    def _mount_kernel(self, session: Session, ref: str, now: float) -> None:
        kernel = self._find(ref, now)
        complete = [
            (version.number, version.session)
            for version in (kernel.versions if kernel is not None else [])
            if version.session is not None and version.session.status(now) == "COMPLETE"
        ]
        if kernel is None or not complete:
            return
        number, source = complete[-1]
        session.mounted[kernel.ref] = number
        new = self._settings.mount_layout == "new"
        place = session.folder / "input" / (f"notebooks/{kernel.ref}" if new else kernel.slug)
        place.mkdir(parents=True, exist_ok=True)
        for file in source.output_files(now):
            link(file.path, place / file.name)

    def _dataset_place(self, owner: str, slug: str) -> str:
        return f"datasets/{owner}/{slug}" if self._settings.mount_layout == "new" else slug

    # Finding.

    def _find(self, ref: str, now: float) -> Kernel | None:
        return next((kernel for kernel in reversed(self._all) if kernel.ref == ref and kernel.exists(now)), None)

    def _may_see(self, kernel: Kernel, actor: Actor) -> bool:
        latest = kernel.versions[-1] if kernel.versions else None
        return kernel.owner == actor.user or (latest is not None and not latest.request.get("isPrivate"))

    def _named(self, call: Call, permission: str = "kernels.get") -> Kernel:
        kernel = self._find(f"{call.text('userName')}/{call.text('kernelSlug')}", call.now)
        if kernel is None and self._settings.unknown_kernel_status == 404:
            raise ApiError(404, "Kernel not found")
        if kernel is None or kernel.wedged or not self._may_see(kernel, call.actor):
            raise denied(permission)
        return kernel

    def _named_version(self, call: Call) -> tuple[Kernel, KernelVersion]:
        kernel = self._named(call)
        label = call.text("versionLabel")
        if label and _LABEL.fullmatch(label) is None:
            raise ApiError(404, f"Version {label} not found")
        version = kernel.version(int(label[1:]), call.now) if label else kernel.latest(call.now)
        if version is None:
            raise ApiError(404, f"Version {label} not found")
        return kernel, version

    def _session(self, call: Call) -> Session:
        _, version = self._named_version(call)
        if version.session is None:
            raise ApiError(404, "This version has no session")
        return version.session

    def _zip(self, session: Session, now: float) -> Path:
        files = {file.name: file.path for file in session.output_files(now)}
        return self._storage.zipped(f"output-{session.id}-{len(files)}.zip", files)

    def _describe(self, kernel: Kernel, version: KernelVersion, now: float) -> dict[str, Any]:
        request, session, latest = version.request, kernel.last_session(now), kernel.latest(now)
        assert latest is not None
        return {
            "id": kernel.id,
            "ref": kernel.ref,
            "title": kernel.title,
            "author": kernel.owner,
            "slug": kernel.slug,
            "lastRunTime": iso(latest.created_at),
            "language": request.get("language"),
            "kernelType": request.get("kernelType"),
            "isPrivate": bool(request.get("isPrivate")),
            "enableGpu": pool(session.shape) == "GPU" if session is not None else False,
            "enableTpu": pool(session.shape) == "TPU" if session is not None else False,
            "enableInternet": bool(request.get("enableInternet")),
            "categoryIds": request.get("categoryIds") or [],
            "datasetDataSources": request.get("datasetDataSources") or [],
            "kernelDataSources": request.get("kernelDataSources") or [],
            "competitionDataSources": request.get("competitionDataSources") or [],
            "modelDataSources": request.get("modelDataSources") or [],
            "currentVersionNumber": latest.number,
            "dockerImage": "gcr.io/kaggle-images/python@sha256:emulated",
            **({"machineShape": session.shape} if session is not None else {}),
            "totalVotes": 0,
        }


def _meant(faults: Sequence[Fault], kind: str, ref: str) -> Fault | None:
    return next((fault for fault in faults if fault.kind == kind and fnmatchcase(ref, fault.files)), None)


def _script(text: str, kernel_type: str) -> str:
    """Give what runs: a script as it is, of a notebook its code cells in a row."""
    if kernel_type != "notebook":
        return text
    cells = [cell for cell in json.loads(text).get("cells", []) if cell.get("cell_type") == "code"]
    return "\n\n".join("".join(cell.get("source", "")) for cell in cells)


def _refusal(error: str) -> Answer:
    """Write a refusal as the live API was seen to write it, with HTTP 200."""
    return {"ref": "", "url": "", "versionNumber": 0, "error": error, "hasError": True, "kernelId": 0}

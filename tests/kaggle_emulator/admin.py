"""The emulator's own routes, `/__emulator__/...`, for working with it by hand."""

from __future__ import annotations

import signal
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tests.kaggle_emulator.clock import iso
from tests.kaggle_emulator.errors import ApiError
from tests.kaggle_emulator.faults import Fault

if TYPE_CHECKING:
    from tests.kaggle_emulator.emulator import KaggleEmulator


class Admin:
    """Answers `METHOD /__emulator__/<what>`; see the README for the list."""

    def __init__(self, emulator: KaggleEmulator) -> None:
        self._emulator = emulator

    def __call__(self, method: str, what: str, body: dict[str, Any]) -> Any:
        emulator = self._emulator
        match method, what:
            case "GET", "faults":
                return emulator.faults.to_json()
            case "POST", "faults":
                emulator.faults.add(Fault.from_json(body))
                return emulator.faults.to_json()
            case "DELETE", "faults":
                emulator.faults.remove()
                return []
            case "GET", "requests":
                return [asdict(entry) for entry in emulator.journal.of()]
            case "GET", "sessions":
                return self._sessions()
            case "POST", "signal":
                return self._signal(int(body["session"]), str(body.get("signal", "SIGTERM")))
            case "GET", "clock":
                return {"now": iso(emulator.clock.now()), "timescale": emulator.clock.timescale}
            case "POST", "clock":
                emulator.clock.advance(float(body["advance_s"]))
                return {"now": iso(emulator.clock.now()), "timescale": emulator.clock.timescale}
            case "POST", "quota":
                emulator.quota.note(emulator.clock.now(), body.get("pool", "GPU"), float(body["used_s"]))
                return {}
            case "GET", "leaks":
                return [asdict(leak) for leak in emulator.leaks()]
            case "GET", "escapes":
                return [asdict(entry) for entry in emulator.journal.escapes]
            case "GET", "errors":
                return emulator.errors
            case _:
                raise ApiError(404, f"the emulator has no {method} {what}")

    def _sessions(self) -> list[dict[str, Any]]:
        now = self._emulator.clock.now()
        return [
            {
                "id": session.id,
                "kernel": session.ref,
                "version": session.version,
                "status": session.status(now),
                "shape": session.shape,
                "mounted": session.mounted,
                "pushed_at": iso(session.pushed_at),
                "ran_s": session.used_s(0.0, now),
                "failure_message": session.failure_message,
                "folder": str(session.folder),
            }
            for session in self._emulator.sessions.all()
        ]

    def _signal(self, wanted: int, name: str) -> dict[str, Any]:
        session = next((session for session in self._emulator.sessions.all() if session.id == wanted), None)
        if session is None or session.process_id is None or session.done.is_set():
            raise ApiError(404, f"session {wanted} is not running")
        self._emulator.sessions.send_signal(session, signal.Signals[name])
        return {"sent": name}

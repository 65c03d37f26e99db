"""Tick a run until it is over and show its progress: the loops behind `start`, `stop`, `rerun`, `logs` and `status --watch`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live

from orchestrator.controller.attempt import ref_of
from orchestrator.controller.decide import Decision, Finish, GiveUp, decide
from orchestrator.controller.tick import Controller
from orchestrator.monitoring.render import live_line, live_panel
from orchestrator.monitoring.status import observe_run
from orchestrator.monitoring.views import StatusView
from orchestrator.ports import AttemptStatus, Ports, Quota
from state.errors import GemmaOrchError, LeaseHeldError, LeaseLostError, OutOfReachError, TemporaryError
from state.ledger import AttemptRecord, Event, RunRecord
from state.session import RunState

_LOOK_S = 1.0
_PLAIN_LINE_S = 10.0
_MOST_FAILED_TICKS = 3
_EVENTS_SHOWN = 6
_EVENTS_REMEMBERED = 50  # fewer than this happen between two polls


@dataclass(frozen=True)
class WatchResult:
    """The result of watching: the last decision and the final view."""

    decision: Decision
    view: StatusView


class Display:
    """Shows a run on stderr: a live panel on a terminal, plain lines elsewhere."""

    def __init__(self, ports: Ports, run: str) -> None:
        self._ports = ports
        self._run = run
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=False) if self._console.is_terminal else None
        self._said_at = -_PLAIN_LINE_S
        self._last_event: Event | None = None

    def __enter__(self) -> Display:
        """Start the display."""
        self._last_event = next(iter(self._ports.runs.events(self._run, 1)), None)
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the display; its last frame stays on the terminal."""
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line above the live panel."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, view: StatusView) -> None:
        """Show the current view of the run."""
        now = self._ports.clock.now()
        if self._live is not None:
            self._live.update(live_panel(view, self._ports.runs.events(self._run, _EVENTS_SHOWN), now), refresh=True)
            return
        for event in self._new_events():
            self.say(f"{self._run}: {event.text.partition(chr(10))[0]}")
        if self._ports.clock.monotonic() - self._said_at >= _PLAIN_LINE_S:
            self._said_at = self._ports.clock.monotonic()
            self.say(live_line(view, now))

    def _new_events(self) -> list[Event]:
        events = list(self._ports.runs.events(self._run, _EVENTS_REMEMBERED))
        if self._last_event in events:
            events = events[len(events) - events[::-1].index(self._last_event) :]
        self._last_event = events[-1] if events else self._last_event
        return events


def drive(
    ports: Ports,
    run: str,
    *,
    until: Callable[[RunRecord], bool] = lambda _record: False,
    patient: bool = True,
) -> WatchResult:
    """Tick a run until it is over or `until` returns true, and show its progress.

    While another controller holds the lease, this one reports it once, watches, and takes over when the lease becomes free.

    Args:
        ports: The controller's ports.
        run: The run's name.
        until: Called with the record in every tick; true ends the loop.
        patient: Whether to keep waiting for a session that must end but can not be killed from this machine.

    Raises:
        OutOfReachError: such a session exists, and `patient` is false.
        GemmaOrchError: a tick failed in a way that a retry does not mend.
    """
    with Display(ports, run) as display:
        driver = _Driver(ports, run, display, until, patient=patient)
        while True:
            pause_s, seen = driver.step()
            if seen is not None:
                decision, record = seen
                display.show(observe_run(ports, run))
                if isinstance(decision, Finish | GiveUp) or until(record):
                    driver.release()
                    return WatchResult(decision, observe_run(ports, run))
            ports.clock.sleep(pause_s)


class _Driver:
    """Runs single ticks, and decides which failed ticks to retry."""

    def __init__(
        self,
        ports: Ports,
        run: str,
        display: Display,
        until: Callable[[RunRecord], bool],
        *,
        patient: bool,
    ) -> None:
        self._ports = ports
        self._run = run
        self._controller = Controller(ports)
        self._display = display
        self._until = until
        self._patient = patient
        self._watches = False
        self._failures = 0

    def release(self) -> None:
        """Leave the run to other controllers."""
        self._controller.release(self._run)

    def step(self) -> tuple[float, tuple[Decision, RunRecord] | None]:
        """Tick once.

        Returns:
            The seconds to wait before the next tick, and the decision with its record: this controller's, or, while another one
            holds the lease, what that one would decide. None after a failed tick.
        """
        try:
            tick = self._controller.tick(self._run, until=self._until)
        except LeaseHeldError as error:
            if not self._watches:
                self._display.say(f"{error}; watching")
            self._watches = True
            record = self._ports.runs.load(self._run)
            return _LOOK_S, (decide(record, Quota(available=True), self._ports.clock.now()), record)
        except LeaseLostError:
            return _LOOK_S, None
        except TemporaryError as error:
            if isinstance(error, OutOfReachError) and not self._patient:
                self.release()  # lets a controller that can kill the session act at once
                raise
            self._display.say(f"{error}; retrying")
            return _PLAIN_LINE_S, None
        except GemmaOrchError:
            raise
        except Exception as error:
            # A tick may die at any line and be repeated. An error that recurs is a bug: raise it so that the user sees it.
            self._failures += 1
            if self._failures >= _MOST_FAILED_TICKS:
                raise
            self._display.say(f"unexpected {type(error).__name__}: {error}; retrying")
            return _PLAIN_LINE_S, None
        self._watches = False
        self._failures = 0
        return self._ports.backend(tick.record.spec.backend, self._run).poll_interval_s, (tick.decision, tick.record)


def follow(ports: Ports, run: str) -> None:
    """Show a run until it is over or Ctrl-C, without changing it."""
    with Display(ports, run) as display:
        while True:
            view = observe_run(ports, run)
            display.show(view)
            if view.state != RunState.ACTIVE and view.live is None:
                return
            ports.clock.sleep(_LOOK_S)


def print_log(ports: Ports, run: str, attempt: AttemptRecord, write: Callable[[str], object], *, follow: bool) -> None:
    """Print an attempt's log; with `follow`, keep printing until the attempt is over."""
    backend, ref = ports.backend(attempt.backend, run), ref_of(ports.runs.load(run), attempt)
    offset = 0
    while True:
        over = backend.observe(ref).sighting in (AttemptStatus.ENDED, AttemptStatus.MISSING)
        while True:
            text, offset = backend.read_log(ref, offset)
            if not text:
                break
            write(text)
        if over or not follow:
            return
        ports.clock.sleep(_LOOK_S)

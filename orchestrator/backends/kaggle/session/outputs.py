"""Brings here what a session leaves on Kaggle beside its checkpoints: its report, and its log."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from orchestrator.backends.kaggle.checkpoints.store import KaggleCheckpoints
from orchestrator.backends.kaggle.context import KaggleContext
from orchestrator.backends.kaggle.poll import Looks
from orchestrator.backends.kaggle.sightings import Look, Seen
from orchestrator.ports import AttemptRef
from state import files
from state.errors import DataError, GemmaOrchError, TemporaryError
from state.kaggle.names import attempt_dataset_slug
from state.kaggle.records import OutputFile
from state.layout import REPORT_NAME
from state.report import SessionReport

_FOLLOW_S = 3.0
_FOLLOW_PAUSE_S = 5.0  # following a log opens a stream that replays everything: not more often than people read


class Salvage:
    """Takes in what the attempts of one run leave behind, while they run and once they are over.

    Args:
        context: The run.
        checkpoints: The run's checkpoint store.
        looks: What was seen of its attempts.
    """

    def __init__(self, context: KaggleContext, checkpoints: KaggleCheckpoints, looks: Looks) -> None:
        self._api = context.api
        self._layout = context.layout
        self._clock = context.clock
        self._checkpoints = checkpoints
        self._looks = looks
        self._followed: dict[str, tuple[float, str]] = {}

    def take_in(self, ref: AttemptRef, seen: Seen) -> Seen:
        """Take in what a look has shown: new checkpoints, the report, what a session that is over left behind."""
        try:
            self._checkpoints.discovery.examine(ref.session, ref.attempt)
            if seen.report_at is None and self.find_report(ref):
                seen = self._looks.change(ref.session, ref.attempt, report_at=self._clock.now())
                if seen.ended is None:  # the report is its last act: it may be over
                    seen = self._looks.look(Look.STATUS, ref.session, ref.attempt, ref.handle)
            report = self.report(ref)
            missing = report is None or not self.is_delivered(report)
            if seen.ended is not None and missing and not seen.outputs_read:
                seen = self.read_outputs(ref)
        except GemmaOrchError:
            return seen  # what could not be had now is asked for again at the next look
        return seen

    def is_delivered(self, report: SessionReport) -> bool:
        """Return whether the checkpoint that a report names was found."""
        return report.head is None or self._checkpoints.is_known(report.head)

    def is_salvaged(self, ref: AttemptRef, seen: Seen, shown_at: datetime | None) -> bool:
        """Return whether all that a session that is over left behind was looked through.

        Args:
            ref: Which attempt.
            seen: What was seen of it.
            shown_at: From when on a look at its dataset shows all; None: it is not over.
        """
        looked = seen.dataset_at is not None and shown_at is not None and seen.dataset_at >= shown_at
        can_be_read = seen.ended is not None  # of a kernel that is not shown, no outputs are
        read = seen.outputs_read or not can_be_read
        return read and looked and self._checkpoints.discovery.has_examined(ref.session, ref.attempt)

    def find_report(self, ref: AttemptRef) -> bool:
        """Fetch the report from the attempt's dataset, where it is there; return whether it is here."""
        folder = self._layout.attempt(ref.session, ref.attempt)
        if folder.report.exists():
            return True
        version = self._checkpoints.discovery.report_version(ref.session, ref.attempt)
        if version is None:
            return False
        slug = attempt_dataset_slug(ref.run, ref.session, ref.attempt)
        fetch: Callable[[Path], object] = lambda target: self._api().download(slug, version, REPORT_NAME, target)  # noqa: E731
        return self._keep_report(ref, fetch)

    def read_outputs(self, ref: AttemptRef) -> Seen:
        """Look through what a session has left in its working folder: its log, its report, a checkpoint it could not upload.

        Raises:
            TemporaryError: Kaggle does not show it now.
        """
        kernel = self._looks.kernel(ref.session, ref.attempt, ref.handle)
        outputs = self._api().session_outputs(kernel.slug, kernel.version)
        if outputs is None and self._api().kernel(kernel.slug) is None:
            raise TemporaryError(f"Kaggle refuses to show the outputs of {kernel.slug} (403 or 404)")
        if outputs is None:
            return self._looks.seen(ref.session, ref.attempt)
        listed, log = outputs
        self._keep_log(ref, log)
        report = next((file for file in listed if file.name == REPORT_NAME), None)
        if report is not None and not self._layout.attempt(ref.session, ref.attempt).report.exists():
            self._keep_output_report(ref, report)
        self._checkpoints.discovery.take_outputs(ref.session, ref.attempt, kernel, listed)
        here = self._layout.attempt(ref.session, ref.attempt).report.exists()
        known = self._looks.seen(ref.session, ref.attempt)
        found_at = known.report_at or (self._clock.now() if here else None)
        # A list without anything may be one that lags: it is asked for again when the second look says that it is over.
        return self._looks.change(ref.session, ref.attempt, outputs_read=bool(listed) or known.ended_again, report_at=found_at)

    def report(self, ref: AttemptRef) -> SessionReport | None:
        """Return the report of an attempt, once observing it has found one."""
        try:
            data = self._layout.attempt(ref.session, ref.attempt).report.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return SessionReport.from_json(data, "the session's report")
        except DataError:
            return None  # an earlier version kept what this one does not take for a report

    def read_log(self, ref: AttemptRef, offset: int) -> tuple[str, int]:
        """Return what an attempt has printed from an offset on, in characters, and the offset after it.

        Raises:
            TemporaryError: Kaggle does not give it now.
        """
        text = self._log(ref)
        return text[offset:], max(offset, len(text))

    def _keep_report(self, ref: AttemptRef, fetch: Callable[[Path], object]) -> bool:
        folder = self._layout.attempt(ref.session, ref.attempt)
        files.make_folder(folder.root)
        with files.temporary_file(folder.report) as fetched:
            fetch(fetched)
            content = fetched.read_bytes()
        try:
            report = SessionReport.from_json(content, "the session's report")
        except DataError:
            return False
        if (report.run, report.session, report.attempt) != (ref.run, ref.session, ref.attempt):
            return False
        files.write_atomically(folder.report, content)
        return True

    def _keep_output_report(self, ref: AttemptRef, report: OutputFile) -> bool:
        return self._keep_report(ref, lambda target: self._api().download_output(report, target))

    def _log(self, ref: AttemptRef) -> str:
        path = self._layout.attempt(ref.session, ref.attempt).log
        if path.exists():
            return path.read_text(encoding="utf-8")
        kernel = self._looks.kernel(ref.session, ref.attempt, ref.handle)
        slug, version = kernel.slug, kernel.version
        seen = self._looks.seen(ref.session, ref.attempt)
        now_s = self._clock.monotonic()
        if slug in self._followed and now_s < self._followed[slug][0] + _FOLLOW_PAUSE_S:
            return self._followed[slug][1]
        text = ""
        if seen.ended is not None or seen.over is not None:
            outputs = self._api().session_outputs(slug, version)
            text = outputs[1] if outputs is not None else ""
            if text:
                self._keep_log(ref, text)
        elif seen.alive_at is not None or self._api().kernel(slug) is not None:
            text = self._api().follow_log(slug, version, for_s=_FOLLOW_S)
        before = self._followed.get(slug, (0.0, ""))[1]
        self._followed[slug] = (self._clock.monotonic(), text if len(text) >= len(before) else before)
        return self._followed[slug][1]

    def _keep_log(self, ref: AttemptRef, text: str) -> None:
        folder = self._layout.attempt(ref.session, ref.attempt)
        if text and self._looks.seen(ref.session, ref.attempt).ended is not None:
            files.make_folder(folder.root)
            files.write_atomically(folder.log, text.encode())

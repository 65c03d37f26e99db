"""Salvages what a session leaves on Kaggle: downloads its report and log, and finds the checkpoint in its output."""

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
_FOLLOW_PAUSE_S = 5.0  # to follow a log opens a stream that replays all of it: no more often than a reader needs


class Salvage:
    """Reads what the attempts of one run leave on the account, while they run and after they ended.

    Args:
        context: The run.
        checkpoints: The run's checkpoint store.
        looks: Polls the run's attempts.
    """

    def __init__(self, context: KaggleContext, checkpoints: KaggleCheckpoints, looks: Looks) -> None:
        self._api = context.api
        self._layout = context.layout
        self._clock = context.clock
        self._checkpoints = checkpoints
        self._looks = looks
        self._followed: dict[str, tuple[float, str]] = {}

    def take_in(self, ref: AttemptRef, seen: Seen) -> Seen:
        """Read what a poll has shown to be new: checkpoints, the report, and the output of an ended session."""
        try:
            self._checkpoints.discovery.examine(ref.session, ref.attempt)
            if seen.report_at is None and self.find_report(ref):
                seen = self._looks.change(ref.session, ref.attempt, report_at=self._clock.now())
                if seen.ended is None:  # the report is its last act: it may have ended
                    seen = self._looks.look(Look.STATUS, ref.session, ref.attempt, ref.handle)
            report = self.report(ref)
            missing = report is None or not self.is_delivered(report)
            if seen.ended is not None and missing and not seen.outputs_read:
                seen = self.read_outputs(ref)
        except GemmaOrchError:
            return seen  # the next poll tries again
        return seen

    def is_delivered(self, report: SessionReport) -> bool:
        """Return whether the last checkpoint that a report names was found; true if it names none."""
        return report.head is None or self._checkpoints.is_known(report.head)

    def is_salvaged(self, ref: AttemptRef, seen: Seen, shown_at: datetime | None) -> bool:
        """Return whether the dataset and the output of an ended session were read to the end.

        Args:
            ref: The attempt.
            seen: What the polls showed of it.
            shown_at: The moment from which a read of its dataset shows everything; None: it has not ended.
        """
        looked = seen.dataset_at is not None and shown_at is not None and seen.dataset_at >= shown_at
        can_be_read = seen.ended is not None  # Kaggle shows no outputs of a refused kernel
        read = seen.outputs_read or not can_be_read
        return read and looked and self._checkpoints.discovery.has_examined(ref.session, ref.attempt)

    def find_report(self, ref: AttemptRef) -> bool:
        """Download the report from the attempt's dataset, if it is there; return whether it is on this machine now."""
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
        """Read a kernel's output: the log, the report, and a checkpoint that the session could not upload.

        Raises:
            TemporaryError: Kaggle does not show the output now.
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
        # An empty list may be stale: it is read again after a second poll has confirmed the end.
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
            return None  # an earlier version stored a file that this one does not accept as a report

    def read_log(self, ref: AttemptRef, offset: int) -> tuple[str, int]:
        """Return an attempt's log from an offset on, in characters, and the offset of its end.

        Raises:
            TemporaryError: Kaggle does not show the log now.
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

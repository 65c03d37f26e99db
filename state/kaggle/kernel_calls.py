"""The calls about kernels, their sessions and the quota."""

from __future__ import annotations

import json
from datetime import datetime

from state.errors import AmbiguousError, TemporaryError
from state.kaggle import answers
from state.kaggle.answers import log_text, refusal
from state.kaggle.calls import Calls, slug_of
from state.kaggle.errors import InvalidSourcesError, KaggleQuotaError
from state.kaggle.failures import LostError, RefusedError, SilentError, lines
from state.kaggle.records import AcceleratorQuota, KernelInfo, KernelPush, OutputFile, SessionStatus
from state.kaggle.sdk_requests import Enumerated

_KERNELS_A_PAGE = 100  # the server's own limits
_FILES_A_PAGE = 200
_END_OF_LOG = "END_OF_LOG"


class KernelCalls(Calls):
    """See `KaggleApi`."""

    def push_kernel(self, push: KernelPush) -> int:
        """Save a kernel and start its session; return the version's number.

        Raises:
            AmbiguousError: it is unknown whether the session runs.
            InvalidSourcesError: the session runs, but without some of its inputs.
            BusyError: the account's limit of running sessions is reached.
            KaggleQuotaError: the week's accelerator hours are used up.
            UserError: Kaggle refuses the request.
        """
        what = f"starting kernel {push.slug}"
        answer = self._transport.write(
            what,
            answers.SaveKernelAnswer,
            "kernels",
            "save_kernel",
            slug=f"{self.user}/{push.slug}",
            new_title=push.slug,
            text=push.source,
            language="python",
            kernel_type="script",
            is_private=True,
            enable_internet=push.internet,
            machine_shape=push.machine_shape,
            session_timeout_seconds=push.timeout_s,
            dataset_data_sources=list(push.dataset_sources),
            kernel_data_sources=list(push.kernel_sources),
        )
        if answer.error:
            raise self._with_refresh(refusal(what, answer.error))
        if not answer.version_number or answer.version_number < 0:
            raise AmbiguousError(
                f"whether {what} happened is unknown: no error, and version {answer.version_number}",
                remedy="look before trying again",
            )
        if answer.invalid_sources:
            raise InvalidSourcesError(push.slug, answer.version_number, answer.invalid_sources)
        return answer.version_number

    def kernel(self, slug: str, *, owner: str | None = None) -> KernelInfo | None:
        """Return a kernel with its source, or None if it is missing."""
        what = f"looking at kernel {slug}"
        fields = {"user_name": owner or self.user, "kernel_slug": slug}
        answer = self._transport.read(what, answers.KernelAnswer, "kernels", "get_kernel", **fields)
        if answer is None:
            return None
        if slug_of(answer.metadata.ref) != slug or not answer.metadata.current_version_number:
            raise TemporaryError(f"{what} failed: the answer is about {answer.metadata.ref!r}, or names no version")
        return _kernel_info(answer.metadata, answer.blob.source if answer.blob is not None else None)

    def session_status(self, slug: str, version: int) -> SessionStatus | None:
        """Return the status of a version's session, or None if it is missing."""
        what = f"asking for the status of kernel {slug} version {version}"
        fields = {"user_name": self.user, "kernel_slug": slug, "version_label": f"v{version}"}
        answer = self._transport.read(what, answers.StatusAnswer, "kernels", "get_kernel_session_status", **fields)
        if answer is None:
            return None
        if answer.status is None:
            raise TemporaryError(f"{what} failed: the answer names no status")
        return answers.session_status(answer.status)

    def session_outputs(self, slug: str, version: int) -> tuple[tuple[OutputFile, ...], str] | None:
        """Return a session's output files and its log, or None if the session is missing."""
        what = f"listing the outputs of kernel {slug} version {version}"
        fields = {"user_name": self.user, "kernel_slug": slug, "version_label": f"v{version}", "page_size": _FILES_A_PAGE}
        pages = self._pages(what, answers.OutputPage, "kernels", "list_kernel_session_output", fields)
        if pages is None:
            return None
        files = tuple(OutputFile(file.file_name, file.url) for page in pages for file in page.files)
        return files, log_text(pages[0].log or "")

    def follow_log(self, slug: str, version: int, *, for_s: float) -> str:
        """Return a session's log from its beginning, and what it prints within `for_s`; empty while the session is queued.

        Args:
            slug: The kernel's slug.
            version: The kernel's version.
            for_s: Seconds after which to stop reading; the log of an ended session is returned at once.

        Raises:
            TemporaryError: the log could not be opened.
        """
        what = f"following the log of kernel {slug} version {version}"
        ends_at = self._clock.monotonic() + for_s
        found: list[str] = []
        try:
            with self._transport.log_stream(self.user, slug, f"v{version}", max(for_s, 0.1)) as response:
                if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
                    return log_text("\n".join(lines(response)))
                try:
                    for line in lines(response):
                        payload = line.removeprefix("data:").strip()
                        if payload == _END_OF_LOG:
                            break
                        if line.startswith("data:"):
                            found.append(_event_text(payload))
                        if self._clock.monotonic() >= ends_at:
                            break
                except LostError:  # the session is silent, or the stream broke: return the lines so far
                    return "".join(found)
        except RefusedError as error:
            if error.says_missing:
                return ""
            raise self._transport.failed_read(what, error) from None
        except SilentError:  # Kaggle sends no answer at all until the session prints something
            return ""
        except LostError as error:
            raise TemporaryError(f"{what} failed: {error}") from None
        return "".join(found)

    def delete_kernel(self, slug: str) -> None:
        """Delete a kernel with all its versions, and poll until it is gone; a missing kernel is no error.

        Raises:
            TemporaryError: it still exists, or whether it exists is unknown.
            DeniedError: these credentials may not delete it.
        """
        fields = {"user_name": self.user, "kernel_slug": slug}
        self._delete(
            f"deleting kernel {slug}",
            "kernels",
            "delete_kernel",
            fields,
            is_shown=lambda: self.kernel(slug) is not None,
            is_listed=lambda: any(kernel.slug == slug for kernel in self.kernels(slug)),
        )

    def kernels(self, prefix: str) -> tuple[KernelInfo, ...]:
        """Return the account's kernels whose slug starts with the prefix."""
        fields = {
            "user": self.user,
            "group": Enumerated("KernelsListViewType", "PROFILE"),
            "sort_by": Enumerated("KernelsListSortType", "DATE_CREATED"),
            "page_size": _KERNELS_A_PAGE,
        }
        pages = self._pages("listing the kernels", answers.KernelsPage, "kernels", "list_kernels", fields)
        if pages is None:
            raise TemporaryError("listing the kernels failed: Kaggle says that the list is missing")
        found = [_kernel_info(kernel, None) for page in pages for kernel in page.kernels]
        return tuple(kernel for kernel in found if kernel.slug.startswith(prefix))

    def quota(self) -> AcceleratorQuota:
        """Return the week's GPU quota: used, reserved, allowed, and when it is refreshed.

        Raises:
            TemporaryError: Kaggle did not answer.
        """
        what = "asking for the accelerator quota"
        answer = self._transport.read(what, answers.QuotaAnswer, "kernels", "get_accelerator_quota_statistics")
        if answer is None:
            raise TemporaryError(f"{what} failed: Kaggle says that the quota is missing")
        gpu = answer.gpu_quota or answers.GpuQuota()
        return AcceleratorQuota(answer.quota_refresh_time, gpu.time_used, gpu.time_reserved, gpu.total_time_allowed)

    def server_time(self) -> datetime | None:
        """Return the time of Kaggle's servers, to the second, or None if their answer has no valid Date header.

        Raises:
            TemporaryError: Kaggle did not answer.
        """
        self.quota()  # any call would do: only its Date header counts
        return self._transport.answered_at()

    def _with_refresh(self, error: Exception) -> Exception:
        """Add the moment of the quota's refresh to a KaggleQuotaError, if Kaggle answers; return other errors unchanged."""
        if not isinstance(error, KaggleQuotaError):
            return error
        try:
            until = self.quota().refresh_at
        except TemporaryError:
            return error
        return KaggleQuotaError(error.what, until=until, expected=error.expected, remedy=error.remedy)


def _kernel_info(metadata: answers.KernelMetadata, source: str | None) -> KernelInfo:
    version = metadata.current_version_number or 0
    return KernelInfo(slug_of(metadata.ref), version, metadata.machine_shape, source, metadata.last_run_time)


def _event_text(payload: str) -> str:
    """Return the text of a line of a log stream, which usually is JSON with the text under `data`."""
    try:
        event = json.loads(payload)
    except ValueError:
        return payload
    return str(event.get("data", "")) if isinstance(event, dict) else payload

"""The HTTP adapter with timeouts; a module of its own, so that only a process that calls Kaggle imports requests."""

from __future__ import annotations

from typing import Any

from requests import PreparedRequest, Response
from requests.adapters import HTTPAdapter


class TimedAdapter(HTTPAdapter):
    """Sets the timeouts of requests that have none: kagglesdk sets none, and would wait for ever."""

    def __init__(self, timeouts: tuple[float, float]) -> None:
        super().__init__(max_retries=0)
        self._timeouts = timeouts

    def send(
        self,
        request: PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> Response:
        """Send a request, with these timeouts unless it has its own."""
        limits = self._timeouts if timeout is None else timeout
        return super().send(request, stream=stream, timeout=limits, verify=verify, cert=cert, proxies=proxies)
